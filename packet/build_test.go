package packet_test

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/verdictd/verdictd/packet"
)

// Addresses of all test packets.
var (
	src4, dst4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.2")
	src6, dst6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:ffff::2")
)

// An edit changes a built packet, so that a test case names just what is odd.
type edit func(b []byte)

func set(offset int, values ...byte) edit {
	return func(b []byte) { copy(b[offset:], values) }
}

func set16(offset int, v int) edit {
	return func(b []byte) { binary.BigEndian.PutUint16(b[offset:], uint16(v)) }
}

func edited(b []byte, edits []edit) []byte {
	for _, e := range edits {
		e(b)
	}
	return b
}

// ip4 builds an IPv4 packet: TOS 4, id 7, TTL 64.
func ip4(proto byte, payload []byte, edits ...edit) []byte {
	b := []byte{0x45, 4, 0, 0, 0, 7, 0, 0, 64, proto, 0, 0}
	b = slices.Concat(b, src4.AsSlice(), dst4.AsSlice(), payload)
	set16(2, len(b))(b)
	return edited(b, edits)
}

// ip4Options is ip4 with header options, whose length is a multiple of 4.
func ip4Options(proto byte, options, payload []byte, edits ...edit) []byte {
	b := ip4(proto, slices.Concat(options, payload))
	b[0] += byte(len(options) / 4)
	return edited(b, edits)
}

// ip6 builds an IPv6 packet: traffic class 4, flow label 0x12345, hop limit 64.
func ip6(next byte, payload []byte, edits ...edit) []byte {
	b := []byte{0x60, 0x41, 0x23, 0x45, 0, 0, next, 64}
	b = slices.Concat(b, src6.AsSlice(), dst6.AsSlice(), payload)
	set16(4, len(payload))(b)
	return edited(b, edits)
}

// ext builds an extension header of 8*(1+units) bytes, followed by payload.
func ext(next byte, units int, payload []byte, edits ...edit) []byte {
	b := make([]byte, 8*(1+units))
	b[0], b[1] = next, byte(units)
	return edited(slices.Concat(b, payload), edits)
}

// frag builds a fragment header with identification 9, followed by payload.
func frag(next byte, offset int, more bool, payload []byte, edits ...edit) []byte {
	b := []byte{next, 0, byte(offset >> 8), byte(offset), 0, 0, 0, 9}
	if more {
		b[3] |= 1
	}
	return edited(slices.Concat(b, payload), edits)
}

// tcp builds a SYN segment from port 40000 to 443: seq 1, ack 2, window 3,
// urgent pointer 4.
func tcp(payload string, edits ...edit) []byte {
	b := []byte{0x9c, 0x40, 1, 187, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 2, 0, 3, 0, 0, 0, 4}
	return edited(append(b, payload...), edits)
}

// udp builds a datagram from port 40000 to 53.
func udp(payload string, edits ...edit) []byte {
	b := append([]byte{0x9c, 0x40, 0, 53, 0, 0, 0, 0}, payload...)
	set16(4, len(b))(b)
	return edited(b, edits)
}

// icmp builds an ICMP or ICMPv6 message with id or unused 0x0102, seq 0x0304.
func icmp(typ, code byte, payload []byte) []byte {
	return append([]byte{typ, code, 0, 0, 1, 2, 3, 4}, payload...)
}

// sctp builds an SCTP header with the beginning of a chunk.
func sctp() []byte {
	return []byte{0x9c, 0x40, 0x0e, 0x98, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 4}
}

// dccp builds a DCCP request with long sequence numbers.
func dccp(edits ...edit) []byte {
	return edited([]byte{0x9c, 0x40, 0, 99, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2}, edits)
}

// from4 is the packet every ip4 starts with, length bytes long.
func from4(proto uint8, length uint32, edits ...func(*packet.Packet)) packet.Packet {
	p := packet.Packet{Status: packet.OK, Version: 4, Src: src4, Dst: dst4, Protocol: proto,
		TTL: 64, TOS: 4, ID: 7, TotalLength: length, Payload: []byte{}}
	for _, e := range edits {
		e(&p)
	}
	return p
}

// from6 is the packet every ip6 starts with, length bytes long.
func from6(proto uint8, length uint32, edits ...func(*packet.Packet)) packet.Packet {
	p := from4(proto, length, edits...)
	p.Version, p.Src, p.Dst, p.FlowLabel = 6, src6, dst6, 0x12345
	if p.ID == 7 {
		p.ID = 0
	}
	return p
}

func withTCP(payload string) func(*packet.Packet) {
	return func(p *packet.Packet) {
		p.HasPorts, p.SrcPort, p.DstPort = true, 40000, 443
		p.TCPFlags, p.Seq, p.AckNum, p.Window, p.UrgentPtr = packet.SYN, 1, 2, 3, 4
		p.Begins, p.Payload = true, []byte(payload)
	}
}

// begins says that the packet asks for a connection.
func begins(p *packet.Packet) { p.Begins = true }

func withUDP(length uint16, payload string) func(*packet.Packet) {
	return func(p *packet.Packet) {
		p.HasPorts, p.SrcPort, p.DstPort, p.UDPLength = true, 40000, 53, length
		p.Payload = []byte(payload)
	}
}

func withPorts(dst uint16, payload ...byte) func(*packet.Packet) {
	return func(p *packet.Packet) {
		p.HasPorts, p.SrcPort, p.DstPort = true, 40000, dst
		p.Payload = append([]byte{}, payload...)
	}
}

func withICMP(typ, code uint8, payload []byte) func(*packet.Packet) {
	return func(p *packet.Packet) {
		p.ICMPType, p.ICMPCode = typ, code
		p.Payload = append([]byte{}, payload...)
	}
}

func withEcho(p *packet.Packet) { p.Echo, p.EchoID, p.EchoSeq = true, 0x0102, 0x0304 }

func withInner(k packet.Key) func(*packet.Packet) {
	return func(p *packet.Packet) { p.HasInner, p.Inner = true, k }
}

func withFragment(offset uint32, more bool) func(*packet.Packet) {
	return func(p *packet.Packet) { p.FragmentOffset, p.MoreFragments = offset, more }
}

func withExt(headers uint8) func(*packet.Packet) {
	return func(p *packet.Packet) { p.ExtHeaders = headers }
}

func withID(id uint32) func(*packet.Packet) {
	return func(p *packet.Packet) { p.ID = id }
}

// asFragment makes p a non-first fragment.
func asFragment(p *packet.Packet) { p.Status, p.Payload = packet.Fragment, nil }

// key4 and key6 are the flows of packets from the test addresses.
func key4(proto uint8, src, dst uint16) packet.Key {
	return packet.Key{Src: src4.As16(), Dst: dst4.As16(), SrcPort: src, DstPort: dst, Protocol: proto, Version: 4}
}

func key6(proto uint8, src, dst uint16) packet.Key {
	return packet.Key{Src: src6.As16(), Dst: dst6.As16(), SrcPort: src, DstPort: dst, Protocol: proto, Version: 6}
}
