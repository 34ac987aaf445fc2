package policy_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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

// The oracle: random rules files as Go values, which are written as YAML for
// the package under test and interpreted here directly.

type oracleRule struct {
	name, verdict, reason string
	quiet                 bool
	mark                  int64 // -1: none
	tests                 []oracleTest
}

type oracleTest struct {
	key     string
	negated bool
	values  []oracleValue
	set     string // the values are those of this set
}

// oracleValue is a value as written, and what it means.
type oracleValue struct {
	text  string
	holds func(f *rules.Facts) bool
}

func (r *oracleRule) matches(f *rules.Facts) bool {
	for _, t := range r.tests {
		if slices.ContainsFunc(t.values, func(v oracleValue) bool { return v.holds(f) }) == t.negated {
			return false
		}
	}
	return true
}

type oracleFile struct {
	rules []oracleRule
	last  oracleRule
	sets  map[string][]oracleValue
	order []string
}

// delegatedRego is the Rego beside every random rules file that delegates.
const delegatedRego = `package verdictd

delegated := {"verdict": "reject", "rule": "rego", "mark": 9} if input.ip.ttl < 50
`

func delegated(f *rules.Facts) (rules.Decision, bool) {
	return rules.Decision{Action: packet.Reject, Rule: "rego", Log: true, SetMark: true, Mark: 9}, f.Packet.TTL < 50
}

// decide interprets the rules. index is the rule that decided.
func (o *oracleFile) decide(f *rules.Facts) (d rules.Decision, index int) {
	for i := range o.rules {
		r := &o.rules[i]
		if !r.matches(f) {
			continue
		}
		if r.verdict != "delegate" {
			return r.decision(), i
		}
		if d, ok := delegated(f); ok {
			return d, i
		}
	}
	if o.last.verdict == "delegate" {
		if d, ok := delegated(f); ok {
			return d, -1
		}
		return rules.Decision{Rule: "default", Log: true}, -1
	}
	return o.last.decision(), -1
}

func (r *oracleRule) decision() rules.Decision {
	d := rules.Decision{Rule: r.name, Reason: r.reason, Log: !r.quiet}
	switch r.verdict {
	case "accept":
		d.Action = packet.Accept
	case "reject":
		d.Action = packet.Reject
	}
	if r.mark >= 0 {
		d.SetMark, d.Mark = true, uint32(r.mark)
	}
	return d
}

func (o *oracleFile) delegates() bool {
	return o.last.verdict == "delegate" || slices.ContainsFunc(o.rules, func(r oracleRule) bool { return r.verdict == "delegate" })
}

// quoteYAML quotes text for YAML: single quotes know one escape.
func quoteYAML(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

func (r *oracleRule) yaml(b *strings.Builder, indent string) {
	fmt.Fprintf(b, "%sverdict: %s\n", indent, r.verdict)
	if r.quiet {
		fmt.Fprintf(b, "%slog: no\n", indent)
	}
	if r.reason != "" {
		fmt.Fprintf(b, "%sreason: %s\n", indent, quoteYAML(r.reason))
	}
	if r.mark >= 0 {
		fmt.Fprintf(b, "%sset-mark: %#x\n", indent, r.mark)
	}
	var not []string
	for _, t := range r.tests {
		text := "$" + t.set
		if t.set == "" {
			text = oracleList(t.values)
		}
		if t.negated {
			not = append(not, t.key+": "+text)
			continue
		}
		fmt.Fprintf(b, "%s%s: %s\n", indent, t.key, text)
	}
	if len(not) > 0 {
		fmt.Fprintf(b, "%snot: {%s}\n", indent, strings.Join(not, ", "))
	}
}

func oracleList(values []oracleValue) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = v.text
	}
	if len(texts) == 1 {
		return texts[0]
	}
	return "[" + strings.Join(texts, ", ") + "]"
}

func (o *oracleFile) yaml(r *rand.Rand) string {
	var b strings.Builder
	b.WriteString("# Rules by chance.\n#\n\n# METADATA\nsets:\n  none-asks: [1]\n")
	for _, name := range o.order {
		fmt.Fprintf(&b, "  # about %s\n  %s:", name, name)
		if r.IntN(2) == 0 {
			fmt.Fprintf(&b, " [%s]\n", strings.Trim(oracleList(o.sets[name]), "[]"))
			continue
		}
		b.WriteString("\n")
		for _, v := range o.sets[name] {
			if r.IntN(3) == 0 {
				b.WriteString("    # above\n")
			}
			fmt.Fprintf(&b, "    - %s%s\n", v.text, oneOf(r, "", " # behind"))
		}
	}
	if len(o.rules) > 0 {
		b.WriteString("# the rules\nrules:\n")
	}
	for i := range o.rules {
		fmt.Fprintf(&b, "%s  - name: %s\n", oneOf(r, "", "  # METADATA\n", "  # of {two} \\ lines\n  #   \"x\" %d\n"), quoteYAML(o.rules[i].name))
		o.rules[i].yaml(&b, "    ")
	}
	b.WriteString("# last\n")
	switch l := &o.last; {
	case l.verdict == "":
		l.verdict, l.name = "drop", "default"
	case l.mark < 0 && l.reason == "" && !l.quiet:
		fmt.Fprintf(&b, "default: %s\n", l.verdict)
	default:
		b.WriteString("default:\n")
		l.yaml(&b, "  ")
	}
	return b.String()
}

func oneOf[T any](r *rand.Rand, choices ...T) T { return choices[r.IntN(len(choices))] }

// values returns what a condition of the key may ask for, with its meaning.
func oracleValues(key string) []oracleValue {
	type facts = *rules.Facts
	num := func(get func(facts) (int, bool), texts ...string) []oracleValue {
		var out []oracleValue
		for _, text := range texts {
			low, high := 0, 0
			if n, err := fmt.Sscanf(text, "%d-%d", &low, &high); n != 2 || err != nil {
				fmt.Sscanf(text, "%v", &low)
				high = low
			}
			out = append(out, oracleValue{text, func(f facts) bool { n, ok := get(f); return ok && low <= n && n <= high }})
		}
		return out
	}
	str := func(get func(facts) string, texts ...string) []oracleValue {
		var out []oracleValue
		for _, text := range texts {
			out = append(out, oracleValue{text, func(f facts) bool {
				if begin, ok := strings.CutSuffix(text, "*"); ok {
					return strings.HasPrefix(get(f), begin)
				}
				return get(f) == text
			}})
		}
		return out
	}
	addr := func(get func(facts) netip.Addr, texts ...string) []oracleValue {
		var out []oracleValue
		for _, text := range texts {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				a := netip.MustParseAddr(text)
				p = netip.PrefixFrom(a, a.BitLen())
			}
			out = append(out, oracleValue{text, func(f facts) bool { return p.Contains(get(f).Unmap()) }})
		}
		return out
	}
	yes := func(get func(facts) (value, ok bool)) []oracleValue {
		return []oracleValue{
			{"yes", func(f facts) bool { v, ok := get(f); return ok && v }},
			{"no", func(f facts) bool { v, ok := get(f); return ok && !v }},
		}
	}
	addrs := []string{"10.0.0.0/8", "10.99.0.0/16", "10.99.0.1", "192.168.1.0/24", "0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "fd99::/16", "fd99::1", "2001:db8::/32", "8.8.8.8"}
	ports := []string{"22", "53", "80-443", "443", "0-65535", "1024-65535", "0-1023", "400-500", "0x16"}
	switch key {
	case "proto":
		return append(str(func(f facts) string { return rules.ProtocolName(f.Packet.Protocol) }, "tcp", "udp", "icmp", "icmpv6", "gre"),
			oracleValue{"6", func(f facts) bool { return f.Packet.Protocol == 6 }}, oracleValue{"132", func(f facts) bool { return f.Packet.Protocol == 132 }})
	case "family":
		return []oracleValue{{"ipv4", func(f facts) bool { return f.Packet.Version == 4 }}, {"ipv6", func(f facts) bool { return f.Packet.Version == 6 }}}
	case "from":
		return addr(func(f facts) netip.Addr { return f.Packet.Src }, addrs...)
	case "to":
		return addr(func(f facts) netip.Addr { return f.Packet.Dst }, addrs...)
	case "from-port":
		return num(func(f facts) (int, bool) { return int(f.Packet.SrcPort), f.Packet.HasPorts }, ports...)
	case "to-port":
		return num(func(f facts) (int, bool) { return int(f.Packet.DstPort), f.Packet.HasPorts }, ports...)
	case "icmp-type":
		named := func(four, six int) func(f facts) bool {
			return func(f facts) bool {
				return f.Packet.IsICMP() && (f.Packet.Version == 4 && int(f.Packet.ICMPType) == four || f.Packet.Version == 6 && int(f.Packet.ICMPType) == six)
			}
		}
		return append(num(func(f facts) (int, bool) { return int(f.Packet.ICMPType), f.Packet.IsICMP() }, "3", "8", "128-140", "0-255"),
			oracleValue{"echo-request", named(8, 128)}, oracleValue{"packet-too-big", named(-1, 2)}, oracleValue{"time-exceeded", named(11, 3)},
			oracleValue{"destination-unreachable", named(3, 1)})
	case "icmp-code":
		return num(func(f facts) (int, bool) { return int(f.Packet.ICMPCode), f.Packet.IsICMP() }, "0", "3", "1-255")
	case "direction":
		return str(func(f facts) string { return f.Meta.Hook.Direction() }, "in", "out", "forward")
	case "hook":
		return str(func(f facts) string { return f.Meta.Hook.String() }, "input", "output", "prerouting", "forward")
	case "in-interface":
		return str(func(f facts) string { return f.InInterface }, "eth0", "eth*", "wan0", "w*")
	case "out-interface":
		return str(func(f facts) string { return f.OutInterface }, "eth0", "e*", "lo")
	case "user":
		return num(func(f facts) (int, bool) { return int(f.Meta.UID), f.Meta.HasUID }, "0", "1000", "1000-65535")
	case "mark":
		return num(func(f facts) (int, bool) { return int(f.Meta.Mark), true }, "0", "0x1", "1-4294967295")
	case "ttl":
		return num(func(f facts) (int, bool) { return int(f.Packet.TTL), true }, "1", "64", "0-100")
	case "time":
		return oracleTimes()
	case "weekday":
		day := func(f facts) time.Weekday { return time.Unix(0, f.Meta.Time).UTC().Weekday() }
		return []oracleValue{
			{"mon-fri", func(f facts) bool { return day(f) != time.Saturday && day(f) != time.Sunday }},
			{"sat-sun", func(f facts) bool { return day(f) == time.Saturday || day(f) == time.Sunday }},
			{"wed", func(f facts) bool { return day(f) == time.Wednesday }},
		}
	case "fragment":
		return yes(func(f facts) (bool, bool) { return f.Packet.MoreFragments || f.Packet.FragmentOffset > 0, true })
	case "tcp-syn":
		return yes(func(f facts) (bool, bool) { return f.Packet.TCPFlags&packet.SYN != 0, f.Packet.Is(packet.ProtoTCP) })
	}
	panic("no values for " + key)
}

func oracleTimes() []oracleValue {
	minute := func(f *rules.Facts) int { t := time.Unix(0, f.Meta.Time).UTC(); return t.Hour()*60 + t.Minute() }
	return []oracleValue{
		{"08:00-18:00", func(f *rules.Facts) bool { return minute(f) >= 480 && minute(f) < 1080 }},
		{"22:00-06:00", func(f *rules.Facts) bool { return minute(f) >= 1320 || minute(f) < 360 }},
		{"00:00-24:00", func(*rules.Facts) bool { return true }},
		{"18:00-00:00", func(f *rules.Facts) bool { return minute(f) >= 1080 }},
	}
}

// oracleKeys are the keys that random rules use; common ones more often.
var oracleKeys = strings.Fields(`proto proto proto proto family from from to to to from-port to-port to-port to-port to-port icmp-type icmp-type
	icmp-code direction hook in-interface out-interface user mark ttl time weekday fragment tcp-syn`)

func randomFile(r *rand.Rand) *oracleFile {
	o := &oracleFile{sets: map[string][]oracleValue{}, last: oracleRule{name: "default", mark: -1}}
	o.last.verdict = oneOf(r, "", "drop", "accept", "reject", "delegate")
	if o.last.verdict == "accept" && r.IntN(2) == 0 {
		o.last.quiet, o.last.reason = true, "at last"
	}
	names := []string{"ssh", "web server", "déjà vu", "a\\b\"c", "net", "-", "8", "input", "test_x", "if", "web-server", "web_server", "%d", "x{y}", "$z"}
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for i := range r.IntN(9) {
		rule := oracleRule{name: names[i], verdict: oneOf(r, "accept", "drop", "reject", "accept", "drop", "delegate"), mark: -1}
		if rule.verdict != "delegate" {
			rule.reason = oneOf(r, "", "", "so", `"quoted" <b> \ é ☃`, "{a} # b: 'c'")
			rule.quiet = r.IntN(3) == 0
			rule.mark = oneOf[int64](r, -1, -1, 0, 1<<32-1)
		}
		for range r.IntN(4) {
			o.addTest(r, &rule)
		}
		o.rules = append(o.rules, rule)
	}
	return o
}

func (o *oracleFile) addTest(r *rand.Rand, rule *oracleRule) {
	t := oracleTest{key: oneOf(r, oracleKeys...), negated: r.IntN(5) == 0}
	if slices.ContainsFunc(rule.tests, func(u oracleTest) bool { return u.key == t.key && u.negated == t.negated }) {
		return // YAML has each key once
	}
	all := oracleValues(t.key)
	for range 1 + r.IntN(3) {
		t.values = append(t.values, oneOf(r, all...))
	}
	if r.IntN(3) == 0 {
		t.set = oneOf(r, "private", "test-set", "net", "data", "within", "web_ports", "web-ports", "A") + "-" + t.key
		if o.sets[t.set] == nil {
			o.sets[t.set] = t.values
			o.order = append(o.order, t.set)
		}
		t.values = o.sets[t.set]
	}
	rule.tests = append(rule.tests, t)
}

func plainFacts(r *rand.Rand) *rules.Facts {
	m := &packet.Meta{
		Time: r.Int64N(1 << 60), Hook: packet.Hook(r.IntN(5)), Mark: oneOf[uint32](r, 0, 0, 1, 5, 1<<32-1),
		UID: oneOf[uint32](r, 0, 1000, 1001, 70000), HasUID: r.IntN(2) == 0,
	}
	p := &packet.Packet{
		Status: packet.OK, Version: 4, TTL: oneOf[uint8](r, 1, 40, 64, 255), TCPFlags: packet.TCPFlags(r.IntN(512)),
		Protocol: oneOf[uint8](r, packet.ProtoTCP, packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMP, packet.ProtoICMPv6, packet.ProtoSCTP, 47, 200),
		SrcPort:  oneOf[uint16](r, 22, 53, 1024, 40000), DstPort: oneOf[uint16](r, 0, 22, 53, 80, 443, 450, 8080, 65535),
		ICMPType: oneOf[uint8](r, 0, 1, 2, 3, 8, 11, 128, 135), ICMPCode: oneOf[uint8](r, 0, 3, 7),
		MoreFragments: r.IntN(8) == 0,
	}
	family := []string{"10.0.0.53", "10.99.0.1", "192.168.1.7", "8.8.8.8", "200.1.2.3"}
	if r.IntN(3) == 0 {
		p.Version, family = 6, []string{"fd99::1", "fd99::2", "2001:db8::1", "fe80::1", "::ffff:10.99.0.1"}
	}
	p.Src, p.Dst = netip.MustParseAddr(oneOf(r, family...)), netip.MustParseAddr(oneOf(r, family...))
	if r.IntN(10) == 0 {
		p.Status, p.FragmentOffset = packet.Fragment, 1480
	}
	p.HasPorts = p.Status == packet.OK && slices.Contains([]uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP}, p.Protocol)
	return &rules.Facts{Meta: m, Packet: p, InInterface: oneOf(r, "", "eth0", "eth1", "wan0", "wlan0"), OutInterface: oneOf(r, "", "eth0", "lo", "w")}
}

// TestPlainRulesAgreeWithOracle translates random rules files and compares the
// decisions of the translation with those of the oracle.
func TestPlainRulesAgreeWithOracle(t *testing.T) {
	filesN, factsN := 700, 160 // 112,000 comparisons
	if testing.Short() {
		filesN = 70
	}
	r := rand.New(rand.NewPCG(5, 6))
	pool := make([]*rules.Facts, 4000)
	for i := range pool {
		pool[i] = plainFacts(r)
	}
	var compared, dead, matched int
	for n := range filesN {
		o := randomFile(r)
		text := o.yaml(r)
		p, set, findings := loadPlain(t, o, text)
		never := map[string]bool{}
		for _, f := range findings {
			if name, ok := strings.CutPrefix(f.Msg, "rule "); ok && f.Level == rules.Warning {
				name = name[:strings.Index(name, " can never match")]
				never[name] = true
				dead++
			}
		}
		for range factsN {
			f := oneOf(r, pool...)
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
			checkMatch(t, o, set, f)
		}
	}
	t.Logf("%d comparisons, %d by a rule; %d rules that never match", compared, matched, dead)
	if matched < compared/4 || dead < filesN/4 {
		t.Error("the random rules are too poor to say much")
	}
}

// checkMatch compares Match, which explains, with the oracle.
func checkMatch(t *testing.T, o *oracleFile, set *rules.Ruleset, f *rules.Facts) {
	t.Helper()
	want := "default"
	for i := range o.rules {
		if o.rules[i].matches(f) {
			want = o.rules[i].name
			break
		}
	}
	if got := set.Match(f).Rule.Name; got != want {
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
	if _, err := policy.Check(ctx, policy.Source{FS: files}); err != nil {
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
	if _, err := policy.Check(ctx, policy.Source{FS: files}); err != nil {
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
		if got.Rule == "clear-text" && strings.HasSuffix(want.Reason, got.Reason) {
			got.Reason = want.Reason
		}
		got.Reads, want.Reads = rules.FieldSet{}, rules.FieldSet{}
		if got != want {
			t.Fatalf("%+v, want %+v, for\n%+v", got, want, f.Packet)
		}
	}
	if len(seen) != 8 {
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
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
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
		for {
			select {
			case c := <-changes:
				return c
			case <-time.After(10 * time.Millisecond):
				// Until the watch has begun, only a new write is sure to be seen.
				if err := os.Chtimes(filepath.Join(dir, "sub/ports.yaml"), time.Now(), time.Now()); err != nil {
					t.Fatal(err)
				}
			case <-ctx.Done():
				t.Fatal("the change was not seen")
			}
		}
	}
	write("sub/ports.yaml", "sets: {web: [81-]}\n")
	if c := next(); c.err == nil || !strings.Contains(c.err.Error(), filepath.Join(dir, "sub/ports.yaml")+":1:14: ") {
		t.Errorf("error %v, want the place in sub/ports.yaml", c.err)
	}
	write("sub/ports.yaml", "sets: {web: [81]}\n")
	c := next()
	for c.err != nil { // a file that is being written can be seen empty
		c = next()
	}
	if c.p.Hash() == first.Hash() {
		t.Error("the hash does not know the included file")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
