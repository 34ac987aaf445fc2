package main

import (
	"fmt"
	"strings"

	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/attribution"
)

// attributionStatus says how a daemon finds owners of sockets, and how often.
type attributionStatus struct {
	attribution.Report
	// Rule: the rules note who sends before a packet is queued; else RuleReason
	// says why not. Rules of the user's are known to do so once they have.
	Rule       bool   `json:"rule"`
	RuleReason string `json:"rule_reason,omitempty"`

	// Packets that are held now for facts of their owner, and that ever were, and
	// decisions without a fact that was not known in time.
	Holding uint64 `json:"holding"`
	Held    uint64 `json:"held"`
	Lacking uint64 `json:"lacking"`
}

// attributionStatus may be called from several goroutines.
func (d *daemon) attributionStatus() attributionStatus {
	if d.owners == nil {
		return attributionStatus{Report: attribution.Nothing(), RuleReason: "nobody looks for owners"}
	}
	st := attributionStatus{Report: d.owners.Report()}
	if !st.Recording {
		st.RuleReason = "nothing is recorded"
		return st
	}
	d.observer.mu.Lock()
	r := d.observer.ruleset
	d.observer.mu.Unlock()
	if r == nil {
		if st.Rule = st.Sources[process.BPFFlow.String()] > 0; st.Rule {
			return st
		}
		st.RuleReason = "the rules are the user's, and not known (verdictd hook print-iptables --record-pin prints the one that is needed)"
		return st
	}
	var err error
	switch st.Rule, err = r.Recording(); {
	case err != nil:
		st.RuleReason = err.Error()
	case !st.Rule:
		st.RuleReason = "none of the hooks is one at which this host sends"
	}
	return st
}

// text is what status prints.
func (a *attributionStatus) text() string {
	var b strings.Builder
	counts := make([]string, 0, len(a.Sources))
	for _, name := range process.Sources() {
		counts = append(counts, fmt.Sprintf("%d %s", a.Sources[name], name))
	}
	fmt.Fprintf(&b, "owners     %s\n", strings.Join(counts, ", "))
	fmt.Fprintf(&b, "           %d searches, %d failed questions, %d unrecorded\n", a.Searches, a.Failed, a.Unrecorded)
	fmt.Fprintf(&b, "           %d programs without hash, of them %d too large, %d too slow to read\n", a.Unhashed, a.TooLarge, a.TooSlow)
	fmt.Fprintf(&b, "           %d packets held now, %d so far, %d decisions without a fact; %d look-ups hang, %d given up\n",
		a.Holding, a.Held, a.Lacking, a.Hung, a.GaveUp)
	if !a.Recording {
		fmt.Fprintf(&b, "           not recorded: %s\n", a.Reason)
	}
	for _, what := range a.Missing {
		fmt.Fprintf(&b, "           not recorded: %s\n", what)
	}
	for _, p := range a.Programs {
		if !p.Attached {
			fmt.Fprintf(&b, "           program %s not attached: %s\n", p.Name, p.Reason)
		}
	}
	if a.Recording && !a.Rule {
		fmt.Fprintf(&b, "           senders not noted by the rules: %s\n", a.RuleReason)
	}
	if a.Mode != attribution.Off.String() && !a.SockDiag {
		fmt.Fprintf(&b, "           sock_diag not asked: %s\n", a.NoSockDiag)
	}
	return b.String()
}

// attributionNumbers are those of owners, for the audit log and the metrics.
func attributionNumbers() []number {
	var all []number
	for _, name := range process.Sources() {
		all = append(all, number{
			"owners_" + strings.ReplaceAll(name, "-", "_"), false, "owners of sockets looked for, source " + name,
			func(s *status) uint64 { return s.Attribution.Sources[name] },
		})
	}
	return append(all,
		number{"owner_searches", false, "searches through /proc for holders of sockets", func(s *status) uint64 { return s.Attribution.Searches }},
		number{"owner_failures", false, "questions about owners that ended in an error", func(s *status) uint64 { return s.Attribution.Failed }},
		number{"owner_unhashed", false, "programs whose file could not be hashed", func(s *status) uint64 { return s.Attribution.Unhashed }},
		number{"owner_too_large", false, "of them, those that are too large", func(s *status) uint64 { return s.Attribution.TooLarge }},
		number{"owner_too_slow", false, "of them, those that took too long to read", func(s *status) uint64 { return s.Attribution.TooSlow }},
		number{"owner_holding", true, "packets that are held for facts of their owner", func(s *status) uint64 { return s.Attribution.Holding }},
		number{"owner_held", false, "packets that were held for facts of their owner", func(s *status) uint64 { return s.Attribution.Held }},
		number{"owner_lacking", false, "decisions without a fact that was not known in time", func(s *status) uint64 { return s.Attribution.Lacking }},
		number{"owner_hung", true, "look-ups that hang", func(s *status) uint64 { return uint64(s.Attribution.Hung) }},
		number{"owner_gave_up", false, "look-ups that took too long", func(s *status) uint64 { return s.Attribution.GaveUp }},
		number{"owner_unrecorded", false, "records of owners that the kernel did not take", func(s *status) uint64 { return s.Attribution.Unrecorded }},
	)
}
