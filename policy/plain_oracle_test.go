package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/verdictd/verdictd/packet"
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
		if len(o.rules) == 0 {
			b.WriteString("default: drop\n") // else the file would be refused
		}
	case l.mark < 0 && l.reason == "" && !l.quiet:
		fmt.Fprintf(&b, "default: %s\n", l.verdict)
	default:
		b.WriteString("default:\n")
		l.yaml(&b, "  ")
	}
	return b.String()
}

func oneOf[T any](r *rand.Rand, choices ...T) T { return choices[r.IntN(len(choices))] }

// Values as written, and what they mean.

type plainInput = *rules.Facts

func numbers(get func(plainInput) (int, bool), texts ...string) []oracleValue {
	var out []oracleValue
	for _, text := range texts {
		low, high := 0, 0
		if n, err := fmt.Sscanf(text, "%d-%d", &low, &high); n != 2 || err != nil {
			fmt.Sscanf(text, "%v", &low)
			high = low
		}
		out = append(out, oracleValue{text, func(f plainInput) bool { n, ok := get(f); return ok && low <= n && n <= high }})
	}
	return out
}

func words(get func(plainInput) string, texts ...string) []oracleValue {
	var out []oracleValue
	for _, text := range texts {
		out = append(out, oracleValue{text, func(f plainInput) bool {
			if begin, ok := strings.CutSuffix(text, "*"); ok {
				return strings.HasPrefix(get(f), begin)
			}
			return get(f) == text
		}})
	}
	return out
}

func networks(get func(plainInput) netip.Addr) []oracleValue {
	var out []oracleValue
	for _, text := range strings.Fields("10.0.0.0/8 10.99.0.0/16 10.99.0.1 192.168.1.0/24 0.0.0.0/0 0.0.0.0/1 128.0.0.0/1 ::/0 fd99::/16 fd99::1 2001:db8::/32 8.8.8.8") {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			a := netip.MustParseAddr(text)
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, oracleValue{text, func(f plainInput) bool { return p.Contains(get(f).Unmap()) }})
	}
	return out
}

func flags(get func(plainInput) (value, ok bool)) []oracleValue {
	return []oracleValue{
		{"yes", func(f plainInput) bool { v, ok := get(f); return ok && v }},
		{"no", func(f plainInput) bool { v, ok := get(f); return ok && !v }},
	}
}

// oracleTable returns what each condition may ask for.
func oracleTable() map[string][]oracleValue {
	ports := strings.Fields("22 53 80-443 443 0-65535 1024-65535 0-1023 400-500 0x16")
	days := func(list ...time.Weekday) func(plainInput) bool {
		return func(f plainInput) bool { return slices.Contains(list, time.Unix(0, f.Meta.Time).UTC().Weekday()) }
	}
	return map[string][]oracleValue{
		"proto": append(words(func(f plainInput) string { return rules.ProtocolName(f.Packet.Protocol) }, "tcp", "udp", "icmp", "icmpv6", "gre"),
			oracleValue{"6", func(f plainInput) bool { return f.Packet.Protocol == 6 }}, oracleValue{"132", func(f plainInput) bool { return f.Packet.Protocol == 132 }}),
		"family":        {{"ipv4", func(f plainInput) bool { return f.Packet.Version == 4 }}, {"ipv6", func(f plainInput) bool { return f.Packet.Version == 6 }}},
		"from":          networks(func(f plainInput) netip.Addr { return f.Packet.Src }),
		"to":            networks(func(f plainInput) netip.Addr { return f.Packet.Dst }),
		"from-port":     numbers(func(f plainInput) (int, bool) { return int(f.Packet.SrcPort), f.Packet.HasPorts }, ports...),
		"to-port":       numbers(func(f plainInput) (int, bool) { return int(f.Packet.DstPort), f.Packet.HasPorts }, ports...),
		"icmp-type":     oracleICMP(),
		"icmp-code":     numbers(func(f plainInput) (int, bool) { return int(f.Packet.ICMPCode), f.Packet.IsICMP() }, "0", "3", "1-255"),
		"direction":     words(func(f plainInput) string { return f.Meta.Hook.Direction() }, "in", "out", "forward"),
		"hook":          words(func(f plainInput) string { return f.Meta.Hook.String() }, "input", "output", "prerouting", "forward"),
		"in-interface":  words(func(f plainInput) string { return f.InInterface }, "eth0", "eth*", "wan0", "w*"),
		"out-interface": words(func(f plainInput) string { return f.OutInterface }, "eth0", "e*", "lo"),
		"user":          numbers(func(f plainInput) (int, bool) { return int(f.Meta.UID), f.Meta.HasUID }, "0", "1000", "1000-65535"),
		"mark":          numbers(func(f plainInput) (int, bool) { return int(f.Meta.Mark), true }, "0", "0x1", "1-4294967295"),
		"ttl":           numbers(func(f plainInput) (int, bool) { return int(f.Packet.TTL), true }, "1", "64", "0-100"),
		"time":          oracleTimes(),
		"weekday":       {{"mon-fri", days(1, 2, 3, 4, 5)}, {"sat-sun", days(6, 0)}, {"wed", days(3)}},
		"fragment":      flags(func(f plainInput) (bool, bool) { return f.Packet.MoreFragments || f.Packet.FragmentOffset > 0, true }),
		"tcp-syn": flags(func(f plainInput) (bool, bool) {
			return f.Packet.TCPFlags&packet.SYN != 0, f.Packet.Is(packet.ProtoTCP)
		}),
	}
}

func oracleICMP() []oracleValue {
	named := func(four, six int) func(f plainInput) bool {
		return func(f plainInput) bool {
			return f.Packet.IsICMP() && (f.Packet.Version == 4 && int(f.Packet.ICMPType) == four || f.Packet.Version == 6 && int(f.Packet.ICMPType) == six)
		}
	}
	return append(numbers(func(f plainInput) (int, bool) { return int(f.Packet.ICMPType), f.Packet.IsICMP() }, "3", "8", "128-140", "0-255"),
		oracleValue{"echo-request", named(8, 128)}, oracleValue{"packet-too-big", named(-1, 2)}, oracleValue{"time-exceeded", named(11, 3)},
		oracleValue{"destination-unreachable", named(3, 1)})
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
const oracleKeys = `proto proto proto proto family from from to to to from-port to-port to-port to-port to-port icmp-type icmp-type
	icmp-code direction hook in-interface out-interface user mark ttl time weekday fragment tcp-syn`

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
	t := oracleTest{key: oneOf(r, strings.Fields(oracleKeys)...), negated: r.IntN(5) == 0}
	if slices.ContainsFunc(rule.tests, func(u oracleTest) bool { return u.key == t.key && u.negated == t.negated }) {
		return // YAML has each key once
	}
	all := oracleTable()[t.key]
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
