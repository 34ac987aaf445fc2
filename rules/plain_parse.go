package rules

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// Limits of rules files, far above what people write.
const (
	MaxPlainSize  = 4 << 20 // bytes of a file
	maxPlainFiles = 100
	maxPlainRules = 10_000
	maxPlainErrs  = 50
	maxNesting    = 64 // lists and mappings within each other
)

// ParsePlain reads the rules file of the given name, and those it includes.
// Names are slash-separated; read returns the content of one of them. Files
// that are included lie beside or below the first.
//
// The error is PlainErrors.
func ParsePlain(name string, read func(name string) ([]byte, error)) (*Ruleset, error) {
	p := &plainParser{
		read: read, dir: path.Dir(name), byName: map[string]*plainSet{}, taken: map[string]Place{},
		out: &Ruleset{conds: conditions(), Default: Rule{Place: Place{File: name}, Name: defaultName}},
	}
	p.file(name, Place{File: name})
	if p.essential {
		p.addEssential()
	}
	p.resolveSets()
	for i := range p.pending {
		p.rule(&p.pending[i])
	}
	if len(p.errs) == 0 && len(p.pending) == 0 && p.out.Default.Place.Line == 0 {
		p.fail(Place{File: name}, `write "rules:" and below it a list of rules; to drop everything, write "default: drop"`, "holds no rules and no default")
	}
	if len(p.errs) > 0 {
		return nil, p.errs
	}
	return p.out, nil
}

// plainParser is the state of one ParsePlain. Files are read first; sets and
// rules are looked into when all are there, so that their order is free.
type plainParser struct {
	read    func(string) ([]byte, error)
	dir     string
	out     *Ruleset
	errs    PlainErrors
	reading []string // the files being read, each included by the one before
	byName  map[string]*plainSet
	taken   map[string]Place // names of rules
	pending []rawRule

	essential bool // the essential rules are asked for
}

// rawRule is a rule that is not yet looked into.
type rawRule struct {
	place   Place
	body    []*ast.MappingValueNode
	comment []string
}

// scalar is a YAML scalar that stands for one value.
type scalar struct {
	text    string
	place   Place
	comment string // behind it on its line, without #
}

func (p *plainParser) fail(at Place, hint, format string, args ...any) {
	if len(p.errs) == maxPlainErrs {
		return
	}
	p.errs = append(p.errs, &PlainError{Place: at, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// file reads the file name, included at from.
func (p *plainParser) file(name string, from Place) {
	if slices.Contains(p.out.Files, name) {
		return
	}
	if len(p.out.Files) == maxPlainFiles {
		p.fail(from, "", "more than %d files are included", maxPlainFiles)
		return
	}
	p.out.Files = append(p.out.Files, name)
	text, err := p.read(name)
	if err != nil {
		p.unreadable(name, from, err)
		return
	}
	body, ok := p.yaml(name, text)
	if !ok {
		return
	}
	p.reading = append(p.reading, name)
	f := plainFile{plainParser: p, name: name, lines: strings.Split(string(text), "\n")}
	f.top(body)
	p.reading = p.reading[:len(p.reading)-1]
}

// unreadable reports that a file could not be read, where it is named.
func (p *plainParser) unreadable(name string, from Place, err error) {
	if perr, ok := errors.AsType[*fs.PathError](err); ok {
		err = perr.Err
	}
	if from.Line == 0 {
		p.fail(from, "", "read rules: %v", err)
		return
	}
	p.fail(from, "a path is relative to the file that includes it", "include %s: %v", name, err)
}

// plainFile is a file being read.
type plainFile struct {
	*plainParser
	name  string
	lines []string
}

func (f *plainFile) place(n ast.Node) Place { return placeOf(f.name, n) }

// comment returns the comment lines directly above line, without #.
func (f *plainFile) comment(line int) []string {
	var out []string
	for i := line - 2; i >= 0 && i < len(f.lines); i-- {
		text, ok := strings.CutPrefix(strings.TrimSpace(f.lines[i]), "#")
		if !ok {
			break
		}
		out = append(out, cleanComment(text))
	}
	slices.Reverse(out)
	return out
}

// cleanComment makes text fit for one line of another language's comment.
func cleanComment(text string) string {
	return strings.TrimRight(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, strings.TrimPrefix(text, " ")), " ")
}

// top reads the keys of a file.
func (f *plainFile) top(body ast.Node) {
	if f.name == f.out.Files[0] {
		end := 1
		for end <= len(f.lines) && strings.HasPrefix(f.lines[end-1], "#") {
			end++
		}
		f.out.header = f.comment(end)
	}
	if body == nil {
		return
	}
	known := []string{"include", "sets", "rules", "essential", "default"}
	keys := f.mapping(body, "a rules file", known)
	if include := keys["include"]; include != nil {
		f.include(include.Value)
	}
	if sets := keys["sets"]; sets != nil {
		f.sets(sets.Value)
	}
	if rules := keys["rules"]; rules != nil {
		f.rules(rules.Value)
	}
	if pair := keys["essential"]; pair != nil {
		f.wantsEssential(pair)
	}
	if last := keys["default"]; last != nil {
		f.fallback(last)
	}
}

// pairs returns the entries of a mapping, or false if n is none.
func (f *plainFile) pairs(n ast.Node, what string) ([]*ast.MappingValueNode, bool) {
	switch m := n.(type) {
	case *ast.MappingNode:
		return m.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{m}, true
	}
	f.fail(f.place(n), "write lines of the form key: value", "%s is %s, not a mapping", what, describeNode(n))
	return nil, false
}

// mapping returns the entries of a mapping by key; keys must be among known.
func (f *plainFile) mapping(n ast.Node, what string, known []string) map[string]*ast.MappingValueNode {
	pairs, _ := f.pairs(n, what)
	keys := map[string]*ast.MappingValueNode{}
	for _, pair := range pairs {
		key, ok := f.key(pair)
		if !ok {
			continue
		}
		if !slices.Contains(known, key) {
			f.unknownKey(f.place(pair.Key), what, key, known)
			continue
		}
		keys[key] = pair
	}
	return keys
}

func (p *plainParser) unknownKey(at Place, what, key string, known []string) {
	hint := "keys are " + strings.Join(known, ", ")
	if other, ok := map[string]string{
		"port": "to-port", "dport": "to-port", "sport": "from-port", "protocol": "proto", "source": "from", "src": "from", "destination": "to", "dst": "to",
		"interface": "in-interface or out-interface", "action": "verdict", "uid": "user", "gid": "group", "program": "exe",
	}[key]; ok && slices.Contains(known, strings.Fields(other)[0]) {
		hint = "it is called " + other + " here"
	} else if slices.Contains([]string{"name", "verdict", "to-port", "from-port", "from", "to", "proto", "reason", "log"}, key) && slices.Contains(known, "rules") {
		hint = "indent it like the other keys of its rule"
	} else if best := nearest(key, known); best != "" {
		hint = "did you mean " + best + "?"
	}
	p.fail(at, hint, "%s has no key %q", what, key)
}

// key returns the key of an entry, a plain scalar.
func (f *plainFile) key(pair *ast.MappingValueNode) (string, bool) {
	s, ok := f.text(pair.Key)
	if !ok {
		f.fail(f.place(pair.Key), "anchors, aliases, tags and merges are not used here", "key is %s, not a word", describeNode(pair.Key))
	}
	return s.text, ok
}

// text returns the text of a scalar as it is written.
func (f *plainFile) text(n ast.Node) (scalar, bool) {
	var s scalar
	switch v := n.(type) {
	case *ast.StringNode:
		s.text = v.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		s.text = n.GetToken().Value
	default:
		return s, false
	}
	s.place = f.place(n)
	if c := n.GetComment(); c != nil && len(c.Comments) > 0 && c.Comments[0].Token.Position.Line == s.place.Line {
		s.comment = cleanComment(c.Comments[0].Token.Value)
	}
	return s, true
}

// scalars returns one scalar or a list of them. An empty list is an error.
func (f *plainFile) scalars(n ast.Node, at Place, what string) []scalar {
	if s, ok := f.text(n); ok {
		return []scalar{s}
	}
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		f.fail(at, "write one value, or a list of them: [a, b]", "%s is %s, not a value or a list", what, describeNode(n))
		return nil
	}
	if len(list.Values) == 0 {
		f.fail(at, "put a value in, or remove it", "%s is empty", what)
	}
	var out []scalar
	for _, v := range list.Values {
		s, ok := f.text(v)
		if !ok {
			f.fail(f.place(v), "write one value for each element", "%s holds %s, not a value", what, describeNode(v))
			continue
		}
		out = append(out, s)
	}
	return out
}

// include reads the files that a file includes.
func (f *plainFile) include(n ast.Node) {
	at := f.place(n)
	for _, s := range f.scalars(n, at, "include") {
		name := path.Join(path.Dir(f.name), s.text)
		below := f.dir == "." && !path.IsAbs(name) && name != ".." && !strings.HasPrefix(name, "../") ||
			strings.HasPrefix(name, strings.TrimSuffix(f.dir, "/")+"/")
		switch {
		case path.IsAbs(s.text) || !below:
			f.fail(s.place, "put it beside or below "+f.out.Files[0], "include %s: the path leads elsewhere", s.text)
		case slices.Contains(f.reading, name):
			f.fail(s.place, "remove one of the includes", "include %s: it includes this file: %s", s.text, strings.Join(append(slices.Clone(f.reading), name), " -> "))
		default:
			f.file(name, s.place)
		}
	}
}
