package policy

import (
	"errors"
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// The rules of package verdictd that make a decision.
const (
	decisionRule = "decision"
	verdictRule  = "verdict"
	defaultRule  = "default" // the rule named where a policy decides nothing
)

// decodeDecision fills in d from the value of rule decision. d.Reads is left
// as it is.
func decodeDecision(v ast.Value, d *rules.Decision) error {
	obj, ok := v.(ast.Object)
	if !ok {
		return fmt.Errorf(`decision is %s, want an object such as {"verdict": "accept", "rule": "web"}`, describe(v))
	}
	*d = rules.Decision{Rule: decisionRule, Log: true, Reads: d.Reads}
	var hasVerdict bool
	err := obj.Iter(func(key, value *ast.Term) error {
		name, ok := key.Value.(ast.String)
		if !ok {
			return fmt.Errorf("decision has the key %s, want strings as keys", describe(key.Value))
		}
		hasVerdict = hasVerdict || name == verdictRule
		return decodeKey(string(name), value.Value, d)
	})
	if err != nil {
		return err
	}
	if !hasVerdict {
		return errors.New(`decision has no key "verdict", want "accept", "drop" or "reject"`)
	}
	return nil
}

// decodeVerdict fills in d from the value of rule verdict, the simple form.
func decodeVerdict(v ast.Value, d *rules.Decision) error {
	*d = rules.Decision{Rule: verdictRule, Log: true, Reads: d.Reads}
	var err error
	d.Action, err = action(v)
	return err
}

func decodeKey(key string, v ast.Value, d *rules.Decision) (err error) {
	switch key {
	case "verdict":
		d.Action, err = action(v)
	case "rule":
		d.Rule, err = text(key, v)
		if err == nil && d.Rule == "" {
			err = errors.New("decision.rule is empty, want the rule's name or no such key")
		}
	case "reason":
		d.Reason, err = text(key, v)
	case "log":
		b, ok := v.(ast.Boolean)
		if !ok {
			return fmt.Errorf("decision.log is %s, want true or false", describe(v))
		}
		d.Log = bool(b)
	case "mark":
		d.SetMark = true
		d.Mark, err = mark(v)
	default:
		return fmt.Errorf("decision has the key %q, want verdict, rule, reason, log or mark", key)
	}
	return err
}

func action(v ast.Value) (packet.Action, error) {
	if s, ok := v.(ast.String); ok {
		for _, a := range []packet.Action{packet.Accept, packet.Drop, packet.Reject} {
			if string(s) == a.String() {
				return a, nil
			}
		}
	}
	return packet.Drop, fmt.Errorf(`verdict is %s, want "accept", "drop" or "reject"`, describe(v))
}

func text(key string, v ast.Value) (string, error) {
	s, ok := v.(ast.String)
	if !ok {
		return "", fmt.Errorf("decision.%s is %s, want a string", key, describe(v))
	}
	return string(s), nil
}

func mark(v ast.Value) (uint32, error) {
	if n, ok := v.(ast.Number); ok {
		if i, ok := n.Int64(); ok && i >= 0 && i <= 1<<32-1 {
			return uint32(i), nil
		}
	}
	return 0, fmt.Errorf("decision.mark is %s, want an integer from 0 to 4294967295", describe(v))
}

// describe returns a value as messages show it: scalars as they are written,
// the rest by type.
func describe(v ast.Value) string {
	switch v := v.(type) {
	case ast.String, ast.Number, ast.Boolean, ast.Null:
		if s := v.String(); len(s) <= 80 {
			return s
		}
	}
	if name := ast.ValueName(v); name == "object" || name == "array" {
		return "an " + name
	}
	return "a " + ast.ValueName(v)
}

// checkConstants checks what the heads of decision and verdict give as
// constants, so that a misspelt verdict is found when the policy is loaded and
// not when the first packet meets the rule.
func checkConstants(m *ast.Module) Errors {
	var errs Errors
	ast.WalkRules(m, func(r *ast.Rule) bool {
		if err := checkHead(r.Head); err != nil {
			errs = append(errs, errorAt(headLocation(r), err.Error(), ""))
		}
		return false
	})
	return errs
}

func headLocation(r *ast.Rule) *ast.Location {
	if r.Head.Value != nil && r.Head.Value.Location != nil {
		return r.Head.Value.Location
	}
	return r.Location
}

func checkHead(h *ast.Head) error {
	if h.Value == nil || len(h.Args) > 0 {
		return nil
	}
	var d rules.Decision
	ref := h.Ref()
	switch {
	case len(ref) == 1 && ref[0].Value.Compare(ast.Var(verdictRule)) == 0 && ast.IsConstant(h.Value.Value):
		return decodeVerdict(h.Value.Value, &d)
	case len(ref) == 1 && ref[0].Value.Compare(ast.Var(decisionRule)) == 0:
		return checkObject(h.Value.Value, &d)
	case len(ref) == 2 && ref[0].Value.Compare(ast.Var(decisionRule)) == 0 && ast.IsConstant(h.Value.Value):
		if key, ok := ref[1].Value.(ast.String); ok {
			return decodeKey(string(key), h.Value.Value, &d)
		}
	}
	return nil
}

// checkObject checks the value of a decision rule as far as it is constant.
func checkObject(v ast.Value, d *rules.Decision) error {
	if ast.IsConstant(v) {
		return decodeDecision(v, d)
	}
	obj, ok := v.(ast.Object)
	if !ok {
		return nil
	}
	return obj.Iter(func(key, value *ast.Term) error {
		name, ok := key.Value.(ast.String)
		if !ok {
			return nil
		}
		if ast.IsConstant(value.Value) {
			return decodeKey(string(name), value.Value, d)
		}
		if !isKey(string(name)) {
			return decodeKey(string(name), ast.Null{}, d)
		}
		return nil
	})
}

func isKey(name string) bool {
	switch name {
	case "verdict", "rule", "reason", "log", "mark":
		return true
	}
	return false
}
