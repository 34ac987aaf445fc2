package compile

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// benchPolicy is a policy that evaluators are measured on.
type benchPolicy struct {
	name string
	text string
	data map[string]any
}

func benchPolicies() []benchPolicy {
	return []benchPolicy{
		{name: "small", text: smallPolicy},
		{name: "medium_sets", text: mediumSets()},
		{name: "medium_chain", text: mediumChain()},
		{name: "large", text: largePolicy, data: largeData()},
	}
}

const smallPolicy = `package verdictd

default decision := {"verdict": "drop", "rule": "default"}

decision := {"verdict": "accept", "rule": "dns", "log": false} if {
	input.ip.protocol == "udp"
	input.dst_port == 53
	input.ip.dst in {"10.0.0.53", "10.0.0.54"}
} else := {"verdict": "drop", "rule": "no-smtp"} if {
	input.ip.protocol == "tcp"
	input.dst_port in {25, 465, 587}
	input.uid != 105
} else := {"verdict": "accept", "rule": "web-users", "log": false} if {
	input.ip.protocol == "tcp"
	input.dst_port in {80, 443}
	input.uid >= 1000
} else := {"verdict": "accept", "rule": "lan", "log": false} if {
	input.direction == "out"
	net.cidr_contains("192.168.0.0/16", input.ip.dst)
} else := {"verdict": "reject", "rule": "ident"} if {
	input.ip.protocol == "tcp"
	input.dst_port == 113
}
`

// mediumBodies are 50 rule bodies of the kinds that people write.
func mediumBodies() []string {
	var out []string
	protos := []string{"tcp", "udp"}
	for i := range 50 {
		proto, port := protos[i%2], 20+7*i
		switch i % 7 {
		case 0:
			out = append(out, fmt.Sprintf("input.ip.protocol == %q\n\tinput.dst_port in {%d, %d, %d}", proto, port, port+1, port+1000))
		case 1:
			out = append(out, fmt.Sprintf("input.ip.protocol == %q\n\tinput.dst_port == %d\n\tto_internal", proto, port))
		case 2:
			out = append(out, fmt.Sprintf("net.cidr_contains(\"10.%d.0.0/16\", input.ip.dst)\n\tinput.dst_port == %d", i, port))
		case 3:
			out = append(out, fmt.Sprintf("input.ip.dst == \"203.0.113.%d\"\n\tinput.direction == \"out\"", i))
		case 4:
			out = append(out, fmt.Sprintf("input.uid == %d\n\tnot to_internal\n\tinput.dst_port != %d", 1000+i, port))
		case 5:
			out = append(out, fmt.Sprintf("input.interface.out == \"tun%d\"\n\tis_service(input.dst_port)", i))
		default:
			out = append(out, fmt.Sprintf("input.ip.protocol == %q\n\tinput.dst_port >= %d\n\tinput.dst_port <= %d\n\tfrom_internal", proto, 30000+100*i, 30050+100*i))
		}
	}
	return out
}

const mediumHelpers = `
internal_nets := {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"}

to_internal if {
	some n in internal_nets
	net.cidr_contains(n, input.ip.dst)
}

from_internal if {
	some n in internal_nets
	net.cidr_contains(n, input.ip.src)
}

services := {22, 80, 443, 993, 5432}

is_service(port) if port in services
`

func mediumSets() string {
	var b strings.Builder
	b.WriteString(`package verdictd

default decision := {"verdict": "drop", "rule": "default"}

decision := {"verdict": "drop", "rule": min(deny)} if {
	count(deny) > 0
} else := {"verdict": "accept", "rule": min(permit), "log": false} if {
	count(permit) > 0
}
` + mediumHelpers)
	for i, body := range mediumBodies() {
		fmt.Fprintf(&b, "\n%s contains \"r%02d\" if {\n\t%s\n}\n", []string{"deny", "permit"}[i%2], i, body)
	}
	return b.String()
}

func mediumChain() string {
	var b strings.Builder
	b.WriteString("package verdictd\n\ndefault decision := {\"verdict\": \"drop\", \"rule\": \"default\"}\n\n")
	for i, body := range mediumBodies() {
		word := " else"
		if i == 0 {
			word = "decision"
		}
		fmt.Fprintf(&b, "%s := {\"verdict\": %q, \"rule\": \"r%02d\"} if {\n\t%s\n}", word, []string{"drop", "accept"}[i%2], i, body)
	}
	b.WriteString("\n" + mediumHelpers)
	return b.String()
}

const largePolicy = `package verdictd

default decision := {"verdict": "drop", "rule": "default"}

decision := {"verdict": "drop", "rule": "blocked-address"} if {
	data.blocked[input.ip.dst]
} else := {"verdict": "drop", "rule": "blocked-network"} if {
	blocked_network
} else := {"verdict": "drop", "rule": "interface"} if {
	some suffix in data.suffixes
	endswith(input.interface.out, suffix)
} else := {"verdict": "accept", "rule": user_rule, "log": false} if {
	user_rule
} else := {"verdict": "accept", "rule": "web", "log": false} if {
	input.ip.protocol == "tcp"
	input.dst_port in {80, 443}
}

blocked_network if {
	some c in data.cidrs
	net.cidr_contains(c, input.ip.dst)
}

user_rule := r.id if {
	some r in data.users[format_int(input.uid, 10)].rules
	r.proto == input.ip.protocol
	input.dst_port in r.ports
}
`

func largeData() map[string]any {
	r := rand.New(rand.NewPCG(7, 7))
	blocked, users := map[string]any{}, map[string]any{}
	var cidrs, suffixes []any
	for range 10_000 {
		cidrs = append(cidrs, fmt.Sprintf("%d.%d.%d.0/%d", 11+r.IntN(200), r.IntN(256), r.IntN(256), 17+r.IntN(8)))
		blocked[fmt.Sprintf("%d.%d.%d.%d", 11+r.IntN(200), r.IntN(256), r.IntN(256), r.IntN(256))] = true
		suffixes = append(suffixes, fmt.Sprintf(".%d.%x", r.IntN(100), r.Uint32()))
	}
	for i := range 500 {
		users[fmt.Sprint(1000+i)] = map[string]any{"rules": []any{
			map[string]any{"id": fmt.Sprint("user-", i), "proto": "tcp", "ports": []any{22, 8000 + i, 443}},
			map[string]any{"id": fmt.Sprint("user-udp-", i), "proto": "udp", "ports": []any{53, 123}},
		}}
	}
	return map[string]any{"blocked": blocked, "users": users, "cidrs": cidrs, "suffixes": suffixes}
}

// benchFacts are packets of the kinds that a host sees, in random order.
func benchFacts(n int) []*rules.Facts {
	r := rand.New(rand.NewPCG(3, 4))
	out := make([]*rules.Facts, n)
	for i := range out {
		m := &packet.Meta{Hook: packet.Output, HasUID: r.IntN(8) != 0, UID: uint32(pick(r, 0, 105, 1000, 1004, 1011, 1200))}
		p := &packet.Packet{Status: packet.OK, Version: 4, Protocol: pick[uint8](r, packet.ProtoTCP, packet.ProtoUDP), TTL: 64, HasPorts: true, TotalLength: 60,
			SrcPort: uint16(1024 + r.IntN(60000)), DstPort: pick[uint16](r, 20, 53, 80, 443, 443, 25, 113, 8004, 34, 160, 30600, uint16(r.Uint32())), TCPFlags: packet.SYN}
		p.Src = netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(256))})
		p.Dst = pick(r, netip.AddrFrom4([4]byte{10, byte(r.IntN(50)), 0, 53}), netip.AddrFrom4([4]byte{192, 168, 1, byte(r.IntN(256))}),
			netip.AddrFrom4([4]byte{byte(11 + r.IntN(200)), byte(r.IntN(256)), byte(r.IntN(256)), byte(r.IntN(256))}), netip.MustParseAddr("2001:db8::9"), netip.MustParseAddr("203.0.113.3"))
		if p.Dst.Is6() {
			p.Version = 6
		}
		out[i] = &rules.Facts{Meta: m, Packet: p, OutInterface: pick(r, "eth0", "wan0", "tun5", "tun12")}
	}
	return out
}

// testDecode is the decoding of the benchmarks' decisions.
func testDecode(v ast.Value, d *rules.Decision) error {
	*d = rules.Decision{Log: true}
	obj, ok := v.(ast.Object)
	if !ok {
		return fmt.Errorf("decision is %v", v)
	}
	return obj.Iter(func(k, v *ast.Term) error {
		switch name := string(k.Value.(ast.String)); name {
		case "verdict":
			for _, a := range []packet.Action{packet.Accept, packet.Reject} {
				if a.String() == string(v.Value.(ast.String)) {
					d.Action = a
				}
			}
		case "rule":
			d.Rule = string(v.Value.(ast.String))
		case "log":
			d.Log = bool(v.Value.(ast.Boolean))
		default:
			return fmt.Errorf("member %s", name)
		}
		return nil
	})
}

// bench is a policy, compiled both ways, and what it judges.
type bench struct {
	program *Program
	ref     *reference
	query   rego.PreparedEvalQuery
	facts   []*rules.Facts
	inputs  []ast.Value
}

func newBench(tb testing.TB, p benchPolicy) *bench {
	tb.Helper()
	modules, err := parse(map[string]string{p.name + ".rego": p.text})
	if err != nil {
		tb.Fatal(err)
	}
	data := ast.NewObject()
	if p.data != nil {
		data = ast.MustInterfaceToValue(p.data).(ast.Object)
	}
	b := &bench{facts: benchFacts(1024)}
	in := Input{Modules: modules, Data: data, Entries: []Entry{{"verdictd/decision", testDecode}}}
	if b.program, err = Compile(context.Background(), in, rules.Fields()); err != nil {
		tb.Fatal(err)
	}
	if b.ref, err = newReference(modules, data, "verdictd/decision"); err != nil {
		tb.Fatal(err)
	}
	fields := rules.Fields()
	for _, f := range b.facts {
		rec := &record{has: make([]bool, len(fields)), vals: make([]rules.Value, len(fields))}
		for i := range fields {
			rec.has[i] = fields[i].Get(f, &rec.vals[i])
		}
		b.inputs = append(b.inputs, rec.input(fields))
	}
	b.query, err = rego.New(rego.Query("data.verdictd.decision"), rego.Compiler(b.ref.compiler),
		rego.Store(inmem.NewFromObjectWithOpts(p.data, inmem.OptReturnASTValuesOnRead(true)))).PrepareForEval(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func BenchmarkEvaluate(b *testing.B) {
	for _, p := range benchPolicies() {
		x := newBench(b, p)
		b.Run(p.name+"/compiled", func(b *testing.B) {
			b.ReportAllocs()
			var d rules.Decision
			for i := 0; b.Loop(); i++ {
				if err := x.program.Evaluate(x.facts[i%len(x.facts)], &d); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(p.name+"/topdown", func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := x.ref.eval(x.inputs[i%len(x.inputs)]); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(p.name+"/prepared", func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := x.query.Eval(context.Background(), rego.EvalParsedInput(x.inputs[i%len(x.inputs)])); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, p := range benchPolicies() {
		modules, err := parse(map[string]string{p.name + ".rego": p.text})
		if err != nil {
			b.Fatal(err)
		}
		data := ast.NewObject()
		if p.data != nil {
			data = ast.MustInterfaceToValue(p.data).(ast.Object)
		}
		in := Input{Modules: modules, Data: data, Entries: []Entry{{"verdictd/decision", testDecode}}}
		b.Run(p.name, func(b *testing.B) {
			var s Stats
			for b.Loop() {
				program, err := Compile(context.Background(), in, rules.Fields())
				if err != nil {
					b.Fatal(err)
				}
				s = program.Stats()
			}
			b.ReportMetric(float64(s.Bytes), "program-B")
		})
	}
}

// TestBenchPolicies keeps the benchmarks honest: both evaluators agree on
// every packet they are measured with, and many rules decide.
func TestBenchPolicies(t *testing.T) {
	for _, p := range benchPolicies() {
		t.Run(p.name, func(t *testing.T) {
			x := newBench(t, p)
			decided := map[string]int{}
			n := 256
			if p.data != nil {
				n = 48 // topdown takes 10 ms and more for each
			}
			for i, f := range x.facts[:n] {
				var got, want rules.Decision
				if err := x.program.Evaluate(f, &got); err != nil {
					t.Fatal(err)
				}
				v, err := x.ref.eval(x.inputs[i])
				if err != nil {
					t.Fatal(err)
				}
				if err := testDecode(v, &want); err != nil {
					t.Fatal(err)
				}
				decided[got.Rule]++
				got.Reads = rules.FieldSet{}
				if got != want {
					t.Errorf("%v: got %+v, want %+v", x.inputs[i], got, want)
				}
			}
			t.Logf("decided by %v; %+v", decided, x.program.Stats())
			if len(decided) < 3 {
				t.Errorf("decided by %v, want more rules", decided)
			}
		})
	}
}
