package policy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/verdictd/verdictd/rules"
)

// Report is what Check found out about a policy that is well-formed.
type Report struct {
	Policy   string   `json:"policy"`
	Hash     string   `json:"sha256"`
	Revision string   `json:"revision,omitempty"` // of a bundle's manifest
	Files    []string `json:"files"`

	Tests    []TestResult `json:"tests"`
	Coverage float64      `json:"coverage_percent"` // lines that the tests ran; 0 without tests

	// Findings are allowed but hardly meant.
	Findings Errors `json:"findings"`

	// Engine is "compiled", or "topdown" where the policy cannot be compiled:
	// then NotCompiled says why.
	Engine      string `json:"engine"`
	NotCompiled string `json:"not_compiled,omitempty"`

	// Notes are worth knowing and need no action: rules whose order decides.
	Notes Errors `json:"notes"`

	// Reads are the input fields that decisions depend on. PerPacket are those
	// of them that may differ between the packets of a flow: a packet with new
	// values is judged anew.
	Reads     []string `json:"reads"`
	PerPacket []string `json:"per_packet"`
}

// Refused is the report of a policy that is not well-formed.
type Refused struct {
	Policy string `json:"policy"`
	Errors Errors `json:"errors"`
}

// CheckConfig says what Check warns of. The zero value is ready to use.
type CheckConfig struct {
	MaxScan int // elements that a rule may go through for a packet without a warning; 0 is DefaultMaxScan

	// ProbeTime bounds how long Check asks the policy about packets that it
	// makes up, to find conflicts and protocols that nobody thought of. 0 is 2 s.
	// Where it is too short a note says so.
	ProbeTime time.Duration
}

// Check reads and checks the policy at src, runs its tests, whatever
// src.SkipTests says, and looks for what is hardly meant.
func Check(ctx context.Context, src Source) (*Report, error) { return CheckConfig{}.Check(ctx, src) }

// Check is the function Check with these settings.
//
// The error, if any, is as Load returns it; a kept bundle is not looked at.
// Tests that fail are not an error here but in the report: see Failed.
func (cfg CheckConfig) Check(ctx context.Context, src Source) (*Report, error) {
	files, err := src.files(ctx)
	if err != nil {
		return nil, err
	}
	p, errs := newProgram(ctx, src, files)
	if len(errs) > 0 {
		return nil, errs
	}
	results, coverage, err := p.runTests(ctx)
	if err != nil {
		return nil, err
	}
	found, notes, err := p.findings(ctx, cfg)
	if err != nil {
		return nil, err
	}
	report := &Report{
		Policy:    p.name,
		Hash:      p.hash,
		Revision:  revision(p.files),
		Tests:     results,
		Findings:  found,
		Notes:     notes,
		Reads:     paths(p.fields, p.reads, func(*rules.Field) bool { return true }),
		PerPacket: paths(p.fields, p.reads, func(f *rules.Field) bool { return f.Scope == rules.PerPacket }),
	}
	loaded, err := newPolicy(ctx, p, src, nil)
	if err != nil {
		return nil, err
	}
	report.Engine = loaded.Engine().String()
	if err := loaded.NotCompiled(); err != nil {
		report.NotCompiled = err.Error()
	}
	if coverage != nil {
		report.Coverage = p.covered(coverage)
	}
	for i := range p.files {
		report.Files = append(report.Files, p.files[i].shown)
	}
	return report, nil
}

// Failed returns how many tests failed.
func (r *Report) Failed() int { return len(failures(r.Tests)) }

// WriteNotes writes the notes for people.
func (r *Report) WriteNotes(w io.Writer) error {
	b := bufio.NewWriter(w)
	for _, n := range r.Notes {
		fmt.Fprintf(b, "note: %v\n", n)
	}
	return b.Flush()
}

// WriteText writes the report, without its notes, for people.
func (r *Report) WriteText(w io.Writer) error {
	b := bufio.NewWriter(w) // keeps the first error for Flush
	for i := range r.Tests {
		t := &r.Tests[i]
		fmt.Fprintf(b, "%-4s %s  %s:%d (%v)\n", strings.ToUpper(string(t.Outcome)), t.Name, t.File, t.Line, t.Duration.Round(time.Microsecond))
		if t.Failure != nil {
			fmt.Fprintf(b, "     %v\n", t.Failure)
		}
		for line := range strings.Lines(t.Output) {
			fmt.Fprintf(b, "     | %s", line)
		}
	}
	for _, f := range r.Findings {
		fmt.Fprintf(b, "warning: %v\n", f)
	}
	fmt.Fprintf(b, "%s: %s\n", r.Policy, r.summary())
	fmt.Fprintf(b, "sha256:  %s\n", r.Hash)
	if r.Revision != "" {
		fmt.Fprintf(b, "bundle revision: %s\n", r.Revision)
	}
	if r.NotCompiled != "" {
		fmt.Fprintf(b, "runs on OPA's own evaluator, which is slower: %s\n", r.NotCompiled)
	}
	fmt.Fprintf(b, "reads:   %s\n", list(r.Reads))
	fmt.Fprintf(b, "of them may differ between packets of a flow: %s\n", list(r.PerPacket))
	return b.Flush()
}

func (r *Report) summary() string {
	if len(r.Tests) == 0 {
		return "well-formed, without tests"
	}
	skipped := 0
	for i := range r.Tests {
		if r.Tests[i].Outcome == Skip {
			skipped++
		}
	}
	failed := r.Failed()
	return fmt.Sprintf("%d tests passed, %d failed, %d skipped, %.1f %% of the lines covered",
		len(r.Tests)-failed-skipped, failed, skipped, r.Coverage)
}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
