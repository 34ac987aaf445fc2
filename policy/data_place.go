package policy

import (
	"bytes"
	"encoding/json"
	"path"
	"strings"

	yamlast "github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/open-policy-agent/opa/v1/ast"
)

// dataPlace returns an Error at the place of what a data file gives at keys
// below data: its key in an object, the element itself in a list.
func (p *program) dataPlace(keys []*ast.Term) *Error {
	for i := range p.files {
		f := &p.files[i]
		if f.plain || f.isRego() || f.isManifest() {
			continue
		}
		rest, ok := belowDir(path.Dir(f.name), keys)
		if !ok {
			continue
		}
		find := yamlPlace
		if path.Ext(f.name) == ".json" {
			find = jsonPlace
		}
		if line, col, ok := find(f.content, rest); ok {
			return &Error{File: f.shown, Line: line, Col: col}
		}
	}
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = strings.Trim(k.String(), `"`)
	}
	return fileError("data."+strings.Join(names, "."), "", "")
}

// belowDir returns keys without those that lead to directory dir.
func belowDir(dir string, keys []*ast.Term) ([]*ast.Term, bool) {
	if dir == "." {
		return keys, true
	}
	for part := range strings.SplitSeq(dir, "/") {
		if len(keys) == 0 || !keys[0].Equal(ast.StringTerm(part)) {
			return nil, false
		}
		keys = keys[1:]
	}
	return keys, true
}

// jsonPlace returns where the value at keys stands in text.
func jsonPlace(text []byte, keys []*ast.Term) (line, col int, ok bool) {
	d := json.NewDecoder(bytes.NewReader(text))
	at, ok := jsonOffset(d, keys, 0)
	if !ok {
		return 0, 0, false
	}
	for at < len(text) && strings.IndexByte(" \t\r\n,:", text[at]) >= 0 {
		at++ // what stands before the token
	}
	line, col = position(text, at)
	return line, col, true
}

// jsonOffset returns the offset behind the token before the value at keys of
// the value that d comes to next; here is that of its own.
func jsonOffset(d *json.Decoder, keys []*ast.Term, here int) (int, bool) {
	if len(keys) == 0 {
		return here, true
	}
	open, err := d.Token()
	if err != nil {
		return 0, false
	}
	for i := 0; d.More(); i++ {
		at := int(d.InputOffset())
		key := ast.InternedTerm(i)
		if open == json.Delim('{') {
			name, err := d.Token()
			if err != nil {
				return 0, false
			}
			text, _ := name.(string)
			key = ast.StringTerm(text)
		}
		if key.Equal(keys[0]) {
			return jsonOffset(d, keys[1:], at)
		}
		var skipped json.RawMessage
		if d.Decode(&skipped) != nil {
			return 0, false
		}
	}
	return 0, false
}

// yamlPlace returns where the value at keys stands in text.
func yamlPlace(text []byte, keys []*ast.Term) (line, col int, ok bool) {
	parsed, err := parser.ParseBytes(text, 0)
	if err != nil || len(parsed.Docs) == 0 {
		return 0, 0, false
	}
	node := parsed.Docs[0].Body
	at := node
	for _, key := range keys {
		if at, node = yamlChild(node, key); node == nil {
			return 0, 0, false
		}
	}
	if at == nil || at.GetToken() == nil {
		return 0, 0, false
	}
	pos := at.GetToken().Position
	return pos.Line, pos.Column, true
}

// yamlChild returns the value of a key in node, and what to point at.
func yamlChild(node yamlast.Node, key *ast.Term) (at, value yamlast.Node) {
	var pairs []*yamlast.MappingValueNode
	switch n := node.(type) {
	case *yamlast.MappingNode:
		pairs = n.Values
	case *yamlast.MappingValueNode:
		pairs = []*yamlast.MappingValueNode{n}
	case *yamlast.SequenceNode:
		for i, v := range n.Values {
			if key.Equal(ast.InternedTerm(i)) {
				return v, v
			}
		}
	}
	for _, pair := range pairs {
		if name := pair.Key.GetToken(); name != nil && key.Equal(ast.StringTerm(name.Value)) {
			return pair.Key, pair.Value
		}
	}
	return nil, nil
}
