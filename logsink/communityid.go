package logsink

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"

	"github.com/verdictd/verdictd/packet"
)

// communityID makes Community ID v1 hashes. It holds the bytes to be hashed,
// so that hashing allocates nothing; it is for one goroutine.
//
// Source: https://github.com/corelight/community-id-spec.
type communityID struct {
	seed uint16
	in   [2 + 2*16 + 2 + 2*2]byte
}

// append appends the id of e's flow, "1:" and 28 characters of base64. e must
// have addresses and a protocol.
func (c *communityID) append(b []byte, e *Event) []byte {
	src, dst := e.Src.Unmap(), e.Dst.Unmap()
	src16, dst16 := src.As16(), dst.As16()
	from, to := src16[:], dst16[:]
	if src.Is4() {
		from, to = src16[12:], dst16[12:]
	}
	srcPort, dstPort, hasPorts, oneWay := communityPorts(e)
	if order := bytes.Compare(from, to); !oneWay && (order > 0 || order == 0 && srcPort > dstPort) {
		from, to, srcPort, dstPort = to, from, dstPort, srcPort
	}
	in := binary.BigEndian.AppendUint16(c.in[:0], c.seed)
	in = append(in, from...)
	in = append(in, to...)
	in = append(in, e.Protocol, 0)
	if hasPorts {
		in = binary.BigEndian.AppendUint16(in, srcPort)
		in = binary.BigEndian.AppendUint16(in, dstPort)
	}
	sum := sha1.Sum(in)
	return base64.StdEncoding.AppendEncode(append(b, "1:"...), sum[:])
}

// communityPorts returns what stands in the place of the ports. ICMP messages
// that come in pairs (request, reply) have their type and the other one's;
// the others have type and code, and are one-way: not put in order.
func communityPorts(e *Event) (src, dst uint16, ok, oneWay bool) {
	switch {
	case e.HasPorts:
		switch e.Protocol {
		case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP:
			return e.SrcPort, e.DstPort, true, false
		}
	case e.isICMP():
		if other, paired := icmpCounterpart(e.Protocol, e.ICMPType); paired {
			return uint16(e.ICMPType), uint16(other), true, false
		}
		return uint16(e.ICMPType), uint16(e.ICMPCode), true, true
	}
	return 0, 0, false, false
}

// icmpCounterpart returns the ICMP type that answers typ, or that typ
// answers.
func icmpCounterpart(proto, typ uint8) (other uint8, ok bool) {
	if proto == packet.ProtoICMPv6 {
		switch typ {
		case 128, 130, 144: // echo, multicast listener, home agent address: even asks
			return typ + 1, true
		case 129, 131, 145:
			return typ - 1, true
		case 133, 135, 139: // router, neighbour, who are you: odd asks
			return typ + 1, true
		case 134, 136, 140:
			return typ - 1, true
		}
		return 0, false
	}
	switch typ {
	case packet.ICMPEchoReply:
		return packet.ICMPEchoRequest, true
	case packet.ICMPEchoRequest:
		return packet.ICMPEchoReply, true
	case 9, 13, 15, 17: // router, timestamp, information, mask
		return typ + 1, true
	case 10, 14, 16, 18:
		return typ - 1, true
	}
	return 0, false
}
