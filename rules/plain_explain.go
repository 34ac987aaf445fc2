package rules

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// maxShown is how many elements of a set are spelt out in an explanation.
const maxShown = 8

// Explain writes in words what each rule does.
func (r *Ruleset) Explain(w io.Writer) error {
	b := bufio.NewWriter(w) // keeps the first error for Flush
	for i := range r.Rules {
		rule := &r.Rules[i]
		fmt.Fprintf(b, "%d. %s (%s:%d)\n", i+1, rule.Name, rule.Place.File, rule.Place.Line)
		fmt.Fprintf(b, "   %s\n", r.sentence(rule))
	}
	fmt.Fprintf(b, "Otherwise: %s\n", r.sentence(&r.Default))
	return b.Flush()
}

// sentence says what a rule does.
func (r *Ruleset) sentence(rule *Rule) string {
	var b strings.Builder
	switch {
	case rule.Delegate:
		b.WriteString("asks the Rego rule delegated about")
	default:
		b.WriteString(rule.Verdict() + "s")
	}
	if len(rule.tests) == 0 {
		b.WriteString(" every packet")
	}
	for i := range rule.tests {
		word := " packets whose "
		if i > 0 {
			word = " and "
		}
		b.WriteString(word + r.words(&rule.tests[i]))
	}
	switch {
	case rule.Delegate:
		b.WriteString("; if that is undefined, goes on")
		return b.String()
	case rule.Quiet:
		b.WriteString("; not logged")
	default:
		b.WriteString("; logged")
	}
	if rule.SetMark {
		fmt.Fprintf(&b, "; sets mark %#x", rule.Mark)
	}
	if rule.Reason != "" {
		b.WriteString("; reason: " + cleanComment(rule.Reason))
	}
	return b.String()
}

// words says what a condition asks for.
func (r *Ruleset) words(t *test) string {
	c := &r.conds[t.cond]
	is := " is "
	if t.negated {
		is = " is not "
	}
	text := c.says + is + list(t)
	if t.negated && !c.always {
		text += " (or that have none)"
	}
	return text
}

// list returns the values of a condition.
func list(t *test) string {
	words := make([]string, 0, len(t.values))
	for _, v := range t.values {
		words = append(words, v.text)
	}
	if t.set != nil {
		words[0] += " = " + elementsOf(t.set)
	}
	return either(words)
}

// either joins words as "a, b or c".
func either(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func elementsOf(s *plainSet) string {
	var words []string
	for _, v := range s.flat {
		if len(words) == maxShown {
			words = append(words, fmt.Sprintf("and %d more", len(s.flat)-maxShown))
			break
		}
		words = append(words, v.text)
	}
	return "{" + strings.Join(words, ", ") + "}"
}

// Match is what the rules say about one packet.
type Match struct {
	Rule   *Rule // that matches, or the default
	Passed []NoMatch
}

// NoMatch is a rule that was tried before, and why it does not match.
type NoMatch struct {
	Rule *Rule
	Why  string
}

// Match finds the rule that matches the document; what is unknown in it counts as
// absent. Rules that delegate count as matching:
// Rego may leave the packet to those behind. It is for explanations; packets
// are judged by the translation.
func (r *Ruleset) Match(in *Input) Match {
	var m Match
	for i := range r.Rules {
		rule := &r.Rules[i]
		why := r.fails(rule, in)
		if why == "" {
			m.Rule = rule
			return m
		}
		m.Passed = append(m.Passed, NoMatch{Rule: rule, Why: why})
	}
	m.Rule = &r.Default
	return m
}

// fails returns which condition of the rule does not hold, or "".
func (r *Ruleset) fails(rule *Rule, in *Input) string {
	for i := range rule.tests {
		t := &rule.tests[i]
		c := &r.conds[t.cond]
		key, text, ok := c.value(in)
		if (ok && t.keys.has(key)) != t.negated {
			continue
		}
		switch {
		case !ok && slices.ContainsFunc(c.index, in.unknown.Has):
			return "nothing is said of the " + c.says
		case !ok:
			return "the packet has no " + c.says
		case t.negated:
			return fmt.Sprintf("%s is %s", c.says, text)
		}
		return fmt.Sprintf("%s is %s, not %s", c.says, text, list(t))
	}
	return ""
}

// ExplainPacket writes which rule matches, as Match does, and why those before do not.
func (r *Ruleset) ExplainPacket(w io.Writer, in *Input) error {
	b := bufio.NewWriter(w) // keeps the first error for Flush
	m := r.Match(in)
	for _, p := range m.Passed {
		fmt.Fprintf(b, "  no   %s (%s:%d): %s\n", p.Rule.Name, p.Rule.Place.File, p.Rule.Place.Line, p.Why)
	}
	if m.Rule == &r.Default {
		fmt.Fprintf(b, "  so   %s: %s\n", m.Rule.Name, r.sentence(m.Rule))
		return b.Flush()
	}
	fmt.Fprintf(b, "  YES  %s (%s:%d): %s\n", m.Rule.Name, m.Rule.Place.File, m.Rule.Place.Line, r.sentence(m.Rule))
	return b.Flush()
}
