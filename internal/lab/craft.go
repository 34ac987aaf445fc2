package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	ipv4HeaderLen     = 20
	ipv6HeaderLen     = 40
	udpHeaderLen      = 8
	fragmentHeaderLen = 8
	hopLimit          = 64
)

// UDPPacket makes a whole, valid IPv4 or IPv6 packet with a UDP datagram, as
// Inject and SendIP take it. Both addresses must be of one family.
func UDPPacket(from, to netip.AddrPort, payload []byte) ([]byte, error) {
	if from.Addr().Is4() != to.Addr().Is4() {
		return nil, fmt.Errorf("make packet from %s to %s: addresses of two families", from, to)
	}
	udp := make([]byte, udpHeaderLen, udpHeaderLen+len(payload))
	binary.BigEndian.PutUint16(udp[0:], from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(udpHeaderLen+len(payload)))
	udp = append(udp, payload...)
	binary.BigEndian.PutUint16(udp[6:], udpChecksum(from.Addr(), to.Addr(), udp))
	return IPPacket(from.Addr(), to.Addr(), unix.IPPROTO_UDP, udp)
}

// IPPacket puts an IPv4 or IPv6 header with hop limit 64 before the payload,
// which begins with the header of proto (an IP protocol number).
func IPPacket(from, to netip.Addr, proto uint8, payload []byte) ([]byte, error) {
	if len(payload) > 65535-ipv4HeaderLen {
		return nil, fmt.Errorf("make packet from %s to %s: payload of %d bytes is too long", from, to, len(payload))
	}
	if to.Is6() {
		p := make([]byte, ipv6HeaderLen, ipv6HeaderLen+len(payload))
		p[0], p[6], p[7] = 6<<4, proto, hopLimit
		binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
		src, dst := from.As16(), to.As16()
		copy(p[8:], src[:])
		copy(p[24:], dst[:])
		return append(p, payload...), nil
	}
	p := make([]byte, ipv4HeaderLen, ipv4HeaderLen+len(payload))
	p[0], p[8], p[9] = 4<<4|ipv4HeaderLen/4, hopLimit, proto
	binary.BigEndian.PutUint16(p[2:], uint16(ipv4HeaderLen+len(payload)))
	src, dst := from.As4(), to.As4()
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	binary.BigEndian.PutUint16(p[10:], ^sum(0, p))
	return append(p, payload...), nil
}

// Fragment splits a packet made by IPPacket or UDPPacket into fragments that
// carry at most size bytes each, a positive multiple of 8. id joins them; IPv4
// takes its low 16 bits. IPv6 gets a fragment header (RFC 8200 section 4.5).
func Fragment(packet []byte, size int, id uint32) ([][]byte, error) {
	header, v6 := ipv4HeaderLen, etherType(packet) == unix.ETH_P_IPV6
	if v6 {
		header = ipv6HeaderLen
	}
	if len(packet) <= header {
		return nil, fmt.Errorf("fragment packet of %d bytes: nothing after the IP header", len(packet))
	}
	if size <= 0 || size%8 != 0 {
		return nil, errors.New("fragment packet: size must be a positive multiple of 8")
	}
	var out [][]byte
	body := packet[header:]
	for at := 0; at < len(body); at += size {
		end := min(at+size, len(body))
		more := end < len(body)
		if v6 {
			out = append(out, fragment6(packet[:header], body[at:end], at, more, id))
			continue
		}
		out = append(out, fragment4(packet[:header], body[at:end], at, more, id))
	}
	return out, nil
}

func fragment4(header, part []byte, offset int, more bool, id uint32) []byte {
	const moreFragments = 0x2000
	p := append(append(make([]byte, 0, len(header)+len(part)), header...), part...)
	flags := uint16(offset / 8)
	if more {
		flags |= moreFragments
	}
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[4:], uint16(id))
	binary.BigEndian.PutUint16(p[6:], flags)
	binary.BigEndian.PutUint16(p[10:], 0)
	binary.BigEndian.PutUint16(p[10:], ^sum(0, p[:ipv4HeaderLen]))
	return p
}

func fragment6(header, part []byte, offset int, more bool, id uint32) []byte {
	frag := make([]byte, fragmentHeaderLen)
	frag[0] = header[6]
	flags := uint16(offset)
	if more {
		flags |= 1
	}
	binary.BigEndian.PutUint16(frag[2:], flags)
	binary.BigEndian.PutUint32(frag[4:], id)
	p := append(make([]byte, 0, len(header)+len(frag)+len(part)), header...)
	p = append(append(p, frag...), part...)
	p[6] = unix.IPPROTO_FRAGMENT
	binary.BigEndian.PutUint16(p[4:], uint16(len(frag)+len(part)))
	return p
}

// udpChecksum covers the pseudo header and the datagram, whose checksum field
// is zero (RFC 768, RFC 8200 section 8.1). A zero sum is sent as all ones.
func udpChecksum(from, to netip.Addr, udp []byte) uint16 {
	acc := uint32(unix.IPPROTO_UDP) + uint32(len(udp))
	acc = uint32(sum(acc, from.AsSlice()))
	acc = uint32(sum(acc, to.AsSlice()))
	if check := ^sum(acc, udp); check != 0 {
		return check
	}
	return 0xffff
}

// sum adds big-endian 16-bit words in ones' complement (RFC 1071).
func sum(acc uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		acc += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		acc += uint32(b[0]) << 8
	}
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc)
}
