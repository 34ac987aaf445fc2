package packet_test

import (
	"bytes"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/verdictd/verdictd/packet"
)

// BenchmarkDecode measures Decode per kind of packet, with gopacket's own ways
// on the same bytes: its DecodingLayerParser with all its layers for these
// kinds, and NewPacket asked for the transport layer.
//
// The parser peer is not equivalent: it has no ports for IPv4 first fragments
// and takes ports out of non-first IPv6 fragments.
func BenchmarkDecode(b *testing.B) {
	kinds := []struct {
		name string
		data []byte
	}{
		{"tcp4_syn", ip4(6, tcp("\x02\x04\x05\xb4", set(12, 0x60)))},
		{"tcp4_512", ip4(6, tcp(string(bytes.Repeat([]byte{1}, 512))))},
		{"tcp4_first_fragment", ip4(6, tcp("four"), set(6, 0x20))},
		{"tcp4_fragment", ip4(6, tcp("four"), set16(6, 3))},
		{"udp4", ip4(17, udp("query"))},
		{"icmp4_echo", ip4(1, icmp(8, 0, nil))},
		{"icmp4_error", ip4(1, icmp(3, 3, ip4(17, udp(""))))},
		{"tcp6", ip6(6, tcp(""))},
		{"tcp6_extensions", ip6(0, ext(60, 0, ext(6, 0, tcp(""))))},
		{"tcp6_fragment", ip6(44, frag(6, 24, false, tcp("")))},
		{"udp6", ip6(17, udp("query"))},
		{"icmp6_echo", ip6(58, icmp(128, 0, nil))},
		{"gre4", ip4(47, make([]byte, 4))},
		{"malformed", ip4(6, tcp("", set(12, 0x40)))},
	}
	for _, kind := range kinds {
		b.Run(kind.name+"/verdictd", func(b *testing.B) { benchDecode(b, kind.data) })
		b.Run(kind.name+"/gopacket_parser", func(b *testing.B) { benchParser(b, kind.data) })
		b.Run(kind.name+"/gopacket_lazy", func(b *testing.B) { benchLazy(b, kind.data) })
	}
}

func benchDecode(b *testing.B, data []byte) {
	d := packet.NewDecoder()
	var p packet.Packet
	m := packet.Meta{Length: uint32(len(data))}
	b.ReportAllocs()
	for b.Loop() {
		d.Decode(&m, data, &p)
	}
}

func benchParser(b *testing.B, data []byte) {
	var (
		ip4   layers.IPv4
		ip6   layers.IPv6
		ext   layers.IPv6ExtensionSkipper
		tcp   layers.TCP
		udp   layers.UDP
		icmp4 layers.ICMPv4
		icmp6 layers.ICMPv6
		known gopacket.DecodingLayerContainer = gopacket.DecodingLayerSparse{}
	)
	for _, layer := range []gopacket.DecodingLayer{&ip4, &ip6, &ext, &tcp, &udp, &icmp4, &icmp6} {
		known = known.Put(layer)
	}
	parser := gopacket.NewDecodingLayerParser(firstLayer(data))
	parser.SetDecodingLayerContainer(known)
	parser.IgnoreUnsupported = true
	decoded := make([]gopacket.LayerType, 0, 10)
	b.ReportAllocs()
	for b.Loop() {
		_ = parser.DecodeLayers(data, &decoded) // an error is a result here
	}
}

func benchLazy(b *testing.B, data []byte) {
	first := firstLayer(data)
	b.ReportAllocs()
	for b.Loop() {
		p := gopacket.NewPacket(data, first, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
		p.TransportLayer()
	}
}

func firstLayer(data []byte) gopacket.LayerType {
	if data[0]>>4 == 6 {
		return layers.LayerTypeIPv6
	}
	return layers.LayerTypeIPv4
}
