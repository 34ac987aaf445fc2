package rules

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// condition is one question that a rule of a rules file can ask: a key of the
// file, and the fields that answer it. conditions lists all there are; the
// parser, the translation, the analysis, the explanations and the schema come
// from it.
type condition struct {
	key    string
	says   string   // what it is about, in words
	paths  []string // of its fields; their kind, bounds and enumeration apply
	fields []Field  // of paths
	index  []int    // of fields in Fields
	ref    string   // the Rego expression for its value

	// For numbers: the names that stand for some, and whether only names may
	// be written; how the value is made of those of several fields; and what
	// the greatest is, if not that of the field.
	names     map[string][]bounds
	nameOnly  bool
	combine   func(v []Value) int64
	max       int64
	parseItem func(c *condition, text string) ([]item, error) // nil: by kind

	// For names: those there are (nil if any), how else they may be written,
	// and whether "eth*" stands for all that begin with eth.
	enum  []string
	canon func(text string) string
	wild  bool

	always bool     // every packet that is judged has a value
	needs  []string // protocols of which alone packets have a value; nil: all

	// dim is the key of the condition whose values decide this one's, and
	// project which of them do. Empty if it stands for itself.
	dim     string
	project map[string][]string
}

// bounds are the numbers from low to high, both included.
type bounds struct{ low, high int64 }

// A value of icmp-type is a type, plus v6 in ICMPv6.
const v6 = 256

// withPorts are the protocols that have ports, see packet.Packet.HasPorts.
func withPorts() []string { return []string{"tcp", "udp", "udplite", "sctp", "dccp"} }

// conditions returns all conditions, in the order in which they are printed.
// Each begins from a field: another field becomes a condition by another line.
func conditions() []condition {
	all := []condition{
		{key: "proto", says: "protocol", paths: []string{"ip.protocol"}, always: true, enum: protocolNames(), canon: protocolOf},
		{key: "family", says: "IP version", paths: []string{"ip.version"}, always: true, nameOnly: true,
			names: map[string][]bounds{"ipv4": {{4, 4}}, "ipv6": {{6, 6}}}},
		{key: "from", says: "source", paths: []string{"ip.src"}, always: true},
		{key: "to", says: "destination", paths: []string{"ip.dst"}, always: true},
		{key: "from-port", says: "source port", paths: []string{"src_port"}, needs: withPorts()},
		{key: "to-port", says: "destination port", paths: []string{"dst_port"}, needs: withPorts()},
		{key: "icmp-type", says: "ICMP type", paths: []string{"icmp.type", "ip.version"}, ref: "input.icmp.type", max: 2*v6 - 1,
			names: icmpTypes(), combine: icmpType, parseItem: parseICMPType, needs: []string{"icmp", "icmpv6"}},
		{key: "icmp-code", says: "ICMP code", paths: []string{"icmp.code"}, needs: []string{"icmp", "icmpv6"}},
		{key: "icmp-related", says: "ICMP error about a flow that was let through", paths: []string{RelatedPath}, needs: []string{"icmp", "icmpv6"}},
		{key: "direction", says: "direction", paths: []string{"direction"}, always: true, dim: "hook", project: map[string][]string{
			"in": {"input", "prerouting"}, "out": {"output", "postrouting"}, "forward": {"forward"}}},
		{key: "hook", says: "hook", paths: []string{"hook"}, always: true},
		{key: "in-interface", says: "incoming interface", paths: []string{"interface.in"}, wild: true},
		{key: "out-interface", says: "outgoing interface", paths: []string{"interface.out"}, wild: true},
		{key: "in-bridge-port", says: "incoming port of a bridge", paths: []string{"interface.in_port"}, wild: true},
		{key: "out-bridge-port", says: "outgoing port of a bridge", paths: []string{"interface.out_port"}, wild: true},
		{key: "user", says: "user id", paths: []string{"uid"}},
		{key: "group", says: "group id", paths: []string{"gid"}},
		{key: "exe", says: "program", paths: []string{"process.exe"}, wild: true},
		{key: "exe-sha256", says: "SHA-256 of the program", paths: []string{"process.exe_sha256"}},
		{key: "comm", says: "name of the process", paths: []string{"process.comm"}, wild: true},
		{key: "parent-exe", says: "program of the parent", paths: []string{"process.parents.1.exe"}, wild: true},
		{key: "unit", says: "systemd unit", paths: []string{"process.unit"}, wild: true},
		{key: "slice", says: "systemd slice", paths: []string{"process.slice"}, wild: true},
		{key: "cgroup", says: "control group", paths: []string{"process.cgroup"}, wild: true},
		{key: "container", says: "container", paths: []string{"process.container.id"}, wild: true},
		{key: "pod", says: "Kubernetes pod", paths: []string{"process.container.pod"}},
		{key: "process-user", says: "name of the user", paths: []string{"process.user"}, wild: true},
		{key: "process-source", says: "how the process was found", paths: []string{"process.source"}},
		{key: "answers-multicast", says: "answer to a question by multicast", paths: []string{"answers_multicast"}, always: true},
		{key: "mark", says: "packet mark", paths: []string{"mark"}, always: true},
		{key: "time", says: "time of day (UTC)", paths: []string{"time.hour", "time.minute"}, always: true, max: 24*60 - 1,
			ref: "(input.time.hour * 60) + input.time.minute", parseItem: parseTime,
			combine: func(v []Value) int64 { return v[0].Int*60 + v[1].Int }},
		{key: "weekday", says: "day of the week (UTC)", paths: []string{"time.weekday"}, always: true, nameOnly: true,
			names: weekdays(), parseItem: parseWeekday},
		{key: "length", says: "packet length", paths: []string{"packet.length"}, always: true},
		{key: "ttl", says: "TTL or hop limit", paths: []string{"ip.ttl"}, always: true},
		{key: "dscp", says: "DSCP", paths: []string{"ip.dscp"}, always: true},
		{key: "fragment", says: "fragment", paths: []string{"ip.fragment"}, always: true},
		{key: "queue", says: "queue", paths: []string{"packet.queue"}, always: true},
	}
	for _, flag := range []string{"fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns"} {
		all = append(all, condition{key: "tcp-" + flag, says: "TCP flag " + flag, paths: []string{"tcp.flags." + flag}, needs: []string{"tcp"}})
	}
	fields := Fields()
	for i := range all {
		all[i].bind(fields)
	}
	return all
}

// bind fills in what the fields say.
func (c *condition) bind(fields []Field) {
	for _, path := range c.paths {
		i := slices.IndexFunc(fields, func(f Field) bool { return f.Path == path })
		if i < 0 {
			panic("rules: condition " + c.key + " is about the field " + path + ", which does not exist")
		}
		c.fields, c.index = append(c.fields, fields[i]), append(c.index, i)
	}
	if c.ref == "" {
		c.ref = "input." + c.paths[0]
	}
	if c.max == 0 {
		c.max = c.fields[0].Max
	}
	if c.enum == nil {
		c.enum = c.fields[0].Enum
	}
}

func (c *condition) kind() Kind { return c.fields[0].Kind }

// value returns the key of the condition's value in the document, and false if it
// has none. text is the value for people.
func (c *condition) value(in *Input) (key, text string, ok bool) {
	values := make([]Value, len(c.index))
	for i, field := range c.index {
		if values[i] = in.values[field]; !in.present.Has(field) {
			return "", "", false
		}
	}
	switch c.kind() {
	case Addr:
		return addrKey(values[0].Addr), values[0].Addr.String(), true
	case String:
		return values[0].Str, values[0].Str, true
	case Bool:
		return numberKey(values[0].Int), yesNo(values[0].Int != 0), true
	}
	n := values[0].Int
	if c.combine != nil {
		n = c.combine(values)
	}
	return numberKey(n), c.show(n), true
}

// show returns a number for people, by its name where it has one.
func (c *condition) show(n int64) string {
	for _, name := range slices.Sorted(maps.Keys(c.names)) {
		if slices.Contains(c.names[name], bounds{n, n}) {
			return name
		}
	}
	switch c.key {
	case "time":
		return fmt.Sprintf("%02d:%02d", n/60, n%60)
	case "icmp-type":
		n %= v6
	}
	return strconv.FormatInt(n, 10)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// whole returns the region of every packet.
func (c *condition) whole() *region {
	r := &region{absent: !c.always}
	switch {
	case c.kind() == Addr:
		r.values = spanSet{prefixSpan(netip.PrefixFrom(netip.IPv4Unspecified(), 0)), prefixSpan(netip.PrefixFrom(netip.IPv6Unspecified(), 0))}
	case c.kind() == Bool:
		r.values = spanSet{numberSpan(0, 1)}
	case c.kind() == Int && c.nameOnly:
		for _, name := range slices.Sorted(maps.Keys(c.names)) {
			for _, b := range c.names[name] {
				r.values = append(r.values, numberSpan(b.low, b.high))
			}
		}
	case c.kind() == Int:
		r.values = spanSet{numberSpan(0, c.max)}
	case c.enum == nil:
		r.values = spanSet{{"", endOfNames}}
	default:
		for _, name := range c.enum {
			r.values = append(r.values, nameSpan(name, false))
		}
	}
	r.values = newSpanSet(r.values)
	return r
}

// protocolNames returns the name of every protocol.
func protocolNames() []string {
	names := make([]string, 256)
	for i := range names {
		names[i] = ProtocolName(uint8(i))
	}
	return names
}

// protocolOf returns the name of a protocol given as a number or in capitals.
func protocolOf(text string) string {
	if n, err := strconv.ParseUint(text, 10, 8); err == nil {
		return ProtocolName(uint8(n))
	}
	return strings.ToLower(text)
}

func icmpType(v []Value) int64 {
	if v[1].Int == 6 {
		return v[0].Int + v6
	}
	return v[0].Int
}

// icmpTypes returns the names of ICMP types. One name can stand for the types
// of both families.
//
// Source: https://www.iana.org/assignments/icmp-parameters and
// https://www.iana.org/assignments/icmpv6-parameters.
func icmpTypes() map[string][]bounds {
	in4 := map[string]int64{
		"echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8,
		"router-advertisement": 9, "router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12,
		"timestamp-request": 13, "timestamp-reply": 14,
	}
	in6 := map[string]int64{
		"destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4,
		"echo-request": 128, "echo-reply": 129, "mld-query": 130, "mld-report": 131, "mld-done": 132,
		"router-solicitation": 133, "router-advertisement": 134, "neighbour-solicitation": 135,
		"neighbour-advertisement": 136, "redirect": 137, "mld2-report": 143,
	}
	names := map[string][]bounds{}
	for name, n := range in4 {
		names[name] = append(names[name], bounds{n, n})
	}
	for name, n := range in6 {
		names[name] = append(names[name], bounds{n + v6, n + v6})
	}
	return names
}

// days are the names of the days, Sunday first as in the field time.weekday.
const days = "sun mon tue wed thu fri sat"

func weekdays() map[string][]bounds {
	names := map[string][]bounds{}
	for i, day := range strings.Fields(days) {
		names[day] = []bounds{{int64(i), int64(i)}}
	}
	return names
}
