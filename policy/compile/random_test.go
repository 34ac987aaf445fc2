package compile

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// policyGen writes random policies over the real input document. They are
// valid Rego, mostly: what OPA's compiler refuses is left out by the caller.
type policyGen struct {
	r     *rand.Rand
	vars  int
	depth int
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func (g *policyGen) fresh() string {
	g.vars++
	return fmt.Sprintf("v%d", g.vars)
}

// Pools. Facts and policies draw from the same values, so that they meet.
func intFields() []string {
	return []string{"src_port", "dst_port", "tcp.dst_port", "udp.dst_port", "packet.length", "ip.ttl", "ip.protocol_number", "uid", "gid", "mark", "ip.version", "icmp.type", "time.hour", "tcp.window", "process.pid", "process.uid", "process.parents.1.pid"}
}

func stringFields() []string {
	return []string{"ip.protocol", "hook", "direction", "interface.in", "interface.out", "packet.status", "process.exe", "process.unit", "process.source", "process.container.id", "process.parents.2.exe"}
}

func addrFields() []string { return []string{"ip.src", "ip.dst"} }

func boolFields() []string {
	return []string{"tcp.flags.syn", "tcp.flags.ack", "tcp.flags.rst", "ip.fragment", "process.exe_deleted"}
}

func intPool() []int64 {
	return []int64{0, 1, 2, 4, 6, 8, 17, 22, 53, 64, 80, 105, 128, 443, 512, 513, 1000, 1500, 8080, 65535, 1 << 31, 1<<32 - 1}
}

func stringPool() []string {
	return []string{"tcp", "udp", "icmp", "in", "out", "forward", "input", "output", "eth0", "eth0.100", "wlan0", "lo", "ok", "fragment", "10.0.0.1", "80", "/usr/bin/curl", "/bin/sh", "ci.service", "bpf-flow"}
}

func addrPool() []string {
	return []string{
		"10.0.0.1", "10.0.0.53", "10.1.2.3", "192.168.1.1", "172.16.0.9", "8.8.8.8", "0.0.0.0", "255.255.255.255",
		"::ffff:10.0.0.53", "::ffff:8.8.8.8", "::1", "::", "2001:db8::1", "2001:db8:0:1::7", "fe80::1", "fe80::1%eth0", "ff02::fb", "64:ff9b::808:808",
	}
}

func netPool() []string {
	return []string{
		"10.0.0.0/8", "10.0.0.0/24", "10.0.0.53/32", "0.0.0.0/0", "192.168.0.0/16", "8.8.0.0/15", "::/0", "2001:db8::/32", "2001:db8:0:1::/64", "fe80::/10", "::1/128",
		"::ffff:10.0.0.0/104", "::ffff:0:0/96", "::ffff:0:0/90", "64:ff9b::/96", "10.1.2.3/9", "not a network", "10.0.0.1",
	}
}

func (g *policyGen) intLit() string {
	if g.r.IntN(30) == 0 {
		return pick(g.r, "80.0", "1e3", "-1", "0.5", "443.5", "18446744073709551616")
	}
	return fmt.Sprint(pick(g.r, intPool()...))
}

func (g *policyGen) strLit() string { return fmt.Sprintf("%q", pick(g.r, stringPool()...)) }
func (g *policyGen) addrLit() string {
	if g.r.IntN(12) == 0 {
		return pick(g.r, `"010.0.0.1"`, `"::FFFF:10.0.0.53"`, `"2001:DB8::1"`, `"0:0:0:0:0:0:0:1"`)
	}
	return fmt.Sprintf("%q", pick(g.r, addrPool()...))
}
func (g *policyGen) netLit() string { return fmt.Sprintf("%q", pick(g.r, netPool()...)) }

func (g *policyGen) list(n int, elem func() string) string {
	out := make([]string, n)
	for i := range out {
		out[i] = elem()
	}
	return strings.Join(out, ", ")
}

func (g *policyGen) intField() string  { return ref(pick(g.r, intFields()...)) }
func (g *policyGen) strField() string  { return ref(pick(g.r, stringFields()...)) }
func (g *policyGen) addrField() string { return "input." + pick(g.r, addrFields()...) }

// ref writes the path of a field as Rego: a key that is a number in brackets.
func ref(path string) string {
	text := "input"
	for key := range strings.SplitSeq(path, ".") {
		if key[0] >= '0' && key[0] <= '9' {
			text += fmt.Sprintf("[%q]", key)
			continue
		}
		text += "." + key
	}
	return text
}

func (g *policyGen) text() string {
	switch g.r.IntN(8) {
	case 0:
		return g.addrField()
	case 1:
		return fmt.Sprintf("lower(%s)", g.strField())
	case 2:
		return fmt.Sprintf(`sprintf("%%v-%%v", [%s, %s])`, g.strField(), g.intField())
	case 3:
		return fmt.Sprintf(`concat(".", [%s, %s])`, g.strField(), g.text())
	case 4:
		return fmt.Sprintf(`substring(%s, 0, %d)`, g.strField(), g.r.IntN(5))
	}
	return g.strField()
}

// number is an expression of type number.
func (g *policyGen) number() string {
	switch g.r.IntN(10) {
	case 0:
		return fmt.Sprintf("(%s %s %s)", g.intField(), pick(g.r, "+", "-", "*", "%", "/"), g.intLit())
	case 1:
		return fmt.Sprintf("bits.and(%s, %d)", g.intField(), 1<<g.r.IntN(9))
	case 2:
		return fmt.Sprintf("count(%s)", g.text())
	case 3:
		return fmt.Sprintf("count(%s)", g.collection())
	case 4:
		return fmt.Sprintf("max([%s, %s])", g.intField(), g.intField())
	}
	return g.intField()
}

// collection is an expression of a collection, small and large, of constants
// and of fields.
func (g *policyGen) collection() string {
	switch g.r.IntN(18) {
	case 16:
		return fmt.Sprintf("{%s: %s, %s: %s}", g.strField(), g.intField(), pick(g.r, g.strField(), g.strLit()), g.literal())
	case 0:
		return fmt.Sprintf("{%s}", g.list(1+g.r.IntN(12), g.intLit))
	case 1:
		return fmt.Sprintf("[%s]", g.list(1+g.r.IntN(4), g.intLit))
	case 2:
		return fmt.Sprintf("{%s}", g.list(1+g.r.IntN(12), g.strLit))
	case 3:
		return fmt.Sprintf("{%s}", g.list(1+g.r.IntN(10), g.addrLit))
	case 4:
		return fmt.Sprintf(`{"a": %s, "b": %s}`, g.intLit(), g.strLit())
	case 5:
		return fmt.Sprintf("[%s, %s]", g.intField(), g.strField())
	case 6:
		return fmt.Sprintf("{%s, %s}", g.text(), g.addrField())
	case 7:
		return pick(g.r, "input.tcp", "input.tcp.flags", "input.ip", "input.udp", "input.interface", "input.process", "input.process.parents", "input.process.container")
	case 8:
		return pick(g.r, "parts", "names", "data.lib.groups", "hits", "table")
	}
	return "data." + pick(g.r, "ports", "portset", "names", "addrs", "nets", "manynets", "manyports", "hosts", "bigset", "rules", "empty", "nothing")
}

func (g *policyGen) scalar() string {
	switch g.r.IntN(6) {
	case 0:
		return g.number()
	case 1:
		return g.text()
	case 2:
		return g.addrField()
	case 3:
		return "input." + pick(g.r, boolFields()...)
	case 4:
		return pick(g.r, "zone", "level", "grade(input.dst_port)", "grade(input.uid)", "data.lib.limit")
	}
	return g.intField()
}

func (g *policyGen) literal() string {
	return pick(g.r, g.intLit(), g.strLit(), g.addrLit(), "true", "false", "null")
}

// cond is a condition; it may take several lines.
func (g *policyGen) cond() string {
	g.depth++
	defer func() { g.depth-- }()
	n := 22
	if g.depth > 2 {
		n = 8
	}
	switch g.r.IntN(n) {
	case 0, 1:
		return fmt.Sprintf("%s %s %s", g.number(), pick(g.r, "==", "!=", "<", "<=", ">", ">=", "=="), g.intLit())
	case 2:
		return fmt.Sprintf("%s %s %s", g.strField(), pick(g.r, "==", "!="), g.strLit())
	case 3:
		return fmt.Sprintf("%s %s %s", g.addrField(), pick(g.r, "==", "!=", "in"), pick(g.r, g.addrLit(), "data.addrs", "data.hosts"))
	case 4:
		return fmt.Sprintf("%s in %s", g.scalar(), g.collection())
	case 5:
		return fmt.Sprintf("net.cidr_contains(%s, %s)", g.netLit(), g.addrField())
	case 6:
		return fmt.Sprintf("input.%s", pick(g.r, boolFields()...))
	case 7:
		return fmt.Sprintf("%s(%s, %s)", pick(g.r, "startswith", "endswith", "contains"), g.text(), pick(g.r, g.strLit(), g.addrLit(), `"1"`, `""`))
	}
	return pick(g.r, g.loops, g.lookups)()
}

// loops are conditions over collections.
func (g *policyGen) loops() string {
	v, w := g.fresh(), g.fresh()
	switch g.r.IntN(11) {
	case 9:
		return fmt.Sprintf("some %s in input.process.parents\n\t%s.%s == %s", v, v, pick(g.r, "exe", "comm", "pid"), g.literal())
	case 0:
		return fmt.Sprintf("some %s in %s\n\tnet.cidr_contains(%s, %s)", v, pick(g.r, "data.nets", "data.manynets", "["+g.list(3, g.netLit)+"]"), v, g.addrField())
	case 1:
		return fmt.Sprintf("some %s in %s\n\t%s == %s", v, g.collection(), v, g.scalar())
	case 2:
		return fmt.Sprintf("some %s in data.rules\n\t%s.proto == input.ip.protocol\n\tinput.dst_port in %s.ports", v, v, v)
	case 3:
		return fmt.Sprintf("some %s, %s in %s\n\t%s == %s", v, w, g.collection(), pick(g.r, v, w), g.scalar())
	case 4:
		return fmt.Sprintf("every %s in %s { %s != %s }", v, g.collection(), v, pick(g.r, g.scalar(), g.literal()))
	case 5:
		return fmt.Sprintf("count([%s | some %s in %s; %s]) %s %d", v, v, g.collection(), g.simple(), pick(g.r, "==", ">", "<"), g.r.IntN(4))
	case 6:
		return fmt.Sprintf("%s := {%s | some %s in %s; %s != %s}\n\tcount(%s) > %d", w, v, v, g.collection(), v, g.literal(), w, g.r.IntN(5))
	case 7:
		return fmt.Sprintf("some %s in data.names\n\t%s(%s, %s)", v, pick(g.r, "startswith", "endswith"), g.strField(), v)
	case 8:
		return fmt.Sprintf("some %s\n\tinput.tcp.flags[%s] == true\n\t%s != %s", v, v, v, pick(g.r, `"syn"`, `"ack"`))
	}
	return fmt.Sprintf("some %s in data.rules\n\tnet.cidr_contains(%s.net, input.ip.dst)\n\t%s.prio > %d", v, v, v, g.r.IntN(5))
}

// lookups are conditions with rules, functions, keys and with.
func (g *policyGen) lookups() string {
	if g.r.IntN(6) == 0 {
		return g.documents()
	}
	v, w := g.fresh(), g.fresh()
	switch g.r.IntN(12) {
	case 0:
		return "not " + pick(g.r, "inside", "busy", "listed", g.simple())
	case 1:
		return fmt.Sprintf("%s := %s\n\t%s %s %s", v, g.scalar(), v, pick(g.r, "==", "!=", "<"), g.literal())
	case 2:
		return fmt.Sprintf("%s[%s]", g.collection(), g.scalar())
	case 3:
		return fmt.Sprintf("%s[%s] == %s", g.collection(), g.scalar(), g.literal())
	case 4:
		return pick(g.r, "inside", "busy", "is_web(input.dst_port)", "is_web(input.src_port)", "within(input.ip.src, data.nets)", "within(input.ip.dst, {\"10.0.0.0/8\", \"::/0\"})", "listed")
	case 5:
		return fmt.Sprintf("%s with input.dst_port as %s", pick(g.r, "busy", "is_web(input.dst_port)", "inside", "level == 1"), g.intLit())
	case 6:
		return fmt.Sprintf("busy with data.portset as {\"80\": true, \"%d\": false}", pick(g.r, intPool()...))
	case 7:
		return fmt.Sprintf("data.lib[%s] == %s", pick(g.r, g.strField(), `"limit"`, `"tcp"`), g.literal())
	case 8:
		return fmt.Sprintf("object.get(input, [\"tcp\", \"dst_port\"], %s) == %s", g.intLit(), g.intLit())
	case 9:
		return fmt.Sprintf("regex.match(%s, %s)", pick(g.r, `"^eth[0-9]"`, `"p$"`, `"["`, `"10\\."`), g.text())
	case 10:
		return fmt.Sprintf("[%s, %s] = [%s, %s]\n\t%s == %s", v, w, g.scalar(), g.scalar(), v, w)
	}
	return fmt.Sprintf("parts[%s]\n\t%s in names", g.strLit(), g.strField())
}

// documents are conditions over arrays that are taken apart and documents
// that rules and data make up together.
func (g *policyGen) documents() string {
	v, w := g.fresh(), g.fresh()
	return pick(g.r,
		fmt.Sprintf("some [%s, %s] in data.pairs\n\t%s == %s\n\t%s != %s", v, w, v, g.scalar(), w, g.scalar()),
		fmt.Sprintf("%s := data.lib\n\tcount(%s) > %d", v, v, g.r.IntN(5)),
		fmt.Sprintf("some %s, %s in data.lib\n\t%s == %s", v, w, w, g.literal()),
		fmt.Sprintf("data.zones[_][%s] == %s", pick(g.r, "80", g.intField(), g.scalar()), g.literal()),
		fmt.Sprintf("data.zones[_].sub[%s]", pick(g.r, "80", `"80"`, g.intField(), g.scalar())),
		fmt.Sprintf("some %s in data.zones\n\t%s[%s]", v, v, pick(g.r, "80", `"80"`, g.intField())),
		fmt.Sprintf("%s := %s\n\ttable[%s] != %s", v, pick(g.r, g.scalar(), `"80"`, "443"), v, g.literal()),
		fmt.Sprintf("data.lib[%s]\n\tdata.lib.extra[%s] == %s", g.strField(), g.strField(), g.literal()),
		fmt.Sprintf("{%s | some %s in input.tcp.flags} == {true}", v, v),
		fmt.Sprintf("object.keys(%s) == {\"syn\"}", pick(g.r, "input.interface", "input.udp", "hits", "table")),
	)
}

// simple is a condition of one line without new variables.
func (g *policyGen) simple() string {
	return pick(g.r,
		fmt.Sprintf("%s == %s", g.intField(), g.intLit()),
		fmt.Sprintf("%s == %s", g.strField(), g.strLit()),
		fmt.Sprintf("net.cidr_contains(%s, %s)", g.netLit(), g.addrField()),
		fmt.Sprintf("%s in {%s}", g.intField(), g.list(3, g.intLit)),
		fmt.Sprintf("%s %s %s", g.intField(), pick(g.r, "==", "!=", "<", "<=", ">", ">="), g.intField()),
		fmt.Sprintf("%s %s %s", g.strField(), pick(g.r, "==", "!="), g.strField()),
		fmt.Sprintf("%s %s %s", g.addrField(), pick(g.r, "==", "!=", "<"), g.addrField()),
		fmt.Sprintf("%s in data.%s", g.intField(), pick(g.r, "manyports", "ports")),
		fmt.Sprintf("%s in data.%s", g.strField(), pick(g.r, "bigset", "hosts")),
		fmt.Sprintf("data.seen[%s]", pick(g.r, g.strField(), g.addrField(), g.addrField())),
	)
}

func (g *policyGen) body() string {
	conds := make([]string, 1+g.r.IntN(3))
	for i := range conds {
		conds[i] = "\t" + g.cond()
	}
	return "{\n" + strings.Join(conds, "\n") + "\n}"
}

func (g *policyGen) result(name string) string {
	if g.r.IntN(6) == 0 {
		return fmt.Sprintf(`{"verdict": "drop", "rule": %s, "mark": %s}`, g.scalar(), g.number())
	}
	return g.constantResult(name)
}

func (g *policyGen) constantResult(name string) string {
	return fmt.Sprintf(`{"verdict": %q, "rule": %q, "log": %t}`, pick(g.r, "accept", "drop", "reject"), name, g.r.IntN(2) == 0)
}

// module writes the modules of a policy: package verdictd and a library.
func (g *policyGen) module() (policy, lib string) {
	var b strings.Builder
	b.WriteString("package verdictd\n\nimport rego.v1\n\n")
	if g.r.IntN(2) == 0 {
		fmt.Fprintf(&b, "default decision := %s\n\n", g.constantResult("default"))
	}
	switch g.r.IntN(4) {
	case 0, 1:
		g.chain(&b, 1+g.r.IntN(12))
	case 2:
		for i := range 1 + g.r.IntN(3) {
			fmt.Fprintf(&b, "decision := %s if %s\n\n", g.result(pick(g.r, "same", fmt.Sprint("r", i))), g.body())
		}
	default:
		b.WriteString("decision := {\"verdict\": \"drop\", \"rule\": min(parts)} if count(parts) > 1\n\telse := {\"verdict\": \"accept\", \"n\": count(parts), \"all\": parts} if count(parts) == 1\n\n")
	}
	g.helpers(&b)
	return b.String(), g.library()
}

func (g *policyGen) chain(b *strings.Builder, n int) {
	fmt.Fprintf(b, "decision := %s if %s", g.result("r0"), g.body())
	for i := range n {
		fmt.Fprintf(b, " else := %s if %s", g.result(fmt.Sprint("r", i+1)), g.body())
	}
	b.WriteString("\n\n")
}

// helpers writes the rules that conditions refer to. Their own conditions do
// not refer to rules: OPA refuses recursion.
func (g *policyGen) helpers(b *strings.Builder) {
	for _, name := range []string{"inside", "busy", "listed"} {
		for range 1 + g.r.IntN(3) {
			fmt.Fprintf(b, "%s if {\n\t%s\n\t%s\n}\n\n", name, g.simple(), g.simple())
		}
	}
	fmt.Fprintf(b, "busy if data.portset[%s]\n\n", pick(g.r, "format_int(input.dst_port, 10)", "format_int(input.src_port, 10)", "sprintf(\"%d\", [input.mark])"))
	fmt.Fprintf(b, "listed if {\n\tsome n in data.manynets\n\tnet.cidr_contains(n, %s)\n}\n\n", g.addrField())
	fmt.Fprintf(b, "default level := 0\n\nlevel := %d if %s\n\nlevel := %d if %s\n\n", g.r.IntN(2), g.simple(), g.r.IntN(2), g.simple())
	fmt.Fprintf(b, "zone := \"dmz\" if %s else := \"lan\" if %s\n\n", g.simple(), g.simple())
	for i := range 2 + g.r.IntN(6) {
		fmt.Fprintf(b, "parts contains %s if %s\n\n", pick(g.r, fmt.Sprintf("%q", fmt.Sprint("p", i)), g.strField(), `"tcp"`), g.simple())
	}
	fmt.Fprintf(b, "names contains n if {\n\tsome n in data.names\n\t%s\n}\n\nnames contains %s\n\n", g.simple(), g.strField())
	fmt.Fprintf(b, "hits[input.ip.protocol] contains %s if %s\n\nhits[\"tcp\"] contains 80 if %s\n\n", g.intField(), g.simple(), g.simple())
	fmt.Fprintf(b, "table[k] := v if {\n\tsome k, v in data.ports\n\tv %s %s\n}\n\ntable[\"x\"] := %s if %s\n\n", pick(g.r, "==", "!=", ">"), g.intField(), g.intField(), g.simple())
	fmt.Fprintf(b, "is_web(p) if p in {80, 443, %s}\n\nis_web(p) if {\n\tp > %s\n\t%s\n}\n\n", g.intLit(), g.intLit(), g.simple())
	fmt.Fprintf(b, "within(a, nets) if {\n\tsome n in nets\n\tnet.cidr_contains(n, a)\n}\n\n")
	fmt.Fprintf(b, "grade(p) := \"low\" if p < 1024 else := \"high\" if p > %s\n\ngrade(p) := %s if p == %s\n\n", g.intLit(), pick(g.r, `"low"`, `"odd"`), g.intLit())
}

func (g *policyGen) library() string {
	return fmt.Sprintf("package lib\n\nimport rego.v1\n\nlimit := %s\n\ntcp := %s if %s\n\nudp if %s\n\ngroups := {%s}\n",
		g.intLit(), g.literal(), g.simple(), g.simple(), g.list(3, g.strLit))
}
