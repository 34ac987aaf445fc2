package replay

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/packet"
)

// view is what a test looks at of a link.
type view struct {
	Ether   uint16
	Rest    string
	Length  uint32
	Broken  string
	Way     way
	Ifindex uint32
	VLANs   []uint16
	Session uint16
}

func viewOf(l *link) view {
	return view{l.EtherType, string(l.rest), l.Length, l.broken, l.way, l.ifindex, append([]uint16(nil), l.vlans[:l.vlanCount]...), l.session}
}

// stripped takes the link layer off a frame that had extra more bytes on the
// wire.
func stripped(t *testing.T, linkType uint32, o binary.ByteOrder, data []byte, extra uint32) *link {
	t.Helper()
	i := &iface{linkType: linkType, strip: stripperOf(linkType), order: o}
	if i.strip == nil {
		t.Fatalf("link type %d is not supported", linkType)
	}
	l := &link{}
	l.strip(&frame{number: 1, data: data, length: uint32(len(data)) + extra, iface: i})
	return l
}

// linkCase is a frame and the link it must give. A want that is not broken
// gets the length of its rest.
type linkCase struct {
	name string
	link uint32
	data []byte
	want view
}

func checkLinks(t *testing.T, tests []linkCase) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want.Broken == "" {
				tt.want.Length = uint32(len(tt.want.Rest)) + 100
			}
			got := viewOf(stripped(t, tt.link, binary.LittleEndian, tt.data, 100))
			if diff := cmp.Diff(got, tt.want); diff != "" {
				t.Errorf("link (-got +want):\n%s", diff)
			}
		})
	}
}

// join puts a link header before a packet.
func join(head string, b []byte) []byte { return append([]byte(head), b...) }

func TestEthernet(t *testing.T) {
	const v4, v6 = packet.EtherTypeIPv4, packet.EtherTypeIPv6
	ip, ip6 := udp4(1, 2, 53, 54, "hello"), tcp6(1, 2)
	tests := []linkCase{
		{"ethernet", 1, ethernet(v4, ip), view{Ether: v4, Rest: string(ip)}},
		{"ethernet, ipv6", 1, ethernet(v6, ip6), view{Ether: v6, Rest: string(ip6)}},
		{"arp", 1, ethernet(0x0806, ip), view{Ether: 0x0806, Rest: string(ip)}},
		{"mpls", 1, ethernet(0x8847, ip), view{Ether: 0x8847, Rest: string(ip)}},
		{"802.3", 1, ethernet(40, ip), view{Ether: etherNone, Rest: string(ip)}},
		{"ethernet without payload", 1, ethernet(v4, nil), view{Ether: v4}},
		{"ethernet cut", 1, ethernet(v4, nil)[:13], view{Broken: "Ethernet header cut short"}},
		{"empty", 1, nil, view{Broken: "Ethernet header cut short"}},
		{"vlan", 1, ethernet(0x8100, vlan(0xe007, v4, ip)), view{Ether: v4, Rest: string(ip), VLANs: []uint16{7}}},
		{"qinq", 1, ethernet(0x88a8, vlan(3, 0x8100, vlan(4, v6, ip6))), view{Ether: v6, Rest: string(ip6), VLANs: []uint16{3, 4}}},
		{"old qinq", 1, ethernet(0x9100, vlan(3, 0x8100, vlan(4, v4, ip))), view{Ether: v4, Rest: string(ip), VLANs: []uint16{3, 4}}},
		{"six tags", 1, ethernet(0x8100, vlan(1, 0x8100, vlan(2, 0x8100, vlan(3, 0x8100, vlan(4, 0x8100, vlan(5, 0x8100, vlan(6, v4, ip))))))),
			view{Ether: v4, Rest: string(ip), VLANs: []uint16{1, 2, 3, 4}}},
		{"vlan cut", 1, ethernet(0x8100, []byte{0, 1, 8}), view{Broken: "VLAN tag cut short"}},
		{"pppoe", 1, ethernet(0x8864, pppoe(9, join("\x00\x21", ip))), view{Ether: v4, Rest: string(ip), Session: 9}},
		{"pppoe, compressed protocol", 1, ethernet(0x8864, pppoe(9, join("\x57", ip6))), view{Ether: v6, Rest: string(ip6), Session: 9}},
		{"pppoe, lcp", 1, ethernet(0x8864, pppoe(9, []byte("\xc0\x21xyz"))), view{Ether: etherNone, Rest: "xyz", Session: 9}},
		{"pppoe, other version", 1, ethernet(0x8864, []byte("\x21\x00\x00\x01\x00\x00\x00\x21")), view{Ether: etherNone, Rest: "\x21\x00\x00\x01\x00\x00\x00\x21"}},
		{"pppoe cut", 1, ethernet(0x8864, []byte{0x11, 0, 0, 9, 0}), view{Broken: "PPPoE header cut short"}},
		{"pppoe, ppp cut", 1, ethernet(0x8864, []byte{0x11, 0, 0, 9, 0, 0, 0}), view{Broken: "PPP header cut short", Session: 9}},
		{"ppp ethernet", 51, pppoe(9, join("\x00\x21", ip)), view{Ether: v4, Rest: string(ip), Session: 9}},
	}
	checkLinks(t, tests)
}

func TestOtherLinkTypes(t *testing.T) {
	const v4, v6 = packet.EtherTypeIPv4, packet.EtherTypeIPv6
	ip, ip6 := udp4(1, 2, 53, 54, "hello"), tcp6(1, 2)
	tests := []linkCase{
		{"null, little endian", 0, join("\x02\x00\x00\x00", ip), view{Ether: v4, Rest: string(ip)}},
		{"null, big endian", 0, join("\x00\x00\x00\x02", ip), view{Ether: v4, Rest: string(ip)}},
		{"null, linux ipv6", 0, join("\x0a\x00\x00\x00", ip6), view{Ether: v6, Rest: string(ip6)}},
		{"null, openbsd ipv6", 0, join("\x00\x00\x00\x18", ip6), view{Ether: v6, Rest: string(ip6)}},
		{"null, freebsd ipv6", 0, join("\x1c\x00\x00\x00", ip6), view{Ether: v6, Rest: string(ip6)}},
		{"null, darwin ipv6", 0, join("\x1e\x00\x00\x00", ip6), view{Ether: v6, Rest: string(ip6)}},
		{"null, other", 0, []byte("\x07\x00\x00\x00x"), view{Ether: etherNone, Rest: "x"}},
		{"null cut", 0, []byte("\x02\x00\x00"), view{Broken: "loopback header cut short"}},
		{"loop", 108, join("\x00\x00\x00\x02", ip), view{Ether: v4, Rest: string(ip)}},
		{"raw", 101, ip, view{Rest: string(ip)}},
		{"raw 12", 12, ip6, view{Rest: string(ip6)}},
		{"raw 14", 14, ip, view{Rest: string(ip)}},
		{"ipv4", 228, ip, view{Ether: v4, Rest: string(ip)}},
		{"ipv6", 229, ip6, view{Ether: v6, Rest: string(ip6)}},
		{"sll to us", 113, sll(0, 1, v4, ip), view{Ether: v4, Rest: string(ip), Way: wayIn}},
		{"sll multicast", 113, sll(2, 1, v4, ip), view{Ether: v4, Rest: string(ip), Way: wayIn}},
		{"sll to another host", 113, sll(3, 1, v4, ip), view{Ether: v4, Rest: string(ip)}},
		{"sll outgoing", 113, sll(4, 1, v6, ip6), view{Ether: v6, Rest: string(ip6), Way: wayOut}},
		{"sll vlan", 113, sll(0, 1, 0x8100, vlan(5, v4, ip)), view{Ether: v4, Rest: string(ip), Way: wayIn, VLANs: []uint16{5}}},
		{"sll llc", 113, sll(0, 1, 4, ip), view{Ether: etherNone, Rest: string(ip), Way: wayIn}},
		{"sll netlink", 113, sll(4, 824, v4, ip), view{Ether: etherNone, Rest: string(ip), Way: wayOut}},
		{"sll cut", 113, sll(0, 1, v4, nil)[:15], view{Broken: "SLL header cut short"}},
		{"sll2", 276, sll2(4, v4, 3, ip), view{Ether: v4, Rest: string(ip), Way: wayOut, Ifindex: 3}},
		{"sll2 cut", 276, sll2(0, v4, 3, nil)[:19], view{Broken: "SLL2 header cut short"}},
		{"ppp", 9, join("\x00\x21", ip), view{Ether: v4, Rest: string(ip)}},
		{"ppp in hdlc", 9, join("\xff\x03\x00\x57", ip6), view{Ether: v6, Rest: string(ip6)}},
		{"ppp hdlc", 50, join("\xff\x03\x21", ip), view{Ether: v4, Rest: string(ip)}},
		{"cisco hdlc as ppp", 50, join("\x0f\x00\x08\x00", ip), view{Ether: v4, Rest: string(ip)}},
		{"ppp cut", 9, []byte("\xff\x03\x00"), view{Broken: "PPP header cut short"}},
		{"ppp empty", 9, nil, view{Broken: "PPP header cut short"}},
		{"cisco hdlc", 104, join("\x8f\x00\x86\xdd", ip6), view{Ether: v6, Rest: string(ip6)}},
		{"cisco hdlc cut", 104, []byte("\x0f\x00\x08"), view{Broken: "C-HDLC header cut short"}},
	}
	checkLinks(t, tests)
}

func TestNFLOG(t *testing.T) {
	for name, o := range map[string]order{"little endian": binary.LittleEndian, "big endian": binary.BigEndian} {
		t.Run(name, func(t *testing.T) {
			ip := udp4(1, 2, 53, 54, "hello")
			l := stripped(t, linkNFLOG, o, nflog(2,
				nflogAttr(o, nflogPacketHeader, []byte{8, 0, byte(packet.Output), 0}),
				nflogAttr(o, nflogPrefix, []byte("denied: \x00")),
				nflogAttr(o, nflogMark, be32(0x17)),
				nflogAttr(o, nflogInDev, be32(2)), nflogAttr(o, nflogOutDev, be32(3)),
				nflogAttr(o, nflogPhysInDev, be32(4)), nflogAttr(o, nflogPhysOutDev, be32(5)),
				nflogAttr(o, nflogUID, be32(1000)), nflogAttr(o, nflogGID, be32(100)),
				nflogAttr(o, 3, make([]byte, 16)), // its own timestamp
				nflogAttr(o, nflogPayload, ip),
			), 0)
			want := packet.Meta{
				ID: 1, Hook: packet.Output, Length: uint32(len(ip)), EtherType: packet.EtherTypeIPv4,
				In: 2, Out: 3, PhysIn: 4, PhysOut: 5, Mark: 0x17, UID: 1000, GID: 100, HasUID: true, HasGID: true,
			}
			if diff := cmp.Diff(l.Meta, want); diff != "" {
				t.Errorf("meta (-got +want):\n%s", diff)
			}
			if !bytes.Equal(l.rest, ip) || string(l.prefix) != "denied: " || !l.hasHook {
				t.Errorf("got packet %x, prefix %q, hook %t", l.rest, l.prefix, l.hasHook)
			}
		})
	}
}

func TestNFLOGLength(t *testing.T) {
	o := binary.LittleEndian
	ip := udp4(1, 2, 53, 54, strings.Repeat("x", 500))
	ip6 := tcp6(1, 2)
	ip6[4] = 4 // 1044 bytes of payload
	bridged := nflogAttr(o, nflogPacketHeader, []byte{0x86, 0xdd, 9, 0})
	whole := nflog(2, nflogAttr(o, nflogPayload, ip))
	tests := []struct {
		name   string
		data   []byte
		ether  uint16
		length uint32
		broken string
	}{
		{"whole", whole, packet.EtherTypeIPv4, 528, ""},
		{"cut by nflog", nflog(2, nflogAttr(o, nflogPayload, ip[:64])), packet.EtherTypeIPv4, 528, ""},
		{"cut by the snapshot length", whole[:100], packet.EtherTypeIPv4, 528, ""},
		{"ipv6", nflog(10, nflogAttr(o, nflogPayload, ip6)), packet.EtherTypeIPv6, 1084, ""},
		{"bridge", nflog(familyBridge, bridged, nflogAttr(o, nflogPayload, ip6)), packet.EtherTypeIPv6, 1084, ""},
		{"arp", nflog(3, nflogAttr(o, nflogPayload, ip[:28])), etherNone, 28, ""},
		{"no packet", nflog(2, bridged), 0, 0, "NFLOG record without a packet"},
		{"no header", []byte{2, 0, 0}, 0, 0, "NFLOG header cut short"},
		{"attribute cut", append(whole, 1, 2), 0, 0, "NFLOG attribute cut short"},
		{"attribute too short", append(nflog(2), 3, 0, 9, 0), 0, 0, "NFLOG attribute shorter than its header"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := stripped(t, linkNFLOG, o, tt.data, 0)
			if l.EtherType != tt.ether || l.Length != tt.length || l.broken != tt.broken {
				t.Errorf("got %#x, %d bytes, %q, want %#x, %d bytes, %q", l.EtherType, l.Length, l.broken, tt.ether, tt.length, tt.broken)
			}
			if l.hasHook {
				t.Error("got a hook, want none")
			}
		})
	}
}

// TestSupportedLinks compares the list in the error text with the code.
func TestSupportedLinks(t *testing.T) {
	listed := map[uint32]bool{}
	for _, word := range strings.FieldsFunc(supportedLinks, func(r rune) bool { return r == ' ' || r == ',' }) {
		if n, err := strconv.ParseUint(word, 10, 32); err == nil {
			listed[uint32(n)] = true
		}
	}
	for n := range uint32(300) {
		if got := stripperOf(n) != nil; got != listed[n] {
			t.Errorf("link type %d: supported %t, listed %t", n, got, listed[n])
		}
		if stripperOf(n) != nil && linkTypeName(n) != "unknown" {
			t.Errorf("link type %d is supported and named as unsupported", n)
		}
	}
}

func TestLengthless(t *testing.T) {
	tso, tso6, nonext := udp4(1, 2, 3, 4, ""), tcp6(1, 2), tcp6(1, 2)
	tso[2], tso[3] = 0, 0
	tso6[5] = 0
	nonext[5], nonext[6] = 0, 59
	tests := []struct {
		name string
		data []byte
		want bool
	}{
		{"ipv4", udp4(1, 2, 3, 4, ""), false},
		{"ipv4 without length", tso, true},
		{"ipv6", tcp6(1, 2), false},
		{"ipv6 without length", tso6, true},
		{"ipv6 without payload", nonext, false},
		{"short", tso[:19], false},
		{"empty", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := lengthless(tt.data); got != tt.want {
				t.Errorf("got %t, want %t", got, tt.want)
			}
		})
	}
}

func TestHooks(t *testing.T) {
	local := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::1/128")}
	group := udp4(9, 2, 1, 2, "")
	copy(group[16:], []byte{224, 0, 0, 251})
	broadcast := udp4(9, 2, 1, 2, "")
	copy(broadcast[16:], []byte{255, 255, 255, 255})
	loopback := udp4(9, 2, 1, 2, "")
	copy(loopback[12:], []byte{127, 0, 0, 1})
	both := udp4(1, 1, 1, 2, "")
	tests := []struct {
		name    string
		options Options
		link    link
		want    packet.Hook
		in, out uint32
	}{
		{"nothing known", Options{}, link{rest: both}, packet.Forward, 7, 0},
		{"marked in", Options{}, link{way: wayIn}, packet.Input, 7, 0},
		{"marked out", Options{}, link{way: wayOut}, packet.Output, 0, 7},
		{"fixed", Options{FixHook: true, Hook: packet.Postrouting}, link{way: wayIn}, packet.Postrouting, 0, 7},
		{"fixed forward, marked out", Options{FixHook: true, Hook: packet.Forward}, link{way: wayOut}, packet.Forward, 0, 7},
		{"from local", Options{Local: local}, link{rest: udp4(1, 2, 1, 2, "")}, packet.Output, 0, 7},
		{"to local", Options{Local: local}, link{rest: udp4(2, 1, 1, 2, "")}, packet.Input, 7, 0},
		{"from local to local", Options{Local: local}, link{rest: both}, packet.Output, 0, 7},
		{"neither", Options{Local: local}, link{rest: udp4(2, 3, 1, 2, "")}, packet.Forward, 7, 0},
		{"ipv6 from local", Options{Local: local}, link{rest: tcp6(1, 2)}, packet.Output, 0, 7},
		{"local beats marks", Options{Local: local}, link{rest: udp4(2, 3, 1, 2, ""), way: wayIn}, packet.Forward, 7, 0},
		{"multicast", Options{Local: local}, link{rest: group}, packet.Input, 7, 0},
		{"broadcast", Options{Local: local}, link{rest: broadcast}, packet.Input, 7, 0},
		{"loopback", Options{Local: local}, link{rest: loopback}, packet.Output, 0, 7},
		{"no addresses", Options{Local: local}, link{rest: []byte{0x45, 0}}, packet.Forward, 7, 0},
		{"interface by number", Options{}, link{way: wayIn, ifindex: 3}, packet.Input, 3, 0},
		{"nflog", Options{Local: local}, link{rest: both, hasHook: true, placed: true, Meta: packet.Meta{Hook: packet.Input, In: 5}}, packet.Input, 5, 0},
		{"nflog, fixed", Options{FixHook: true, Hook: packet.Output}, link{hasHook: true, placed: true, Meta: packet.Meta{Hook: packet.Input, In: 5}}, packet.Output, 5, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.options.place(&tt.link, 7)
			if l := tt.link; l.Hook != tt.want || l.In != tt.in || l.Out != tt.out {
				t.Errorf("got %v in %d out %d, want %v in %d out %d", l.Hook, l.In, l.Out, tt.want, tt.in, tt.out)
			}
		})
	}
}

func TestInterfaces(t *testing.T) {
	var added []string
	table := interfaces{byName: map[string]uint32{}, added: func(i uint32, name string) {
		added = append(added, strconv.FormatUint(uint64(i-firstIndex), 10)+name)
	}}
	for _, name := range []string{"", "eth0", "wg0", "eth0"} {
		if got := table.name(table.index(name)); got != name {
			t.Errorf("name of the index of %q: got %q", name, got)
		}
	}
	if diff := cmp.Diff(added, []string{"0eth0", "1wg0"}); diff != "" {
		t.Errorf("added (-got +want):\n%s", diff)
	}
	for _, index := range []uint32{0, 3, firstIndex + 2, 1<<32 - 1} {
		if got := table.name(index); got != "" {
			t.Errorf("name of unknown index %d: got %q", index, got)
		}
	}
	for i := range maxInterfaces {
		table.index("many" + strconv.Itoa(i))
	}
	if got := table.index("one too many"); got != 0 {
		t.Errorf("index beyond the limit: got %d, want 0", got)
	}
}
