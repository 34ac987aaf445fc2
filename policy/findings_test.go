package policy_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

// randomConditions returns conditions that random packets satisfy now and
// then, and that often contradict each other.
func randomConditions(r *rand.Rand) []string {
	all := []string{
		"input.tcp.dst_port == 443", "input.tcp.dst_port in {22, 23, 25}", "input.dst_port < 1024", "input.dst_port > 80", "53 >= input.udp.dst_port",
		`input.ip.protocol == "tcp"`, `input.ip.protocol != "udp"`, `input.ip.protocol in {"gre", "icmp"}`, "input.ip.protocol_number == 17",
		"input.ip.version == 4", "input.ip.version == 6", `input.ip.src == "10.0.0.53"`, `net.cidr_contains("10.0.0.0/8", input.ip.src)`,
		`net.cidr_contains("fd00::/8", input.ip.src)`, "within(input.ip.src, lan)", "within(input.ip.dst, lan)", `input.direction == "out"`,
		`input.hook in {"input", "output"}`, `input.hook == "forward"`, `input.packet.status == "fragment"`, "input.src_port == 53", "input.icmp.type == 8",
		"input.udp", "input.tcp.flags.syn", "input.tcp.flags.syn == false", "web", "not web", "names[input.tcp.dst_port]", "x := names[input.dst_port]; x == \"ssh\"",
		"some p in {22, 443}; p == input.tcp.dst_port", "input.ip.ttl == 64", "input.ip.ttl > 64", "input.uid == 1000", "input.uid != 1000",
		`input.interface.in == "eth0"`, `input.interface.in != "eth0"`, "input.mark in [1, 2]", "input.ip.fragment == false", "not input.ip.fragment",
		"input.tcp.src_port == input.tcp.dst_port", "input.src_port != input.dst_port", "count(names) == 2", "every n in lan { net.cidr_contains(n, input.ip.src) }",
	}
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:1+r.IntN(4)]
}

// randomPolicy returns a policy of rules r0, r1 ... in one chain of else.
func randomPolicy(r *rand.Rand) string {
	var b strings.Builder
	b.WriteString("package verdictd\n\nlan := [\"10.0.0.0/8\", \"192.168.0.0/16\"]\n\nnames := {22: \"ssh\", 443: \"https\"}\n\n" +
		"web if input.tcp.dst_port == 80\n\nweb if input.tcp.dst_port == 443\n\n" +
		"within(a, list) if {\n\tsome n in list\n\tnet.cidr_contains(n, a)\n}\n\ndecision := ")
	for i := range 12 {
		if i > 0 {
			b.WriteString(" else := ")
		}
		fmt.Fprintf(&b, "{\"verdict\": %q, \"rule\": \"r%d\"} if {\n", pick(r, "accept", "drop"), i)
		for _, c := range randomConditions(r) {
			b.WriteString("\t" + c + "\n")
		}
		b.WriteString("}")
	}
	b.WriteString("\n")
	return b.String()
}

// TestNeverMatchesIsSound checks random policies: a rule that is said never to
// match decides about none of ten thousand random packets.
func TestNeverMatchesIsSound(t *testing.T) {
	name := regexp.MustCompile(`decision \((r\d+)\) can never match`)
	packets := 10_000 // for each policy
	if testing.Short() {
		packets = 500
	}
	said, decided := 0, 0
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 7))
		text := randomPolicy(r)
		report, err := policy.CheckConfig{ProbeTime: time.Minute}.Check(context.Background(), source(text))
		if err != nil {
			t.Fatal(err)
		}
		never := map[string]string{}
		for _, f := range report.Findings {
			if m := name.FindStringSubmatch(f.Msg); m != nil {
				never[m[1]] = f.Error()
			}
		}
		said += len(never)
		p := load(t, source(text))
		for range packets {
			f := randomFacts(r)
			var d rules.Decision
			if err := p.Evaluate(f, &d); err != nil {
				t.Fatal(err)
			}
			if d.Rule != "default" {
				decided++
			}
			if why, ok := never[d.Rule]; ok {
				t.Fatalf("%s\nyet it decides about %+v %+v\n%s", why, f.Packet, f.Meta, text)
			}
		}
	}
	if said < 8 || decided < packets {
		t.Errorf("%d rules were said never to match and %d packets met a rule: too few to show anything", said, decided)
	}
}

// TestNeverMatchesReachesAll checks the other way round, on a policy each of
// whose rules matches something: none is said never to.
func TestNeverMatchesReachesAll(t *testing.T) {
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 8))
		text := randomPolicy(r)
		report, err := policy.CheckConfig{ProbeTime: time.Minute}.Check(context.Background(), source(text))
		if err != nil {
			t.Fatal(err)
		}
		p := load(t, source(text))
		met := map[string]bool{}
		for range 300 {
			var d rules.Decision
			if err := p.Evaluate(randomFacts(r), &d); err == nil {
				met[d.Rule] = true
			}
		}
		for rule := range met {
			for _, f := range report.Findings {
				if strings.Contains(f.Msg, "("+rule+") can never match") {
					t.Errorf("%v, yet it decides\n%s", f, text)
				}
			}
		}
	}
}

// TestConflictsHappen takes the packets that findings of conflicts name: the
// policy must fail on each.
func TestConflictsHappen(t *testing.T) {
	archive, err := os.ReadFile(filepath.Join("testdata", "check", "conflict.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(archive), "-- policy.rego --\n")
	text, want, _ := strings.Cut(rest, "-- want --\n")
	x := explainer(t, source(text))
	flows := regexp.MustCompile(`packets such as (.*), and the policy`).FindAllStringSubmatch(want, -1)
	if len(flows) < 4 {
		t.Fatalf("%d conflicts in the archive, want 4 or more", len(flows))
	}
	for _, m := range flows {
		out, _ := x.Decide(parseFlow(t, m[1]))
		if !strings.Contains(out.Error, "conflicting values") {
			t.Errorf("%s: got %+v, want a conflict", m[1], out)
		}
	}
}

// TestProtocolsAreProbed checks which protocols a policy is said to let
// through, in the text of the finding.
func TestProtocolsAreProbed(t *testing.T) {
	const pkg = "package verdictd\n\n"
	tests := []struct{ name, rego, want string }{
		{"nothing", `verdict := "accept" if input.tcp.dst_port == 22`, ""},
		{"everything", `verdict := "accept"`, ""},
		{"network", `verdict := "accept" if net.cidr_contains("10.0.0.0/8", input.ip.src)`, ""},
		{"by name", `verdict := "accept" if input.ip.protocol in {"gre", "sctp"}`, ""},
		{"by number", `verdict := "accept" if input.ip.protocol_number == 47`, ""},
		{"by table", "p := {\"gre\": true}\n\nverdict := \"accept\" if p[input.ip.protocol]", ""},
		{"by variable", "verdict := \"accept\" if {\n\tsome p in [\"gre\", \"esp\"]\n\tp == input.ip.protocol\n}", ""},
		{"icmp", `verdict := "accept" if input.icmp.type in {0, 8}`, ""},
		{"by its absence", "verdict := \"accept\" if {\n\tnot input.tcp\n\tnot input.udp\n}", "accepts protocols that it does not name (sctp, icmp, icmpv6 and 251 more)"},
		{"all but", `verdict := "accept" if not input.ip.protocol in {"tcp", "udp", "icmp"}`, "(sctp, icmpv6, gre and 250 more)"},
		{"no ports", "verdict := \"accept\" if not input.dst_port", "accepts protocols that it does not name (icmp, icmpv6, gre and 248 more)"},
		{"else", "verdict := \"drop\" if input.tcp else := \"drop\" if input.udp else := \"accept\"", "verdict \"accept\" accepts"},
		{"default", "default verdict := \"accept\"\n\nverdict := \"drop\" if input.ip.protocol in {\"tcp\", \"udp\"}", "default verdict accepts protocols"},
		{"fragments", "verdict := \"accept\" if {\n\tinput.ip.protocol == \"udp\"\n\tnot input.dst_port\n}", ""},
		{"fragments of all", "verdict := \"drop\" if input.dst_port else := \"drop\" if not input.ip.protocol in {\"tcp\", \"udp\"} else := \"accept\"", "accepts fragments of tcp and udp"},
		{"at a hook", "verdict := \"accept\" if {\n\tinput.hook == \"input\"\n\tnot input.udp\n\tnot input.tcp\n}", "icmp 192.0.2.77 -> 198.51.100.77 input"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			report, err := policy.CheckConfig{ProbeTime: time.Minute}.Check(context.Background(), source(pkg+tt.rego+"\n"))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, f := range report.Findings {
				if strings.Contains(f.Msg, "accepts") {
					got += f.Msg + "\n"
				}
			}
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q in it", got, tt.want)
			}
		})
	}
}

func TestMaxScan(t *testing.T) {
	text := "package verdictd\n\nl := {\"a\", \"b\", \"c\"}\n\nverdict := \"drop\" if {\n\tsome x in l\n\tstartswith(input.hook, x)\n}\n"
	for most, want := range map[int]int{0: 0, 3: 0, 2: 1} {
		report, err := policy.CheckConfig{MaxScan: most, ProbeTime: time.Minute}.Check(context.Background(), source(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := len(report.Findings); got != want {
			t.Errorf("at most %d: %d findings, want %d: %v", most, got, want, report.Findings)
		}
	}
}

// TestOraclesAreQuiet checks policies that are as they should be.
func TestOraclesAreQuiet(t *testing.T) {
	texts := oracles(t)
	for _, name := range []string{"example", "small", "medium"} {
		report, err := policy.CheckConfig{ProbeTime: time.Minute}.Check(context.Background(), source(texts[name]))
		if err != nil {
			t.Fatal(err)
		}
		if len(report.Findings) > 0 {
			t.Errorf("%s: %v", name, report.Findings)
		}
	}
	if report, err := policy.Check(context.Background(), policy.Source{}); err != nil || len(report.Findings) > 0 {
		t.Errorf("built-in policy: %v, %v", report, err)
	}
}
