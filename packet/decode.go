package packet

import (
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// Decoder decodes packets. It keeps the state that decoding reuses, so it is
// for one goroutine. The zero value is not ready: use NewDecoder.
//
// It is gopacket's DecodingLayerParser. Where gopacket reads a header as the
// kernel does (UDP, SCTP, ICMP, ICMPv6) the layer is gopacket's; where it does
// not (IPv4 fragments, the IPv6 extension chain, TCP options) the layer is our
// own.
type Decoder struct {
	state    state
	ip4, ip6 *gopacket.DecodingLayerParser
	decoded  []gopacket.LayerType
}

// state is what the layers of one Decoder share about the packet at hand.
type state struct {
	p      *Packet
	wire   int    // bytes of the IP packet on the wire
	gso    bool   // lengths of 0 stand for wire
	length int    // bytes of the transport segment on the wire, header included
	inner  Packet // scratch for the packet that an ICMP error embeds
}

// NewDecoder returns a Decoder.
func NewDecoder() *Decoder {
	d := &Decoder{decoded: make([]gopacket.LayerType, 0, 2)}
	s := &d.state
	var known gopacket.DecodingLayerContainer = gopacket.DecodingLayerSparse{}
	for _, layer := range []gopacket.DecodingLayer{
		&network{state: s, parse: parseIPv4, layer: layers.LayerTypeIPv4},
		&network{state: s, parse: parseIPv6, layer: layers.LayerTypeIPv6},
		&tcp{state: s},
		&udp{state: s},
		&sctp{state: s},
		&ports{state: s},
		&icmp4{state: s},
		&icmp6{state: s},
	} {
		known = known.Put(layer)
	}
	d.ip4 = newParser(layers.LayerTypeIPv4, known)
	d.ip6 = newParser(layers.LayerTypeIPv6, known)
	return d
}

func newParser(first gopacket.LayerType, known gopacket.DecodingLayerContainer) *gopacket.DecodingLayerParser {
	parser := gopacket.NewDecodingLayerParser(first)
	parser.SetDecodingLayerContainer(known)
	return parser
}

// Decode decodes the IP packet in data into p, overwriting all of p.
//
// m.EtherType says which IP version the packet claims to be, m.Length how
// long it was on the wire (if it is below len(data), len(data) counts), m.GSO
// that a length field of 0 means all of that. p.Payload is a part of data.
// Decode allocates nothing and never fails: what cannot be decoded is
// Malformed, with a constant reason. Checksums are not looked at: the kernel
// drops bad ones on input and may not have filled them in on output.
//
// Lengths and extension headers are read as Linux reads them: ip_rcv_core,
// ip6_rcv_core, ip6_protocol_deliver_rcu, tcp_v4_rcv, __udp4_lib_rcv. Where
// Linux depends on settings (source routes and routing headers with addresses left,
// UDP length 0 in IPv6) the packet is Malformed.
func (d *Decoder) Decode(m *Meta, data []byte, p *Packet) {
	*p = Packet{}
	if m.EtherType != 0 && m.EtherType != EtherTypeIPv4 && m.EtherType != EtherTypeIPv6 {
		p.Status = NotIP
		return
	}
	parser, err := d.parser(m.EtherType, data)
	if err == nil {
		s := &d.state
		s.p, s.wire, s.gso = p, max(int(m.Length), len(data)), m.GSO
		err = parser.DecodeLayers(data, &d.decoded)
		s.p = nil
	}
	if err != nil {
		fail(p, err)
	}
}

// parser returns the parser for the version nibble in data, which must not
// contradict the EtherType.
func (d *Decoder) parser(etherType uint16, data []byte) (*gopacket.DecodingLayerParser, error) {
	if len(data) == 0 {
		return nil, errEmpty
	}
	version := data[0] >> 4
	switch {
	case version == 4 && etherType != EtherTypeIPv6:
		return d.ip4, nil
	case version == 6 && etherType != EtherTypeIPv4:
		return d.ip6, nil
	case etherType == 0:
		return nil, errVersion
	}
	return nil, errEtherType
}

// fail turns p into a Malformed packet that keeps nothing but its addresses.
func fail(p *Packet, err error) {
	why, ok := err.(reason)
	if !ok { // a panic that gopacket recovered
		why = errInternal
	}
	*p = Packet{Version: p.Version, Src: p.Src, Dst: p.Dst, Reason: string(why), Cut: why == errCut}
}

// reason is why a packet is Malformed. Constants of it become errors without
// an allocation.
type reason string

// Error returns the reason.
func (r reason) Error() string { return string(r) }

const (
	errEmpty        reason = "empty packet"
	errVersion      reason = "ip version is neither 4 nor 6"
	errEtherType    reason = "ip version contradicts the ethertype"
	errIPv4Short    reason = "packet shorter than an ipv4 header"
	errIPv4Header   reason = "ipv4 header length below 20"
	errIPv4Below    reason = "ipv4 total length below the header length"
	errIPv4Route    reason = "ipv4 source route has addresses left"
	errIPv4Beyond   reason = "ipv4 total length beyond the packet"
	errIPv6Short    reason = "packet shorter than an ipv6 header"
	errIPv6Beyond   reason = "ipv6 payload length beyond the packet"
	errExtBeyond    reason = "ipv6 extension header beyond the packet"
	errExtCount     reason = "too many ipv6 extension headers"
	errExtLong      reason = "ipv6 extension headers beyond 2048 bytes"
	errHopByHop     reason = "ipv6 hop-by-hop header is not the first"
	errRouting      reason = "ipv6 routing header has segments left"
	errTwoFragments reason = "more than one ipv6 fragment header"
	errFragmentEnd  reason = "fragment ends beyond 65535 bytes"
	errFragmentTiny reason = "first fragment ends inside the transport header"
	errFragmentLow  reason = "fragment starts inside the transport header"
	errShort        reason = "packet ends inside the transport header"
	errCut          reason = "cut short before the end of the transport header"
	errTCPHeader    reason = "tcp data offset below 5"
	errUDPShort     reason = "udp length below 8"
	errUDPBeyond    reason = "udp length beyond the packet"
	errUDPLite      reason = "udp-lite checksum coverage below 8 or beyond the packet"
	errDCCPHeader   reason = "dccp data offset inside the header"
	errInternal     reason = "decoder error"
)
