package rules

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"slices"
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

// allTables writes the values of conditions that do not stand in them.
func (w *regoWriter) allTables() {
	bySet := map[string]string{} // names of tables, by set and content
	for i := range w.set.Rules {
		r := &w.set.Rules[i]
		for j := range r.tests {
			t := &r.tests[j]
			if t.set == nil || !w.form(t).several {
				continue
			}
			key := t.set.name + " " + w.literal(t)
			if bySet[key] == "" {
				bySet[key] = w.table(t, t.set.name, t.set.place, t.set.comment)
			}
			w.tables[t] = bySet[key]
		}
	}
	for i := range w.set.Rules {
		r := &w.set.Rules[i]
		for j := range r.tests {
			t := &r.tests[j]
			if c := &w.set.conds[t.cond]; t.set == nil && w.form(t).several && len(w.literal(t)) > maxInline {
				w.tables[t] = w.table(t, r.Name+"_"+c.key, t.place, []string{cleanComment(c.key + " of rule " + r.Name)})
			}
			w.negation(r, t)
		}
	}
}

// table writes the values of t as a rule and returns its name, made of wish.
func (w *regoWriter) table(t *test, wish string, at Place, comment []string) string {
	name, literal := w.name(wish), w.literal(t)
	w.at = at
	w.blank()
	for _, line := range comment {
		w.comment(0, line)
	}
	elements, plain := w.elements(t)
	if elements == nil && t.set != nil {
		for _, line := range slices.Concat(t.set.above...) {
			w.comment(0, line)
		}
	}
	if elements == nil || plain && len(name)+len(literal) < 90 {
		w.line(0, "%s := %s", name, literal)
		return name
	}
	w.line(0, "%s := {", name)
	for _, e := range elements {
		w.at = e.place
		for _, line := range e.above {
			w.comment(1, line)
		}
		tail := ""
		if e.comment != "" {
			tail = " # " + e.comment
		}
		w.line(1, "%s,%s", e.text, tail)
	}
	w.line(0, "}")
	return name
}

// element is one element of a table.
type element struct {
	text    string
	above   []string
	comment string
	place   Place
}

// elements returns the elements of a table, nil if it is not a set; plain is
// whether none has a comment.
func (w *regoWriter) elements(t *test) (list []element, plain bool) {
	c, form := &w.set.conds[t.cond], w.form(t)
	if form.byFamily {
		return nil, true
	}
	values, plain := t.values, true
	var above [][]string
	if t.set != nil {
		values = t.set.flat
		if len(t.set.values) == len(values) {
			above = t.set.above
		}
	}
	seen := map[string]bool{}
	for i, v := range values {
		items, err := c.parse(v.text)
		if err != nil {
			return w.bare(t), true // a list of sets: elements without comments
		}
		e := element{place: v.place, comment: v.comment}
		if above != nil {
			e.above = above[i]
		}
		plain = plain && e.comment == "" && len(e.above) == 0
		for _, it := range items {
			e.text = c.rego(it, form.ranges)
			if !seen[e.text] {
				seen[e.text] = true
				list = append(list, e)
				e.above, e.comment = nil, ""
			}
		}
	}
	return list, plain
}

// bare returns the elements of a table without what is said about them.
func (w *regoWriter) bare(t *test) []element {
	c, form := &w.set.conds[t.cond], w.form(t)
	list := make([]element, len(t.items))
	for i, it := range t.items {
		list[i] = element{text: c.rego(it, form.ranges), place: t.place}
	}
	return list
}

// form is the form that a condition takes in Rego.
type form struct {
	several  bool // compared with a set, not with one value
	ranges   bool // the elements are ranges
	like     bool // some elements are beginnings of names
	byFamily bool // an object of sets: one for ICMP, one for ICMPv6
}

func (w *regoWriter) form(t *test) form {
	c := &w.set.conds[t.cond]
	var f form
	for _, it := range t.items {
		f.ranges = f.ranges || it.low != it.high
		f.like = f.like || it.wild
	}
	if c.key == "icmp-type" {
		four, six := splitFamilies(c, t.items, f.ranges)
		f.byFamily = strings.Join(four, ", ") != strings.Join(six, ", ")
		f.several = f.byFamily || len(four) > 1 || t.set != nil
		return f
	}
	f.several = len(t.items) > 1 || t.set != nil
	return f
}

// splitFamilies returns the elements of a list of ICMP types, by family.
func splitFamilies(c *condition, items []item, ranges bool) (four, six []string) {
	for _, it := range items {
		if it.low >= v6 {
			six = append(six, c.rego(item{low: it.low - v6, high: it.high - v6}, ranges))
			continue
		}
		four = append(four, c.rego(it, ranges))
	}
	return four, six
}

// rego returns one item as Rego: an element of a set.
func (c *condition) rego(it item, ranges bool) string {
	switch {
	case c.kind() == Addr:
		return quote(it.prefix.String())
	case c.kind() == String && it.wild:
		return quote(it.name + "*")
	case c.kind() == String:
		return quote(it.name)
	case c.kind() == Bool:
		return strconv.FormatBool(it.low == 1)
	case ranges:
		return fmt.Sprintf("[%d, %d]", it.low, it.high)
	}
	return strconv.FormatInt(it.low, 10)
}

// literal returns the values of a condition as a Rego set, or object of sets.
func (w *regoWriter) literal(t *test) string {
	c, form := &w.set.conds[t.cond], w.form(t)
	if c.key != "icmp-type" {
		list := make([]string, len(t.items))
		for i, it := range t.items {
			list[i] = c.rego(it, form.ranges)
		}
		return "{" + strings.Join(list, ", ") + "}"
	}
	four, six := splitFamilies(c, t.items, form.ranges)
	if !form.byFamily {
		return "{" + strings.Join(four, ", ") + "}"
	}
	var parts []string
	for _, family := range []struct {
		name string
		list []string
	}{{"icmp", four}, {"icmpv6", six}} {
		if len(family.list) > 0 {
			parts = append(parts, fmt.Sprintf("%s: {%s}", quote(family.name), strings.Join(family.list, ", ")))
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// decision writes the rules, in order, as one rule with else.
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
	for i := range chain {
		r := &chain[i]
		w.at = r.Place
		if i == 0 {
			w.blank()
			w.line(0, "decision := %s if {", r.object())
		} else {
			w.line(0, "} else := %s if {", r.object())
		}
		if r.Name != defaultName {
			for _, line := range r.comment {
				w.comment(1, line)
			}
		}
		for j := range r.tests {
			t := &r.tests[j]
			if text, named := w.spelt(t); named && !t.negated {
				w.comment(1, w.set.conds[t.cond].key+": "+text)
			}
		}
		for j := range r.tests {
			w.test(&r.tests[j])
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
	if len(chain) > 0 {
		w.line(0, "}")
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
