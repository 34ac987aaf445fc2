package replay

import (
	"encoding/binary"

	"github.com/verdictd/verdictd/packet"
)

// EtherTypes of the link layer.
//
// Source: https://www.iana.org/assignments/ieee-802-numbers.
const (
	etherVLAN  = 0x8100 // 802.1Q
	etherQinQ  = 0x88a8 // 802.1ad
	etherQinQ1 = 0x9100 // 802.1ad as some switches sent it before the standard
	etherPPPoE = 0x8864 // PPPoE session
	etherMin   = 0x0600 // less is the length of an 802.3 frame

	// etherNone stands for a protocol that is not IP and has no EtherType.
	// The value is reserved.
	etherNone = 0xffff
)

const (
	maxVLANs = 4 // tags that are reported; any number is passed over

	protoPPPIPv4 = 0x0021
	protoPPPIPv6 = 0x0057

	sllOutgoing  = 4   // packet type of SLL and SLL2: sent by this host
	sllOtherHost = 3   // to another host, seen in promiscuous mode
	arphrdNlmon  = 824 // ARPHRD_NETLINK: the protocol field is a netlink family
)

// link is a frame with its link layer taken off. Its Meta is what the packet
// is judged with.
type link struct {
	packet.Meta
	rest   []byte // the packet; part of the frame
	broken string // why there is no packet: a constant text; else empty

	way       way
	ifindex   uint32 // SLL2: the interface by number, else 0
	placed    bool   // NFLOG: the capture says where the packet was
	hasHook   bool   // NFLOG: Meta.Hook is known
	assumed   bool   // nothing says where the packet was judged: see Options.place
	wire      uint32 // NFLOG: length of the packet on the wire, else 0
	vlans     [maxVLANs]uint16
	vlanCount int
	session   uint16 // PPPoE session
	hasPPPoE  bool
	prefix    []byte // NFLOG prefix; part of the frame
}

// strip takes the link layer off a frame of a supported link type.
func (l *link) strip(f *frame) {
	*l = link{Meta: packet.Meta{Time: f.time, ID: uint32(f.number)}, way: f.way}
	f.iface.strip(l, f.iface.order, f.data)
	if l.broken != "" {
		l.rest, l.EtherType = nil, 0
		return
	}
	l.Length = f.length - uint32(len(f.data)-len(l.rest))
	if l.wire > 0 {
		l.Length = l.wire
	}
	l.GSO = lengthless(l.rest)
}

// lengthless returns whether an IP header leaves its length open: the packet
// was captured before the sending interface cut it into segments (TSO, BIG
// TCP).
func lengthless(b []byte) bool {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return b[2]|b[3] == 0
	case len(b) >= 40 && b[0]>>4 == 6:
		return b[4]|b[5] == 0 && b[6] == packet.ProtoTCP
	}
	return false
}

// ether takes off what follows an EtherType: VLAN tags and PPPoE.
func (l *link) ether(etherType uint16, b []byte) {
	for etherType == etherVLAN || etherType == etherQinQ || etherType == etherQinQ1 {
		if len(b) < 4 {
			l.broken = "VLAN tag cut short"
			return
		}
		if l.vlanCount < maxVLANs {
			l.vlans[l.vlanCount] = binary.BigEndian.Uint16(b) & 0x0fff
			l.vlanCount++
		}
		etherType, b = binary.BigEndian.Uint16(b[2:]), b[4:]
	}
	if etherType == etherPPPoE {
		l.pppoe(b)
		return
	}
	if etherType < etherMin {
		etherType = etherNone // 802.3: Linux takes no IP from LLC or SNAP
	}
	l.EtherType, l.rest = etherType, b
}

func (l *link) ethernet(_ binary.ByteOrder, b []byte) {
	if len(b) < 14 {
		l.broken = "Ethernet header cut short"
		return
	}
	l.ether(binary.BigEndian.Uint16(b[12:]), b[14:])
}

// pppoe takes off a PPPoE session header (RFC 2516).
func (l *link) pppoe(b []byte) {
	if len(b) < 6 {
		l.broken = "PPPoE header cut short"
		return
	}
	if b[0] != 0x11 || b[1] != 0 { // version 1, type 1; code 0 is data
		l.EtherType, l.rest = etherNone, b
		return
	}
	l.session, l.hasPPPoE = binary.BigEndian.Uint16(b[2:]), true
	l.pppProtocol(b[6:])
}

func (l *link) pppEthernet(_ binary.ByteOrder, b []byte) { l.pppoe(b) }

// ppp takes off PPP, in HDLC-like framing or bare (RFC 1662). Cisco HDLC is
// also found under its link type.
func (l *link) ppp(order binary.ByteOrder, b []byte) {
	switch {
	case len(b) >= 2 && b[0] == 0xff && b[1] == 0x03:
		b = b[2:]
	case len(b) >= 2 && (b[0] == 0x0f || b[0] == 0x8f) && b[1] == 0:
		l.chdlc(order, b)
		return
	}
	l.pppProtocol(b)
}

// pppProtocol takes off the protocol field of PPP, which may be compressed to
// one byte: the last byte of it is odd.
func (l *link) pppProtocol(b []byte) {
	if len(b) == 0 || b[0]&1 == 0 && len(b) < 2 {
		l.broken = "PPP header cut short"
		return
	}
	proto, n := uint16(b[0]), 1
	if b[0]&1 == 0 {
		proto, n = binary.BigEndian.Uint16(b), 2
	}
	l.EtherType, l.rest = etherNone, b[n:]
	switch proto {
	case protoPPPIPv4:
		l.EtherType = packet.EtherTypeIPv4
	case protoPPPIPv6:
		l.EtherType = packet.EtherTypeIPv6
	}
}

func (l *link) chdlc(_ binary.ByteOrder, b []byte) {
	if len(b) < 4 {
		l.broken = "C-HDLC header cut short"
		return
	}
	l.ether(binary.BigEndian.Uint16(b[2:]), b[4:])
}

// null takes off the address family of NULL (byte order of the machine that
// captured) and LOOP (network byte order). Families are small numbers, so that
// the order shows itself.
func (l *link) null(_ binary.ByteOrder, b []byte) {
	if len(b) < 4 {
		l.broken = "loopback header cut short"
		return
	}
	family := min(binary.LittleEndian.Uint32(b), binary.BigEndian.Uint32(b))
	l.EtherType, l.rest = etherTypeOfFamily(family), b[4:]
}

// etherTypeOfFamily knows the number of AF_INET6 on Linux, NetBSD and OpenBSD,
// FreeBSD, and Darwin.
func etherTypeOfFamily(family uint32) uint16 {
	switch family {
	case 2:
		return packet.EtherTypeIPv4
	case 10, 24, 28, 30:
		return packet.EtherTypeIPv6
	}
	return etherNone
}

func (l *link) raw(_ binary.ByteOrder, b []byte) { l.rest = b }

func (l *link) ipv4(_ binary.ByteOrder, b []byte) { l.EtherType, l.rest = packet.EtherTypeIPv4, b }

func (l *link) ipv6(_ binary.ByteOrder, b []byte) { l.EtherType, l.rest = packet.EtherTypeIPv6, b }

// sll takes off the header of a Linux cooked capture.
func (l *link) sll(_ binary.ByteOrder, b []byte) {
	if len(b) < 16 {
		l.broken = "SLL header cut short"
		return
	}
	l.cooked(binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint16(b[14:]), b[16:])
}

// sll2 takes off the header of a Linux cooked capture, version 2.
func (l *link) sll2(_ binary.ByteOrder, b []byte) {
	if len(b) < 20 {
		l.broken = "SLL2 header cut short"
		return
	}
	l.ifindex = binary.BigEndian.Uint32(b[4:])
	l.cooked(uint16(b[10]), binary.BigEndian.Uint16(b[8:]), binary.BigEndian.Uint16(b), b[20:])
}

// cooked takes what both versions of SLL say.
func (l *link) cooked(packetType, hardware, protocol uint16, b []byte) {
	switch {
	case packetType == sllOutgoing:
		l.way = wayOut
	case packetType < sllOtherHost:
		l.way = wayIn
	}
	if hardware == arphrdNlmon {
		protocol = etherNone
	}
	l.ether(protocol, b)
}
