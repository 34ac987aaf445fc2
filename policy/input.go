package policy

import (
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/rules"
)

// inputPlan builds the Rego input document of a packet: the fields that the
// policy reads and no more. Its keys are made once. It is immutable.
type inputPlan struct {
	fields []rules.Field
	root   planNode
}

// planNode is a place in the input document: a field, or an object of places.
type planNode struct {
	key      *ast.Term
	field    int // index in inputPlan.fields, valid iff there are no children
	children []planNode
}

// maxFanOut is how many keys an object of the input document can have. It
// sizes an array on the stack; newInputPlan checks it.
const maxFanOut = 32

func newInputPlan(fields []rules.Field, reads rules.FieldSet) *inputPlan {
	p := &inputPlan{fields: fields}
	for i := range fields {
		if reads.Has(i) {
			p.root.put(strings.Split(fields[i].Path, "."), i)
		}
	}
	return p
}

func (n *planNode) put(path []string, field int) {
	if len(path) == 0 {
		n.field = field
		return
	}
	for i := range n.children {
		if n.children[i].key.Value.Compare(ast.String(path[0])) == 0 {
			n.children[i].put(path[1:], field)
			return
		}
	}
	if len(n.children) == maxFanOut {
		panic("policy: an object of the input document has more than 32 keys: raise maxFanOut")
	}
	n.children = append(n.children, planNode{key: ast.StringTerm(path[0])})
	n.children[len(n.children)-1].put(path[1:], field)
}

// build returns the input document of f. It keeps nothing of f. v is scratch
// space.
func (p *inputPlan) build(f *rules.Facts, v *rules.Value) *ast.Term {
	if t := p.object(&p.root, f, v); t != nil {
		return t
	}
	return ast.InternedEmptyObject
}

// object returns the object at n, or nil if the packet has none of its fields.
func (p *inputPlan) object(n *planNode, f *rules.Facts, v *rules.Value) *ast.Term {
	var pairs [maxFanOut][2]*ast.Term
	count := 0
	for i := range n.children {
		child := &n.children[i]
		var t *ast.Term
		if len(child.children) > 0 {
			t = p.object(child, f, v)
		} else if field := &p.fields[child.field]; field.Get(f, v) {
			t = term(field.Kind, v)
		}
		if t != nil {
			pairs[count] = [2]*ast.Term{child.key, t}
			count++
		}
	}
	if count == 0 {
		return nil
	}
	return ast.ObjectTerm(pairs[:count]...)
}

func term(kind rules.Kind, v *rules.Value) *ast.Term {
	switch kind {
	case rules.Bool:
		return ast.InternedTerm(v.Int != 0)
	case rules.Int:
		return ast.InternedTerm(v.Int)
	case rules.Addr:
		return ast.StringTerm(v.Addr.String())
	default:
		return ast.StringTerm(v.Str)
	}
}
