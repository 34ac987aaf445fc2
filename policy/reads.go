package policy

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/rules"
)

// readSet returns every field that some rule of the compiled modules can read.
//
// It follows no data flow, so it may name too much but never too little: the
// fields of a reference are those below its constant beginning. input.tcp.dst_port
// is one field; input.tcp[name], x := input.tcp and f(input.tcp) are all below
// input.tcp; input alone is all there are. What stands after with on the left
// is replaced, not read.
func readSet(modules map[string]*ast.Module, fields []rules.Field) rules.FieldSet {
	r := &reader{fields: fields}
	for _, m := range modules {
		r.visit(m)
	}
	return r.reads
}

type reader struct {
	fields []rules.Field
	reads  rules.FieldSet
}

// visit adds what is read in x, any part of a module.
func (r *reader) visit(x any) {
	ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case *ast.Import:
			return true // an alias: the compiler has put it in where it is used
		case *ast.With:
			r.visit(x.Value)
			return true
		case ast.Ref:
			r.ref(x)
			return true
		case ast.Var:
			if x.Equal(ast.InputRootDocument.Value) {
				r.below("")
			}
		}
		return false
	}).Walk(x)
}

func (r *reader) ref(ref ast.Ref) {
	for _, t := range ref[1:] {
		r.visit(t)
	}
	if !ref[0].Equal(ast.InputRootDocument) {
		r.visit(ref[0])
		return
	}
	path := inputPath(ref)
	r.below(path)
}

// inputPath returns the constant beginning of a reference to input, as a
// field's path has it.
func inputPath(ref ast.Ref) string {
	var keys []string
	for _, t := range ref[1:] {
		key, ok := t.Value.(ast.String)
		if !ok {
			break
		}
		keys = append(keys, string(key))
	}
	return strings.Join(keys, ".")
}

// below adds all fields at or below path. A path that goes on below a field
// reads that field.
func (r *reader) below(path string) {
	for i := range r.fields {
		field := r.fields[i].Path
		if path == "" || field == path || strings.HasPrefix(field, path+".") || strings.HasPrefix(path, field+".") {
			r.reads.Add(i)
		}
	}
}

// paths returns the paths of the fields in set, sorted.
func paths(fields []rules.Field, set rules.FieldSet, keep func(*rules.Field) bool) []string {
	names := []string{}
	for i := range fields {
		if set.Has(i) && keep(&fields[i]) {
			names = append(names, fields[i].Path)
		}
	}
	slices.Sort(names)
	return names
}
