package logsink

import (
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// aboutPacket returns whether the event speaks about packets and not about
// verdictd itself.
func (e *Event) aboutPacket() bool { return e.Kind <= NFLog }

// eveType returns the event_type.
func (e *Event) eveType() string {
	switch e.Kind {
	case FlowDecision, FlowRepeat:
		if e.Action == packet.Accept {
			return "verdict"
		}
		return "drop"
	case FlowEnd:
		return "flow"
	case NFLog:
		return "packet"
	case Loss:
		return "loss"
	case Stats:
		return "stats"
	}
	return "admin"
}

// tuple appends where the packet came from and went to.
func (x *Encoder) tuple(b []byte, e *Event) []byte {
	b = nonempty(b, "in_iface", e.In)
	b = text(b, "event_type", e.eveType())
	hasAddrs := e.Src.IsValid() && e.Dst.IsValid()
	if hasAddrs {
		b = address(b, "src_ip", e.Src)
		if e.HasPorts {
			b = number(b, "src_port", uint64(e.SrcPort))
		}
		b = address(b, "dest_ip", e.Dst)
		if e.HasPorts {
			b = number(b, "dest_port", uint64(e.DstPort))
		}
	}
	decoded := hasAddrs && (e.Status == packet.OK || e.Status == packet.Fragment)
	if decoded {
		b = text(b, "proto", eveProto(e.Protocol))
	}
	if hasAddrs {
		b = number(b, "ip_v", ipVersion(e))
	}
	if e.isICMP() {
		b = number(b, "icmp_type", uint64(e.ICMPType))
		b = number(b, "icmp_code", uint64(e.ICMPCode))
	}
	b = text(b, "pkt_src", x.cfg.PacketSource)
	if e.Flow != 0 {
		b = text(b, "direction", "to_server")
	}
	if decoded && !(e.Kind == FlowEnd && (e.Protocol == packet.ProtoICMP || e.Protocol == packet.ProtoICMPv6)) {
		b = x.community.append(append(key(b, "community_id"), '"'), e)
		b = append(b, '"')
	}
	return b
}

func ipVersion(e *Event) uint64 {
	if e.Src.Unmap().Is4() {
		return 4
	}
	return 6
}

// eveProto returns the protocol's name as Suricata spells it.
func eveProto(proto uint8) string {
	switch proto {
	case packet.ProtoTCP:
		return "TCP"
	case packet.ProtoUDP:
		return "UDP"
	case packet.ProtoICMP:
		return "ICMP"
	case packet.ProtoICMPv6:
		return "IPv6-ICMP"
	case packet.ProtoSCTP:
		return "SCTP"
	case packet.ProtoDCCP:
		return "DCCP"
	case packet.ProtoUDPLite:
		return "UDPLite"
	case 2:
		return "IGMP"
	case 4:
		return "IPv4"
	case 41:
		return "IPv6"
	case 47:
		return "GRE"
	case 50:
		return "ESP"
	case 51:
		return "AH"
	}
	return rules.ProtocolName(proto)
}

func appendVerdict(b []byte, e *Event) []byte {
	b = append(key(b, "verdict"), '{')
	if e.Action == packet.Accept {
		return append(text(b, "action", "accept"), '}')
	}
	b = text(b, "action", "drop")
	if e.Action == packet.Reject {
		b = text(b, "reject-target", "to_client")
		how := `["icmp-prohib"]`
		if e.is(packet.ProtoTCP) {
			how = `["tcp-reset"]`
		}
		b = append(key(b, "reject"), how...)
	}
	return append(b, '}')
}

// appendHeader appends the members of a drop object, without its braces.
func appendHeader(b []byte, e *Event) []byte {
	if !e.Src.IsValid() || e.Status == packet.Malformed || e.Status == packet.NotIP {
		return number(b, "len", uint64(e.Length))
	}
	b = number(b, "len", uint64(e.Length))
	if ipVersion(e) == 4 {
		b = number(b, "tos", uint64(e.TOS))
		b = number(b, "ttl", uint64(e.TTL))
		b = number(b, "ipid", uint64(e.IPID))
	} else {
		b = number(b, "tc", uint64(e.TOS))
		b = number(b, "hoplimit", uint64(e.TTL))
		b = number(b, "flowlbl", uint64(e.FlowLabel))
	}
	switch {
	case e.is(packet.ProtoTCP):
		return appendTCP(b, e)
	case e.is(packet.ProtoUDP):
		return number(b, "udplen", uint64(e.UDPLength))
	case e.isICMP() && e.Echo:
		b = number(b, "icmp_id", uint64(e.EchoID))
		return number(b, "icmp_seq", uint64(e.EchoSeq))
	}
	return b
}

func appendTCP(b []byte, e *Event) []byte {
	b = number(b, "tcpseq", uint64(e.Seq))
	b = number(b, "tcpack", uint64(e.Ack))
	b = number(b, "tcpwin", uint64(e.Window))
	b = boolean(b, "syn", e.TCPFlags&packet.SYN != 0)
	b = boolean(b, "ack", e.TCPFlags&packet.ACK != 0)
	b = boolean(b, "psh", e.TCPFlags&packet.PSH != 0)
	b = boolean(b, "rst", e.TCPFlags&packet.RST != 0)
	b = boolean(b, "urg", e.TCPFlags&packet.URG != 0)
	b = boolean(b, "fin", e.TCPFlags&packet.FIN != 0)
	b = number(b, "tcpres", uint64(e.TCPFlags/packet.NS&1))
	return number(b, "tcpurgp", uint64(e.UrgentPtr))
}

// dropReason returns the reason in Suricata's words where it has one.
func dropReason(e *Event) string {
	switch {
	case e.Kind == FlowRepeat:
		return "flow drop"
	case e.Reason == "policy" || e.Reason == "":
		return "rules"
	case e.Reason == "malformed":
		return "decode error"
	}
	return e.Reason
}

func appendFlow(b []byte, e *Event) []byte {
	b = append(key(b, "flow"), '{')
	b = number(b, "pkts_toserver", e.Packets[0])
	b = number(b, "pkts_toclient", e.Packets[1])
	b = number(b, "bytes_toserver", e.Bytes[0])
	b = number(b, "bytes_toclient", e.Bytes[1])
	b = stamp(b, "start", e.FlowStart)
	b = stamp(b, "end", e.Time)
	b = number(b, "age", uint64(max(e.Time-e.FlowStart, 0))/1e9)
	b = text(b, "state", flowState(e))
	b = nonempty(b, "reason", e.EndReason)
	b = boolean(b, "alerted", false)
	action := "drop"
	if e.Action == packet.Accept {
		action = "accept"
	}
	return append(text(b, "action", action), '}')
}

func flowState(e *Event) string {
	switch {
	case e.EndReason == "closed":
		return "closed"
	case e.Packets[1] > 0:
		return "established"
	}
	return "new"
}

// appendOwn appends the members of verdictd in a record about packets.
func (x *Encoder) appendOwn(b []byte, e *Event) []byte {
	var c cuts
	switch e.Kind {
	case FlowDecision, FlowRepeat:
		b = number(b, "queue", uint64(e.Queue))
		b = nonzero(b, "packet_id", uint64(e.PacketID))
	case NFLog:
		b = number(b, "group", uint64(e.Queue))
		b = nonempty(b, "prefix", e.NFLogLabel)
	}
	b = text(b, "hook", e.Hook.String())
	b = text(b, "direction", e.Hook.Direction())
	b = nonempty(b, "out_iface", e.Out)
	if e.Status != packet.OK {
		b = text(b, "status", e.Status.String())
	}
	b = c.text(b, "detail", "detail", e.Text, maxAside)
	b = nonzero(b, "mark", uint64(e.Mark))
	if e.HasUID {
		b = number(b, "uid", uint64(e.UID))
	}
	if e.HasGID {
		b = number(b, "gid", uint64(e.GID))
	}
	if e.Owner != nil {
		b = x.appendOwner(b, "process", e.Owner)
	}
	switch {
	case e.OtherOwner == nil:
	case e.Kind == FlowEnd:
		b = x.appendOwner(b, "process_at_end", e.OtherOwner)
	default:
		b = x.appendOwner(b, "process_before", e.OtherOwner)
	}
	if e.Offloaded {
		b = boolean(b, "offloaded", true)
	}
	if e.Kind != NFLog {
		b = appendDecision(b, e, &c)
	}
	if e.Kind == NFLog || e.Kind <= FlowRepeat && e.Action == packet.Accept {
		b = append(key(b, "header"), '{')
		b = append(appendHeader(b, e), '}')
	}
	return c.append(b)
}

// appendDecision appends why the verdict is what it is.
func appendDecision(b []byte, e *Event, c *cuts) []byte {
	if d := e.Decision; d != nil {
		b = c.text(b, "rule", "rule", d.Rule, maxRule)
		b = c.text(b, "message", "message", d.Reason, maxAside)
		if d.SetMark {
			b = number(b, "set_mark", uint64(d.Mark))
		}
	}
	b = nonempty(b, "reason", e.Reason)
	b = appendPolicy(b, e)
	if e.Monitor {
		b = text(b, "mode", "monitor")
		if e.Decision != nil {
			b = text(b, "would", e.Decision.Action.String())
		}
	}
	if e.Kind == FlowDecision && e.LatencyNS > 0 {
		b = number(b, "latency_ns", uint64(e.LatencyNS))
	}
	if e.Kind == FlowRepeat {
		b = number(b, "repeat", e.Packets[0])
		b = nonzero(b, "repeat_bytes", e.Bytes[0])
	}
	return b
}

func appendPolicy(b []byte, e *Event) []byte {
	if e.Generation == 0 {
		return b
	}
	b = number(append(key(b, "policy"), '{'), "generation", e.Generation)
	return append(nonempty(b, "sha256", e.Policy), '}')
}

// appendAdmin appends the members of verdictd in a record about itself.
func appendAdmin(b []byte, e *Event) []byte {
	b = nonempty(b, "origin", e.Origin)
	switch e.Kind {
	case Loss:
		b = number(b, "lost", e.Packets[0])
		b = number(b, "lost_total", e.Packets[1])
	case Admin:
		b = nonempty(b, "admin", e.Reason)
		b = appendPolicy(b, e)
	}
	return nonempty(b, "message", e.Text)
}
