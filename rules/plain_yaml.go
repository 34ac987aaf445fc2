package rules

import (
	"errors"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// yaml parses text, which must be one YAML document.
func (p *plainParser) yaml(name string, text []byte) (body ast.Node, ok bool) {
	whole := Place{File: name}
	if len(text) > MaxPlainSize {
		p.fail(whole, "", "is larger than %d MiB", MaxPlainSize>>20)
		return nil, false
	}
	defer func() {
		// The library is known to panic on some texts that are no YAML.
		if fault := recover(); fault != nil {
			p.fail(whole, "check its brackets, quotes and indentation", "not YAML")
			body, ok = nil, false
		}
	}()
	tokens := lexer.Tokenize(string(text))
	if at := deep(tokens); at != nil {
		p.fail(Place{File: name, Line: at.Line, Col: at.Column}, "a rules file needs four levels", "more than %d lists or mappings are within each other", maxNesting)
		return nil, false
	}
	parsed, err := parser.Parse(rejoin(tokens), parser.ParseComments)
	if err != nil {
		p.notYAML(whole, strings.Split(string(text), "\n"), err)
		return nil, false
	}
	var docs []*ast.DocumentNode
	for _, doc := range parsed.Docs {
		if doc.Body != nil && doc.Body.Type() != ast.CommentType {
			docs = append(docs, doc)
		}
	}
	if len(docs) > 1 {
		p.fail(placeOf(name, docs[1].Body), "put the rules into one document, or into another file that is included", "a second YAML document begins")
		return nil, false
	}
	if len(docs) == 0 {
		return nil, true
	}
	return docs[0].Body, true
}

func (p *plainParser) notYAML(whole Place, lines []string, err error) {
	yerr, ok := errors.AsType[yaml.Error](err)
	if !ok {
		p.fail(whole, "", "not YAML: %v", err)
		return
	}
	if tok := yerr.GetToken(); tok != nil && tok.Position != nil {
		whole.Line, whole.Col = tok.Position.Line, tok.Position.Column
	}
	msg := strings.Join(strings.Fields(yerr.GetMessage()), " ")
	switch {
	case strings.Contains(msg, "cannot start any token") && whole.Line > 0 && whole.Line <= len(lines) && strings.Contains(indent(lines[whole.Line-1]), "\t"):
		p.fail(whole, "indent by blanks", "not YAML: there is a tab before the first word")
	case strings.HasSuffix(msg, "value is not allowed in this context"):
		p.fail(whole, "indent the keys of one rule alike, and write each on a line of its own; put texts with a colon into quotes", "not YAML: this stands where no value can")
	case strings.Contains(msg, "already defined"):
		p.fail(whole, "", "not YAML: %s", msg)
	default:
		p.fail(whole, "check its brackets, quotes and indentation", "not YAML: %s", msg)
	}
}

// indent returns the white space that a line begins with.
func indent(line string) string { return line[:len(line)-len(strings.TrimLeft(line, " \t"))] }

// deep returns the place at which more than maxNesting lists or mappings are
// within each other, or nil: the parser calls itself for each.
func deep(tokens token.Tokens) *token.Position {
	open, line, dashes := 0, 0, 0
	for _, t := range tokens {
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			open++
		case token.SequenceEndType, token.MappingEndType:
			open = max(open-1, 0)
		case token.SequenceEntryType, token.MappingKeyType:
			if t.Position.Line != line {
				line, dashes = t.Position.Line, 0
			}
			dashes++
		}
		if open > maxNesting || dashes > maxNesting || t.Position.IndentNum > 4*maxNesting {
			return t.Position
		}
	}
	return nil
}

// rejoin puts together what the library's lexer takes apart in lists within
// flow mappings: {from: [2001:db8::1]} is an address there, not a mapping. A
// colon ends a key only before a space (YAML 1.2, 7.3.3).
func rejoin(tokens token.Tokens) token.Tokens {
	var out token.Tokens
	open := 0
	for i := 0; i < len(tokens); i++ {
		t := tokens[i]
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			open++
		case token.SequenceEndType, token.MappingEndType:
			open--
		}
		if open <= 0 || t.Type != token.MappingValueType || i+1 == len(tokens) || !plainAt(tokens[i+1], t.Position.Offset+1) {
			out = append(out, t)
			continue
		}
		i++
		text, at := ":"+tokens[i].Value, t.Position
		if n := len(out); n > 0 && plainAt(out[n-1], t.Position.Offset-len([]rune(out[n-1].Value))) {
			text, at = out[n-1].Value+text, out[n-1].Position
			out = out[:n-1]
		}
		out = append(out, token.String(text, text, at))
	}
	for i := range out {
		out[i].Prev, out[i].Next = nil, nil
		if i > 0 {
			out[i].Prev, out[i-1].Next = out[i-1], out[i]
		}
	}
	return out
}

// plainAt returns whether t is a scalar without quotes that begins at offset.
func plainAt(t *token.Token, offset int) bool {
	switch t.Type {
	case token.StringType, token.IntegerType, token.FloatType, token.HexIntegerType, token.OctetIntegerType, token.BinaryIntegerType:
		return t.Position.Offset == offset
	}
	return false
}

func placeOf(file string, n ast.Node) Place {
	for {
		switch m := n.(type) {
		case *ast.MappingNode:
			if len(m.Values) > 0 && !m.IsFlowStyle {
				n = m.Values[0]
				continue
			}
		case *ast.MappingValueNode:
			n = m.Key
			continue
		}
		break
	}
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return Place{File: file}
	}
	pos := n.GetToken().Position
	return Place{File: file, Line: pos.Line, Col: pos.Column}
}

// describeNode returns what a node is, in words.
func describeNode(n ast.Node) string {
	switch n.(type) {
	case nil, *ast.NullNode:
		return "nothing"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.LiteralNode:
		return "a block of text"
	case *ast.AnchorNode, *ast.AliasNode:
		return "an anchor or alias"
	case *ast.TagNode:
		return "a tag"
	case *ast.MergeKeyNode:
		return "a merge"
	}
	return "a value"
}
