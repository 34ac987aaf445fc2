package compile

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// compileText compiles one module with decisions that spell their value.
func compileText(t *testing.T, text string, data map[string]any) (*Program, error) {
	t.Helper()
	modules, err := parse(map[string]string{"p.rego": text})
	if err != nil {
		t.Fatal(err)
	}
	in := spellInput(modules, nil)
	in.Budget = 0
	if data != nil {
		in.Data = ast.MustInterfaceToValue(data).(ast.Object)
	}
	return Compile(context.Background(), in, rules.Fields())
}

func mustCompile(t *testing.T, text string, data map[string]any) *Program {
	t.Helper()
	p, err := compileText(t, text, data)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func tcp(src, dst string, port uint16) *rules.Facts {
	return &rules.Facts{Meta: &packet.Meta{Hook: packet.Output}, Packet: &packet.Packet{
		Status: packet.OK, Version: 4, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst),
		Protocol: packet.ProtoTCP, HasPorts: true, SrcPort: 40000, DstPort: port,
	}}
}

// names returns the paths of the fields in a set, in the schema's order.
func names(s rules.FieldSet) []string {
	var out []string
	for i, f := range rules.Fields() {
		if s.Has(i) {
			out = append(out, f.Path)
		}
	}
	return out
}

func TestReads(t *testing.T) {
	tests := []struct {
		name, body string
		want       []string
	}{
		{"none", `true`, nil},
		{"path", `input.tcp.dst_port == 443`, []string{"tcp.dst_port"}},
		{"absent", `input.udp.dst_port == 53`, []string{"udp.dst_port"}},
		{"absent object", `input.udp`, []string{"udp.src_port", "udp.dst_port", "udp.length"}},
		{"present object", `input.tcp`, []string{"tcp.src_port"}},
		{"stops at the first that fails", "input.dst_port == 1\n\tinput.ip.src == \"10.0.0.1\"", []string{"dst_port"}},
		{"object that escapes", `count(input.interface) > 5`, []string{"interface.in", "interface.out", "interface.in_port", "interface.out_port"}},
		{"function", `object.get(input, ["ip", "ttl"], 0) == 5`, names(allFields())},
		{"constant rule", `data.verdictd.no`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := mustCompile(t, "package verdictd\n\ndecision := 1 if {\n\t"+tt.body+"\n}\n\nno if 1 == 2\n", nil)
			var d rules.Decision
			if err := p.Evaluate(tcp("10.0.0.1", "10.0.0.2", 443), &d); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, names(d.Reads)); diff != "" {
				t.Errorf("reads (-want +got):\n%s", diff)
			}
		})
	}
}

func allFields() (s rules.FieldSet) {
	for i := range rules.Fields() {
		s.Add(i)
	}
	return s
}

// TestCIDR holds the traps of net.cidr_contains on addresses of both families
// to what net.IPNet.Contains says, undefined kept apart from false.
func TestCIDR(t *testing.T) {
	tests := []struct{ cidr, dst, want string }{
		{"10.0.0.0/8", "10.1.2.3", "true"},
		{"10.0.0.0/8", "::ffff:10.1.2.3", "true"},
		{"10.0.0.0/8", "11.0.0.0", "false"},
		{"0.0.0.0/0", "::ffff:1.2.3.4", "true"},
		{"0.0.0.0/0", "2001:db8::1", "false"},
		{"::/0", "2001:db8::1", "true"},
		{"::/0", "::ffff:1.2.3.4", "false"},
		{"::/0", "1.2.3.4", "false"},
		{"::ffff:10.0.0.0/104", "10.1.2.3", "true"},
		{"::ffff:10.0.0.0/104", "::ffff:10.1.2.3", "true"},
		{"::ffff:0:0/90", "::ffff:10.1.2.3", "false"},
		{"fe80::/10", "fe80::1", "true"},
		{"fe80::/10", "fe80::1%eth0", undefined},
		{"10.0.0.0/8", "fe80::1%eth0", undefined},
		{"nonsense", "10.0.0.1", undefined},
	}
	for _, tt := range tests {
		t.Run(tt.cidr+" "+tt.dst, func(t *testing.T) {
			p := mustCompile(t, "package verdictd\n\ndecision := net.cidr_contains(\""+tt.cidr+"\", input.ip.dst)\n", nil)
			var d rules.Decision
			if err := p.Evaluate(tcp("10.0.0.1", tt.dst, 1), &d); err != nil {
				t.Fatal(err)
			}
			if d.Rule != tt.want {
				t.Errorf("got %s, want %s", d.Rule, tt.want)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	tests := []struct {
		name, text string
		want       error
	}{
		{"conflict", "decision := 1 if input.dst_port > 1\n\ndecision := 2 if input.dst_port > 2", ErrConflict},
		{"keys", "decision := {k: v | some k in [1, 1]; some v in [input.dst_port, input.src_port]}", ErrKeyConflict},
		{"budget", "decision := count([1 | some a in numbers.range(1, 900); some b in numbers.range(1, 900); a + b == input.dst_port])", ErrBudget},
		{"range", "decision := count(numbers.range(1, input.dst_port * 100000000))", ErrBudget},
		{"equal keys", "decision := {v | some k, v in {input.tcp.dst_port: 1, input.dst_port: 2}}", ErrEqualKeys},
		{"number key", "decision := data.ports[p] if {\n\tsome p in [input.dst_port, 1]\n}", ErrNumberKey},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := mustCompile(t, "package verdictd\n\n"+tt.text+"\n", map[string]any{"ports": map[string]any{"443": true}})
			d := rules.Decision{Action: packet.Accept, Rule: "old"}
			if err := p.Evaluate(tcp("10.0.0.1", "10.0.0.2", 443), &d); !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			if d.Action != packet.Drop || d.Rule != "" {
				t.Errorf("decision %+v after an error, want a drop", d)
			}
			if err := p.Evaluate(tcp("10.0.0.1", "10.0.0.2", 0), &d); tt.name == "conflict" && err != nil {
				t.Errorf("the next packet fails too: %v", err)
			}
		})
	}
}

func TestUnsupported(t *testing.T) {
	tests := []struct {
		name, text, want string
		data             map[string]any
	}{
		{"clock", "decision := 1 if time.now_ns() > input.dst_port", "p.rego:3:18: compile verdictd.decision: builtin time.now_ns is not deterministic", nil},
		{"elements twice", "decision := [x | some x in {input.ip.src, input.ip.dst}]", "p.rego:3:18: compile verdictd.decision: an array is made of the elements of a collection written with variables, of which OPA's evaluator takes equal ones twice; make a set", nil},
		{"number key", "decision := data.ports[input.dst_port]", "p.rego:3:13: compile verdictd.decision: data is looked up by a number, input.dst_port, under names that spell numbers; look it up by format_int(input.dst_port, 10)",
			map[string]any{"ports": map[string]any{"80": 1}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := compileText(t, "package verdictd\n\n"+tt.text+"\n", tt.data)
			var u *Unsupported
			if !errors.As(err, &u) {
				t.Fatalf("error %v, want *Unsupported", err)
			}
			if err.Error() != tt.want {
				t.Errorf("error %q, want %q", err, tt.want)
			}
		})
	}
}

func TestCompileErrors(t *testing.T) {
	_, err := compileText(t, "package verdictd\n\ndecision := f(1)\n", nil)
	var errs ast.Errors
	if !errors.As(err, &errs) || !strings.Contains(err.Error(), "p.rego:3") {
		t.Errorf("error %v, want ast.Errors with the place", err)
	}
}

// TestEntries asks several rules in their order, one of them made of parts.
func TestEntries(t *testing.T) {
	modules, err := parse(map[string]string{"p.rego": `package verdictd

decision.verdict := "accept" if input.dst_port == 1
decision.rule := "one" if input.dst_port < 10

verdict := "drop" if input.dst_port == 20
`})
	if err != nil {
		t.Fatal(err)
	}
	in := spellInput(modules, nil)
	in.Entries = append(in.Entries, Entry{"verdictd/verdict", spell})
	p, err := Compile(context.Background(), in, rules.Fields())
	if err != nil {
		t.Fatal(err)
	}
	// decision is made of parts, so it is always defined.
	for port, want := range map[uint16]string{1: `{"rule": "one", "verdict": "accept"}`, 5: `{"rule": "one"}`, 20: "{}"} {
		var d rules.Decision
		if err := p.Evaluate(tcp("10.0.0.1", "10.0.0.2", port), &d); err != nil || d.Rule != want {
			t.Errorf("port %d: got %s, %v, want %s", port, d.Rule, err, want)
		}
	}
	in.Entries = in.Entries[1:]
	if p, err = Compile(context.Background(), in, rules.Fields()); err != nil {
		t.Fatal(err)
	}
	for port, want := range map[uint16]string{20: `"drop"`, 21: undefined} {
		var d rules.Decision
		if err := p.Evaluate(tcp("10.0.0.1", "10.0.0.2", port), &d); err != nil || d.Rule != want {
			t.Errorf("port %d: got %s, %v, want %s", port, d.Rule, err, want)
		}
	}
}

func TestWithData(t *testing.T) {
	p := mustCompile(t, "package verdictd\n\ndecision := 1 if input.ip.dst in data.blocked\n", map[string]any{"blocked": []any{"10.0.0.2"}})
	q, err := p.WithData(ast.MustInterfaceToValue(map[string]any{"blocked": []any{"10.0.0.3"}}).(ast.Object))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		p         *Program
		dst, want string
	}{{p, "10.0.0.2", "1"}, {p, "10.0.0.3", undefined}, {q, "10.0.0.2", undefined}, {q, "10.0.0.3", "1"}} {
		var d rules.Decision
		if err := tt.p.Evaluate(tcp("10.0.0.1", tt.dst, 1), &d); err != nil || d.Rule != tt.want {
			t.Errorf("%s: got %s, %v, want %s", tt.dst, d.Rule, err, tt.want)
		}
	}
}

// TestNegatedBlockForgets: what held for one element does not count for the
// next.
func TestNegatedBlockForgets(t *testing.T) {
	p := mustCompile(t, "package verdictd\n\ndecision := [x | some x in [input.dst_port, 7, input.src_port]; not within(x)]\n\nwithin(x) if {\n\tsome y in [1, 2, 443]\n\tx == y\n}\n", nil)
	var d rules.Decision
	if err := p.Evaluate(tcp("10.0.0.1", "10.0.0.2", 443), &d); err != nil || d.Rule != "[7, 40000]" {
		t.Errorf("got %s, %v, want [7, 40000]", d.Rule, err)
	}
}

// TestConcurrent evaluates one program from many goroutines; the race
// detector watches.
func TestConcurrent(t *testing.T) {
	for _, bp := range benchPolicies()[:3] {
		x := newBench(t, bp)
		want := make([]rules.Decision, len(x.facts))
		for i, f := range x.facts {
			if err := x.program.Evaluate(f, &want[i]); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for i, f := range x.facts {
					var d rules.Decision
					if err := x.program.Evaluate(f, &d); err != nil || d != want[i] {
						t.Errorf("got %+v, %v, want %+v", d, err, want[i])
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

func TestAllocs(t *testing.T) {
	for _, bp := range benchPolicies()[:3] {
		t.Run(bp.name, func(t *testing.T) {
			x := newBench(t, bp)
			limit := map[string]float64{"medium_sets": 2}[bp.name]
			var d rules.Decision
			i, m := 0, newMachine(rules.Fields()) // its own: the race detector empties pools
			got := testing.AllocsPerRun(2000, func() {
				if err := x.program.run(m, x.facts[i%len(x.facts)], &d); err != nil {
					t.Fatal(err)
				}
				i++
			})
			if got > limit {
				t.Errorf("%v allocations, want at most %v", got, limit)
			}
		})
	}
}
