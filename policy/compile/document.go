package compile

import (
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/rules"
)

// node is a place in the input document: an object, or a leaf that is a field
// of the facts. Nothing exists beside the fields: the document is closed.
type node struct {
	leaf     bool
	always   bool // the object is there even if all of its fields are absent: the root
	field    int  // index in fields, valid iff leaf
	names    []string
	children map[string]*node // valid iff not leaf
}

// newDocument builds the input document of fields.
func newDocument(fields []rules.Field) (*node, error) {
	root := &node{always: true, children: map[string]*node{}}
	if len(fields) > 64*len(rules.FieldSet{}) {
		return nil, fmt.Errorf("build input document: %d fields, at most %d fit into a rules.FieldSet", len(fields), 64*len(rules.FieldSet{}))
	}
	for i, f := range fields {
		n := root
		for name := range strings.SplitSeq(f.Path, ".") {
			if n.leaf {
				return nil, fmt.Errorf("build input document: field %s lies below another field", f.Path)
			}
			n = n.child(name)
		}
		if n.leaf || len(n.children) > 0 {
			return nil, fmt.Errorf("build input document: field %s is there twice or has fields below it", f.Path)
		}
		n.leaf, n.field = true, i
	}
	return root, nil
}

func (n *node) child(name string) *node {
	c, ok := n.children[name]
	if !ok {
		c = &node{children: map[string]*node{}}
		n.children[name] = c
		n.names = append(n.names, name)
	}
	return c
}

// present returns whether anything of n is there: an object of which every
// field is absent is absent too.
func (n *node) present(m *machine) bool {
	if n.leaf {
		return m.load(n.field)
	}
	if n.always {
		return true
	}
	for _, name := range n.names {
		if n.children[name].present(m) {
			return true
		}
	}
	return false
}

// value builds n as a Rego value, or returns nil if it is absent. It reads
// every field below n.
func (n *node) value(m *machine) ast.Value {
	if n.leaf {
		return m.fieldValue(n.field)
	}
	obj := ast.NewObject()
	for _, name := range n.names {
		if v := n.children[name].value(m); v != nil {
			obj.Insert(ast.StringTerm(name), ast.NewTerm(v))
		}
	}
	if obj.Len() == 0 && !n.always {
		return nil
	}
	return obj
}
