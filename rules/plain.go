package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"

	"github.com/verdictd/verdictd/packet"
)

// Ruleset is a rules file, with those it includes: policy for people who do
// not write Rego. It is immutable.
//
// The file is YAML, an ordered list of rules. The first rule whose conditions
// all hold decides; if none does, default decides, which drops unless the file
// says otherwise.
//
//	include: [common.yaml]        # its sets are known here, its rules come first
//	sets:
//	  office: [192.0.2.0/24, 2001:db8::/64]
//	  web: [80, 443, 8000-8099]
//	rules:
//	  - name: ssh                 # required, in the audit log
//	    verdict: accept           # accept, drop, reject or delegate
//	    proto: tcp                # conditions: all must hold
//	    from: [$office, 10.1.0.0/16]   # of a list, one
//	    to-port: 22
//	    not: {in-interface: wan*} # none of these may hold
//	    log: no                   # default: yes
//	    reason: administration    # for the audit log
//	    set-mark: 0x10            # packet mark
//	essential: yes                # what a host needs to stay on its network passes (default: no)
//	default: drop                 # or {verdict: drop, log: no}
//
// A condition about something that the packet does not have, such as the port
// of a fragment, does not hold; below not, that is what is asked for.
//
// The rules that essential stands for come last: rules of the file go before.
// See Essential.
//
// delegate asks Rego: the rule delegated of package verdictd, an object of the
// form of decision. What it says is the decision; if it is undefined, the next
// rule is tried. "default: delegate" asks it last; if it is undefined then,
// the packet is dropped by rule "default".
//
// A Ruleset is run by being translated to Rego, so that there is one evaluator
// and one semantics. Sets, and the helpers of the translation, are rules of
// package verdictd and may be used in the Rego beside it.
type Ruleset struct {
	Files   []string // as read, the first one first
	Rules   []Rule   // in the order in which they are tried
	Default Rule     // what happens where no rule matches; has no conditions

	conds  []condition
	sets   []*plainSet // in the order of their places
	header []string    // comments at the top of the first file
}

// Rule is one rule of a rules file.
type Rule struct {
	Place Place
	Name  string

	// What the rule says: either Delegate, and nothing else, or the decision.
	Delegate bool
	Action   packet.Action
	Reason   string
	Quiet    bool // write no audit record
	SetMark  bool // Mark replaces the packet's mark
	Mark     uint32

	comment []string // lines above the rule
	tests   []test   // in the order of the file
}

// Verdict returns what the rule says: "accept", "drop", "reject" or "delegate".
func (r *Rule) Verdict() string {
	if r.Delegate {
		return delegateVerdict
	}
	return r.Action.String()
}

const (
	delegateVerdict = "delegate"
	defaultName     = "default" // the rule named where none matches, as in package policy
)

// test is one condition of one rule.
type test struct {
	place   Place
	cond    int // index in Ruleset.conds
	negated bool
	values  []scalar // as written
	set     *plainSet
	items   []item  // of values, sets replaced by what they hold
	keys    spanSet // of items
}

// Place is where something stands in a rules file. Line and Col count from 1;
// 0 stands for the whole file.
type Place struct {
	File      string
	Line, Col int
}

// String returns "file:line:col".
func (p Place) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col)
}

// PlainError is something wrong with a rules file, and what to do about it.
type PlainError struct {
	Place Place
	Msg   string
	Hint  string // may be empty
}

// Error returns "file:line:col: message (hint)".
func (e *PlainError) Error() string {
	text := e.Place.String() + ": " + e.Msg
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// PlainErrors is all that is wrong with a rules file, in the order in which it
// was found. It is never empty when it is returned as an error.
type PlainErrors []*PlainError

// Error returns all errors, one on each line.
func (e PlainErrors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Delegates returns where the rules delegate to Rego.
func (r *Ruleset) Delegates() []Place {
	var places []Place
	for i := range r.Rules {
		if r.Rules[i].Delegate {
			places = append(places, r.Rules[i].Place)
		}
	}
	if r.Default.Delegate {
		places = append(places, r.Default.Place)
	}
	return places
}

// nearest returns the word most like text, or "" if none is like it.
func nearest(text string, words []string) string {
	best, bestDistance := "", 0.67 // a word that differs in two of three letters is another word
	for _, word := range slices.Sorted(slices.Values(words)) {
		d := float64(levenshtein.ComputeDistance(text, word)) / float64(max(len(text), len(word), 1))
		if word != "" && strings.HasPrefix(text, word[:1]) {
			d -= 0.01 // of two alike, take the one that begins alike
		}
		if d < bestDistance {
			best, bestDistance = word, d
		}
	}
	return best
}
