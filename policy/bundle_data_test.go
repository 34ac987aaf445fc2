package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

const listedPolicy = `package verdictd

decision := {"verdict": "drop", "rule": "listed"} if data.blocked[input.ip.src]

decision := {"verdict": "accept", "rule": "unlisted"} if not data.blocked[input.ip.src]

test_listed if decision.rule == "listed" with input.ip.src as "10.0.0.1"
`

// listSource returns listedPolicy with 10.0.0.1 and n-1 more addresses listed,
// of which the last is last.
func listSource(n int, last string) Source {
	var b strings.Builder
	b.WriteString(`{"blocked": {"10.0.0.1": true`)
	for i := range n - 2 {
		fmt.Fprintf(&b, `, "10.1.%d.%d": true`, i/256, i%256)
	}
	fmt.Fprintf(&b, `, %q: true}}`, last)
	return Source{FS: fstest.MapFS{
		"policy.rego": {Data: []byte(listedPolicy)}, "list.json": {Data: []byte(b.String())},
	}}
}

// reload loads src as a watch does that has old in use.
func reload(t testing.TB, src Source, old *Policy) *Policy {
	t.Helper()
	files, errs := src.read()
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	p, err := load(context.Background(), src, files, old)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func ruleFor(t testing.TB, p *Policy, src string) string {
	t.Helper()
	f := &rules.Facts{Meta: &packet.Meta{Hook: packet.Input}, Packet: &packet.Packet{
		Status: packet.OK, Version: 4, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr("192.0.2.1"), Protocol: packet.ProtoUDP,
	}}
	var d rules.Decision
	if err := p.Evaluate(f, &d); err != nil {
		t.Error(err)
	}
	return d.Rule
}

// TestDataOnly changes the data of a policy: everything else is taken over.
func TestDataOnly(t *testing.T) {
	old := reload(t, listSource(10, "10.9.9.9"), nil)
	p := reload(t, listSource(10, "10.8.8.8"), old)
	if p.program.compiler != old.program.compiler || p.program.all != old.program.all || p.program.tests != old.program.tests {
		t.Error("compiled again, though only the data changed")
	}
	if p.hash == old.hash {
		t.Error("the hash is that of the old data")
	}
	for _, tt := range []struct {
		p         *Policy
		src, want string
	}{
		{old, "10.9.9.9", "listed"}, {old, "10.8.8.8", "unlisted"},
		{p, "10.9.9.9", "unlisted"}, {p, "10.8.8.8", "listed"},
	} {
		if got := ruleFor(t, tt.p, tt.src); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.src, got, tt.want)
		}
	}
	// What reading a bundle costs comes before; here nothing is parsed twice.
	if q := reload(t, listSource(10, "10.8.8.8"), p); q.program.compiler != old.program.compiler {
		t.Error("compiled again, though nothing changed")
	}
	changed := listSource(10, "10.8.8.8")
	changed.FS.(fstest.MapFS)["policy.rego"].Data = []byte(listedPolicy + "# changed\n")
	if q := reload(t, changed, p); q.program.compiler == old.program.compiler {
		t.Error("not compiled again, though the rules changed")
	}
}

// TestDataOnlyErrors has data that do not fit the rules.
func TestDataOnlyErrors(t *testing.T) {
	old := reload(t, listSource(10, "10.9.9.9"), nil)
	tests := []struct{ name, data, want string }{
		{"test fails", `{"blocked": {}}`, "policy.rego:7:16: test_listed fails at: decision.rule == \"listed\""},
		{"conflict", `{"blocked": {"10.0.0.1": true}, "verdictd": {"decision": 1}}`, "conflicting rule for data path verdictd/decision found"},
		{"syntax", `{`, "list.json:1:2: not JSON: unexpected EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := listSource(10, "10.9.9.9")
			src.FS.(fstest.MapFS)["list.json"].Data = []byte(tt.data)
			files, errs := src.read()
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			_, err := load(context.Background(), src, files, old)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if _, fresh := load(context.Background(), src, files, nil); fmt.Sprint(fresh) != fmt.Sprint(err) {
				t.Errorf("got %v, but %v when compiled anew", err, fresh)
			}
		})
	}
}

// TestDataOnlyWhileJudging changes data while packets are judged: the race
// detector sees what the policies share.
func TestDataOnlyWhileJudging(t *testing.T) {
	p := reload(t, listSource(10, "10.9.9.0"), nil)
	var current atomic.Pointer[Policy]
	current.Store(p)
	var stop atomic.Bool
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			for !stop.Load() {
				if got := ruleFor(t, current.Load(), "10.0.0.1"); got != "listed" {
					t.Errorf("got %q, want listed", got)
				}
			}
		})
	}
	for i := range 10 {
		p = reload(t, listSource(10, fmt.Sprintf("10.9.9.%d", i)), p)
		current.Store(p)
	}
	stop.Store(true)
	workers.Wait()
}

// TestCompiledTestsAreRenewed runs compiled tests until they are compiled
// anew.
func TestCompiledTestsAreRenewed(t *testing.T) {
	p := reload(t, listSource(2, "10.9.9.9"), nil)
	first := p.program.tests.compiler
	p.program.tests.runs = maxTestRuns
	p = reload(t, listSource(2, "10.9.9.8"), p)
	if p.program.tests.compiler == first {
		t.Error("the compiler is still the old one")
	}
	reload(t, listSource(2, "10.9.9.7"), p)
	if p.program.tests.runs != 1 {
		t.Errorf("runs: got %d, want 1", p.program.tests.runs)
	}
}

// TestBackoff checks the bounds of the times between two requests.
func TestBackoff(t *testing.T) {
	s := &server{BundleServer: BundleServer{}.withDefaults()}
	tests := []struct {
		failures  int
		low, high time.Duration
	}{
		{1, time.Second / 2, time.Second},
		{2, time.Second, 2 * time.Second},
		{5, 8 * time.Second, 16 * time.Second},
		{8, time.Minute, 2 * time.Minute},
		{1 << 40, time.Minute, 2 * time.Minute},
	}
	for _, tt := range tests {
		p := poll{server: s, failures: tt.failures}
		spread := map[time.Duration]bool{}
		for range 100 {
			d := p.backoff()
			spread[d] = true
			if d < tt.low || d > tt.high {
				t.Errorf("after %d failures: got %v, want %v to %v", tt.failures, d, tt.low, tt.high)
			}
		}
		if len(spread) < 50 {
			t.Errorf("after %d failures: %d different times of 100", tt.failures, len(spread))
		}
	}
	p := poll{server: s}
	for range 100 {
		if d := p.interval(); d < time.Minute || d > 2*time.Minute {
			t.Errorf("interval: got %v, want 1 to 2 minutes", d)
		}
	}
}

// packed returns the files of src as a bundle.
func packed(t testing.TB, src Source) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for name, f := range src.FS.(fstest.MapFS) {
		if name == "list.json" {
			name = "data.json"
		}
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(f.Data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(f.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// BenchmarkNewList measures a change of a list of 10,000 entries: of "data"
// alone, in a file and in a "bundle", and with rules that are compiled again.
func BenchmarkNewList(b *testing.B) {
	medium := func(last string) Source {
		src := listSource(10_000, last)
		var text strings.Builder
		text.WriteString(listedPolicy)
		for i := range 50 {
			fmt.Fprintf(&text, "\nnet_%d if net.cidr_contains(\"172.16.%d.0/24\", input.ip.dst)\n\nallow_%d if {\n\tinput.tcp.dst_port == %d\n\tnot net_%d\n}\n", i, i, i, i+1000, i)
		}
		src.FS.(fstest.MapFS)["policy.rego"].Data = []byte(text.String())
		return src
	}
	sources := []Source{medium("10.9.9.9"), medium("10.8.8.8")}
	b.Run("bundle", func(b *testing.B) {
		packed := [][]byte{packed(b, sources[0]), packed(b, sources[1])}
		var p *Policy
		for i := 0; b.Loop(); i++ {
			files, errs := Bundle{}.open("b.tar.gz", packed[i%2])
			if len(errs) > 0 {
				b.Fatal(errs)
			}
			var err error
			if p, err = load(context.Background(), Source{Path: "b.tar.gz"}, files, p); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, kind := range []string{"data", "all"} {
		b.Run(kind, func(b *testing.B) {
			p := reload(b, sources[1], nil)
			for i := 0; b.Loop(); i++ {
				next := p
				if kind == "all" {
					next = nil
				}
				p = reload(b, sources[i%2], next)
			}
		})
	}
}
