package policy

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy/compile"
	"github.com/verdictd/verdictd/rules"
)

func source(text string) Source {
	return Source{FS: fstest.MapFS{"p.rego": {Data: []byte(text)}}}
}

func load1(t *testing.T, src Source) *Policy {
	t.Helper()
	p, err := Load(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func tcpTo(port uint16) *rules.Facts {
	return &rules.Facts{
		Meta: &packet.Meta{Hook: packet.Output},
		Packet: &packet.Packet{
			Status: packet.OK, Version: 4, Protocol: packet.ProtoTCP, HasPorts: true, SrcPort: 40000, DstPort: port,
			Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Payload: []byte("lent"),
		},
	}
}

func TestPoliciesOfTheProjectAreCompiled(t *testing.T) {
	for _, path := range []string{"", "../policy.rego.example", "../rules.yaml.example"} {
		p := load1(t, Source{Path: path})
		if p.Engine() != Compiled || p.NotCompiled() != nil {
			t.Errorf("%q: runs on %v: %v", path, p.Engine(), p.NotCompiled())
		}
		if p := load1(t, Source{Path: path, Engine: Topdown}); p.Engine() != Topdown || p.NotCompiled() != nil {
			t.Errorf("%q: got %v (%v), want topdown as asked for", path, p.Engine(), p.NotCompiled())
		}
	}
}

// A policy that cannot be compiled runs on OPA, and says why.
func TestNotCompiled(t *testing.T) {
	src := Source{FS: fstest.MapFS{
		"p.rego":    {Data: []byte("package verdictd\n\nverdict := data.ports[input.dst_port]\n")},
		"data.json": {Data: []byte(`{"ports": {"8": "accept"}}`)},
	}, Path: "."}
	p := load1(t, src)
	if _, ok := errors.AsType[*compile.Unsupported](p.NotCompiled()); !ok || p.Engine() != Topdown {
		t.Fatalf("runs on %v: %v, want topdown for want of support", p.Engine(), p.NotCompiled())
	}
	if !strings.Contains(p.NotCompiled().Error(), "p.rego:3:") {
		t.Errorf("%v names no place", p.NotCompiled())
	}
	report, err := Check(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	if report.Engine != "topdown" || report.NotCompiled != p.NotCompiled().Error() {
		t.Errorf("report says %s: %s", report.Engine, report.NotCompiled)
	}
}

// The fields that one decision read are fewer than those of the policy.
func TestReadsOfOneDecision(t *testing.T) {
	p := load1(t, source(`package verdictd
decision := {"verdict": "accept", "rule": "web"} if {
	input.tcp.dst_port == 443
} else := {"verdict": "accept", "rule": "small"} if {
	input.packet.length < 100
}`))
	var web, other rules.Decision
	if err := errors.Join(p.Evaluate(tcpTo(443), &web), p.Evaluate(tcpTo(23), &other)); err != nil {
		t.Fatal(err)
	}
	for i, f := range rules.Fields() {
		if f.Path == "packet.length" && (web.Reads.Has(i) || !other.Reads.Has(i)) {
			t.Errorf("packet.length read: %v for web, %v for the rest; want only the latter", web.Reads.Has(i), other.Reads.Has(i))
		}
	}
}

func TestShadowAgrees(t *testing.T) {
	shadow := NewShadow(1)
	p := load1(t, Source{Path: "../policy.rego.example", Shadow: shadow})
	stop := runShadow(t, shadow, func(m *Mismatch) { t.Error(m) })
	for port := range uint16(50) {
		var d rules.Decision
		if err := p.Evaluate(tcpTo(port), &d); err != nil {
			t.Fatal(err)
		}
		for shadow.Stats().Compared+shadow.Stats().Skipped <= uint64(port) {
			// Run is not far behind.
		}
	}
	stop()
	if got := shadow.Stats(); got.Compared == 0 || got.Mismatches != 0 || p.Engine() != Compiled {
		t.Errorf("got %+v on %v", got, p.Engine())
	}
}

// A program that decides otherwise than OPA loses its office at once.
func TestShadowCatchesAMismatch(t *testing.T) {
	right := load1(t, source("package verdictd\nverdict := \"drop\"\n"))
	wrong := load1(t, source("package verdictd\nverdict := \"accept\"\n"))
	var found []*Mismatch
	shadow := NewShadow(1)
	c := wrong.eval.(*compiled)
	c.reference, c.shadow = right.eval.(*compiled).reference, shadow
	stop := runShadow(t, shadow, func(m *Mismatch) { found = append(found, m) })
	var d rules.Decision
	for range 3 {
		if err := wrong.Evaluate(tcpTo(1), &d); err != nil {
			t.Fatal(err)
		}
	}
	for !c.distrusted.Load() {
		// Run is about to find it.
	}
	stop()
	if err := wrong.Evaluate(tcpTo(1), &d); err != nil || d.Action != packet.Drop || wrong.Engine() != Topdown {
		t.Errorf("got %v, %v by %v, want OPA's drop", d.Action, err, wrong.Engine())
	}
	if len(found) != 1 || found[0].Compiled.Action != packet.Accept || found[0].Reference.Action != packet.Drop {
		t.Fatalf("got %d reports", len(found))
	}
	again := load1(t, Source{FS: fstest.MapFS{"p.rego": {Data: []byte("package verdictd\nverdict := \"accept\"\n")}}, Shadow: shadow})
	if again.Engine() != Topdown || !errors.Is(again.NotCompiled(), errDistrusted) {
		t.Errorf("loaded again: runs on %v (%v), want OPA's evaluator", again.Engine(), again.NotCompiled())
	}
	const want = `compiled policy decided accept by rule "verdict", OPA drop by rule "verdict", about protocol tcp from 10.0.0.1 port 40000 to 10.0.0.2 port 1 at output`
	if got := found[0].Error(); !strings.HasPrefix(got, want) {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// Decisions do not wait for a comparison that is not made.
func TestShadowSkips(t *testing.T) {
	shadow := NewShadow(2)
	p := load1(t, Source{Path: "../policy.rego.example", Shadow: shadow})
	for range 1000 {
		var d rules.Decision
		if err := p.Evaluate(tcpTo(443), &d); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := shadow.Stats().Skipped, uint64(500-cap(shadow.samples)); got != want {
		t.Errorf("skipped %d, want %d", got, want)
	}
}

func runShadow(t *testing.T, s *Shadow, report func(*Mismatch)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx, report); err != nil {
			t.Error(err)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// Errors are counted by the rule that is to blame.
func TestErrorsByPlace(t *testing.T) {
	p := load1(t, source(`package verdictd
verdict := "accept" if input.dst_port < 100
verdict := "drop" if input.dst_port < 50
`))
	var d rules.Decision
	for port := range uint16(80) {
		_ = p.Evaluate(tcpTo(port), &d) // the errors are what is counted
	}
	got := p.Stats()
	if got.Errors != 50 || len(got.Places) != 1 || got.Places["p.rego:2:1"]+got.Places["p.rego:3:1"] != 50 {
		t.Errorf("got %+v, want 50 errors at one of the two rules", got)
	}
}
