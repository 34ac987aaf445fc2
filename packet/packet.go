package packet

import "net/netip"

// Status says how far a packet could be decoded.
type Status uint8

// Statuses. The zero value is Malformed, so that a Packet which no decoder
// has filled in fails closed.
const (
	// Malformed packets could not be decoded the way the kernel would decode
	// them. Only Version, Src, Dst and Reason may be valid.
	Malformed Status = iota
	// OK packets are decoded through their transport header.
	OK
	// Fragment packets are non-first fragments: their transport header is in
	// another packet, so they have a protocol but no ports.
	Fragment
	// NotIP packets are of a protocol that the IP hooks never see (ARP, LLDP).
	// They appear in captures only.
	NotIP
)

// String returns the status as policies and reports spell it.
func (s Status) String() string {
	switch s {
	case OK:
		return "ok"
	case Fragment:
		return "fragment"
	case NotIP:
		return "not_ip"
	}
	return "malformed"
}

// TCPFlags are the low nine flag bits of a TCP header (RFC 9293, RFC 3168,
// RFC 3540).
type TCPFlags uint16

// TCP flags.
const (
	FIN TCPFlags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
	NS
)

// IP protocol numbers that decoding, flows or facts treat specially.
//
// Source: https://www.iana.org/assignments/protocol-numbers.
const (
	ProtoICMP    = 1
	ProtoTCP     = 6
	ProtoUDP     = 17
	ProtoDCCP    = 33
	ProtoICMPv6  = 58
	ProtoSCTP    = 132
	ProtoUDPLite = 136
)

// ICMP types that start or answer an echo exchange.
const (
	ICMPEchoReply     = 0
	ICMPEchoRequest   = 8
	ICMPv6EchoRequest = 128
	ICMPv6EchoReply   = 129
)

// Packet is a decoded packet. It is a value that its owner reuses from packet
// to packet; Payload is lent and valid as long as the decoded bytes are.
type Packet struct {
	Status Status
	Reason string // why Status is Malformed: a constant text; else empty
	Cut    bool   // it is Malformed only because the bytes at hand end before its headers do

	// Valid iff Status is OK or Fragment (and, if addresses could be read,
	// Malformed: then Src.IsValid).
	Version  uint8 // 4 or 6
	Src, Dst netip.Addr
	Protocol uint8 // the transport protocol, after all extension headers

	TTL            uint8  // IPv4 TTL, IPv6 hop limit
	TOS            uint8  // DSCP and ECN
	FlowLabel      uint32 // IPv6 only
	ID             uint32 // IPv4 identification, IPv6 fragment identification
	TotalLength    uint32 // bytes of the IP packet by its own header
	FragmentOffset uint32 // bytes
	MoreFragments  bool
	DontFragment   bool // IPv4 only
	ExtHeaders     uint8

	// Valid iff HasPorts: Status is OK and Protocol is TCP, UDP, UDP-Lite,
	// SCTP or DCCP.
	HasPorts         bool
	SrcPort, DstPort uint16

	// Begins says that the packet asks for a new connection: a TCP SYN without ACK
	// (RFC 9293), an SCTP INIT, which comes alone (RFC 9260 §3.3.2), or a DCCP-Request
	// (RFC 4340 §5.1).
	Begins bool

	// Valid iff Status is OK and Protocol is TCP.
	TCPFlags    TCPFlags
	Seq, AckNum uint32
	Window      uint16
	UrgentPtr   uint16

	// Valid iff Status is OK and Protocol is UDP: the UDP header's length.
	UDPLength uint16

	// Valid iff Status is OK and Protocol is ICMP (IPv4) or ICMPv6 (IPv6).
	// EchoID and EchoSeq are valid iff Echo.
	ICMPType, ICMPCode uint8
	Echo               bool
	EchoID, EchoSeq    uint16

	// Inner is the flow that an ICMP error speaks about, as sent by the
	// packet that provoked it. Valid iff HasInner.
	HasInner bool
	Inner    Key

	// Payload is the transport payload present in the decoded bytes, which
	// may be fewer than were on the wire. Nil iff Status is not OK.
	Payload []byte
}

// Key identifies one direction of a flow: the five-tuple, free of pointers.
// IPv4 addresses stand in v4-mapped form, so Version tells the families
// apart. Ports are 0 where the protocol has none; for ICMP echo both are the
// echo id, and Echo says who asks.
type Key struct {
	Src, Dst         [16]byte
	SrcPort, DstPort uint16
	Protocol         uint8
	Version          uint8
	Echo             Echo
}

// Echo says what a packet is in an exchange of ICMP echo messages. A request and
// one of the other direction belong to two flows, whatever their ids are.
type Echo uint8

// Echo messages.
const (
	NoEcho Echo = iota
	EchoRequest
	EchoReply
)

// echoOf returns what an ICMP message of that type is.
func echoOf(version, typ uint8) Echo {
	request, reply := uint8(ICMPEchoRequest), uint8(ICMPEchoReply)
	if version == 6 {
		request, reply = ICMPv6EchoRequest, ICMPv6EchoReply
	}
	switch typ {
	case request:
		return EchoRequest
	case reply:
		return EchoReply
	}
	return NoEcho
}

// Key returns the packet's flow key. It is meaningful iff Status is OK.
func (p *Packet) Key() Key {
	k := Key{Src: p.Src.As16(), Dst: p.Dst.As16(), Protocol: p.Protocol, Version: p.Version}
	switch {
	case p.HasPorts:
		k.SrcPort, k.DstPort = p.SrcPort, p.DstPort
	case p.Echo:
		k.SrcPort, k.DstPort, k.Echo = p.EchoID, p.EchoID, echoOf(p.Version, p.ICMPType)
	}
	return k
}

// Reverse returns the key of the flow's other direction.
func (k Key) Reverse() Key {
	k.Src, k.Dst = k.Dst, k.Src
	k.SrcPort, k.DstPort = k.DstPort, k.SrcPort
	if k.Echo != NoEcho {
		k.Echo = EchoRequest + EchoReply - k.Echo
	}
	return k
}

// Is returns whether the packet is decoded through a header of protocol proto.
func (p *Packet) Is(proto uint8) bool { return p.Status == OK && p.Protocol == proto }

// IsICMP returns whether the packet is an ICMP message of its own IP version.
// ICMPv6 inside IPv4 is just an unknown protocol, and the other way round.
func (p *Packet) IsICMP() bool {
	return p.Status == OK &&
		(p.Version == 4 && p.Protocol == ProtoICMP || p.Version == 6 && p.Protocol == ProtoICMPv6)
}
