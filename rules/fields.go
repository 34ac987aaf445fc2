package rules

import (
	"time"

	"github.com/verdictd/verdictd/packet"
)

// Fields returns every field of the input document, in a fixed order. It is
// the one definition of input.*: the JSON Schema, the Rego input, the audit
// of what a rule read and the flow cache all come from it. The result is the
// caller's.
func Fields() []Field {
	var all []Field
	for _, group := range [][]Field{
		packetFields(), ipFields(), portFields(), tcpFields(), udpFields(), icmpFields(), placeFields(), socketFields(), processFields(), cgroupFields(), parentFields(), timeFields(),
	} {
		all = append(all, group...)
	}
	return all
}

func packetFields() []Field {
	return []Field{
		{Path: "packet.status", Kind: String, Scope: PerPacket, Enum: []string{"ok", "fragment"},
			Doc: "How far the packet could be decoded. A fragment (any but the first) has a protocol but no ports. Malformed packets never reach a policy.",
			Get: func(f *Facts, v *Value) bool { v.Str = f.Packet.Status.String(); return true }},
		{Path: "packet.length", Kind: Int, Scope: PerPacket, Max: 1<<32 - 1,
			Doc: "Bytes of the IP packet, headers included.",
			Get: func(f *Facts, v *Value) bool { return num(v, f.Packet.TotalLength) }},
		{Path: "packet.queue", Kind: Int, Scope: PerPacket, Max: 1<<16 - 1,
			Doc: "Number of the netfilter queue that brought the packet; 0 in a replay.",
			Get: func(f *Facts, v *Value) bool { return num(v, f.Meta.Queue) }},
	}
}

func ipFields() []Field {
	return []Field{
		{Path: "ip.version", Kind: Int, Scope: PerFlow, Max: 6, Doc: "4 or 6.",
			Get: func(f *Facts, v *Value) bool { return num(v, f.Packet.Version) }},
		{Path: "ip.src", Kind: Addr, Scope: PerFlow, Doc: "Source address.",
			Get: func(f *Facts, v *Value) bool { v.Addr = f.Packet.Src; return v.Addr.IsValid() }},
		{Path: "ip.dst", Kind: Addr, Scope: PerFlow, Doc: "Destination address.",
			Get: func(f *Facts, v *Value) bool { v.Addr = f.Packet.Dst; return v.Addr.IsValid() }},
		{Path: "ip.protocol", Kind: String, Scope: PerFlow,
			Doc: "Transport protocol behind all extension headers: tcp, udp, icmp, icmpv6, sctp, dccp, udplite, gre, esp, ah, igmp, ipip, ipv6; any other as its number in decimal.",
			Get: func(f *Facts, v *Value) bool { v.Str = ProtocolName(f.Packet.Protocol); return true }},
		{Path: "ip.protocol_number", Kind: Int, Scope: PerFlow, Max: 255, Doc: "Transport protocol as its IANA number.",
			Get: func(f *Facts, v *Value) bool { return num(v, f.Packet.Protocol) }},
		{Path: "ip.ttl", Kind: Int, Scope: PerPacket, Max: 255, Doc: "IPv4 time to live, IPv6 hop limit.",
			Get: func(f *Facts, v *Value) bool { return num(v, f.Packet.TTL) }},
		{Path: "ip.dscp", Kind: Int, Scope: PerPacket, Max: 63, Doc: "Differentiated services code point.",
			Get: func(f *Facts, v *Value) bool { return num(v, f.Packet.TOS>>2) }},
		{Path: "ip.ecn", Kind: Int, Scope: PerPacket, Max: 3, Doc: "Explicit congestion notification bits.",
			Get: func(f *Facts, v *Value) bool { return num(v, f.Packet.TOS&3) }},
		{Path: "ip.fragment", Kind: Bool, Scope: PerPacket, Doc: "The packet is a fragment, the first or a later one.",
			Get: func(f *Facts, v *Value) bool {
				return flag(v, f.Packet.MoreFragments || f.Packet.FragmentOffset > 0)
			}},
	}
}

func portFields() []Field {
	return []Field{
		{Path: "src_port", Kind: Int, Scope: PerFlow, Max: 65535, Doc: "Source port of TCP, UDP, UDP-Lite, SCTP or DCCP.", Get: srcPort},
		{Path: "dst_port", Kind: Int, Scope: PerFlow, Max: 65535, Doc: "Destination port of TCP, UDP, UDP-Lite, SCTP or DCCP.", Get: dstPort},
	}
}

func tcpFields() []Field {
	tcp := func(get func(f *Facts, v *Value) bool) func(f *Facts, v *Value) bool {
		return func(f *Facts, v *Value) bool { return f.Packet.Is(packet.ProtoTCP) && get(f, v) }
	}
	fields := []Field{
		{Path: "tcp.src_port", Kind: Int, Scope: PerFlow, Max: 65535, Doc: "TCP source port.", Get: tcp(srcPort)},
		{Path: "tcp.dst_port", Kind: Int, Scope: PerFlow, Max: 65535, Doc: "TCP destination port.", Get: tcp(dstPort)},
		{Path: "tcp.seq", Kind: Int, Scope: PerPacket, Max: 1<<32 - 1, Doc: "Sequence number.",
			Get: tcp(func(f *Facts, v *Value) bool { return num(v, f.Packet.Seq) })},
		{Path: "tcp.ack", Kind: Int, Scope: PerPacket, Max: 1<<32 - 1, Doc: "Acknowledgment number.",
			Get: tcp(func(f *Facts, v *Value) bool { return num(v, f.Packet.AckNum) })},
		{Path: "tcp.window", Kind: Int, Scope: PerPacket, Max: 65535, Doc: "Window, not scaled.",
			Get: tcp(func(f *Facts, v *Value) bool { return num(v, f.Packet.Window) })},
	}
	for _, bit := range []struct {
		name string
		mask packet.TCPFlags
	}{
		{"fin", packet.FIN}, {"syn", packet.SYN}, {"rst", packet.RST}, {"psh", packet.PSH},
		{"ack", packet.ACK}, {"urg", packet.URG}, {"ece", packet.ECE}, {"cwr", packet.CWR}, {"ns", packet.NS},
	} {
		fields = append(fields, Field{
			Path: "tcp.flags." + bit.name, Kind: Bool, Scope: PerPacket, Doc: "TCP flag " + bit.name + ".",
			Get: tcp(func(f *Facts, v *Value) bool { return flag(v, f.Packet.TCPFlags&bit.mask != 0) }),
		})
	}
	return fields
}

func udpFields() []Field {
	udp := func(get func(f *Facts, v *Value) bool) func(f *Facts, v *Value) bool {
		return func(f *Facts, v *Value) bool { return f.Packet.Is(packet.ProtoUDP) && get(f, v) }
	}
	return []Field{
		{Path: "udp.src_port", Kind: Int, Scope: PerFlow, Max: 65535, Doc: "UDP source port.", Get: udp(srcPort)},
		{Path: "udp.dst_port", Kind: Int, Scope: PerFlow, Max: 65535, Doc: "UDP destination port.", Get: udp(dstPort)},
		{Path: "udp.length", Kind: Int, Scope: PerPacket, Max: 65535, Doc: "Length by the UDP header: header and data.",
			Get: udp(func(f *Facts, v *Value) bool { return num(v, f.Packet.UDPLength) })},
	}
}

// RelatedPath is the field by which a policy decides about the ICMP errors that
// would pass without being asked about.
const RelatedPath = "icmp.related"

func icmpFields() []Field {
	return []Field{
		{Path: "icmp.type", Kind: Int, Scope: PerPacket, Max: 255, Doc: "ICMP or ICMPv6 type; ip.version tells them apart.",
			Get: func(f *Facts, v *Value) bool { return f.Packet.IsICMP() && num(v, f.Packet.ICMPType) }},
		{Path: "icmp.code", Kind: Int, Scope: PerPacket, Max: 255, Doc: "ICMP or ICMPv6 code.",
			Get: func(f *Facts, v *Value) bool { return f.Packet.IsICMP() && num(v, f.Packet.ICMPCode) }},
		{Path: "icmp.id", Kind: Int, Scope: PerPacket, Max: 65535, Doc: "Identifier of an echo request or reply.",
			Get: func(f *Facts, v *Value) bool { return f.Packet.Echo && num(v, f.Packet.EchoID) }},
		{Path: "icmp.seq", Kind: Int, Scope: PerPacket, Max: 65535, Doc: "Sequence number of an echo request or reply.",
			Get: func(f *Facts, v *Value) bool { return f.Packet.Echo && num(v, f.Packet.EchoSeq) }},
		{Path: RelatedPath, Kind: Bool, Scope: PerPacket,
			Doc: "The message is an error (unreachable, too big, time exceeded, parameter problem) about a packet that was seen and let through, is sent to who sent that packet, and has at most 576 bytes (ICMPv6: 1280). It passes without a rule; where a decision depends on this field, that decision counts.",
			Get: func(f *Facts, v *Value) bool { return f.Packet.IsICMP() && flag(v, f.Related) }},
	}
}

func placeFields() []Field {
	return []Field{
		{Path: "hook", Kind: String, Scope: PerFlow, Enum: []string{"prerouting", "input", "forward", "output", "postrouting"},
			Doc: "Netfilter hook at which the packet is judged.",
			Get: func(f *Facts, v *Value) bool { v.Str = f.Meta.Hook.String(); return true }},
		{Path: "direction", Kind: String, Scope: PerFlow, Enum: []string{"in", "out", "forward"},
			Doc: "The packet's way as this host sees it: in for input and prerouting, out for output and postrouting.",
			Get: func(f *Facts, v *Value) bool { v.Str = f.Meta.Hook.Direction(); return true }},
		{Path: "interface.in", Kind: String, Scope: PerPacket, Doc: "Name of the interface that the packet came in by.",
			Index: func(f *Facts) uint32 { return f.InLink },
			Get:   func(f *Facts, v *Value) bool { v.Str = f.InInterface; return v.Str != "" }},
		{Path: "interface.out", Kind: String, Scope: PerPacket, Doc: "Name of the interface that the packet leaves by.",
			Index: func(f *Facts) uint32 { return f.OutLink },
			Get:   func(f *Facts, v *Value) bool { v.Str = f.OutInterface; return v.Str != "" }},
		{Path: "interface.in_port", Kind: String, Scope: PerPacket,
			Doc:   "Name of the port of a bridge that the packet came in by; interface.in is the bridge. Absent where it came by none, or the kernel has no netfilter at bridges (br_netfilter).",
			Index: func(f *Facts) uint32 { return f.InPortLink },
			Get:   func(f *Facts, v *Value) bool { v.Str = f.InPort; return v.Str != "" }},
		{Path: "interface.out_port", Kind: String, Scope: PerPacket,
			Doc:   "Name of the port of a bridge that the packet leaves by; interface.out is the bridge. Known at forward and postrouting of bridged packets only.",
			Index: func(f *Facts) uint32 { return f.OutPortLink },
			Get:   func(f *Facts, v *Value) bool { v.Str = f.OutPort; return v.Str != "" }},
		{Path: "answers_multicast", Kind: Bool, Scope: PerPacket,
			Doc: "The packet (UDP, coming in) answers what this host asked by multicast or broadcast in the last 3 s: it came by the interface that the question left by, for the port that asked, and for its address or the group that was asked. Whoever is on that network, or knows the port, can send such an answer.",
			Get: func(f *Facts, v *Value) bool { return flag(v, f.AnswersMulticast) }},
		{Path: "mark", Kind: Int, Scope: PerPacket, Max: 1<<32 - 1, Doc: "Packet mark; 0 if none is set.",
			Get: func(f *Facts, v *Value) bool { return num(v, f.Meta.Mark) }},
	}
}

func socketFields() []Field {
	return []Field{
		{Path: "uid", Kind: Int, Scope: PerSocket, Max: 1<<32 - 1,
			Doc: "User id of the local socket: at output of the one that sends the packet, at input of the one that receives it. Absent where the kernel knows none: forwarded packets, most first packets that come in, packets the kernel itself sends.",
			Get: func(f *Facts, v *Value) bool { return f.Meta.HasUID && num(v, f.Meta.UID) }},
		{Path: "gid", Kind: Int, Scope: PerSocket, Max: 1<<32 - 1, Doc: "Group id of that socket.",
			Get: func(f *Facts, v *Value) bool { return f.Meta.HasGID && num(v, f.Meta.GID) }},
	}
}

// timeFields divide Meta.Time in UTC without building a time.Time, which
// would cost more than the rest of a simple rule.
func timeFields() []Field {
	const (
		sec = int64(time.Second)
		day = 24 * 60 * 60
	)
	seconds := func(f *Facts) int64 { return f.Meta.Time / sec }
	return []Field{
		{Path: "time.unix", Kind: Int, Scope: PerPacket, Max: 1<<53 - 1, Doc: "Seconds since 1970-01-01 UTC; in a replay the capture's time.",
			Get: func(f *Facts, v *Value) bool { return num(v, seconds(f)) }},
		{Path: "time.hour", Kind: Int, Scope: PerPacket, Max: 23, Doc: "Hour of the day, UTC.",
			Get: func(f *Facts, v *Value) bool { return num(v, seconds(f)%day/3600) }},
		{Path: "time.minute", Kind: Int, Scope: PerPacket, Max: 59, Doc: "Minute of the hour, UTC.",
			Get: func(f *Facts, v *Value) bool { return num(v, seconds(f)%3600/60) }},
		{Path: "time.weekday", Kind: Int, Scope: PerPacket, Max: 6, Doc: "Day of the week, UTC: 0 is Sunday.",
			// 1970-01-01 was a Thursday.
			Get: func(f *Facts, v *Value) bool { return num(v, (seconds(f)/day+4)%7) }},
	}
}

func srcPort(f *Facts, v *Value) bool { return f.Packet.HasPorts && num(v, f.Packet.SrcPort) }
func dstPort(f *Facts, v *Value) bool { return f.Packet.HasPorts && num(v, f.Packet.DstPort) }

func num[T uint8 | uint16 | uint32 | int64](v *Value, n T) bool {
	v.Int = int64(n)
	return true
}

func flag(v *Value, b bool) bool {
	v.Int = 0
	if b {
		v.Int = 1
	}
	return true
}
