package rules

import (
	"maps"
	"slices"
)

// PlainSchema returns the JSON Schema (draft 2020-12) of rules files, for
// editors. It is made from the conditions there are, indented, and the same to
// the byte each time. It knows keys and forms; whether a set exists or a
// network is right, ParsePlain says.
func PlainSchema() []byte {
	verdicts := []string{"accept", "drop", "reject", delegateVerdict}
	rule := object("", "One rule. All of its conditions must hold.")
	rule.Required = []string{"name", "verdict"}
	conditionsNot := object("", "None of these conditions may hold.")
	for _, c := range conditions() {
		rule.Properties[c.key] = c.schema()
		conditionsNot.Properties[c.key] = c.schema()
	}
	outcome := outcomeSchema(verdicts)
	maps.Copy(rule.Properties, outcome)
	rule.Properties["name"] = &schema{Type: "string", MinLength: 1, Description: "Name of the rule, for the audit log. No two rules have the same."}
	rule.Properties["not"] = conditionsNot

	last := object("", "")
	last.Required = []string{"verdict"}
	last.Properties = outcome

	root := object("verdictd rules", "Rules for packets, in order: the first that matches decides.")
	root.Dialect = draft
	root.Properties = map[string]*schema{
		"essential": {Type: "boolean", Description: "Accept, behind the rules of the file, what a host needs to stay on its network: neighbour discovery, IGMP, MLD, DHCP, and mDNS and SSDP with their answers."},
		"include":   {Description: "Files whose sets are known here and whose rules come first, relative to this file.", AnyOf: oneOrList(schema{Type: "string"})},
		"sets": {Type: "object", Description: "Named sets of addresses, ports or names. A rule asks for a set as $NAME.", Additional: rule.Additional,
			Patterns: map[string]*schema{"^[A-Za-z][A-Za-z0-9_-]*$": {AnyOf: oneOrList(scalarSchemas()...)}}},
		"rules": {Type: "array", Description: "The rules, in the order in which they are tried.", Items: rule},
		"default": {Description: "What happens where no rule matches.", Default: "drop",
			AnyOf: []schema{{Type: "string", Enum: verdicts}, *last}},
	}
	return root.encode()
}

// outcomeSchema returns what a rule and the default have in common.
func outcomeSchema(verdicts []string) map[string]*schema {
	return map[string]*schema{
		"verdict": {Type: "string", Enum: verdicts,
			Description: "accept lets the packet pass, drop discards it, reject discards it and tells its sender, delegate asks the Rego rule delegated."},
		"log":    {Type: "boolean", Default: true, Description: "Whether to write an audit record."},
		"reason": {Type: "string", Description: "Why, for the audit log."},
		"set-mark": {Description: "Packet mark to set.",
			AnyOf: []schema{*integer("", 1<<32-1), {Type: "string"}}},
	}
}

func scalarSchemas() []schema {
	return []schema{{Type: "string"}, {Type: "integer"}, {Type: "boolean"}}
}

// oneOrList returns what allows one of forms, or a list of them.
func oneOrList(forms ...schema) []schema {
	list := schema{Type: "array", MinItems: 1, Items: &schema{AnyOf: forms}}
	if len(forms) == 1 {
		list.Items = &forms[0]
	}
	return append(slices.Clone(forms), list)
}

// schema returns the schema of a condition's values.
func (c *condition) schema() *schema {
	doc := c.fields[0].Doc
	set := schema{Type: "string", Description: "a name, a range, or $NAME of a set"}
	switch {
	case c.kind() == Bool:
		return &schema{Type: "boolean", Description: doc}
	case c.key == "time":
		set.Description = "UTC, such as 08:00-18:00 or 22:00-06:00"
		return &schema{Description: "Time of day, UTC.", AnyOf: oneOrList(set)}
	case c.kind() == Int && !c.nameOnly:
		number := integer("", c.fields[0].Max)
		return &schema{Description: doc, AnyOf: oneOrList(*number, set)}
	case c.kind() == Int:
		set.Description = "one of " + either(slices.Sorted(maps.Keys(c.names))) + ", or $NAME of a set"
	case c.kind() == Addr:
		set.Description = "an address, a network, or $NAME of a set"
	case c.key == "proto":
		return &schema{Description: doc, AnyOf: oneOrList(*integer("", 255), set)}
	}
	return &schema{Description: doc, AnyOf: oneOrList(set)}
}
