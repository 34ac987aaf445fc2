package policy_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

func explainer(t testing.TB, src policy.Source) *policy.Explainer {
	t.Helper()
	x, err := policy.NewExplainer(context.Background(), src)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func parseFlow(t testing.TB, text string) *rules.Input {
	t.Helper()
	in, err := rules.ParseFlow(text)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// TestWhy explains each line of an archive's file "flows".
func TestWhy(t *testing.T) {
	took := regexp.MustCompile(`took [0-9.]+[mµn]?s`)
	golden(t, "why", func(t *testing.T, files fs.FS) string {
		flows, err := fs.ReadFile(files, "flows")
		if err != nil {
			t.Fatal(err)
		}
		x := explainer(t, policy.Source{FS: files})
		var b strings.Builder
		for flow := range strings.Lines(string(flows)) {
			e, err := x.Explain(context.Background(), parseFlow(t, flow), 3)
			if err != nil {
				t.Fatal(err)
			}
			b.WriteString("> " + flow)
			if err := e.WriteText(&b); err != nil {
				t.Fatal(err)
			}
		}
		return took.ReplaceAllString(b.String(), "took TIME")
	})
}

// TestExplainAgreesWithEvaluate explains decisions about random packets: the
// answer is that of Evaluate, the facts are among those that the policy reads,
// and their values are the packet's.
func TestExplainAgreesWithEvaluate(t *testing.T) {
	fields := rules.Fields()
	for name, text := range oracles(t) {
		t.Run(name, func(t *testing.T) {
			p, x := load(t, source(text)), explainer(t, source(text))
			reads := readPaths(p.Reads())
			r := rand.New(rand.NewPCG(5, 6))
			for range 100 {
				f := randomFacts(r)
				var d rules.Decision
				err := p.Evaluate(f, &d)
				e, xerr := x.Explain(context.Background(), rules.InputOf(f), 0)
				if xerr != nil {
					t.Fatal(xerr)
				}
				checkExplained(t, e, &d, err)
				checkFacts(t, e.Facts, fields, f, reads)
			}
		})
	}
}

func checkExplained(t *testing.T, e *policy.Explanation, d *rules.Decision, err error) {
	t.Helper()
	want := policy.Outcomes{Verdict: d.Action.String(), Rule: d.Rule, Reason: d.Reason, Log: d.Log}
	if d.SetMark {
		want.Mark = &d.Mark
	}
	if err != nil {
		want = policy.Outcomes{Verdict: "drop", Log: true, Error: err.Error()}
	}
	if diff := cmp.Diff(want, e.Decision); diff != "" {
		t.Fatalf("decision (-Evaluate +Explain):\n%s", diff)
	}
	if decided := len(e.DecidedBy) > 0; decided != (d.Rule != "default") && err == nil {
		t.Errorf("%d rules decided, and the decision is by %s", len(e.DecidedBy), d.Rule)
	}
	for _, rule := range e.DecidedBy {
		if !rule.Matched || rule.Line == 0 {
			t.Errorf("decided by %+v, want a rule that matched, with its place", rule)
		}
	}
	for _, rule := range e.Near {
		if rule.Matched || rule.Held >= rule.Of && rule.Of > 0 && len(rule.Conditions) > 0 && !rule.Conditions[0].Held && rule.Conditions[0].Line == 0 {
			t.Errorf("near: %+v, want a rule that did not match", rule)
		}
	}
}

func checkFacts(t *testing.T, facts []policy.Fact, fields []rules.Field, f *rules.Facts, reads []string) {
	t.Helper()
	var v rules.Value
	for _, fact := range facts {
		for i := range fields {
			if fields[i].Path != fact.Field {
				continue
			}
			has := fields[i].Get(f, &v)
			if has != (fact.State == "present") || has && fact.Value != native(fields[i].Kind, &v) {
				t.Errorf("%s is %s %v, want %v %v", fact.Field, fact.State, fact.Value, has, native(fields[i].Kind, &v))
			}
		}
		if !strings.Contains(" "+strings.Join(reads, " ")+" ", " "+fact.Field+" ") {
			t.Errorf("%s was read, which is not among %v", fact.Field, reads)
		}
	}
}

// TestExplainIsBounded explains a decision of a policy with many rules that
// come equally near, and one that scans.
func TestExplainIsBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString("package verdictd\n\n")
	for i := range 2000 {
		b.WriteString("deny contains \"" + strings.Repeat("x", i%7) + "\" if {\n\tinput.ip.version == 4\n\tinput.ip.ttl == 1\n}\n\n")
		b.WriteString("verdict := \"drop\" if {\n\tinput.ip.version == 4\n\tinput.ip.ttl == 2\n}\n\n")
	}
	b.WriteString("verdict := \"drop\" if {\n\tsome x in data.n\n\tx == input.mark\n\tcount(deny) > 0\n}\n")
	numbers := "{\"n\": [" + strings.Repeat("1, ", 2000) + "2]}"
	x := explainer(t, policy.Source{FS: fstest.MapFS{"p.rego": {Data: []byte(b.String())}, "n.json": {Data: []byte(numbers)}}, Budget: time.Minute})
	e, err := x.Explain(context.Background(), parseFlow(t, "tcp 10.0.0.1:1 -> 10.0.0.2:2 output mark 2 ip.ttl 64"), 7)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Near) != 7 || e.Farther != 1994 || len(text) > 16<<10 {
		t.Errorf("%d near, %d farther, %d bytes; want 7, 1994, at most 16 KiB", len(e.Near), e.Farther, len(text))
	}
	if e.Near[6].Held != 2 || e.Near[6].Farther == 0 {
		t.Errorf("the last of those near is %+v, want the rule of which most conditions held, and its helpers cut", e.Near[6])
	}
}

func TestExplainStops(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	x := explainer(t, source("package verdictd\n\nverdict := \"drop\" if count(numbers.range(0, 100000)) > input.mark\n"))
	if _, err := x.Explain(ctx, parseFlow(t, "tcp 10.0.0.1:1 -> 10.0.0.2:2"), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func TestNewExplainerErrors(t *testing.T) {
	_, err := policy.NewExplainer(context.Background(), source("package verdictd\n\nverdict := \"acept\"\n"))
	if errs, ok := errors.AsType[policy.Errors](err); !ok || errs[0].Line != 3 {
		t.Errorf("got %v, want policy.Errors at line 3", err)
	}
	if _, err := policy.NewExplainer(context.Background(), policy.Source{Path: os.DevNull + "/x"}); err == nil {
		t.Error("a policy that does not exist has an explainer")
	}
}

// TestOutcomesAction maps each verdict to its action.
func TestOutcomesAction(t *testing.T) {
	for _, want := range []packet.Action{packet.Drop, packet.Accept, packet.Reject} {
		if got := (&policy.Outcomes{Verdict: want.String()}).Action(); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}
