package policy_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/format"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

// TestPlainRulesAgreeWithOracle translates random rules files and compares the
// decisions of the translation with those of the oracle. With VERDICTD_LONG set
// it takes ten times as many files.
func TestPlainRulesAgreeWithOracle(t *testing.T) {
	filesN, factsN := 40, 1600 // 64,000 comparisons
	if os.Getenv("VERDICTD_LONG") != "" {
		filesN = 400
	}
	r := rand.New(rand.NewPCG(5, 6))
	pool, inputs := make([]*rules.Facts, 4000), make([]*rules.Input, 4000)
	for i := range pool {
		pool[i] = plainFacts(r)
		inputs[i] = rules.InputOf(pool[i])
	}
	var compared, dead, matched int
	for n := range filesN {
		o := randomFile(r)
		text := o.yaml(r)
		p, set, findings := loadPlain(t, o, text)
		never := map[string]bool{}
		for _, f := range findings {
			name, is := strings.CutPrefix(f.Msg, "rule ")
			name, _, dies := strings.Cut(name, " can never match")
			if is && dies && f.Level == rules.Warning {
				never[name] = true
				dead++
			}
		}
		for range factsN {
			chosen := r.IntN(len(pool))
			f := pool[chosen]
			want, index := o.decide(f)
			var got rules.Decision
			if err := p.Evaluate(f, &got); err != nil {
				t.Fatalf("file %d: %v\n%s", n, err, text)
			}
			got.Reads = rules.FieldSet{}
			if got != want {
				t.Fatalf("file %d: %+v, want %+v, for\n%+v\n%+v\n%s\n%s", n, got, want, f.Packet, f.Meta, text, set.Rego().Text)
			}
			compared++
			if index >= 0 {
				matched++
				if name := o.rules[index].name; never[fmt.Sprintf("%q", name)] {
					t.Fatalf("file %d: rule %q matches and is said to never match\n%s\n%v", n, name, text, findings)
				}
			}
			checkMatch(t, o, set, f, inputs[chosen])
		}
	}
	t.Logf("%d comparisons, %d by a rule; %d rules that never match", compared, matched, dead)
	if matched < compared/4 || dead < filesN/4 {
		t.Error("the random rules are too poor to say much")
	}
}

// checkMatch compares Match, which explains, with the oracle.
func checkMatch(t *testing.T, o *oracleFile, set *rules.Ruleset, f *rules.Facts, in *rules.Input) {
	t.Helper()
	want := "default"
	for i := range o.rules {
		if o.rules[i].matches(f) {
			want = o.rules[i].name
			break
		}
	}
	if got := set.Match(in).Rule.Name; got != want {
		t.Fatalf("Match says %q, want %q", got, want)
	}
}

// loadPlain loads a random file and checks what must hold of all.
func loadPlain(t *testing.T, o *oracleFile, text string) (*policy.Policy, *rules.Ruleset, []rules.Finding) {
	t.Helper()
	ctx := context.Background()
	files := fstest.MapFS{"rules.yaml": {Data: []byte(text)}}
	if o.delegates() {
		files["more.rego"] = &fstest.MapFile{Data: []byte(delegatedRego)}
	}
	quick := policy.CheckConfig{ProbeTime: time.Millisecond} // what probing finds has tests of its own
	if _, err := quick.Check(ctx, policy.Source{FS: files}); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	p, err := policy.Load(ctx, policy.Source{FS: files, Budget: time.Minute}) // the machine may be busy
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	set, err := rules.ParsePlain("rules.yaml", files.ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	translated := set.Rego()
	formatted, err := format.Source("rules.rego", translated.Text)
	if err != nil {
		t.Fatalf("%v\n%s", err, translated.Text)
	}
	if diff := cmp.Diff(string(formatted), string(translated.Text)); diff != "" {
		t.Fatalf("not in the layout of opa fmt (-want +got):\n%s", diff)
	}
	if lines := strings.Count(string(translated.Text), "\n"); lines != len(translated.Lines) {
		t.Fatalf("%d lines, %d places", lines, len(translated.Lines))
	}
	// The translation alone, in place of the rules file, is a policy too.
	delete(files, "rules.yaml")
	files["rules.rego"] = &fstest.MapFile{Data: translated.Text}
	if _, err := quick.Check(ctx, policy.Source{FS: files}); err != nil {
		t.Fatalf("translation: %v\n%s", err, translated.Text)
	}
	return p, set, set.Findings()
}

// TestPlainExample compares the two examples: they say the same.
func TestPlainExample(t *testing.T) {
	ctx := context.Background()
	plain, err := policy.Load(ctx, policy.Source{Path: "../rules.yaml.example", Budget: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	rego, err := policy.Load(ctx, policy.Source{Path: "../policy.rego.example", Budget: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(9, 10))
	seen := map[string]int{}
	for range 5000 {
		f := plainFacts(r)
		f.Packet.DstPort = oneOf[uint16](r, 21, 22, 22, 23, 24, 53, 53, 80, 123, 443, 511, 512, 513, 514, 515)
		f.Packet.ICMPType = uint8(r.IntN(16) + 128*r.IntN(2))
		f.Packet.Src = oneOf(r, f.Packet.Src, netip.MustParseAddr("10.99.0.7"))
		if !f.Packet.Src.Is4() && f.Packet.Version == 4 || f.Packet.Src.Is4() && f.Packet.Version == 6 {
			f.Packet.Src = f.Packet.Dst
		}
		var got, want rules.Decision
		if err := plain.Evaluate(f, &got); err != nil {
			t.Fatal(err)
		}
		if err := rego.Evaluate(f, &want); err != nil {
			t.Fatal(err)
		}
		seen[got.Rule]++
		// One list of ICMP types is two rules there; one reason is less exact.
		got.Rule = strings.Replace(got.Rule, "ipv6-routers", "icmp", 1)
		got.Rule = strings.TrimPrefix(got.Rule, "essential-") // there the policy gives the name
		if got.Rule == "clear-text" && strings.HasSuffix(want.Reason, got.Reason) {
			got.Reason = want.Reason
		}
		got.Reads, want.Reads = rules.FieldSet{}, rules.FieldSet{}
		if got != want {
			t.Fatalf("%+v, want %+v, for\n%+v", got, want, f.Packet)
		}
	}
	if len(seen) != 9 {
		t.Errorf("only these rules were met: %v", seen)
	}
}

// TestPlainWatch changes a file that rules include from another directory.
func TestPlainWatch(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		// By way of a rename, so that nobody sees half a file.
		next := filepath.Join(dir, ".next")
		if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write("fw.yaml", "include: sub/ports.yaml\nrules:\n  - {name: web, verdict: accept, to-port: $web}\n")
	write("sub/ports.yaml", "sets: {web: [80]}\n")
	src := policy.Source{Path: filepath.Join(dir, "fw.yaml")}
	first, err := policy.Load(context.Background(), src)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	type change struct {
		p   *policy.Policy
		err error
	}
	changes := make(chan change, 10)
	done := make(chan error, 1)
	go func() {
		done <- policy.Watch(ctx, policy.WatchConfig{Source: src, Hash: first.Hash(), Settle: time.Millisecond,
			OnChange: func(p *policy.Policy, err error) { changes <- change{p, err} }})
	}()
	next := func() change {
		t.Helper()
		select {
		case c := <-changes:
			return c
		case <-ctx.Done():
			t.Fatal("the change was not seen")
			return change{}
		}
	}
	write("sub/ports.yaml", "sets: {web: [81-]}\n")
	if c := next(); c.err == nil || !strings.Contains(c.err.Error(), filepath.Join(dir, "sub/ports.yaml")+":1:14: ") {
		t.Errorf("error %v, want the place in sub/ports.yaml", c.err)
	}
	write("sub/ports.yaml", "sets: {web: [81]}\n")
	c := next()
	if c.err != nil {
		t.Fatal(c.err)
	}
	if c.p.Hash() == first.Hash() {
		t.Error("the hash does not know the included file")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestPlainManyRules has more rules than stand in one Rego rule.
func TestPlainManyRules(t *testing.T) {
	const n = 250
	var text strings.Builder
	text.WriteString("rules:\n")
	for i := range n {
		fmt.Fprintf(&text, "  - {name: r%d, verdict: %s, proto: tcp, to-port: [%d, 1-%d]}\n", i, []string{"accept", "drop"}[i%2], 60000+i, 2*i+1)
	}
	text.WriteString("default: reject\n")
	p, _, _ := loadPlain(t, &oracleFile{}, text.String())
	for port := range 2*n + 10 {
		f := facts(packet.ProtoTCP, "10.99.0.1:40000", fmt.Sprintf("192.168.1.7:%d", port))
		want := fmt.Sprintf("r%d", port/2)
		if port == 0 || port > 2*n-1 {
			want = "default"
		}
		var d rules.Decision
		if err := p.Evaluate(f, &d); err != nil {
			t.Fatal(err)
		}
		if d.Rule != want {
			t.Fatalf("port %d: rule %s, want %s", port, d.Rule, want)
		}
	}
}
