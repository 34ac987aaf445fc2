package packet

import (
	"encoding/binary"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

const (
	tcpHeaderLen      = 20
	udpHeaderLen      = 8 // UDP-Lite too
	sctpHeaderLen     = 12
	dccpHeaderLen     = 12 // with short sequence numbers
	dccpLongHeaderLen = 16

	sctpInit     = 1    // chunk type
	dccpTypeMask = 0x1e // of the byte with reserved bits, type and bit X
	dccpRequest  = 0    // type
)

// leaf is the end of a DecodingLayer that nothing follows.
type leaf struct{}

func (leaf) NextLayerType() gopacket.LayerType { return gopacket.LayerTypeZero }
func (leaf) LayerPayload() []byte              { return nil }

// done says that the packet is decoded through its transport header.
func (p *Packet) done(payload []byte) error {
	p.Status, p.Payload = OK, payload
	return nil
}

func (p *Packet) setPorts(src, dst uint16) {
	p.HasPorts, p.SrcPort, p.DstPort = true, src, dst
}

// tcp is the DecodingLayer of TCP (RFC 9293). Options are skipped unread:
// gopacket's TCP fails on bad ones, the kernel accepts them.
type tcp struct {
	leaf
	*state
}

func (l *tcp) CanDecode() gopacket.LayerClass { return layers.LayerTypeTCP }

func (l *tcp) DecodeFromBytes(data []byte, _ gopacket.DecodeFeedback) error {
	header := int(data[12]>>4) * 4
	if header < tcpHeaderLen {
		return errTCPHeader
	}
	if err := l.fits(header, data); err != nil {
		return err
	}
	p := l.p
	p.setPorts(binary.BigEndian.Uint16(data[0:2]), binary.BigEndian.Uint16(data[2:4]))
	p.Seq = binary.BigEndian.Uint32(data[4:8])
	p.AckNum = binary.BigEndian.Uint32(data[8:12])
	p.TCPFlags = TCPFlags(binary.BigEndian.Uint16(data[12:14]) & 0x1ff)
	p.Begins = p.TCPFlags&(SYN|ACK) == SYN
	p.Window = binary.BigEndian.Uint16(data[14:16])
	p.UrgentPtr = binary.BigEndian.Uint16(data[18:20])
	return p.done(data[header:])
}

// udp is gopacket's UDP behind the kernel's length checks. The length speaks
// of the whole datagram, so a first fragment may well hold less.
type udp struct {
	leaf
	*state
	hdr layers.UDP
}

func (l *udp) CanDecode() gopacket.LayerClass { return layers.LayerTypeUDP }

func (l *udp) DecodeFromBytes(data []byte, df gopacket.DecodeFeedback) error {
	p := l.p
	length := int(binary.BigEndian.Uint16(data[4:6]))
	switch {
	case length < udpHeaderLen:
		return errUDPShort
	case length > l.length && !p.MoreFragments:
		return errUDPBeyond
	}
	if err := l.hdr.DecodeFromBytes(data, df); err != nil {
		return err
	}
	p.setPorts(uint16(l.hdr.SrcPort), uint16(l.hdr.DstPort))
	p.UDPLength = l.hdr.Length
	return p.done(l.hdr.Payload)
}

// sctp is gopacket's SCTP common header (RFC 9260). Payload is the chunks.
type sctp struct {
	leaf
	*state
	hdr layers.SCTP
}

func (l *sctp) CanDecode() gopacket.LayerClass { return layers.LayerTypeSCTP }

func (l *sctp) DecodeFromBytes(data []byte, df gopacket.DecodeFeedback) error {
	if err := l.hdr.DecodeFromBytes(data, df); err != nil {
		return err
	}
	l.p.setPorts(uint16(l.hdr.SrcPort), uint16(l.hdr.DstPort))
	l.p.Begins = len(l.hdr.Payload) > 0 && l.hdr.Payload[0] == sctpInit
	return l.p.done(l.hdr.Payload)
}

// ports is the DecodingLayer of UDP-Lite (RFC 3828) and DCCP (RFC 4340), for
// which gopacket has none.
type ports struct {
	leaf
	*state
}

func (l *ports) CanDecode() gopacket.LayerClass { return layers.LayerTypeUDPLite }

func (l *ports) DecodeFromBytes(data []byte, _ gopacket.DecodeFeedback) error {
	header, err := l.header(data)
	if err != nil {
		return err
	}
	if err := l.fits(header, data); err != nil {
		return err
	}
	l.p.setPorts(binary.BigEndian.Uint16(data[0:2]), binary.BigEndian.Uint16(data[2:4]))
	l.p.Begins = l.p.Protocol == ProtoDCCP && data[8]&dccpTypeMask == dccpRequest
	return l.p.done(data[header:])
}

// header returns the length of the header, whose first bytes are in data.
func (l *ports) header(data []byte) (int, error) {
	if l.p.Protocol == ProtoDCCP {
		return dccpHeader(data)
	}
	coverage := int(binary.BigEndian.Uint16(data[4:6]))
	if coverage == 0 { // udplite_checksum_init: all of the packet
		return udpHeaderLen, nil
	}
	if coverage < udpHeaderLen || coverage > l.length && !l.p.MoreFragments {
		return 0, errUDPLite
	}
	return udpHeaderLen, nil
}

// dccpHeader returns the length of a DCCP header. Bit X says that its
// sequence number is a long one.
func dccpHeader(data []byte) (int, error) {
	shortest := dccpHeaderLen
	if x := data[8] & 1; x != 0 {
		shortest = dccpLongHeaderLen
	}
	header := int(data[4]) * 4
	if header < shortest {
		return 0, errDCCPHeader
	}
	return header, nil
}
