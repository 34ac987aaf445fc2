package packet

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

const (
	ipv4HeaderLen   = 20
	ipv6HeaderLen   = 40
	maxIPLen        = 65535
	fragmentUnit    = 8
	fragmentMask    = 0x1fff // IPv4 fragment offset, in units of 8 bytes
	fragmentMask6   = 0xfff8 // IPv6 fragment offset, in bytes
	ipv4MoreFlag    = 0x2000
	ipv4DontFlag    = 0x4000
	ipv6MoreFlag    = 1
	extensionUnit   = 8
	maxExtHeaders   = 64   // the kernel has no limit; packets with more are Malformed
	maxExtBytes     = 2048 // where the last one ends, with the IPv6 header; likewise
	protoHopByHop   = 0
	protoRouting    = 43
	protoFragment   = 44
	protoDstOptions = 60
)

// MaxHeaders is how many bytes of a packet decoding needs at most to find all
// headers: those of IPv6 up to maxExtBytes, and the longest transport header, that of
// DCCP.
const MaxHeaders = maxExtBytes + 1024

// IPv4 options, RFC 791 §3.1.
const (
	optionEnd         = 0
	optionNone        = 1
	optionLooseRoute  = 131
	optionStrictRoute = 137
)

// network is the DecodingLayer of IPv4, or of IPv6 with all its extension
// headers. gopacket's IPv4 has no ports for first fragments and fails on
// options that the kernel lets pass; its IPv6ExtensionSkipper takes the
// reserved byte of a fragment header as a length.
type network struct {
	*state
	parse   parseFunc
	layer   gopacket.LayerType
	next    gopacket.LayerType
	payload []byte
}

// parseFunc reads an IP header into p. It returns the bytes behind it that
// are part of the packet and present, and how many there were on the wire.
// If gso is set, a length field of 0 stands for wire.
type parseFunc func(p *Packet, data []byte, wire int, gso bool) (rest []byte, length int, err error)

func (l *network) CanDecode() gopacket.LayerClass    { return l.layer }
func (l *network) NextLayerType() gopacket.LayerType { return l.next }
func (l *network) LayerPayload() []byte              { return l.payload }

// DecodeFromBytes decodes the header. It stops the parser at non-first
// fragments and at protocols without a layer. A transport layer gets at least
// its shortest header.
func (l *network) DecodeFromBytes(data []byte, _ gopacket.DecodeFeedback) error {
	p := l.p
	l.next, l.payload = gopacket.LayerTypeZero, nil
	rest, length, err := l.parse(p, data, l.wire, l.gso)
	if err != nil {
		return err
	}
	offset := int(p.FragmentOffset)
	if (p.MoreFragments || offset > 0) && offset+length > maxIPLen {
		return errFragmentEnd
	}
	if p.MoreFragments { // ip_frag_queue: the kernel uses whole units only
		length -= length % fragmentUnit
		rest = rest[:min(len(rest), length)]
	}
	next, header := transport(p)
	switch {
	case offset > 0 && offset < header:
		return errFragmentLow
	case offset > 0:
		p.Status = Fragment
		return nil
	case next == gopacket.LayerTypeZero:
		p.Status, p.Payload = OK, rest
		return nil
	}
	l.next, l.payload, l.length = next, rest, length
	return l.fits(header, rest)
}

// fits returns why the transport header, which has that many bytes, is not
// all there, or nil if data holds it.
func (s *state) fits(header int, data []byte) error {
	switch {
	case header <= len(data):
		return nil
	case header <= s.length:
		return errCut
	case s.p.MoreFragments:
		return errFragmentTiny
	}
	return errShort
}

// transport returns the layer that decodes p's transport protocol and the
// bytes of the shortest such header, or zeros if no layer does.
func transport(p *Packet) (layer gopacket.LayerType, header int) {
	switch {
	case p.Protocol == ProtoTCP:
		return layers.LayerTypeTCP, tcpHeaderLen
	case p.Protocol == ProtoUDP:
		return layers.LayerTypeUDP, udpHeaderLen
	case p.Protocol == ProtoUDPLite:
		return layers.LayerTypeUDPLite, udpHeaderLen
	case p.Protocol == ProtoDCCP: // gopacket has no name for DCCP; see ports
		return layers.LayerTypeUDPLite, dccpHeaderLen
	case p.Protocol == ProtoSCTP:
		return layers.LayerTypeSCTP, sctpHeaderLen
	case p.Protocol == ProtoICMP && p.Version == 4:
		return layers.LayerTypeICMPv4, icmpHeaderLen
	case p.Protocol == ProtoICMPv6 && p.Version == 6:
		return layers.LayerTypeICMPv6, icmpHeaderLen
	}
	return gopacket.LayerTypeZero, 0
}

// parseIPv4 reads an IPv4 header (RFC 791). Of the options it looks for source
// routes: while addresses are left in one, Dst is not where the packet ends, so it
// cannot be judged by Dst.
func parseIPv4(p *Packet, data []byte, wire int, gso bool) (rest []byte, length int, err error) {
	if wire < ipv4HeaderLen {
		return nil, 0, errIPv4Short
	}
	if len(data) < ipv4HeaderLen {
		return nil, 0, errCut
	}
	p.Version = 4
	p.Src = netip.AddrFrom4([4]byte(data[12:16]))
	p.Dst = netip.AddrFrom4([4]byte(data[16:20]))

	header := int(data[0]&0x0f) * 4
	total := int(binary.BigEndian.Uint16(data[2:4]))
	if total == 0 && gso { // iph_totlen
		total = wire
	}
	switch {
	case header < ipv4HeaderLen:
		return nil, 0, errIPv4Header
	case total < header:
		return nil, 0, errIPv4Below
	case total > wire:
		return nil, 0, errIPv4Beyond
	case len(data) < header:
		return nil, 0, errCut
	}
	if header > ipv4HeaderLen && hasRoute(data[ipv4HeaderLen:header]) {
		return nil, 0, errIPv4Route
	}
	fragment := binary.BigEndian.Uint16(data[6:8])
	p.TOS = data[1]
	p.TotalLength = uint32(total)
	p.ID = uint32(binary.BigEndian.Uint16(data[4:6]))
	p.DontFragment = fragment&ipv4DontFlag != 0
	p.MoreFragments = fragment&ipv4MoreFlag != 0
	p.FragmentOffset = uint32(fragment&fragmentMask) * fragmentUnit
	p.TTL = data[8]
	p.Protocol = data[9]
	return data[header:min(total, len(data))], total - header, nil
}

// hasRoute returns whether there is a source route with addresses left among IPv4
// options. Behind a bad option nothing is read: the kernel drops such packets.
//
// Source: __ip_options_compile, net/ipv4/ip_options.c.
func hasRoute(options []byte) bool {
	for len(options) > 0 && options[0] != optionEnd {
		if options[0] == optionNone {
			options = options[1:]
			continue
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
			return false
		}
		option := options[:options[1]]
		if option[0] == optionLooseRoute || option[0] == optionStrictRoute {
			return len(option) < 3 || int(option[2]) <= len(option)
		}
		options = options[len(option):]
	}
	return false
}

// parseIPv6 reads an IPv6 header (RFC 8200) and its extension headers.
//
// A payload length of 0 is one, unless gso is set: BIG TCP packets have it,
// with a jumbo payload option or without. Jumbograms of RFC 2675 do not come
// over any link that Linux runs, and are Malformed.
func parseIPv6(p *Packet, data []byte, wire int, gso bool) (rest []byte, length int, err error) {
	if wire < ipv6HeaderLen {
		return nil, 0, errIPv6Short
	}
	if len(data) < ipv6HeaderLen {
		return nil, 0, errCut
	}
	p.Version = 6
	p.Src = netip.AddrFrom16([16]byte(data[8:24]))
	p.Dst = netip.AddrFrom16([16]byte(data[24:40]))

	first := binary.BigEndian.Uint32(data[0:4])
	total := ipv6HeaderLen + int(binary.BigEndian.Uint16(data[4:6]))
	if total == ipv6HeaderLen && gso {
		total = wire
	}
	if total > wire {
		return nil, 0, errIPv6Beyond
	}
	p.TOS = uint8(first >> 20)
	p.FlowLabel = first & 0xfffff
	p.TotalLength = uint32(total)
	p.TTL = data[7]

	data = data[:min(total, len(data))]
	end, err := walkExtensions(p, data, total)
	if err != nil {
		return nil, 0, err
	}
	return data[end:], total - end, nil
}

// walkExtensions reads the IPv6 extension headers and returns where they end.
//
// It knows those that the kernel passes over on its way to the transport
// header. AH and ESP are protocols of their own: what is behind them comes up
// again when the kernel has checked them. Behind a non-first fragment header
// there is nothing to read.
func walkExtensions(p *Packet, data []byte, total int) (end int, err error) {
	p.Protocol, end = data[6], ipv6HeaderLen
	for fragmented := false; isExtension(p.Protocol) && p.FragmentOffset == 0; p.ExtHeaders++ {
		switch {
		case p.ExtHeaders == maxExtHeaders:
			return 0, errExtCount
		case end+extensionUnit > total:
			return 0, errExtBeyond
		case end+extensionUnit > maxExtBytes:
			return 0, errExtLong
		case end+extensionUnit > len(data):
			return 0, errCut
		case p.Protocol == protoFragment && fragmented:
			return 0, errTwoFragments
		}
		header := data[end : end+extensionUnit]
		size, err := readExtension(p, header)
		if err != nil {
			return 0, err
		}
		fragmented = fragmented || p.Protocol == protoFragment
		p.Protocol = header[0]
		end += size
	}
	switch {
	case end > total:
		return 0, errExtBeyond
	case end > maxExtBytes:
		return 0, errExtLong
	case end > len(data):
		return 0, errCut
	}
	return end, nil
}

func isExtension(proto uint8) bool {
	switch proto {
	case protoHopByHop, protoRouting, protoFragment, protoDstOptions:
		return true
	}
	return false
}

// readExtension reads the first 8 bytes of the extension header p.Protocol
// and returns its size in bytes.
//
// Routing headers are passed over when they are used up. Else Dst is not where
// the packet ends, so it cannot be judged by Dst.
func readExtension(p *Packet, header []byte) (size int, err error) {
	switch p.Protocol {
	case protoHopByHop:
		if p.ExtHeaders > 0 {
			return 0, errHopByHop
		}
	case protoRouting:
		if segmentsLeft := header[3]; segmentsLeft > 0 {
			return 0, errRouting
		}
	case protoFragment: // byte 1 is reserved, not a length
		fragment := binary.BigEndian.Uint16(header[2:4])
		p.FragmentOffset = uint32(fragment & fragmentMask6)
		p.MoreFragments = fragment&ipv6MoreFlag != 0
		p.ID = binary.BigEndian.Uint32(header[4:8])
		return extensionUnit, nil
	}
	return (int(header[1]) + 1) * extensionUnit, nil
}
