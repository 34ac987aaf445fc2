package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/verdictd/verdictd/internal/terminal"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

func newWhyCommand(e env) *cobra.Command {
	var from policyFlags
	var asJSON bool
	var nearest int
	var controlPath string
	cmd := &cobra.Command{
		Use:   "why RECORD|FLOW|HOST:PORT",
		Short: "Say why a policy decides as it does about a record of the log or a flow",
		Long: `why says which rule of a policy decides about a packet, what it read, which
rules came near and at which condition they failed, and how long it took. It
evaluates the policy anew, with tracing, on the facts it is given:

  RECORD  is a line of the audit log, in JSON or as --pretty writes it, a file of
          such lines, such as the whole log, or - for standard input. Lines that
          speak of no packet are passed over. Facts that the log does not carry
          are said to be unknown, and count as absent. The answer is compared
          with what the record says.
  FLOW    is a packet in words, see below. What is not said is unknown.
  HOST:PORT  asks the running daemon for its audit log and, without --policy, its
          policy, and takes the last record to or from there.

A packet is described as

` + packetWords() + `
Exit codes: 0 explained, and each record says the same; 1 a record says
something else, or the policy could not be traced; 2 the policy, a record or
the flow is at fault.`,
		Example: "  sudo verdictd why 192.0.2.7:443\n" +
			"  verdictd why --policy policy.rego 'tcp 10.0.0.1:40000 -> 1.2.3.4:443 output eth0 user=1000'\n" +
			"  grep '\"dest_port\":8443' eve.json | tail -1 | verdictd why --policy policy.rego -",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError(cmd, errors.New("nothing to explain: give a record of the audit log, a file of records, - or a flow in words"))
			}
			w := &inquiry{cmd: cmd, env: e, from: &from, control: controlPath, nearest: nearest, asJSON: asJSON}
			return w.run(args)
		},
	}
	from.bind(cmd)
	cmd.Flags().IntVar(&nearest, "nearest", 5, "tell of up to `N` rules that came near")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per answer")
	cmd.Flags().StringVar(&controlPath, "control", "", "with HOST:PORT: the daemon's control `SOCKET`")
	return cmd
}

// question is what why is asked about.
type question struct {
	place  string // of a record; empty for a flow
	in     *rules.Input
	record *logsink.Record // nil for a flow

	src, dst netip.AddrPort // of a record
}

// whyReport is an answer as JSON.
type whyReport struct {
	Place string `json:"place,omitempty"`
	*policy.Explanation
	Record *recordReport `json:"record,omitempty"`
}

// recordReport compares a record with the answer.
type recordReport struct {
	Verdict   string `json:"verdict"`
	Rule      string `json:"rule,omitempty"`
	Hash      string `json:"sha256,omitempty"`
	LatencyNS int64  `json:"latency_ns,omitempty"`
	Compared  bool   `json:"compared"` // false: the record holds no answer of the policy
	Same      bool   `json:"same"`     // the same verdict and rule
	OtherHash bool   `json:"other_policy"`
	Says      string `json:"says"` // in words
}

// answer explains one question; same is false if its record says otherwise.
func answer(cmd *cobra.Command, e env, x *policy.Explainer, q *question, nearest int, asJSON bool) (same bool, err error) {
	explanation, err := x.Explain(cmd.Context(), q.in, nearest)
	if err != nil {
		return false, err
	}
	report := whyReport{Place: q.place, Explanation: explanation}
	if q.record != nil {
		for i := range explanation.Facts {
			if f := &explanation.Facts[i]; f.Field == rules.HashPath && f.State == "absent" {
				f.Why = q.record.NoHash
			}
		}
		report.Record = compare(q.record, explanation)
	}
	if asJSON {
		err = printJSON(e.stdout, report)
	} else {
		err = report.writeText(e)
	}
	if err != nil {
		return false, fmt.Errorf("write explanation: %w", err)
	}
	return report.Record == nil || report.Record.Same || !report.Record.Compared, nil
}

func (r *whyReport) writeText(e env) error {
	if r.Place != "" {
		if _, err := fmt.Fprintf(e.stdout, "%s\n", r.Place); err != nil {
			return err
		}
	}
	if err := r.WriteText(e.stdout); err != nil || r.Record == nil {
		return err
	}
	_, err := fmt.Fprintf(e.stdout, "the record says: %s\n", terminal.Line(r.Record.Says))
	return err
}

// compare says whether a record agrees with an answer.
func compare(r *logsink.Record, x *policy.Explanation) *recordReport {
	out := &recordReport{Verdict: r.Action.String(), Rule: r.Rule, Hash: r.Policy, LatencyNS: r.LatencyNS}
	out.OtherHash = r.Policy != "" && r.Policy != x.Hash
	switch {
	case r.Cause == "":
		out.Says = "nothing: the kernel reported the packet, no policy was asked"
		return out
	case r.Cause == "policy_error":
		out.Compared, out.Same = true, x.Decision.Error != ""
		out.Says = out.words("the policy made no decision", "")
		return out
	case r.Rule == "":
		out.Says = fmt.Sprintf("%s because of %s: the policy was not asked about this packet", out.Verdict, r.Cause)
		return out
	}
	out.Compared = true
	out.Same = x.Decision.Error == "" && sameRule(r, x.Decision.Rule) && sameAction(r, x.Decision.Action())
	unknown := ""
	for _, f := range x.Facts {
		if f.State == "unknown" {
			unknown = "; the record does not carry " + f.Field
		}
	}
	out.Says = out.words(fmt.Sprintf("%s by rule %s", out.Verdict, out.Rule), unknown)
	return out
}

// sameRule returns whether the record says rule, as far as it says any.
func sameRule(r *logsink.Record, rule string) bool {
	return rule == r.Rule || r.RuleCut && strings.HasPrefix(rule, r.Rule)
}

// sameAction returns whether the record says action. A flow's end does not
// tell reject from drop.
func sameAction(r *logsink.Record, action packet.Action) bool {
	if r.EventType == "flow" && r.Action != packet.Accept {
		return action != packet.Accept
	}
	return r.Action == action
}

func (r *recordReport) words(said, unknown string) string {
	switch {
	case r.Same && r.OtherHash:
		return fmt.Sprintf("%s: the same, though by another policy (sha256 %.12s)", said, r.Hash)
	case r.Same:
		return said + ": the same"
	case r.OtherHash:
		return fmt.Sprintf("%s: not the same, but by another policy (sha256 %.12s)%s", said, r.Hash, unknown)
	}
	return said + ": NOT the same" + unknown
}
