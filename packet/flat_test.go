package packet_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/verdictd/verdictd/packet"
)

// flat decodes a packet with no library and no state: the oracle that Decode
// is compared with. It keeps one slice, the packet that is left, and how many
// bytes of it the copy lacks.
type flat struct {
	p    packet.Packet
	rest []byte
	lack int // bytes of the packet on the wire that are not in rest
	gso  bool
}

// flatDecode is Decode, without reasons.
func flatDecode(m packet.Meta, data []byte) packet.Packet {
	f := flat{rest: data, gso: m.GSO}
	if m.Length > uint32(len(data)) {
		f.lack = int(m.Length) - len(data)
	}
	nibble := byte(0)
	if len(data) > 0 {
		nibble = data[0] >> 4
	}
	ok := false
	switch {
	case m.EtherType != 0 && m.EtherType != 0x0800 && m.EtherType != 0x86dd:
		return packet.Packet{Status: packet.NotIP}
	case nibble == 4 && m.EtherType != 0x86dd:
		ok = f.ip4() && f.transport()
	case nibble == 6 && m.EtherType != 0x0800:
		ok = f.ip6() && f.transport()
	}
	if !ok {
		return packet.Packet{Version: f.p.Version, Src: f.p.Src, Dst: f.p.Dst}
	}
	return f.p
}

// take cuts n bytes off the front.
func (f *flat) take(n int) (b []byte, ok bool) {
	if n < 0 || n > len(f.rest) {
		return nil, false
	}
	b, f.rest = f.rest[:n], f.rest[n:]
	return b, true
}

// limit cuts the rest of the packet to n bytes on the wire.
func (f *flat) limit(n int) bool {
	wire := len(f.rest) + f.lack
	if n < 0 || n > wire {
		return false
	}
	f.rest = f.rest[:min(n, len(f.rest))]
	f.lack = n - len(f.rest)
	return true
}

func (f *flat) wire() int { return len(f.rest) + f.lack }

func u16(b []byte) int { return int(binary.BigEndian.Uint16(b)) }

func (f *flat) ip4() bool {
	whole := f.wire()
	h, ok := f.take(20)
	if !ok {
		return false
	}
	p := &f.p
	p.Version, p.TOS, p.TTL, p.Protocol = 4, h[1], h[8], h[9]
	p.Src, _ = netip.AddrFromSlice(h[12:16])
	p.Dst, _ = netip.AddrFromSlice(h[16:20])
	total := u16(h[2:])
	if total == 0 && f.gso {
		total = whole
	}
	options := int(h[0]%16)*4 - 20
	if !f.limit(total - 20) {
		return false
	}
	o, ok := f.take(options)
	if !ok || flatRoute(o) {
		return false
	}
	p.TotalLength, p.ID = uint32(total), uint32(u16(h[4:]))
	p.DontFragment, p.MoreFragments = h[6]&0x40 != 0, h[6]&0x20 != 0
	p.FragmentOffset = uint32(u16(h[6:])%0x2000) * 8
	return true
}

// flatRoute returns whether a source route among the options has addresses left.
func flatRoute(o []byte) bool {
	for i := 0; i < len(o) && o[i] != 0; {
		size := 1
		if o[i] != 1 {
			if i+1 >= len(o) || o[i+1] < 2 || i+int(o[i+1]) > len(o) {
				return false
			}
			size = int(o[i+1])
		}
		if o[i]&0x7f == 3 && o[i] > 128 || o[i]&0x7f == 9 && o[i] > 128 {
			return size < 3 || int(o[i+2]) <= size
		}
		i += size
	}
	return false
}

func (f *flat) ip6() bool {
	h, ok := f.take(40)
	if !ok {
		return false
	}
	p := &f.p
	p.Version, p.TTL, p.TOS = 6, h[7], h[0]<<4|h[1]>>4
	p.FlowLabel = uint32(h[1]%16)<<16 | uint32(u16(h[2:]))
	p.Src, _ = netip.AddrFromSlice(h[8:24])
	p.Dst, _ = netip.AddrFromSlice(h[24:40])
	length := u16(h[4:])
	if length == 0 && f.gso {
		length = f.wire()
	}
	if !f.limit(length) {
		return false
	}
	p.TotalLength = uint32(length + 40)
	return f.extensions(h[6])
}

func (f *flat) extensions(next byte) bool {
	fragments := 0
	for end := 40; ; {
		f.p.Protocol = next
		if f.p.FragmentOffset > 0 || !slices.Contains([]byte{0, 43, 44, 60}, next) {
			return true
		}
		h, ok := f.take(8)
		if !ok || f.p.ExtHeaders == 64 || next == 0 && f.p.ExtHeaders > 0 || next == 43 && h[3] != 0 {
			return false
		}
		f.p.ExtHeaders++
		if next == 44 {
			fragments++
			f.p.FragmentOffset, f.p.MoreFragments = uint32(u16(h[2:])/8*8), h[3]%2 == 1
			f.p.ID = binary.BigEndian.Uint32(h[4:])
		} else if _, ok = f.take(int(h[1]) * 8); !ok {
			return false
		} else {
			end += int(h[1]) * 8
		}
		if end += 8; fragments > 1 || end > 2048 {
			return false
		}
		next = h[0]
	}
}

// shortest is the shortest header of each transport protocol.
func (f *flat) shortest() int {
	switch f.p.Protocol {
	case 6:
		return 20
	case 17, 136:
		return 8
	case 33, 132:
		return 12
	case 1, 58:
		if f.p.IsICMP() {
			return 8
		}
	}
	return 0
}

func (f *flat) transport() bool {
	p := &f.p
	p.Status = packet.OK
	offset := int(p.FragmentOffset)
	if (p.MoreFragments || offset > 0) && offset+f.wire() > 65535 {
		return false
	}
	if p.MoreFragments && !f.limit(f.wire()/8*8) {
		return false
	}
	if offset > 0 {
		p.Status = packet.Fragment
		return offset >= f.shortest()
	}
	if len(f.rest) < f.shortest() {
		return false
	}
	size, ok := f.header()
	if !ok {
		return false
	}
	_, ok = f.take(size)
	p.Payload = f.rest
	if p.Protocol == 132 {
		p.Begins = bytes.HasPrefix(f.rest, []byte{1})
	}
	return ok
}

// header reads the transport header and returns its size.
func (f *flat) header() (size int, ok bool) {
	p, h := &f.p, f.rest
	switch size = f.shortest(); {
	case size == 0:
		return 0, true
	case p.Protocol == 1 || p.Protocol == 58:
		f.icmp()
		return size, true
	}
	p.HasPorts, p.SrcPort, p.DstPort = true, uint16(u16(h)), uint16(u16(h[2:]))
	length := u16(h[4:])
	beyond := length > f.wire() && !p.MoreFragments
	switch p.Protocol {
	case 6:
		p.Seq, p.AckNum = binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:])
		p.TCPFlags = packet.TCPFlags(u16(h[12:]) % 512)
		p.Begins = p.TCPFlags/packet.SYN%2 == 1 && p.TCPFlags/packet.ACK%2 == 0
		p.Window, p.UrgentPtr = uint16(u16(h[14:])), uint16(u16(h[18:]))
		size = int(h[12]/16) * 4
		return size, size >= 20
	case 17:
		p.UDPLength = uint16(length)
		f.limit(length)
		return size, length >= 8 && !beyond
	case 136:
		return size, length == 0 || length >= 8 && !beyond
	case 33:
		size = int(h[4]) * 4
		p.Begins = h[8]/2%16 == 0
		return size, size >= 12+4*int(h[8]%2)
	}
	return size, true
}

func (f *flat) icmp() {
	p, h := &f.p, f.rest
	p.ICMPType, p.ICMPCode = h[0], h[1]
	switch icmpKind(p.Version, h[0]) {
	case 'q':
		p.Echo, p.EchoID, p.EchoSeq = true, uint16(u16(h[4:])), uint16(u16(h[6:]))
	case 'e':
		p.Inner, p.HasInner = flatInner(p.Version, h[8:])
	}
}

// icmpKind returns 'q' for echoes, 'e' for errors, 'r' for other messages that
// quote a packet, '.' for the rest.
func icmpKind(version, typ uint8) byte {
	kinds := "q..err..q..ee"
	if version == 6 {
		kinds = ".eeee" + strings.Repeat(".", 123) + "qq"
	}
	if int(typ) >= len(kinds) {
		return '.'
	}
	return kinds[typ]
}

// flatInner returns the flow of a packet that an ICMP error embeds.
func flatInner(version uint8, data []byte) (k packet.Key, ok bool) {
	f := flat{rest: data, lack: 1 << 20, gso: true}
	switch {
	case len(data) == 0 || data[0]>>4 != version:
		return k, false
	case version == 4:
		ok = f.ip4()
	case version == 6:
		ok = f.ip6()
	}
	p, h := &f.p, f.rest
	if !ok || p.FragmentOffset > 0 {
		return k, false
	}
	p.Status = packet.OK
	k = packet.Key{Src: p.Src.As16(), Dst: p.Dst.As16(), Protocol: p.Protocol, Version: version}
	switch {
	case f.shortest() == 0:
		return k, true
	case p.IsICMP() && len(h) >= 8:
		return flatInnerICMP(k, h)
	case p.IsICMP() || len(h) < 4:
		return packet.Key{}, false
	}
	k.SrcPort, k.DstPort = uint16(u16(h)), uint16(u16(h[2:]))
	return k, true
}

func flatInnerICMP(k packet.Key, h []byte) (packet.Key, bool) {
	switch icmpKind(k.Version, h[0]) {
	case 'q':
		k.SrcPort, k.DstPort, k.Echo = uint16(u16(h[4:])), uint16(u16(h[4:])), packet.EchoRequest
		if h[0] == packet.ICMPEchoReply || k.Version == 6 && h[0] == packet.ICMPv6EchoReply {
			k.Echo = packet.EchoReply
		}
	case 'e', 'r':
		return packet.Key{}, false
	}
	return k, true
}
