package rules

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Translation is a ruleset as a Rego module of package verdictd, in the layout
// of opa fmt.
type Translation struct {
	Text  []byte
	Lines []Place // of each line of Text: what in the rules file it comes from
}

// Rego translates the ruleset. The result is the same to the byte each time.
//
// The module defines decision, a rule for each set, and the helpers that it
// needs. Where the ruleset delegates it refers to the rule delegated, which it
// does not define.
func (r *Ruleset) Rego() Translation {
	w := regoWriter{set: r, names: map[string]string{}, tables: map[*test]string{}, negated: map[*test]string{}, at: r.Default.Place}
	for _, line := range r.header {
		w.comment(0, line)
	}
	if len(r.header) > 0 {
		w.line(0, "#")
	}
	w.comment(0, "Translated from "+cleanComment(path.Base(r.Files[0]))+": edit that, not this.")
	w.line(0, "package verdictd")
	w.allTables()
	w.decision()
	w.helpers()
	return Translation{Text: []byte(w.text.String()), Lines: w.lines}
}

// maxInline is how long the text of a set may be that stands in a condition.
const maxInline = 60

// regoWriter writes one translation.
type regoWriter struct {
	set     *Ruleset
	text    strings.Builder
	lines   []Place
	at      Place             // of what is being written
	names   map[string]string // names that are given away, and for what
	tables  map[*test]string  // names of tables
	negated map[*test]string  // names of rules that are negated

	within, ranges, like, always bool // helpers that are needed
}

func (w *regoWriter) line(indent int, format string, args ...any) {
	text := strings.Repeat("\t", indent) + fmt.Sprintf(format, args...)
	w.text.WriteString(text + "\n")
	w.lines = append(w.lines, w.at)
}

func (w *regoWriter) comment(indent int, text string) {
	if text == "METADATA" {
		text += "." // the word alone would begin an annotation
	}
	w.line(indent, "%s", strings.TrimRight("# "+text, " "))
}

func (w *regoWriter) blank() { w.line(0, "") }

// quote returns s as a Rego string.
func quote(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil { // a string has a JSON form
		panic("rules: quote string: " + err.Error())
	}
	return strings.TrimSpace(b.String())
}

// name returns a name for a rule, made of text, that no other rule has.
func (w *regoWriter) name(text string) string {
	base := strings.Map(func(c rune) rune {
		if c < 0x80 && (c == '_' || isSetName("x"+string(c)) && c != '-') {
			return c
		}
		return '_'
	}, text)
	if base == "" || isDigits(base[:1]) || reserved(base) {
		base = "set_" + base
	}
	name := base
	for i := 2; w.names[name] != ""; i++ {
		name = base + "_" + strconv.Itoa(i)
	}
	w.names[name] = text
	return name
}

// reserved returns whether a word cannot be the name of a set in Rego: it is a
// keyword, means something to verdictd or the translation, or makes a test.
func reserved(word string) bool {
	switch word {
	case "as", "contains", "data", "default", "else", "every", "false", "if", "import", "in", "input", "not", "null",
		"package", "some", "true", "with", "_",
		"decision", "verdict", "delegated", "within", "in_ranges", "like", "any_packet",
		"net", "startswith", "endswith", "trim_suffix":
		return true
	}
	return strings.HasPrefix(word, "test_") || strings.HasPrefix(word, "todo_test_")
}

// maxChain is how many rules one Rego rule has as its else: the time that OPA
// takes to compile a rule grows with the square of that.
const maxChain = 100

// decision writes the rules, in order, as one rule with else, or as several of
// which each ends in the next.
func (w *regoWriter) decision() {
	w.at = w.set.Default.Place
	w.blank()
	for _, line := range w.set.Default.comment {
		w.comment(0, line)
	}
	last := w.set.Default
	if last.Delegate {
		last = Rule{Name: defaultName}
	}
	w.line(0, "default decision := %s", last.object())
	chain := w.set.Rules
	if w.set.Default.Delegate {
		chain = append(chain[:len(chain):len(chain)], w.set.Default)
	}
	head := decisionName
	for i := range chain {
		w.at = chain[i].Place
		switch {
		case i%maxChain > 0:
			w.line(0, "} else := %s if {", chain[i].object())
		default:
			if i > 0 {
				head = w.name(fmt.Sprintf("rules_from_%d", i+1))
				w.line(0, "} else := %s", head)
			}
			w.blank()
			w.line(0, "%s := %s if {", head, chain[i].object())
		}
		w.body(&chain[i])
	}
	if len(chain) > 0 {
		w.line(0, "}")
	}
}

// decisionName is the rule of package verdictd that decides.
const decisionName = "decision"

// body writes the comments and conditions of a rule.
func (w *regoWriter) body(r *Rule) {
	if r.Name != defaultName {
		for _, line := range r.comment {
			w.comment(1, line)
		}
	}
	for i := range r.tests {
		t := &r.tests[i]
		if text, named := w.spelt(t); named && !t.negated {
			w.comment(1, w.set.conds[t.cond].key+": "+text)
		}
	}
	for i := range r.tests {
		w.test(&r.tests[i])
	}
	w.at = r.Place
	switch {
	case len(r.tests) > 0:
	case r.Delegate:
		w.line(1, "delegated")
	default:
		w.always = true
		w.line(1, "any_packet")
	}
}

// object returns what a rule says, as the value of decision.
func (r *Rule) object() string {
	if r.Delegate {
		return "delegated"
	}
	text := fmt.Sprintf(`{"verdict": %s, "rule": %s`, quote(r.Action.String()), quote(r.Name))
	if r.Reason != "" {
		text += `, "reason": ` + quote(r.Reason)
	}
	if r.Quiet {
		text += `, "log": false`
	}
	if r.SetMark {
		text += `, "mark": ` + strconv.FormatUint(uint64(r.Mark), 10)
	}
	return text + "}"
}

// test writes a condition.
func (w *regoWriter) test(t *test) {
	w.at = t.place
	lines, simple := w.expressions(t)
	switch {
	case !t.negated:
		for _, line := range lines {
			w.line(1, "%s", line)
		}
	case simple:
		w.line(1, "not %s", lines[0])
	default:
		w.line(1, "not %s", w.negated[t])
	}
}

// expressions returns what must be true for the condition, not negated, to
// hold. It is simple if not may stand before it: Rego lets not hold where a
// field is undefined, but neither where an argument of a call is.
func (w *regoWriter) expressions(t *test) (lines []string, simple bool) {
	c, form := &w.set.conds[t.cond], w.form(t)
	if form.several {
		return []string{w.member(t, c, form)}, false
	}
	it := t.items[0]
	if c.key == "icmp-type" && it.low >= v6 {
		it.low, it.high = it.low-v6, it.high-v6
	}
	switch {
	case c.kind() == Addr:
		return []string{fmt.Sprintf("net.cidr_contains(%s, %s)", quote(it.prefix.String()), c.ref)}, false
	case it.wild:
		return []string{fmt.Sprintf("startswith(%s, %s)", c.ref, quote(it.name))}, false
	case c.kind() == Bool && it.low == 1:
		return []string{c.ref}, true
	case c.kind() == Bool:
		return []string{c.ref + " == false"}, true
	case form.ranges:
		return []string{fmt.Sprintf("%s >= %d", c.ref, it.low), fmt.Sprintf("%s <= %d", c.ref, it.high)}, false
	}
	return []string{c.ref + " == " + c.rego(it, false)}, true
}

// negation writes the rule that the negated condition t of rule r refers to,
// if it needs one.
func (w *regoWriter) negation(r *Rule, t *test) {
	lines, simple := w.expressions(t)
	if simple || !t.negated {
		return
	}
	c := &w.set.conds[t.cond]
	name := w.name(r.Name + "_" + c.key)
	w.negated[t] = name
	w.at = t.place
	w.blank()
	w.comment(0, cleanComment("What rule "+r.Name+" asks not to be: "+c.key+" "+list(t)))
	if len(lines) == 1 {
		w.line(0, "%s if %s", name, lines[0])
		return
	}
	w.line(0, "%s if {", name)
	for _, line := range lines {
		w.line(1, "%s", line)
	}
	w.line(0, "}")
}

// member returns the expression that the value of c is one of several.
func (w *regoWriter) member(t *test, c *condition, form form) string {
	values := w.tables[t]
	if values == "" {
		values = w.literal(t)
	}
	if form.byFamily {
		values += "[input.ip.protocol]"
	}
	switch {
	case c.kind() == Addr:
		w.within = true
		return fmt.Sprintf("within(%s, %s)", c.ref, values)
	case form.ranges:
		w.ranges = true
		return fmt.Sprintf("in_ranges(%s, %s)", c.ref, values)
	case form.like:
		w.like = true
		return fmt.Sprintf("like(%s, %s)", c.ref, values)
	}
	return c.ref + " in " + values
}

// spelt returns the values of a condition as written, and whether they are
// names that Rego shows as numbers.
func (w *regoWriter) spelt(t *test) (text string, named bool) {
	c := &w.set.conds[t.cond]
	words := make([]string, len(t.values))
	for i, v := range t.values {
		words[i] = v.text
		named = named || !isDigits(v.text)
	}
	named = named && c.kind() == Int && t.set == nil && (len(c.names) > 0 || c.key == "time")
	return cleanComment(strings.Join(words, ", ")), named
}

// helpers writes the helper rules that are needed.
func (w *regoWriter) helpers() {
	w.at = Place{File: w.set.Files[0]}
	for _, h := range []struct {
		needed bool
		text   string
	}{
		{w.always, "# any_packet is true.\nany_packet := true"},
		{w.within, `# within is true if the address is in one of the networks, of either family.
within(address, networks) if {
	some network in networks
	net.cidr_contains(network, address)
}`},
		{w.ranges, `# in_ranges is true if the number is in one of the ranges, ends included.
in_ranges(number, ranges) if {
	some [first, last] in ranges
	number >= first
	number <= last
}`},
		{w.like, `# like is true if the name is one of the patterns, or begins as one that ends
# in a star.
like(name, patterns) if name in patterns

like(name, patterns) if {
	some pattern in patterns
	endswith(pattern, "*")
	startswith(name, trim_suffix(pattern, "*"))
}`},
	} {
		if !h.needed {
			continue
		}
		w.blank()
		for line := range strings.SplitSeq(h.text, "\n") {
			w.line(0, "%s", line)
		}
	}
}
