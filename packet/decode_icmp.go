package packet

import (
	"encoding/binary"
	"math"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// icmpHeaderLen is the kernel's struct icmphdr and struct icmp6hdr: type,
// code, checksum and the four bytes whose meaning depends on the type.
const icmpHeaderLen = 8

// icmp4 is gopacket's ICMPv4 (RFC 792).
type icmp4 struct {
	leaf
	*state
	hdr layers.ICMPv4
}

func (l *icmp4) CanDecode() gopacket.LayerClass { return layers.LayerTypeICMPv4 }

func (l *icmp4) DecodeFromBytes(data []byte, df gopacket.DecodeFeedback) error {
	if err := l.hdr.DecodeFromBytes(data, df); err != nil {
		return err
	}
	l.icmp(l.hdr.TypeCode.Type(), l.hdr.TypeCode.Code(), l.hdr.Id, l.hdr.Seq)
	l.innerKey(l.hdr.Payload)
	return l.p.done(l.hdr.Payload)
}

// icmp6 is gopacket's ICMPv6 (RFC 4443), which takes only the first four
// bytes as header.
type icmp6 struct {
	leaf
	*state
	hdr layers.ICMPv6
}

func (l *icmp6) CanDecode() gopacket.LayerClass { return layers.LayerTypeICMPv6 }

func (l *icmp6) DecodeFromBytes(data []byte, df gopacket.DecodeFeedback) error {
	if err := l.hdr.DecodeFromBytes(data, df); err != nil {
		return err
	}
	body := l.hdr.Payload
	l.icmp(l.hdr.TypeCode.Type(), l.hdr.TypeCode.Code(),
		binary.BigEndian.Uint16(body[0:2]), binary.BigEndian.Uint16(body[2:4]))
	l.innerKey(body[4:])
	return l.p.done(body[4:])
}

// icmp fills in an ICMP header. id and seq mean something in echoes only.
func (s *state) icmp(typ, code uint8, id, seq uint16) {
	p := s.p
	p.ICMPType, p.ICMPCode = typ, code
	if echoOf(p.Version, typ) != NoEcho {
		p.Echo, p.EchoID, p.EchoSeq = true, id, seq
	}
}

// isICMPError returns whether ICMP messages of that type tell a sender that its
// packet was not delivered, and embed that packet: unreachable, time exceeded and
// parameter problem, in ICMPv6 packet too big as well. Redirect and source quench
// embed a packet too, but tell a host what to do from then on.
func isICMPError(version, typ uint8) bool {
	if version == 6 {
		return typ >= 1 && typ <= 4
	}
	return typ == 3 || typ == 11 || typ == 12
}

// isNoQuery returns whether hosts send no errors about ICMP messages of that type
// (RFC 1122 §3.2.2, RFC 4443 §2.4).
func isNoQuery(version, typ uint8) bool {
	return isICMPError(version, typ) || version == 4 && (typ == 4 || typ == 5)
}

// innerKey fills in the flow of the packet that an ICMP error embeds. What is
// embedded is often cut short, so its lengths are not held against the bytes
// present. There is no flow in a non-first fragment, in an ICMP error and in what
// cannot be read.
func (s *state) innerKey(data []byte) {
	p, inner := s.p, &s.inner
	if !isICMPError(p.Version, p.ICMPType) || len(data) == 0 || data[0]>>4 != p.Version {
		return
	}
	*inner = Packet{Status: OK}
	parse := parseIPv4
	if p.Version == 6 {
		parse = parseIPv6
	}
	rest, _, err := parse(inner, data, math.MaxInt32, true)
	if err != nil || inner.FragmentOffset > 0 || !innerPorts(inner, rest) {
		return
	}
	p.HasInner, p.Inner = true, inner.Key()
}

// innerPorts reads the ports or the echo id at the start of an embedded
// transport header into p and returns whether the flow is known with them.
func innerPorts(p *Packet, data []byte) bool {
	layer, _ := transport(p)
	switch layer {
	case gopacket.LayerTypeZero:
		return true
	case layers.LayerTypeICMPv4, layers.LayerTypeICMPv6:
		if len(data) < icmpHeaderLen || isNoQuery(p.Version, data[0]) {
			return false
		}
		p.ICMPType, p.Echo = data[0], echoOf(p.Version, data[0]) != NoEcho
		p.EchoID = binary.BigEndian.Uint16(data[4:6])
		return true
	}
	if len(data) < 4 {
		return false
	}
	p.setPorts(binary.BigEndian.Uint16(data[0:2]), binary.BigEndian.Uint16(data[2:4]))
	return true
}
