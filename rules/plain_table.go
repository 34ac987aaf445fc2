package rules

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

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
