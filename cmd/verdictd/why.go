package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/verdictd/verdictd/internal/terminal"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

// maxRecords is how many records why explains at once.
const maxRecords = 100

func newWhyCommand(e env) *cobra.Command {
	var from policyFlags
	var asJSON bool
	var nearest int
	cmd := &cobra.Command{
		Use:   "why RECORD|FLOW",
		Short: "Say why a policy decides as it does about a record of the log or a flow",
		Long: `why says which rule of a policy decides about a packet, what it read, which
rules came near and at which condition they failed, and how long it took. It
evaluates the policy anew, with tracing, on the facts it is given:

  RECORD  is a line of the audit log, a file of such lines, or - for standard
          input. Facts that the log does not carry are said to be unknown, and
          count as absent. The answer is compared with what the record says.
  FLOW    is text: PROTOCOL SOURCE[:PORT] -> DESTINATION[:PORT] [HOOK]
          [INTERFACE] [FIELD VALUE]... with any field of verdictd schema.

Exit codes: 0 explained, and each record says the same; 1 a record says
something else, or the policy could not be traced; 2 the policy, a record or
the flow is at fault.`,
		Example: "  verdictd why --policy policy.rego 'tcp 10.0.0.1:40000 -> 1.2.3.4:443 output eth0 uid 1000'\n" +
			"  grep '\"dest_port\":8443' eve.json | tail -1 | verdictd why --policy policy.rego -",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError(cmd, errors.New("nothing to explain: give a record of the audit log, a file of records, - or a flow in words"))
			}
			x, err := from.explainer(cmd)
			if err != nil {
				return err
			}
			questions, err := parseQuestions(e, args)
			if err != nil {
				return badInput(err)
			}
			differ := 0
			for i := range questions {
				same, err := answer(cmd, e, x, &questions[i], nearest, asJSON)
				if err != nil {
					return err
				}
				if !same {
					differ++
				}
			}
			if differ > 0 {
				return fmt.Errorf("%d of %d records say something else than the policy does now", differ, len(questions))
			}
			return nil
		},
	}
	from.bind(cmd)
	cmd.Flags().IntVar(&nearest, "nearest", 5, "tell of up to `N` rules that came near")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per answer")
	return cmd
}

// question is what why is asked about.
type question struct {
	place  string // of a record; empty for a flow
	in     *rules.Input
	record *logsink.Record // nil for a flow
}

// parseQuestions reads what the arguments say.
func parseQuestions(e env, args []string) ([]question, error) {
	text := strings.Join(args, " ")
	if strings.Contains(text, "->") && !strings.HasPrefix(text, "{") {
		in, err := rules.ParseFlow(text)
		return []question{{in: in}}, err
	}
	var all []question
	for _, arg := range args {
		name, lines := "record", []byte(arg)
		if !strings.HasPrefix(strings.TrimSpace(arg), "{") {
			var err error
			if name, lines, err = readInput(e, arg); err != nil {
				return nil, notRecord(arg, err)
			}
		}
		records, err := parseRecords(name, lines)
		if err != nil {
			return nil, err
		}
		all = append(all, records...)
	}
	return all, nil
}

// notRecord says what an argument might have been that is no file.
func notRecord(arg string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%.80q is no record (a JSON object), no flow (tcp 10.0.0.1:40000 -> 1.2.3.4:443) and no file: %w", arg, os.ErrNotExist)
}

func parseRecords(name string, text []byte) ([]question, error) {
	var all []question
	n := 0
	for line := range bytes.Lines(text) {
		n++
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		place := fmt.Sprintf("%s:%d", name, n)
		if len(all) == maxRecords {
			return nil, fmt.Errorf("%s: more than %d records (pick those to explain with grep or jq)", place, maxRecords)
		}
		r, err := logsink.ParseRecord(line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", place, err)
		}
		all = append(all, question{place: place, in: r.Input, record: r})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s holds no record", name)
	}
	return all, nil
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
	out.Same = x.Decision.Error == "" && x.Decision.Rule == r.Rule && sameAction(r, x.Decision.Action())
	unknown := ""
	for _, f := range x.Facts {
		if f.State == "unknown" {
			unknown = "; the record does not carry " + f.Field
		}
	}
	out.Says = out.words(fmt.Sprintf("%s by rule %s", out.Verdict, out.Rule), unknown)
	return out
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
