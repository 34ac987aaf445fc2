package policy_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/rego"

	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

// oracles are policies that read the input document in every way there is.
func oracles(t testing.TB) map[string]string {
	t.Helper()
	example, err := os.ReadFile("../policy.rego.example")
	if err != nil {
		t.Fatal(err)
	}
	const pkg = "package verdictd\n\n"
	return map[string]string{
		"example": string(example),
		"small":   smallPolicy,
		"medium":  mediumPolicy(),
		"alias":   pkg + "verdict := \"accept\" if {\n\tt := input.tcp\n\tt.dst_port in {22, 80, 443}\n\tnot t.flags.syn\n} else := \"reject\" if {\n\tu := input\n\tu.udp.dst_port == 53\n}\n",
		"dynamic": pkg + "names := {\"syn\", \"ack\"}\n\nverdict := \"accept\" if {\n\tsome name in names\n\tinput.tcp.flags[name]\n}\n\nverdict := \"accept\" if {\n\tsome p in [\"tcp\", \"udp\"]\n\tinput[p].dst_port < 1024\n}\n",
		"count":   pkg + "verdict := \"accept\" if count(input) > 9\n",
		"walk":    pkg + "verdict := \"accept\" if {\n\twalk(input.icmp, [_, 3])\n}\n\nverdict := \"accept\" if not input.ip.fragment\n",
		"escape":  pkg + "f(x) if x.syn\n\ndecision := {\"verdict\": \"accept\", \"rule\": sprintf(\"p%v\", [input.packet]), \"mark\": input.mark} if {\n\tinput.packet.length > 100\n} else := {\"verdict\": \"drop\"} if {\n\tf(input.tcp.flags)\n} else := {\"verdict\": \"accept\"} if not input.interface.in\n",
		"with":    pkg + "web if input.tcp.dst_port == 443\n\nverdict := \"accept\" if web with input.tcp.dst_port as input.udp.dst_port\n\nverdict := \"reject\" if {\n\tnot web\n\tinput.uid == 1000\n} else := \"drop\"\n",
		"time":    pkg + "verdict := \"accept\" if {\n\tinput.time.hour >= 8\n\tinput.time.weekday in {1, 2, 3, 4, 5}\n} else := \"reject\" if input.time.unix % 2 == 0\n",
		"import":  pkg + "import input.ip as addresses\n\nverdict := \"accept\" if net.cidr_contains(\"10.0.0.0/8\", addresses.src)\n\nverdict := \"accept\" if addresses.ttl < 5\n",
	}
}

const smallPolicy = `package verdictd

decision := {"verdict": "accept", "rule": "dns", "log": false} if {
	input.ip.protocol == "udp"
	input.dst_port == 53
	input.ip.dst in {"10.0.0.53", "10.0.0.54"}
} else := {"verdict": "drop", "rule": "no-smtp"} if {
	input.ip.protocol == "tcp"
	input.dst_port in {25, 465, 587}
	not input.uid == 105
} else := {"verdict": "accept", "rule": "web", "log": false} if {
	input.ip.protocol == "tcp"
	input.dst_port in {80, 443}
	input.uid >= 1000
} else := {"verdict": "accept", "rule": "lan", "log": false} if {
	input.direction == "out"
	net.cidr_contains("192.168.0.0/16", input.ip.dst)
} else := {"verdict": "drop", "rule": "rest"}
`

// mediumPolicy has 50 rules that fill sets, joined by one decision.
func mediumPolicy() string {
	var b strings.Builder
	b.WriteString(`package verdictd

decision := {"verdict": "drop", "rule": min(deny)} if {
	count(deny) > 0
} else := {"verdict": "accept", "rule": min(permit), "log": false} if {
	count(permit) > 0
}

internal := {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}

to_internal if {
	some n in internal
	net.cidr_contains(n, input.ip.dst)
}
`)
	for i := range 25 {
		fmt.Fprintf(&b, `
deny contains "d%02d" if {
	input.uid == %d
	input.dst_port == %d
	not net.cidr_contains("10.%d.0.0/16", input.ip.dst)
}

permit contains "p%02d" if {
	input.ip.protocol == "tcp"
	input.dst_port == %d
	to_internal
}
`, i, 3000+i, 2000+i, i, i, []int{22, 80, 443, 8080, 5432}[i%5]+i/5)
	}
	return b.String()
}

// document returns the whole input document of f, made without the package
// under test.
func document(fields []rules.Field, f *rules.Facts) map[string]any {
	root := map[string]any{}
	var v rules.Value
	for i := range fields {
		if !fields[i].Get(f, &v) {
			continue
		}
		at := root
		path := strings.Split(fields[i].Path, ".")
		for _, key := range path[:len(path)-1] {
			next, ok := at[key].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[key] = next
			}
			at = next
		}
		at[path[len(path)-1]] = native(fields[i].Kind, &v)
	}
	return root
}

func native(kind rules.Kind, v *rules.Value) any {
	switch kind {
	case rules.Bool:
		return v.Int != 0
	case rules.Int:
		return v.Int
	case rules.Addr:
		return v.Addr.String()
	default:
		return v.Str
	}
}

// TestEvaluateAgreesWithOPA compares decisions with those that OPA makes from
// the whole input document: what Evaluate leaves out of it must not matter.
func TestEvaluateAgreesWithOPA(t *testing.T) {
	fields := rules.Fields()
	for name, text := range oracles(t) {
		t.Run(name, func(t *testing.T) {
			p := load(t, source(text))
			opa := prepare(t, text)
			r := rand.New(rand.NewPCG(1, 2))
			seen := map[string]int{}
			for range 400 {
				f := randomFacts(r)
				var d rules.Decision
				got := "error"
				if err := p.Evaluate(f, &d); err == nil {
					got = d.Action.String() + " " + d.Rule
					if d.SetMark {
						got += " " + strconv.FormatUint(uint64(d.Mark), 10)
					}
				}
				if want := opa(document(fields, f)); got != want {
					t.Fatalf("%s, want %s, for\n%+v\n%+v", got, want, f.Packet, f.Meta)
				}
				seen[got]++
			}
			if len(seen) < 2 && name != "count" {
				t.Errorf("all packets got the same decision: %v", seen)
			}
		})
	}
}

// prepare returns a function that asks OPA for the decision on an input
// document, in the form "action rule [mark]".
func prepare(t testing.TB, text string) func(map[string]any) string {
	t.Helper()
	decision, verdict := query(t, text, "decision"), query(t, text, "verdict")
	return func(input map[string]any) string {
		v, err := decision(input)
		if err != nil {
			return "error"
		}
		if d, ok := v.(map[string]any); ok {
			rule, ok := d["rule"].(string)
			if !ok {
				rule = "decision"
			}
			if mark, ok := d["mark"]; ok {
				return fmt.Sprintf("%v %s %v", d["verdict"], rule, mark)
			}
			return fmt.Sprintf("%v %s", d["verdict"], rule)
		}
		if v, err = verdict(input); err != nil {
			return "error"
		}
		if v != nil {
			return fmt.Sprintf("%v verdict", v)
		}
		return "drop default"
	}
}

// query returns a function that asks OPA for the value of a rule; nil is
// undefined.
func query(t testing.TB, text, rule string) func(map[string]any) (any, error) {
	t.Helper()
	ctx := context.Background()
	q, err := rego.New(rego.Query("data.verdictd."+rule), rego.Module("policy.rego", text)).PrepareForEval(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return func(input map[string]any) (any, error) {
		results, err := q.Eval(ctx, rego.EvalInput(input))
		if err != nil || len(results) == 0 {
			return nil, err
		}
		return results[0].Expressions[0].Value, nil
	}
}

// TestReadsAreSound changes what a policy says it does not read: the decision
// must stay the same. A wrong answer here is a hole in the flow table.
func TestReadsAreSound(t *testing.T) {
	for name, text := range oracles(t) {
		t.Run(name, func(t *testing.T) {
			reads := load(t, source(text)).Reads()
			changed, wrong := changeUnread(t, text, reads)
			if wrong != "" {
				t.Errorf("unread fields matter: %s", wrong)
			}
			if all := len(readPaths(reads)) == len(rules.Fields()); changed == 0 && !all {
				t.Error("no unread field was ever changed")
			}
		})
	}
}

// TestReadsControl shows that changeUnread finds a field that is missing from
// a read set: any one of those that a small policy reads.
func TestReadsControl(t *testing.T) {
	text := smallPolicy
	reads := load(t, source(text)).Reads()
	for i, f := range rules.Fields() {
		if !reads.Has(i) {
			continue
		}
		fewer := reads
		fewer[i>>6] &^= 1 << (i & 63)
		if _, wrong := changeUnread(t, text, fewer); wrong == "" {
			t.Errorf("leaving %s out of the read set was not noticed", f.Path)
		}
	}
}

func readPaths(reads rules.FieldSet) []string {
	var names []string
	for i, f := range rules.Fields() {
		if reads.Has(i) {
			names = append(names, f.Path)
		}
	}
	return names
}

// changeUnread changes random packets in fields that are not among reads. It
// returns how many it could change, and the first change of a decision.
func changeUnread(t *testing.T, text string, reads rules.FieldSet) (changed int, wrong string) {
	t.Helper()
	fields := rules.Fields()
	opa := prepare(t, text)
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		f := randomFacts(r)
		g := clone(f)
		for range 60 {
			h := clone(g)
			mutate(r, h)
			if agree(fields, reads, f, h) {
				g = h
			}
		}
		before, after := document(fields, f), document(fields, g)
		if fmt.Sprint(before) == fmt.Sprint(after) {
			continue
		}
		changed++
		if was, is := opa(before), opa(after); was != is {
			return changed, fmt.Sprintf("%s became %s\nbefore %v\nafter  %v", was, is, before, after)
		}
	}
	return changed, ""
}

// agree returns whether two packets have the same values in all of reads.
func agree(fields []rules.Field, reads rules.FieldSet, f, g *rules.Facts) bool {
	var v, w rules.Value
	for i := range fields {
		if !reads.Has(i) {
			continue
		}
		hasV, hasW := fields[i].Get(f, &v), fields[i].Get(g, &w)
		if hasV != hasW || hasV && native(fields[i].Kind, &v) != native(fields[i].Kind, &w) {
			return false
		}
	}
	return true
}

func TestReads(t *testing.T) {
	const pkg = "package verdictd\n\n"
	tests := []struct {
		name, rego string
		want       string
	}{
		{"one field", `verdict := "drop" if input.tcp.dst_port == 1`, "tcp.dst_port"},
		{"bracket", `verdict := "drop" if input["tcp"]["dst_port"] == 1`, "tcp.dst_port"},
		{"test rules do not count", "verdict := \"drop\"\n\ntest_x if verdict == \"drop\" with input as {\"mark\": input.mark}", ""},
		{"object", `verdict := "drop" if input.udp`, "udp.dst_port udp.length udp.src_port"},
		{"alias", "verdict := \"drop\" if {\n\tu := input.udp\n\tu.length == 1\n}", "udp.dst_port udp.length udp.src_port"},
		{"import", "import input.udp as u\n\nverdict := \"drop\" if u.length == 1", "udp.length"},
		{"index by input", "verdict := \"drop\" if x[input.ip.src][input.ip.ttl]\n\nx := {\"192.0.2.1\": {64: true}}", "ip.src ip.ttl"},
		{"nested in input", `verdict := "drop" if input.udp[input.hook] == 1`, "hook udp.dst_port udp.length udp.src_port"},
		{"head", `decision := {"verdict": "drop", "mark": input.mark}`, "mark"},
		{"comprehension", `verdict := "drop" if count([1 | input.ip.ttl > 3]) == 1`, "ip.ttl"},
		{"replaced by with", "web if input.uid == 0\n\nverdict := \"drop\" if web with input.gid as input.mark", "mark uid"},
		{"else", "verdict := \"drop\" if input.uid == 0 else := \"accept\" if input.gid == 0", "gid uid"},
		{"helper of another rule", "verdict := \"drop\" if f(1)\n\nf(x) if x == input.ip.dscp", "ip.dscp"},
		{"nothing", `verdict := "drop"`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			report, err := policy.Check(context.Background(), source(pkg+tt.rego+"\n"))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(report.Reads, " "); got != tt.want {
				t.Errorf("reads %q, want %q", got, tt.want)
			}
		})
	}
	reads := load(t, source(pkg+"verdict := \"drop\" if count(input) == 3\n")).Reads()
	if all := len(readPaths(reads)); all != len(rules.Fields()) {
		t.Errorf("bare input reads %d fields, want all %d", all, len(rules.Fields()))
	}
}
