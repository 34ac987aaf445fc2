package rules

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Finding is something that is allowed in a rules file and that its author
// will want to know.
type Finding struct {
	Place Place
	Level Level
	Msg   string
}

// Level says how much a finding matters.
type Level string

// Levels.
const (
	Warning Level = "warning" // hardly meant
	Info    Level = "info"    // may be meant: the order of two rules decides
)

// Limits of the analysis. Beyond them it says less, never something wrong.
const (
	maxPieces = 512  // parts that a rule is cut into by the rules before it
	maxInfos  = 100  // overlaps that are reported
	maxPairs  = 4000 // rules of which every pair is compared
)

// Findings returns what is noteworthy: rules that can never match, by
// themselves or because of those before them; sets that no rule asks for; and
// rules that overlap with different verdicts, so that their order matters. It
// is exact as far as conditions are independent of each other: it may miss a
// rule that can never match, and names none that can.
func (r *Ruleset) Findings() []Finding {
	a := analysis{set: r, dims: map[string]int{}}
	for i := range r.conds {
		a.dims[r.conds[i].key] = i
		a.whole = append(a.whole, r.conds[i].whole())
	}
	for i := range r.Rules {
		a.boxes = append(a.boxes, a.box(&r.Rules[i]))
	}
	a.dead = make([]bool, len(r.Rules))
	for i := range r.Rules {
		a.unreachable(i)
	}
	a.overlaps()
	for i := range r.Rules {
		a.unsure(&r.Rules[i])
	}
	for _, s := range r.sets {
		if !s.used {
			a.add(s.place, Warning, "no rule asks for set %s", s.name)
		}
	}
	slices.SortStableFunc(a.found, func(x, y Finding) int {
		return cmp.Or(cmp.Compare(slices.Index(r.Files, x.Place.File), slices.Index(r.Files, y.Place.File)),
			x.Place.Line-y.Place.Line, cmp.Compare(y.Level, x.Level))
	})
	return a.found
}

// analysis is the state of one Findings.
type analysis struct {
	set   *Ruleset
	dims  map[string]int // of each condition, by key
	whole box            // every packet
	boxes []box          // of each rule
	dead  []bool         // rules that can never match
	found []Finding
}

// add adds a finding. Of the essential rules there is none: what a file says
// before them is meant to go before.
func (a *analysis) add(at Place, level Level, format string, args ...any) {
	if at.File == EssentialFile {
		return
	}
	a.found = append(a.found, Finding{Place: at, Level: level, Msg: fmt.Sprintf(format, args...)})
}

// box returns what a rule matches.
func (a *analysis) box(r *Rule) box {
	b := make(box, len(a.whole))
	narrow := func(d int, to *region) { b[d] = b.at(d, a.whole).and(to) }
	for i := range r.tests {
		t := &r.tests[i]
		c := &a.set.conds[t.cond]
		d, keys := t.cond, t.keys
		if c.dim != "" {
			d, keys = a.dims[c.dim], c.projected(t.items)
		}
		to := &region{values: keys}
		if t.negated {
			to = a.whole[d].without(to)
		}
		narrow(d, to)
	}
	for i := range a.set.conds {
		c := &a.set.conds[i]
		if b[i] == nil || b[i].absent || len(c.needs) == 0 {
			continue
		}
		var spans []span
		for _, name := range c.needs {
			spans = append(spans, nameSpan(name, false))
		}
		narrow(a.dims["proto"], &region{values: newSpanSet(spans)})
	}
	return b
}

// projected returns the keys of names in the dimension that c projects to.
func (c *condition) projected(items []item) spanSet {
	var spans []span
	for _, it := range items {
		for _, name := range c.project[it.name] {
			spans = append(spans, nameSpan(name, false))
		}
	}
	return newSpanSet(spans)
}

// unreachable finds out whether rule i can match a packet that those before it
// leave.
func (a *analysis) unreachable(i int) {
	r := &a.set.Rules[i]
	if a.boxes[i].empty() {
		a.dead[i] = true
		a.add(r.Place, Warning, "rule %q can never match: its conditions exclude each other", r.Name)
		return
	}
	left := []box{a.boxes[i]}
	var by []*Rule // those that took something of it
	for j := range i {
		before := &a.set.Rules[j]
		if before.Delegate || a.dead[j] || !a.boxes[i].overlaps(a.boxes[j]) {
			continue // what Rego leaves undecided goes on
		}
		if a.boxes[i].within(a.boxes[j], a.whole) {
			a.dead[i] = true
			a.shadowed(r, before)
			return
		}
		rest := cut(left, a.boxes[j], a.whole)
		if len(rest) > maxPieces {
			continue // as if rule j were not there
		}
		if !sameBoxes(rest, left) {
			by = append(by, before)
		}
		left = rest
		if len(left) == 0 {
			a.dead[i] = true
			a.add(r.Place, Warning, "rule %q can never match: %s match all it would", r.Name, listRules(by))
			return
		}
	}
}

// sameBoxes returns whether a cut has left all as it was.
func sameBoxes(rest, left []box) bool {
	return len(rest) == len(left) && slices.EqualFunc(rest, left, func(x, y box) bool { return &x[0] == &y[0] })
}

// cut returns what of the boxes is not in c.
func cut(boxes []box, c, whole box) []box {
	var out []box
	for _, b := range boxes {
		out = append(out, b.without(c, whole)...)
		if len(out) > maxPieces {
			return out
		}
	}
	return out
}

func (a *analysis) shadowed(r, by *Rule) {
	tail := "and says the same"
	if r.outcome() != by.outcome() {
		tail = fmt.Sprintf("and says %s, not %s", by.Verdict(), r.Verdict())
		if by.Verdict() == r.Verdict() {
			tail = "and says so with other attributes"
		}
	}
	a.add(r.Place, Warning, "rule %q can never match: rule %q at %s matches all it would, %s", r.Name, by.Name, shortPlace(by.Place, r.Place), tail)
}

// ruleOutcome is what a rule says, but for its name.
type ruleOutcome struct {
	verdict, reason string
	quiet, setMark  bool
	mark            uint32
}

func (r *Rule) outcome() ruleOutcome {
	return ruleOutcome{r.Verdict(), r.Reason, r.Quiet, r.SetMark, r.Mark}
}

// shortPlace returns where a rule is as seen from another place.
func shortPlace(p, from Place) string {
	if p.File == from.File {
		return fmt.Sprintf("line %d", p.Line)
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

func listRules(list []*Rule) string {
	words := make([]string, len(list))
	for i, r := range list {
		words[i] = fmt.Sprintf("%q (%s:%d)", r.Name, r.Place.File, r.Place.Line)
	}
	last := len(words) - 1
	return "rules " + strings.Join(words[:last], ", ") + " and " + words[last] + " together"
}

// overlaps finds pairs of rules with different verdicts that match the same
// packets.
func (a *analysis) overlaps() {
	if len(a.boxes) > maxPairs {
		return
	}
	infos := 0
	for i := range a.boxes {
		for j := range i {
			first, second := &a.set.Rules[j], &a.set.Rules[i]
			if a.dead[i] || a.dead[j] || first.Verdict() == second.Verdict() || !a.boxes[i].overlaps(a.boxes[j]) {
				continue
			}
			if infos++; infos > maxInfos {
				a.add(second.Place, Info, "more rules overlap from here on")
				return
			}
			what := "overlaps"
			if a.boxes[j].within(a.boxes[i], a.whole) {
				what = "is an exception to"
			}
			a.add(second.Place, Info, "order matters: rule %q at %s (%s) %s rule %q (%s)",
				first.Name, shortPlace(first.Place, second.Place), first.Verdict(), what, second.Name, second.Verdict())
		}
	}
}
