package rules

import (
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/goccy/go-yaml/ast"

	"github.com/verdictd/verdictd/packet"
)

// plainSet is a named set. What its elements are is known where it is used.
type plainSet struct {
	name    string
	place   Place
	comment []string
	values  []scalar
	above   [][]string // the comment lines above each of values
	flat    []scalar   // values, sets replaced by what they hold
	used    bool
	state   setState
}

type setState uint8

const (
	setUnseen setState = iota
	setOpen            // being resolved: meeting it again is a cycle
	setDone
)

// sets reads the sets of a file.
func (f *plainFile) sets(n ast.Node) {
	pairs, _ := f.pairs(n, "sets")
	for _, pair := range pairs {
		name, ok := f.key(pair)
		if !ok {
			continue
		}
		at := f.place(pair.Key)
		if !isSetName(name) {
			f.fail(at, "a name begins with a letter and has letters, digits, - and _", "%q is no name for a set", name)
			continue
		}
		if first := f.byName[name]; first != nil {
			f.fail(at, "choose another name", "set %s is defined at %s already", name, first.place)
			continue
		}
		s := &plainSet{name: name, place: at, comment: f.comment(at.Line), values: f.scalars(pair.Value, at, "set "+name)}
		line := at.Line
		for _, v := range s.values {
			var above []string
			if v.place.Line > line {
				above = f.comment(v.place.Line)
			}
			line = v.place.Line
			s.above = append(s.above, above)
		}
		f.byName[name] = s
		f.out.sets = append(f.out.sets, s)
	}
}

func isSetName(name string) bool {
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || !isDigits(name[i:i+1]) && c != '-' && c != '_') {
			return false
		}
	}
	return name != "" && len(name) <= 64
}

// resolveSets replaces sets within sets by what they hold.
func (p *plainParser) resolveSets() {
	for _, s := range p.out.sets {
		p.resolve(s)
	}
}

func (p *plainParser) resolve(s *plainSet) {
	s.state = setOpen
	for _, v := range s.values {
		inner, isSet := p.setOf(v)
		switch {
		case !isSet:
			s.flat = append(s.flat, v)
		case inner == nil:
		case inner.state == setOpen:
			p.fail(v.place, "remove one of the two", "set %s holds set %s, which holds it", s.name, inner.name)
		default:
			if inner.state == setUnseen {
				p.resolve(inner)
			}
			inner.used = true
			s.flat = append(s.flat, inner.flat...)
		}
	}
	s.state = setDone
}

// setOf returns the set that a value names; isSet is whether it names one.
func (p *plainParser) setOf(v scalar) (s *plainSet, isSet bool) {
	name, isSet := strings.CutPrefix(v.text, "$")
	if !isSet {
		return nil, false
	}
	if s = p.byName[name]; s == nil {
		var names []string
		for known := range p.byName {
			names = append(names, known)
		}
		hint := "define it below sets"
		if best := nearest(name, names); best != "" {
			hint = "did you mean $" + best + "?"
		}
		p.fail(v.place, hint, "there is no set %q", name)
	}
	return s, true
}

// rules reads the list of rules of a file.
func (f *plainFile) rules(n ast.Node) {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		f.fail(f.place(n), "begin each rule with: - name: NAME", "rules is %s, not a list", describeNode(n))
		return
	}
	for _, entry := range list.Values {
		if len(f.pending) == maxPlainRules {
			f.fail(f.place(entry), "put addresses and ports into sets, and let one rule ask for the set", "more than %d rules", maxPlainRules)
			return
		}
		if body, ok := f.pairs(entry, "a rule"); ok {
			at := f.place(entry)
			f.pending = append(f.pending, rawRule{place: at, body: body, comment: f.comment(at.Line)})
		}
	}
}

// fallback reads what happens where no rule matches.
func (f *plainFile) fallback(pair *ast.MappingValueNode) {
	at := f.place(pair.Key)
	if f.name != f.out.Files[0] {
		f.fail(at, "say it in "+f.out.Files[0], "an included file has no default")
		return
	}
	r := &f.out.Default
	r.Place, r.comment = at, f.comment(at.Line)
	if s, ok := f.text(pair.Value); ok {
		f.verdict(r, s)
		return
	}
	body, ok := f.pairs(pair.Value, "default")
	given := false
	for _, pair := range body {
		key, ok := f.key(pair)
		switch {
		case !ok:
		case key == "name" || !f.outcome(r, key, pair):
			f.unknownKey(f.place(pair.Key), "default", key, []string{"verdict", "log", "reason", "set-mark"})
		}
		given = given || key == "verdict"
	}
	if ok && !given {
		f.fail(at, "add: verdict: drop", "default has no verdict")
	}
	f.checkDelegate(r)
}

// rule looks into a rule and adds it to the ruleset.
func (p *plainParser) rule(raw *rawRule) {
	r := Rule{Place: raw.place, comment: raw.comment}
	f := plainFile{plainParser: p, name: raw.place.File}
	seen := map[string]bool{}
	for _, pair := range raw.body {
		key, ok := f.key(pair)
		if !ok {
			continue
		}
		seen[key] = true
		switch {
		case f.outcome(&r, key, pair):
		case key == "not":
			inner, _ := f.pairs(pair.Value, "not")
			for _, pair := range inner {
				f.test(&r, pair, true)
			}
		default:
			f.test(&r, pair, false)
		}
	}
	if !seen["name"] {
		p.fail(r.Place, "add: name: NAME", "rule has no name")
	}
	if !seen["verdict"] {
		p.fail(r.Place, "add: verdict: accept, drop, reject or delegate", "rule has no verdict")
	}
	f.checkDelegate(&r)
	p.out.Rules = append(p.out.Rules, r)
}

// outcome reads a key that is no condition; it returns whether it is one.
func (f *plainFile) outcome(r *Rule, key string, pair *ast.MappingValueNode) bool {
	switch key {
	case "name", "verdict", "log", "reason", "set-mark":
	default:
		return false
	}
	s, ok := f.text(pair.Value)
	if block, isBlock := pair.Value.(*ast.LiteralNode); isBlock && key == "reason" && block.Value != nil {
		s, ok = scalar{text: strings.TrimSpace(block.Value.Value), place: f.place(pair.Key)}, true
	}
	if !ok {
		f.fail(f.place(pair.Key), "", "%s is %s, not one value", key, describeNode(pair.Value))
		return true
	}
	switch key {
	case "name":
		f.ruleName(r, s)
	case "verdict":
		f.verdict(r, s)
	case "log":
		b, ok := parseBool(s.text)
		if !ok {
			f.fail(s.place, "write log: yes or log: no", "log is %q", s.text)
		}
		r.Quiet = !b
	case "reason":
		r.Reason = s.text
	case "set-mark":
		mark := condition{says: "packet mark", max: 1<<32 - 1}
		n, err := mark.parseNumber(s.text, s.text)
		if err != nil {
			f.fail(s.place, "", "%v", err)
		}
		r.SetMark, r.Mark = true, uint32(n)
	}
	return true
}

func (f *plainFile) ruleName(r *Rule, s scalar) {
	r.Name = s.text
	first, taken := f.taken[s.text]
	switch {
	case s.text == "" || len(s.text) > 100 || strings.ContainsFunc(s.text, func(c rune) bool { return !unicode.IsPrint(c) }):
		f.fail(s.place, "write a word or a few, up to 100 bytes", "%q is no name for a rule", s.text)
	case s.text == defaultName:
		f.fail(s.place, "choose another name", "%s is the name of what happens where no rule matches", defaultName)
	case taken:
		f.fail(s.place, "choose another name, the audit log tells rules apart by it", "rule %q is defined at %s already", s.text, first)
	default:
		f.taken[s.text] = s.place
	}
}

func (f *plainFile) verdict(r *Rule, s scalar) {
	for _, a := range []packet.Action{packet.Accept, packet.Drop, packet.Reject} {
		if s.text == a.String() {
			r.Action = a
			return
		}
	}
	if r.Delegate = s.text == delegateVerdict; !r.Delegate {
		f.fail(s.place, "write accept, drop, reject or delegate", "there is no verdict %q", s.text)
	}
}

func (f *plainFile) checkDelegate(r *Rule) {
	if r.Delegate && (r.Quiet || r.SetMark || r.Reason != "") {
		f.fail(r.Place, "say log, reason and mark in the Rego rule delegated", "a rule that delegates has log, reason or set-mark of its own")
	}
}

// test reads a condition.
func (f *plainFile) test(r *Rule, pair *ast.MappingValueNode, negated bool) {
	key, ok := f.key(pair)
	if !ok {
		return
	}
	at := f.place(pair.Key)
	i := slices.IndexFunc(f.out.conds, func(c condition) bool { return c.key == key })
	if i < 0 {
		f.unknownKey(at, "a rule", key, f.ruleKeys(negated))
		return
	}
	c := &f.out.conds[i]
	t := test{place: at, cond: i, negated: negated, values: f.scalars(pair.Value, at, key)}
	seen := map[item]bool{}
	if len(t.values) == 0 {
		return
	}
	for _, v := range t.values {
		s, isSet := f.setOf(v)
		switch {
		case !isSet:
			f.items(&t, c, seen, v, "")
		case s != nil:
			s.used = true
			if len(t.values) == 1 {
				t.set = s
			}
			for _, element := range s.flat {
				f.items(&t, c, seen, element, "element of set "+s.name+", which "+key+" of rule "+strconv.Quote(r.Name)+" asks for")
			}
		}
	}
	spans := make([]span, len(t.items))
	for i, it := range t.items {
		spans[i] = c.span(it)
	}
	t.keys = newSpanSet(spans)
	r.tests = append(r.tests, t)
}

// items adds what one value stands for.
func (f *plainFile) items(t *test, c *condition, seen map[item]bool, v scalar, why string) {
	if c.kind() == Addr && f.byName[v.text] != nil {
		f.fail(v.place, "write $"+v.text+" for the set", "%q is no address", v.text)
		return
	}
	items, err := c.parse(v.text)
	if err != nil {
		f.fail(v.place, why, "%v", err)
		return
	}
	for _, it := range items {
		if !seen[it] {
			seen[it] = true
			t.items = append(t.items, it)
		}
	}
}

// ruleKeys returns the keys of a rule, or those below not.
func (p *plainParser) ruleKeys(negated bool) []string {
	var keys []string
	if !negated {
		keys = append(keys, "name", "verdict", "log", "reason", "set-mark", "not")
	}
	for i := range p.out.conds {
		keys = append(keys, p.out.conds[i].key)
	}
	return keys
}
