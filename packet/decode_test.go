package packet_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/verdictd/verdictd/packet"
)

type decodeTest struct {
	name string
	meta packet.Meta
	data []byte
	want packet.Packet
}

// goodTests are packets that decode, one or more of each kind.
func goodTests() []decodeTest {
	return slices.Concat(good4Tests(), good6Tests(), icmpTests())
}

func good4Tests() []decodeTest {
	const ah, gre, esp = 51, 47, 50
	return []decodeTest{
		{name: "tcp4", data: ip4(6, tcp("hi")), want: from4(6, 42, withTCP("hi"))},
		{name: "tcp4 ethertype", meta: packet.Meta{EtherType: packet.EtherTypeIPv4}, data: ip4(6, tcp("")), want: from4(6, 40, withTCP(""))},
		{name: "tcp4 all flags", data: ip4(6, tcp("", set(12, 0x5f, 0xff))), want: from4(6, 40, withTCP(""),
			func(p *packet.Packet) { p.TCPFlags, p.Begins = 0x1ff, false })},
		{name: "tcp4 bad tcp option", data: ip4(6, tcp("\x02\x00zzhi", set(12, 0x60))), want: from4(6, 46, withTCP("hi"))},
		{name: "tcp4 used source route", data: ip4Options(6, []byte{131, 7, 8, 10, 9, 8, 7, 0}, tcp("hi")), want: from4(6, 50, withTCP("hi"))},
		{name: "tcp4 source route behind the end", data: ip4Options(6, []byte{0, 131, 7, 4, 10, 9, 8, 7}, tcp("hi")), want: from4(6, 50, withTCP("hi"))},
		{name: "tcp4 bad ip option", data: ip4Options(6, []byte{0x94, 0, 0, 0}, tcp("hi")), want: from4(6, 46, withTCP("hi"))},
		{name: "tcp4 trailing bytes", data: append(ip4(6, tcp("hi")), "pad"...), want: from4(6, 42, withTCP("hi"))},
		{name: "tcp4 payload cut", meta: packet.Meta{Length: 1500}, data: ip4(6, tcp("hi"), set16(2, 1500)), want: from4(6, 1500, withTCP("hi"))},
		{name: "tcp4 gso total length 0", meta: packet.Meta{Length: 70000, GSO: true}, data: ip4(6, tcp("hi"), set16(2, 0)), want: from4(6, 70000, withTCP("hi"))},
		{name: "tcp4 wire length below data", meta: packet.Meta{Length: 1}, data: ip4(6, tcp("hi")), want: from4(6, 42, withTCP("hi"))},
		{name: "tcp4 dont fragment", data: ip4(6, tcp(""), set(6, 0xc0)), want: from4(6, 40, withTCP(""),
			func(p *packet.Packet) { p.DontFragment = true })},
		{name: "tcp4 first fragment", data: ip4(6, tcp("four"), set(6, 0x20)), want: from4(6, 44, withTCP("four"), withFragment(0, true))},
		{name: "tcp4 first fragment odd size", data: ip4(6, tcp("fourabc"), set(6, 0x20)), want: from4(6, 47, withTCP("four"), withFragment(0, true))},
		{name: "tcp4 second fragment", data: ip4(6, []byte("rest"), set16(6, 3)), want: from4(6, 24, withFragment(24, false), asFragment)},
		{name: "tcp4 middle fragment", data: ip4(6, []byte("restrest"), set16(6, 0x2003)), want: from4(6, 28, withFragment(24, true), asFragment)},
		{name: "udp4", data: ip4(17, udp("query")), want: from4(17, 33, withUDP(13, "query"))},
		{name: "udp4 length below payload", data: ip4(17, udp("query", set16(4, 10))), want: from4(17, 33, withUDP(10, "qu"))},
		{name: "udp4 first fragment", data: ip4(17, udp("12345678", set16(4, 4000)), set(6, 0x20)), want: from4(17, 36, withUDP(4000, "12345678"), withFragment(0, true))},
		{name: "udp4 second fragment", data: ip4(17, []byte("rest"), set16(6, 1)), want: from4(17, 24, withFragment(8, false), asFragment)},
		{name: "udp4 payload cut", meta: packet.Meta{Length: 528}, data: ip4(17, udp("", set16(4, 508)), set16(2, 528)), want: from4(17, 528, withUDP(508, ""))},
		{name: "udp-lite", data: ip4(136, udp("x", set16(4, 8))), want: from4(136, 29, withPorts(53, 'x'))},
		{name: "udp-lite whole coverage", data: ip4(136, udp("x", set16(4, 0))), want: from4(136, 29, withPorts(53, 'x'))},
		{name: "sctp4", data: ip4(132, sctp()), want: from4(132, 36, withPorts(3736, 1, 0, 0, 4), begins)},
		{name: "dccp4", data: ip4(33, dccp()), want: from4(33, 40, withPorts(99), begins)},
		{name: "dccp4 short sequence", data: ip4(33, dccp(set(4, 3), set(8, 0))), want: from4(33, 40, withPorts(99, 0, 0, 0, 1, 0, 0, 0, 2), begins)},
		{name: "dccp4 response", data: ip4(33, dccp(set(8, 3))), want: from4(33, 40, withPorts(99))},
		{name: "gre4", data: ip4(gre, []byte("gre")), want: from4(gre, 23, func(p *packet.Packet) { p.Payload = []byte("gre") })},
		{name: "ah4", data: ip4(ah, tcp("")), want: from4(ah, 40, func(p *packet.Packet) { p.Payload = tcp("") })},
		{name: "esp4 empty", data: ip4(esp, nil), want: from4(esp, 20)},
		{name: "icmpv6 in ipv4", data: ip4(58, icmp(128, 0, nil)), want: from4(58, 28, func(p *packet.Packet) { p.Payload = icmp(128, 0, nil) })},
	}
}

func good6Tests() []decodeTest {
	many := tcp("")
	next := byte(6)
	for range 64 {
		many, next = ext(next, 0, many), 60
	}
	mapped := netip.MustParseAddr("::ffff:192.0.2.1")
	return []decodeTest{
		{name: "tcp6", data: ip6(6, tcp("hi")), want: from6(6, 62, withTCP("hi"))},
		{name: "tcp6 mapped source", data: ip6(6, tcp(""), func(b []byte) { copy(b[8:24], mapped.AsSlice()) }), want: func() packet.Packet {
			p := from6(6, 60, withTCP(""))
			p.Src = mapped
			return p
		}()},
		{name: "tcp6 trailing bytes", data: append(ip6(6, tcp("hi")), "pad"...), want: from6(6, 62, withTCP("hi"))},
		{name: "tcp6 gso payload length 0", meta: packet.Meta{Length: 70000, GSO: true}, data: ip6(6, tcp("hi"), set16(4, 0)), want: from6(6, 70000, withTCP("hi"))},
		{name: "tcp6 hop-by-hop", data: ip6(0, ext(6, 0, tcp("hi"))), want: from6(6, 70, withTCP("hi"), withExt(1))},
		{name: "tcp6 all extensions", data: ip6(0, ext(60, 1, ext(43, 2, ext(44, 0, frag(60, 0, false, ext(6, 0, tcp("hi"))))))),
			want: from6(6, 126, withTCP("hi"), withExt(5), withID(9))},
		{name: "tcp6 64 extensions", data: ip6(60, many), want: from6(6, 572, withTCP(""), withExt(64))},
		{name: "tcp6 used up routing header", data: ip6(43, ext(6, 2, tcp(""), set(2, 200))), want: from6(6, 84, withTCP(""), withExt(1))},
		{name: "tcp6 atomic fragment", data: ip6(44, frag(6, 0, false, tcp(""))), want: from6(6, 68, withTCP(""), withExt(1), withID(9))},
		{name: "tcp6 atomic fragment reserved", data: ip6(44, frag(6, 0, false, tcp("longer than eight"), set(1, 1), set(3, 6))),
			want: from6(6, 85, withTCP("longer than eight"), withExt(1), withID(9))},
		{name: "tcp6 first fragment", data: ip6(44, frag(6, 0, true, tcp("four"))), want: from6(6, 72, withTCP("four"), withExt(1), withID(9), withFragment(0, true))},
		{name: "tcp6 second fragment", data: ip6(44, frag(6, 24, false, tcp(""))), want: from6(6, 68, withExt(1), withID(9), withFragment(24, false), asFragment)},
		{name: "udp6", data: ip6(17, udp("query")), want: from6(17, 53, withUDP(13, "query"))},
		{name: "udp6 first fragment", data: ip6(44, frag(17, 0, true, udp("12345678", set16(4, 4000)))),
			want: from6(17, 64, withUDP(4000, "12345678"), withExt(1), withID(9), withFragment(0, true))},
		{name: "fragment of destination options", data: ip6(44, frag(60, 8, true, ext(6, 0, nil))), want: from6(60, 56, withExt(1), withID(9), withFragment(8, true), asFragment)},
		{name: "sctp6", data: ip6(132, sctp()), want: from6(132, 56, withPorts(3736, 1, 0, 0, 4), begins)},
		{name: "ah6", data: ip6(51, ext(6, 0, tcp(""))), want: from6(51, 68, func(p *packet.Packet) { p.Payload = ext(6, 0, tcp("")) })},
		{name: "esp6", data: ip6(60, ext(50, 0, []byte("esp"))), want: from6(50, 51, withExt(1), func(p *packet.Packet) { p.Payload = []byte("esp") })},
		{name: "no next header", data: ip6(59, nil), want: from6(59, 40)},
		{name: "mobility", data: ip6(135, ext(59, 0, nil)), want: from6(135, 48, func(p *packet.Packet) { p.Payload = ext(59, 0, nil) })},
		{name: "icmp in ipv6", data: ip6(1, icmp(8, 0, nil)), want: from6(1, 48, func(p *packet.Packet) { p.Payload = icmp(8, 0, nil) })},
	}
}

func icmpTests() []decodeTest {
	tests := []decodeTest{
		{name: "icmp echo request", data: ip4(1, icmp(8, 0, []byte("x"))), want: from4(1, 29, withICMP(8, 0, []byte("x")), withEcho)},
		{name: "icmp echo reply", data: ip4(1, icmp(0, 0, nil)), want: from4(1, 28, withICMP(0, 0, nil), withEcho)},
		{name: "icmp timestamp", data: ip4(1, icmp(13, 0, nil)), want: from4(1, 28, withICMP(13, 0, nil))},
		{name: "icmpv6 echo request", data: ip6(58, icmp(128, 0, []byte("x"))), want: from6(58, 49, withICMP(128, 0, []byte("x")), withEcho)},
		{name: "icmpv6 echo reply", data: ip6(58, icmp(129, 0, nil)), want: from6(58, 48, withICMP(129, 0, nil), withEcho)},
		{name: "icmpv6 neighbour solicitation", data: ip6(58, icmp(135, 0, dst6.AsSlice())), want: from6(58, 64, withICMP(135, 0, dst6.AsSlice()))},
		{name: "icmp echo with embedded bytes", data: ip4(1, icmp(8, 0, ip4(6, tcp("")))), want: from4(1, 68, withICMP(8, 0, ip4(6, tcp(""))), withEcho)},
	}
	for _, typ := range []byte{3, 11, 12} {
		tests = append(tests, innerTest(4, typ, "tcp", ip4(6, tcp("")), key4(6, 40000, 443)))
	}
	for _, typ := range []byte{1, 2, 3, 4} {
		tests = append(tests, innerTest(6, typ, "tcp", ip6(6, tcp("")), key6(6, 40000, 443)))
	}
	return append(tests,
		innerTest(4, 3, "first 8 bytes of tcp", ip4(6, tcp(""))[:28], key4(6, 40000, 443)),
		innerTest(4, 3, "first 4 bytes of udp", ip4(17, udp("query"))[:24], key4(17, 40000, 53)),
		innerTest(4, 3, "udp behind options", ip4Options(17, make([]byte, 8), udp("")), key4(17, 40000, 53)),
		innerTest(4, 3, "total length 0", ip4(17, udp(""), set16(2, 0)), key4(17, 40000, 53)),
		innerTest(4, 3, "first fragment", ip4(17, udp(""), set(6, 0x20)), key4(17, 40000, 53)),
		innerTest(4, 11, "echo request", ip4(1, icmp(8, 0, nil)), asks(key4(1, 0x0102, 0x0102))),
		innerTest(4, 11, "timestamp", ip4(1, icmp(13, 0, nil)), key4(1, 0, 0)),
		innerTest(4, 3, "sctp", ip4(132, sctp()), key4(132, 40000, 3736)),
		innerTest(4, 3, "dccp", ip4(33, dccp()), key4(33, 40000, 99)),
		innerTest(4, 3, "gre", ip4(47, nil), key4(47, 0, 0)),
		innerTest(6, 1, "udp behind extensions", ip6(0, ext(60, 0, ext(44, 0, frag(17, 0, false, udp(""))))), key6(17, 40000, 53)),
		innerTest(6, 2, "cut big packet", ip6(17, udp(""), set16(4, 9000)), key6(17, 40000, 53)),
		innerTest(6, 3, "echo request", ip6(58, icmp(128, 0, nil)), asks(key6(58, 0x0102, 0x0102))),
		innerTest(6, 3, "echo reply", ip6(58, icmp(129, 0, nil)), answers(key6(58, 0x0102, 0x0102))),

		innerTest(4, 3, "nothing", nil, packet.Key{}),
		innerTest(4, 3, "second fragment", ip4(17, udp(""), set16(6, 1)), packet.Key{}),
		innerTest(4, 3, "cut header", ip4(17, nil)[:19], packet.Key{}),
		innerTest(4, 3, "cut ports", ip4(17, udp(""))[:23], packet.Key{}),
		innerTest(4, 3, "cut echo", ip4(1, icmp(8, 0, nil))[:27], packet.Key{}),
		innerTest(4, 3, "icmp error", ip4(1, icmp(3, 0, ip4(6, tcp("")))), packet.Key{}),
		innerTest(4, 3, "ipv6", ip6(6, tcp("")), packet.Key{}),
		innerTest(4, 3, "version 5", ip4(6, tcp(""), set(0, 0x55)), packet.Key{}),
		innerTest(6, 1, "version 7", ip6(6, tcp(""), set(0, 0x70)), packet.Key{}),
		innerTest(4, 3, "redirect", ip4(1, icmp(5, 0, ip4(6, tcp("")))), packet.Key{}),
		innerTest(4, 4, "tcp, source quench", ip4(6, tcp("")), packet.Key{}),
		innerTest(4, 5, "tcp, redirect", ip4(6, tcp("")), packet.Key{}),
		innerTest(4, 6, "tcp, of a type that is none", ip4(6, tcp("")), packet.Key{}),
		innerTest(6, 5, "tcp, of a type that is none", ip6(6, tcp("")), packet.Key{}),
		innerTest(6, 0, "tcp, of a type that is none", ip6(6, tcp("")), packet.Key{}),
		innerTest(6, 1, "ipv4", ip4(6, tcp("")), packet.Key{}),
		innerTest(6, 1, "second fragment", ip6(44, frag(17, 8, false, udp(""))), packet.Key{}),
		innerTest(6, 1, "cut extension", ip6(60, ext(17, 3, nil), set16(4, 80))[:56], packet.Key{}),
		innerTest(6, 1, "segments left", ip6(43, ext(17, 0, udp(""), set(3, 1))), packet.Key{}),
	)
}

// asks returns the key of an echo request.
func asks(k packet.Key) packet.Key {
	k.Echo = packet.EchoRequest
	return k
}

// answers returns that of an echo reply.
func answers(k packet.Key) packet.Key {
	k.Echo = packet.EchoReply
	return k
}

// innerTest is an ICMP error about inner. No key means that it must have none.
func innerTest(version, typ byte, name string, inner []byte, key packet.Key) decodeTest {
	edits := []func(*packet.Packet){withICMP(typ, 1, inner)}
	if key != (packet.Key{}) {
		edits = append(edits, withInner(key))
	}
	test := decodeTest{name: "icmp error about " + name, data: ip4(1, icmp(typ, 1, inner))}
	test.want = from4(1, uint32(len(test.data)), edits...)
	if version == 6 {
		test.name = "icmpv6 error about " + name
		test.data = ip6(58, icmp(typ, 1, inner))
		test.want = from6(58, uint32(len(test.data)), edits...)
	}
	return test
}

func TestDecode(t *testing.T) {
	d := packet.NewDecoder()
	d.LetPanicsThrough()
	for _, test := range goodTests() {
		t.Run(test.name, func(t *testing.T) {
			got := packet.Packet{Reason: "of the packet before", HasPorts: true, ExtHeaders: 9}
			d.Decode(&test.meta, test.data, &got)
			if diff := cmp.Diff(test.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("Decode(% x): (-want +got)\n%s", test.data, diff)
			}
		})
	}
}

type badTest struct {
	name   string
	meta   packet.Meta
	data   []byte
	reason string // a part of it
}

// badTests are packets that must not decode.
func badTests() []badTest {
	return slices.Concat(bad4Tests(), bad6Tests())
}

func bad4Tests() []badTest {
	cut := packet.Meta{Length: 1500}
	is4, is6 := packet.Meta{EtherType: packet.EtherTypeIPv4}, packet.Meta{EtherType: packet.EtherTypeIPv6}
	return []badTest{
		{name: "empty", reason: "empty packet"},
		{name: "version 5", data: ip4(6, tcp(""), set(0, 0x55)), reason: "neither 4 nor 6"},
		{name: "version 5 ethertype", meta: is4, data: ip4(6, tcp(""), set(0, 0x55)), reason: "contradicts the ethertype"},
		{name: "ipv4 as ipv6", meta: is6, data: ip4(6, tcp("")), reason: "contradicts the ethertype"},
		{name: "ipv6 as ipv4", meta: is4, data: ip6(6, tcp("")), reason: "contradicts the ethertype"},
		{name: "ip header short", data: ip4(6, nil)[:19], reason: "shorter than an ipv4 header"},
		{name: "ip header cut", meta: cut, data: ip4(6, nil)[:19], reason: "cut short"},
		{name: "ip header length 16", data: ip4(6, tcp(""), set(0, 0x44)), reason: "header length below 20"},
		{name: "ip options beyond packet", data: ip4(6, tcp(""), set(0, 0x4f)), reason: "total length below the header length"},
		{name: "ip options cut", meta: cut, data: ip4Options(6, make([]byte, 8), nil, set16(2, 1500))[:24], reason: "cut short"},
		{name: "loose source route", data: ip4Options(6, []byte{1, 131, 7, 4, 10, 9, 8, 7}, tcp("")), reason: "ipv4 source route"},
		{name: "strict source route", data: ip4Options(6, []byte{137, 11, 8, 10, 9, 8, 7, 10, 9, 8, 6, 0}, tcp("")), reason: "ipv4 source route"},
		{name: "source route behind another option", data: ip4Options(6, []byte{7, 3, 4, 131, 3, 1, 0, 0}, tcp("")), reason: "ipv4 source route"},
		{name: "source route without a pointer", data: ip4Options(6, []byte{131, 2, 0, 0}, tcp("")), reason: "ipv4 source route"},
		{name: "total length 0", data: ip4(6, tcp(""), set16(2, 0)), reason: "total length below the header length"},
		{name: "total length below header", data: ip4(6, tcp(""), set16(2, 19)), reason: "total length below the header length"},
		{name: "total length beyond packet", data: ip4(6, tcp(""), set16(2, 41)), reason: "total length beyond the packet"},
		{name: "tcp no header", data: ip4(6, nil), reason: "ends inside the transport header"},
		{name: "tcp header short", data: ip4(6, tcp("")[:19]), reason: "ends inside the transport header"},
		{name: "tcp header beyond total length", data: ip4(6, tcp(""), set16(2, 39)), reason: "ends inside the transport header"},
		{name: "tcp header cut", meta: cut, data: ip4(6, tcp("")[:19], set16(2, 1500)), reason: "cut short"},
		{name: "tcp options cut", meta: cut, data: ip4(6, tcp("", set(12, 0x60)), set16(2, 1500)), reason: "cut short"},
		{name: "tcp data offset 4", data: ip4(6, tcp("", set(12, 0x40))), reason: "data offset below 5"},
		{name: "tcp data offset beyond segment", data: ip4(6, tcp("abc", set(12, 0x60))), reason: "ends inside the transport header"},
		{name: "tcp tiny fragment", data: ip4(6, tcp("")[:8], set(6, 0x20)), reason: "first fragment ends inside"},
		{name: "tcp tiny fragment odd size", data: ip4(6, tcp("abc"), set(6, 0x20)), reason: "first fragment ends inside"},
		{name: "tcp tiny fragment empty", data: ip4(6, nil, set(6, 0x20)), reason: "first fragment ends inside"},
		{name: "tcp tiny fragment options", data: ip4(6, tcp("four", set(12, 0x70)), set(6, 0x20)), reason: "first fragment ends inside"},
		{name: "tcp fragment at 8", data: ip4(6, tcp(""), set16(6, 1)), reason: "starts inside the transport header"},
		{name: "fragment beyond 65535", data: ip4(6, tcp(""), set16(6, 0x1fff)), reason: "beyond 65535"},
		{name: "udp header short", data: ip4(17, udp("")[:7]), reason: "ends inside the transport header"},
		{name: "udp length 0", data: ip4(17, udp("", set16(4, 0))), reason: "udp length below 8"},
		{name: "udp length 7", data: ip4(17, udp("", set16(4, 7))), reason: "udp length below 8"},
		{name: "udp length beyond packet", data: ip4(17, udp("", set16(4, 9))), reason: "udp length beyond the packet"},
		{name: "udp length 7 in first fragment", data: ip4(17, udp("", set16(4, 7)), set(6, 0x20)), reason: "udp length below 8"},
		{name: "udp length beyond total length", data: append(ip4(17, udp("", set16(4, 9))), 0), reason: "udp length beyond the packet"},
		{name: "udp-lite coverage 7", data: ip4(136, udp("", set16(4, 7))), reason: "coverage"},
		{name: "udp-lite coverage beyond packet", data: ip4(136, udp("", set16(4, 9))), reason: "coverage"},
		{name: "sctp short", data: ip4(132, sctp()[:11]), reason: "ends inside the transport header"},
		{name: "dccp short", data: ip4(33, dccp()[:11]), reason: "ends inside the transport header"},
		{name: "dccp data offset 3 with long sequence", data: ip4(33, dccp(set(4, 3))), reason: "dccp data offset"},
		{name: "dccp data offset beyond packet", data: ip4(33, dccp(set(4, 6))), reason: "ends inside the transport header"},
		{name: "icmp short", data: ip4(1, icmp(8, 0, nil)[:7]), reason: "ends inside the transport header"},
	}
}

func bad6Tests() []badTest {
	cut := packet.Meta{Length: 1500}
	many := tcp("")
	next := byte(6)
	for range 65 {
		many, next = ext(next, 0, many), 60
	}
	return []badTest{
		{name: "ip6 header short", data: ip6(6, nil)[:39], reason: "shorter than an ipv6 header"},
		{name: "ip6 header cut", meta: cut, data: ip6(6, nil)[:39], reason: "cut short"},
		{name: "payload length beyond packet", data: ip6(6, tcp(""), set16(4, 21)), reason: "payload length beyond the packet"},
		{name: "payload length 0", data: ip6(6, tcp(""), set16(4, 0)), reason: "ends inside the transport header"},
		{name: "jumbo payload length 0", data: ip6(0, ext(6, 0, tcp("")), set16(4, 0)), reason: "extension header beyond the packet"},
		{name: "hop-by-hop twice", data: ip6(0, ext(0, 0, ext(6, 0, tcp("")))), reason: "hop-by-hop"},
		{name: "hop-by-hop after options", data: ip6(60, ext(0, 0, ext(6, 0, tcp("")))), reason: "hop-by-hop"},
		{name: "segments left", data: ip6(43, ext(6, 0, tcp(""), set(3, 1))), reason: "segments left"},
		{name: "extensions of 2056 bytes", data: ip6(60, ext(6, 251, append(make([]byte, 251*8), tcp("")...))), reason: "beyond 2048"},
		{name: "extension cut", meta: cut, data: ip6(60, ext(6, 3, nil), set16(4, 1400)), reason: "cut short"},
		{name: "65 extensions", data: ip6(60, many), reason: "too many"},
		{name: "two fragment headers", data: ip6(44, frag(44, 0, false, frag(6, 0, false, tcp("")))), reason: "more than one"},
		{name: "extension short", data: ip6(60, ext(6, 0, nil)[:7]), reason: "extension header beyond"},
		{name: "extension beyond packet", data: ip6(60, ext(6, 0, nil, set(1, 1))), reason: "extension header beyond"},
		{name: "extension cut", meta: cut, data: ip6(60, ext(6, 0, nil, set(1, 1)), set16(4, 1000)), reason: "cut short"},
		{name: "extension not there", meta: cut, data: ip6(60, nil, set16(4, 1000)), reason: "cut short"},
		{name: "tcp6 no header", data: ip6(6, nil), reason: "ends inside the transport header"},
		{name: "tcp6 tiny fragment", data: ip6(44, frag(6, 0, true, tcp("")[:8])), reason: "first fragment ends inside"},
		{name: "tcp6 fragment at 16", data: ip6(44, frag(6, 16, false, tcp(""))), reason: "starts inside the transport header"},
		{name: "udp6 length 0", data: ip6(17, udp("", set16(4, 0))), reason: "udp length below 8"},
		{name: "icmpv6 short", data: ip6(58, icmp(128, 0, nil)[:7]), reason: "ends inside the transport header"},
	}
}

// TestDecodeMalformed tests that what cannot be decoded keeps nothing that a
// policy could mistake for a decoded field.
func TestDecodeMalformed(t *testing.T) {
	d := packet.NewDecoder()
	d.LetPanicsThrough()
	for _, test := range badTests() {
		t.Run(test.name, func(t *testing.T) {
			var got packet.Packet
			d.Decode(&test.meta, test.data, &got)
			if got.Status != packet.Malformed || !strings.Contains(got.Reason, test.reason) {
				t.Errorf("Decode(% x) = %v, reason %q, want malformed, %q", test.data, got.Status, got.Reason, test.reason)
			}
			want := packet.Packet{Version: got.Version, Src: got.Src, Dst: got.Dst, Reason: got.Reason, Cut: test.reason == "cut short"}
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("Decode(% x) left fields behind: (-want +got)\n%s", test.data, diff)
			}
		})
	}
}

// TestDecodeAddressesOfMalformed tests that a record of a malformed packet
// can still say whose it was.
func TestDecodeAddressesOfMalformed(t *testing.T) {
	d := packet.NewDecoder()
	tests := []struct {
		name     string
		data     []byte
		src, dst netip.Addr
	}{
		{"ipv4", ip4(6, nil), src4, dst4},
		{"ipv4 bad length", ip4(6, nil, set16(2, 9)), src4, dst4},
		{"ipv6", ip6(6, nil), src6, dst6},
		{"ipv6 bad extension", ip6(60, ext(0, 0, nil)), src6, dst6},
		{"short", ip6(6, nil)[:39], netip.Addr{}, netip.Addr{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got packet.Packet
			d.Decode(&packet.Meta{}, test.data, &got)
			if got.Status != packet.Malformed || got.Src != test.src || got.Dst != test.dst {
				t.Errorf("got %v %v > %v, want malformed %v > %v", got.Status, got.Src, got.Dst, test.src, test.dst)
			}
		})
	}
}

func TestDecodeNotIP(t *testing.T) {
	const arp = 0x0806
	got := packet.Packet{Reason: "of the packet before"}
	packet.NewDecoder().Decode(&packet.Meta{EtherType: arp}, ip4(6, tcp("")), &got)
	if diff := cmp.Diff(packet.Packet{Status: packet.NotIP}, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestDecodeAllocs tests that no kind of packet, good or bad, costs memory.
func TestDecodeAllocs(t *testing.T) {
	tests := goodTests()
	for _, bad := range badTests() {
		tests = append(tests, decodeTest{name: bad.name, meta: bad.meta, data: bad.data})
	}
	d := packet.NewDecoder()
	var p packet.Packet
	for _, test := range tests {
		got := testing.AllocsPerRun(100, func() { d.Decode(&test.meta, test.data, &p) })
		if got != 0 {
			t.Errorf("%s: %v allocs per packet, want 0", test.name, got)
		}
	}
}
