package policy_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

func load(t testing.TB, src policy.Source) *policy.Policy {
	t.Helper()
	p, err := policy.Load(context.Background(), src)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// facts returns a packet of protocol proto. Ports are those of the addresses,
// which are written as addr:port, or the type for ICMP.
func facts(proto uint8, src, dst string) *rules.Facts {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	p := &packet.Packet{Status: packet.OK, Version: 4, Src: s.Addr(), Dst: d.Addr(), Protocol: proto, TTL: 64, TotalLength: 60}
	if s.Addr().Is6() {
		p.Version = 6
	}
	switch proto {
	case packet.ProtoICMP, packet.ProtoICMPv6:
		p.ICMPType = uint8(d.Port())
	default:
		p.HasPorts, p.SrcPort, p.DstPort = true, s.Port(), d.Port()
	}
	return &rules.Facts{Meta: &packet.Meta{Hook: packet.Output, Length: 60}, Packet: p}
}

func TestExamplePolicy(t *testing.T) {
	p := load(t, policy.Source{Path: "../policy.rego.example"})
	const tcp, udp, icmp, icmp6 = packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMP, packet.ProtoICMPv6
	tests := []struct {
		proto    uint8
		src, dst string
		want     packet.Action
		rule     string
	}{
		{tcp, "10.99.0.1:4000", "10.99.0.2:443", packet.Accept, "web"},
		{tcp, "10.99.0.1:4000", "10.99.0.2:80", packet.Accept, "web"},
		{tcp, "10.99.0.1:4000", "10.99.0.2:23", packet.Reject, "clear-text"},
		{udp, "10.99.0.1:4000", "10.99.0.2:53", packet.Accept, "dns"},
		{tcp, "10.99.0.1:4000", "10.99.0.2:53", packet.Accept, "dns"},
		{udp, "10.99.0.1:4000", "8.8.8.8:53", packet.Drop, "default"},
		{udp, "10.99.0.1:4000", "10.99.0.2:123", packet.Accept, "ntp"},
		{icmp, "10.99.0.1:0", "10.99.0.2:8", packet.Accept, "icmp"},
		{icmp, "10.99.0.1:0", "10.99.0.2:5", packet.Drop, "default"},
		{tcp, "10.99.0.1:4000", "10.99.0.2:8081", packet.Drop, "default"},
		{tcp, "10.99.0.1:4000", "10.99.0.2:22", packet.Accept, "ssh"},
		{tcp, "203.0.113.9:4000", "10.99.0.2:22", packet.Drop, "default"},

		{tcp, "[fd99::1]:4000", "[fd99::2]:443", packet.Accept, "web"},
		{tcp, "[fd99::1]:4000", "[fd99::2]:23", packet.Reject, "clear-text"},
		{udp, "[fd99::1]:4000", "[fd99::2]:53", packet.Accept, "dns"},
		{udp, "[fd99::1]:4000", "[2001:4860:4860::8888]:53", packet.Drop, "default"},
		{udp, "[fd99::1]:4000", "[fd99::2]:123", packet.Accept, "ntp"},
		{icmp6, "[fd99::1]:0", "[fd99::2]:128", packet.Accept, "icmp"},
		{icmp6, "[fd99::1]:0", "[ff02::1:ff00:2]:135", packet.Accept, "icmp"},
		{icmp6, "[fd99::1]:0", "[fd99::2]:8", packet.Drop, "default"},
		{tcp, "[fd99::1]:4000", "[fd99::2]:8081", packet.Drop, "default"},
		{tcp, "[fd99::1]:4000", "[fd99::2]:22", packet.Accept, "ssh"},
	}
	for _, tt := range tests {
		var d rules.Decision
		if err := p.Evaluate(facts(tt.proto, tt.src, tt.dst), &d); err != nil {
			t.Errorf("%d %s > %s: %v", tt.proto, tt.src, tt.dst, err)
		}
		if d.Action != tt.want || d.Rule != tt.rule {
			t.Errorf("%d %s > %s: %v by rule %s, want %v by rule %s", tt.proto, tt.src, tt.dst, d.Action, d.Rule, tt.want, tt.rule)
		}
	}
}

// TestExampleReads keeps the example's decisions good for whole flows, but for what
// goes to multicast groups and answers it.
func TestExampleReads(t *testing.T) {
	report, err := policy.Check(context.Background(), policy.Source{Path: "../policy.rego.example"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"answers_multicast", "icmp.type", "ip.ttl"}, report.PerPacket); diff != "" {
		t.Errorf("per-packet fields of the example (-want +got):\n%s", diff)
	}
	if len(report.Tests) == 0 || report.Failed() > 0 || report.Coverage < 100 || len(report.Findings) > 0 {
		t.Errorf("%d tests, %d failed, %.1f %% covered, findings %v; want all passed, 100 %%, none",
			len(report.Tests), report.Failed(), report.Coverage, report.Findings)
	}
}

func TestEvaluate(t *testing.T) {
	const pkg = "package verdictd\n\n"
	web := facts(packet.ProtoTCP, "192.0.2.1:4000", "192.0.2.2:443")
	tests := []struct {
		name string
		rego string
		want rules.Decision
		err  string
	}{
		{name: "all keys",
			rego: `decision := {"verdict": "accept", "rule": "web", "log": false, "reason": "it is the web", "mark": 4294967295}`,
			want: rules.Decision{Action: packet.Accept, Rule: "web", Reason: "it is the web", SetMark: true, Mark: 1<<32 - 1}},
		{name: "defaults", rego: `decision := {"verdict": "reject"}`,
			want: rules.Decision{Action: packet.Reject, Rule: "decision", Log: true}},
		{name: "key by key", rego: "decision.verdict := \"accept\"\n\ndecision.mark := 0\n\ndecision.log := input.tcp.dst_port == 1",
			want: rules.Decision{Action: packet.Accept, Rule: "decision", SetMark: true}},
		{name: "simple form", rego: `verdict := "accept"`,
			want: rules.Decision{Action: packet.Accept, Rule: "verdict", Log: true}},
		{name: "decision wins", rego: "verdict := \"accept\"\n\ndecision := {\"verdict\": \"drop\"} if verdict == \"accept\"",
			want: rules.Decision{Rule: "decision", Log: true}},
		{name: "verdict where decision is undefined", rego: "verdict := \"accept\"\n\ndecision := {\"verdict\": verdict} if input.tcp.dst_port == 22",
			want: rules.Decision{Action: packet.Accept, Rule: "verdict", Log: true}},
		{name: "undefined", rego: `verdict := "accept" if input.tcp.dst_port == 22`,
			want: rules.Decision{Rule: "default", Log: true}},
		{name: "division by zero is undefined", rego: `verdict := "accept" if 1 / (input.tcp.dst_port - 443) > 0`,
			want: rules.Decision{Rule: "default", Log: true}},
		{name: "conflict", rego: "verdict := \"accept\" if input.tcp.dst_port == 443\n\nverdict := \"drop\" if input.ip.src == \"192.0.2.1\"",
			err: `policy.rego:5:1: rule data.verdictd.verdict produced conflicting values: "accept" at policy.rego:3 "drop" at policy.rego:5 (let the conditions exclude each other, or join the rules with else)`},
		{name: "verdict made at run time", rego: `verdict := input.hook`,
			err: `verdict is "output", want "accept", "drop" or "reject"`},
		{name: "wrong type at run time", rego: `decision := {"verdict": "drop", "rule": input.tcp.dst_port}`,
			err: "decision.rule is 443, want a string"},
		{name: "unknown key at run time", rego: `decision := {"verdict": "drop", input.hook: 1}`,
			err: `decision has the key "output", want verdict, rule, reason, log or mark`},
		{name: "mark out of range", rego: `decision := {"verdict": "drop", "mark": 0 - input.tcp.dst_port}`,
			err: "decision.mark is -443, want an integer from 0 to 4294967295"},
		{name: "no verdict at run time", rego: "decision := x if {\n\tx := {input.hook: 1 | input.tcp.dst_port == 22}\n}",
			err: `decision has no key "verdict", want "accept", "drop" or "reject"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := load(t, source(pkg+tt.rego+"\n"))
			d := rules.Decision{Action: packet.Accept, Rule: "stale", Mark: 9}
			err := p.Evaluate(web, &d)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.err {
				t.Errorf("error %q, want %q", got, tt.err)
			}
			tt.want.Reads = p.Reads()
			if diff := cmp.Diff(tt.want, d); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
			if stats := p.Stats(); (stats.Errors == 1) != (tt.err != "") || stats.Overruns != 0 {
				t.Errorf("stats %+v after error %q", stats, tt.err)
			}
		})
	}
}

func TestBuiltinPolicy(t *testing.T) {
	p := load(t, policy.Source{})
	var d rules.Decision
	if err := p.Evaluate(facts(packet.ProtoUDP, "192.0.2.1:1", "192.0.2.2:2"), &d); err != nil {
		t.Fatal(err)
	}
	want := rules.Decision{Action: packet.Accept, Rule: "no-policy", Log: true}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestBudget runs policies that would take hours.
func TestBudget(t *testing.T) {
	tests := map[string]string{
		"comprehension": "verdict := \"drop\" if count([1 | some a in data.n; some b in data.n; some c in data.n; a + b == c]) > input.mark",
		"arrays":        "verdict := \"drop\" if count([[i, j] | some i, _ in data.n; some j, _ in data.n; i >= input.mark]) > 3",
		"sets":          "verdict := \"drop\" if count({[i, j] | some i, _ in data.n; some j, _ in data.n; i >= input.mark}) > 3",
		"set of floats": "verdict := \"drop\" if count({x | some i, _ in data.n; some j, _ in data.n; i >= input.mark; x := ((i * 3000) + j) / 10000000}) > 3",
		"partial set":   "pairs contains [i, j] if { some i, _ in data.n; some j, _ in data.n; i >= input.mark }\n\nverdict := \"drop\" if count(pairs) > 3",
		"folded":        "verdict := \"drop\" if count({[i, j] | some i, _ in data.n; some j, _ in data.n}) > input.mark",
		"objects":       "verdict := \"drop\" if count({[i, j]: i | some i, _ in data.n; some j, _ in data.n; i >= input.mark}) > 3",
		"range":         "verdict := \"drop\" if count(numbers.range(0, 1000000000 + input.mark)) > 3",
	}
	for name, rego := range tests {
		t.Run(name, func(t *testing.T) {
			numbers := `{"n": [` + strings.TrimSuffix(strings.Repeat("1,", 3000), ",") + `]}`
			src := policy.Source{Budget: 50 * time.Millisecond, FS: fstest.MapFS{
				"p.rego": {Data: []byte("package verdictd\n\n" + rego + "\n")}, "n.json": {Data: []byte(numbers)},
			}}
			p := load(t, src)
			var d rules.Decision
			start := time.Now()
			err := p.Evaluate(facts(packet.ProtoUDP, "192.0.2.1:1", "192.0.2.2:2"), &d)
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("took %v with a budget of %v", took, src.Budget)
			}
			if _, ok := errors.AsType[*policy.BudgetError](err); !ok || err.Error() != "evaluation took longer than 50ms" {
				t.Errorf("error %v, want a BudgetError", err)
			}
			if d.Action != packet.Drop {
				t.Errorf("action %v, want drop", d.Action)
			}
			if diff := cmp.Diff(policy.Stats{Overruns: 1, Places: map[string]uint64{"over budget": 1}}, p.Stats()); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDataByDirectory(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"p.rego":               "package verdictd\n\nimport data.lib\n\nverdict := \"reject\" if data.lists.blocked[input.ip.src]\n\nverdict := \"accept\" if lib.web\n\nverdict := \"drop\" if input.tcp.dst_port == data.ports[\"7\"]\n",
		"sub/lib.rego":         "package lib\n\nweb if input.tcp.dst_port == 443\n",
		"lists/any_name.yaml":  "blocked:\n  192.0.2.66: true\n",
		"root.json":            `{"ports": {"7": 7}}`,
		".git/config.yaml":     "- not: looked at",
		"lists/.swap.json":     "nor this",
		"lists/notes.txt":      "nor this",
		"p_test.rego":          "package verdictd\n\ntest_web if verdict == \"accept\" with input as {\"tcp\": {\"dst_port\": 443}}\n",
		"lists/..data/x.rego":  "nor this",
		"lists/more/deep.json": `{"n": 1}`,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := load(t, policy.Source{Path: dir})
	tests := []struct {
		src, dst string
		want     packet.Action
		rule     string
	}{
		{"192.0.2.66:1", "192.0.2.1:80", packet.Reject, "verdict"},
		{"192.0.2.67:1", "192.0.2.1:443", packet.Accept, "verdict"},
		{"192.0.2.67:1", "192.0.2.1:7", packet.Drop, "verdict"},
		{"192.0.2.67:1", "192.0.2.1:80", packet.Drop, "default"},
	}
	for _, tt := range tests {
		var d rules.Decision
		if err := p.Evaluate(facts(packet.ProtoTCP, tt.src, tt.dst), &d); err != nil || d.Action != tt.want || d.Rule != tt.rule {
			t.Errorf("%s > %s: %v by %s, %v; want %v by %s", tt.src, tt.dst, d.Action, d.Rule, err, tt.want, tt.rule)
		}
	}
}

func TestConcurrentEvaluate(t *testing.T) {
	p := load(t, policy.Source{Path: "../policy.rego.example"})
	inputs := []*rules.Facts{
		facts(packet.ProtoTCP, "10.99.0.1:4000", "10.99.0.2:443"),
		facts(packet.ProtoTCP, "10.99.0.1:4000", "10.99.0.2:23"),
		facts(packet.ProtoUDP, "[fd99::1]:4000", "[fd99::2]:53"),
		facts(packet.ProtoTCP, "10.99.0.1:4000", "10.99.0.2:8081"),
	}
	want := []string{"web", "clear-text", "dns", "default"}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			var d rules.Decision
			for i := range 200 {
				n := (worker + i) % len(inputs)
				if err := p.Evaluate(inputs[n], &d); err != nil || d.Rule != want[n] {
					t.Errorf("rule %s, %v, want %s", d.Rule, err, want[n])
				}
			}
		})
	}
	wg.Wait()
}
