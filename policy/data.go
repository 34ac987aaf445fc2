package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/open-policy-agent/opa/v1/ast"
)

// data returns the documents of the policy's data files as one object: the
// base document below data. A file's directory is its path in it, as OPA has
// it for directories given with --data.
func data(files []file) (ast.Object, Errors) {
	root := ast.NewObject()
	var errs Errors
	for i := range files {
		f := &files[i]
		if f.plain || f.isRego() || f.isManifest() {
			continue
		}
		doc, err := decodeData(f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		merged, ok := root.Merge(below(path.Dir(f.name), doc))
		if !ok {
			errs = append(errs, fileError(f.shown, "gives a value to a key that another data file of the same directory gives one too", "keep each key in one file"))
			continue
		}
		root = merged
	}
	return root, errs
}

// below wraps doc in the objects that lead to dir.
func below(dir string, doc ast.Object) ast.Object {
	if dir == "." {
		return doc
	}
	keys := strings.Split(dir, "/")
	for i := len(keys) - 1; i >= 0; i-- {
		doc = ast.NewObject([2]*ast.Term{ast.StringTerm(keys[i]), ast.NewTerm(doc)})
	}
	return doc
}

func decodeData(f *file) (ast.Object, *Error) {
	decode := decodeYAML
	if path.Ext(f.name) == ".json" {
		decode = decodeJSON
	}
	raw, derr := decode(f)
	if derr != nil {
		return nil, derr
	}
	value, err := ast.InterfaceToValue(raw)
	if err != nil {
		return nil, fileError(f.shown, "data file: "+err.Error(), "")
	}
	doc, ok := value.(ast.Object)
	if !ok {
		return nil, &Error{File: f.shown, Line: 1, Col: 1, Msg: fmt.Sprintf("data file holds one %s, not an object", ast.ValueName(value)),
			Hint: "give it a name: {\"blocked\": [...]} is found as data.blocked"}
	}
	return doc, nil
}

func decodeJSON(f *file) (any, *Error) {
	d := json.NewDecoder(bytes.NewReader(f.content))
	d.UseNumber()
	var doc any
	err := d.Decode(&doc)
	if err == nil {
		// A second value, or anything else, must not follow.
		if _, err = d.Token(); err == io.EOF {
			return doc, nil
		}
		line, col := position(f.content, int(d.InputOffset()))
		return nil, &Error{File: f.shown, Line: line, Col: col, Msg: "data file goes on after its JSON value", Hint: "one object per file"}
	}
	at := len(f.content)
	if serr, ok := errors.AsType[*json.SyntaxError](err); ok {
		at = int(serr.Offset) - 1
	}
	line, col := position(f.content, at)
	return nil, &Error{File: f.shown, Line: line, Col: col, Msg: "not JSON: " + strings.TrimPrefix(err.Error(), "json: ")}
}

func decodeYAML(f *file) (any, *Error) {
	var doc any
	err := yaml.Unmarshal(f.content, &doc)
	if err == nil {
		return normal(doc), nil
	}
	out := fileError(f.shown, "not YAML: "+err.Error(), "")
	yerr, ok := errors.AsType[yaml.Error](err)
	if !ok {
		return nil, out
	}
	out.Msg = "not YAML: " + yerr.GetMessage()
	if tok := yerr.GetToken(); tok != nil && tok.Position != nil {
		out.Line, out.Col = tok.Position.Line, tok.Position.Column
	}
	return nil, out
}

// normal returns a YAML document in the types that JSON has: keys that are not
// strings become strings, and integers json.Numbers.
func normal(doc any) any {
	switch v := doc.(type) {
	case map[string]any:
		for key, value := range v {
			v[key] = normal(value)
		}
	case map[any]any:
		out := make(map[string]any, len(v))
		for key, value := range v {
			out[fmt.Sprint(key)] = normal(value)
		}
		return out
	case []any:
		for i := range v {
			v[i] = normal(v[i])
		}
	case int64, uint64, int:
		return json.Number(fmt.Sprint(v))
	}
	return doc
}
