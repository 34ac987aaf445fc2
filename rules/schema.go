package rules

import (
	"encoding/json"
	"strings"
)

// draft is the dialect of the published schemas.
const draft = "https://json-schema.org/draft/2020-12/schema"

// schema is a JSON Schema: the keywords that verdictd uses, in the order in
// which they are written. OPA's type checker reads all of them.
type schema struct {
	Dialect     string             `json:"$schema,omitempty"`
	Title       string             `json:"title,omitempty"`
	Description string             `json:"description,omitempty"`
	Type        string             `json:"type,omitempty"`
	Enum        []string           `json:"enum,omitempty"`
	AnyOf       []schema           `json:"anyOf,omitempty"`
	Format      string             `json:"format,omitempty"`
	MinLength   int                `json:"minLength,omitempty"`
	Minimum     *int64             `json:"minimum,omitempty"`
	Maximum     *int64             `json:"maximum,omitempty"`
	Default     any                `json:"default,omitempty"`
	Required    []string           `json:"required,omitempty"`
	Additional  *bool              `json:"additionalProperties,omitempty"`
	Properties  map[string]*schema `json:"properties,omitempty"`
	Patterns    map[string]*schema `json:"patternProperties,omitempty"`
	Items       *schema            `json:"items,omitempty"`
	MinItems    int                `json:"minItems,omitempty"`
}

// Schema returns the JSON Schema (draft 2020-12) of the input document: what
// a policy sees as input. It is made from Fields, indented, and the same to
// the byte each time.
func Schema() []byte {
	root := object("verdictd input", "The facts of one packet. A field that the packet does not have is absent.")
	root.Dialect = draft
	for _, f := range Fields() {
		root.put(f)
	}
	return root.encode()
}

// DecisionSchema returns the JSON Schema (draft 2020-12) of the decision that
// a policy makes: the value of data.verdictd.decision.
func DecisionSchema() []byte {
	root := object("verdictd decision", "What a policy says about one packet.")
	root.Dialect = draft
	root.Required = []string{"verdict"}
	root.Properties = map[string]*schema{
		"verdict": {Type: "string", Enum: []string{"accept", "drop", "reject"},
			Description: "accept lets the packet pass, drop discards it, reject discards it and tells its sender."},
		"rule": {Type: "string", MinLength: 1, Default: "decision",
			Description: "Name of the rule that decided, for the audit log."},
		"reason": {Type: "string", Description: "Why, in the author's words, for the audit log."},
		"log":    {Type: "boolean", Default: true, Description: "Whether to write an audit record."},
		"mark":   integer("Packet mark to set; absent leaves the mark as it is.", 1<<32-1),
	}
	return root.encode()
}

func object(title, description string) *schema {
	closed := false
	return &schema{Title: title, Description: description, Type: "object", Additional: &closed, Properties: map[string]*schema{}}
}

func integer(description string, greatest int64) *schema {
	least := int64(0)
	return &schema{Type: "integer", Description: description, Minimum: &least, Maximum: &greatest}
}

// put adds field f at its place below s, with the objects that lead there.
func (s *schema) put(f Field) {
	path := strings.Split(f.Path, ".")
	last := len(path) - 1
	for _, key := range path[:last] {
		child, ok := s.Properties[key]
		if !ok {
			child = object("", "")
			s.Properties[key] = child
		}
		s = child
	}
	s.Properties[path[last]] = f.schema()
}

func (f Field) schema() *schema {
	switch f.Kind {
	case Bool:
		return &schema{Type: "boolean", Description: f.Doc}
	case Int:
		return integer(f.Doc, f.Max)
	case Addr:
		return &schema{Description: f.Doc, AnyOf: []schema{{Type: "string", Format: "ipv4"}, {Type: "string", Format: "ipv6"}}}
	default:
		return &schema{Type: "string", Description: f.Doc, Enum: f.Enum}
	}
}

// encode cannot fail: a schema holds nothing that JSON has no form for.
func (s *schema) encode() []byte {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic("rules: encode schema: " + err.Error())
	}
	return append(text, '\n')
}
