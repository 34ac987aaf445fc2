package packet_test

import (
	"net/netip"
	"reflect"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/verdictd/verdictd/packet"
)

// FuzzDecode compares Decode with two oracles, on any bytes: the flat decoder
// always, gopacket's NewPacket where both must agree. Nothing recovers panics.
func FuzzDecode(f *testing.F) {
	for _, test := range goodTests() {
		f.Add(test.data, test.meta.Length, test.meta.EtherType, test.meta.GSO)
	}
	for _, test := range badTests() {
		f.Add(test.data, test.meta.Length, test.meta.EtherType, test.meta.GSO)
	}
	d := packet.NewDecoder()
	d.LetPanicsThrough()
	f.Fuzz(func(t *testing.T, data []byte, length uint32, etherType uint16, gso bool) {
		m := packet.Meta{Length: length % (1 << 20), EtherType: etherType, GSO: gso}
		var got packet.Packet
		d.Decode(&m, data, &got)
		checkPacket(t, data, &got)
		want := flatDecode(m, data)
		want.Reason, want.Cut = got.Reason, got.Cut
		if !reflect.DeepEqual(want, got) { // cmp.Diff alone is too slow here
			t.Errorf("Decode(%+v, % x) differs from the flat decoder: (-flat +got)\n%s",
				m, data, cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})))
		}
		if isPlain(data, &got) {
			checkGopacket(t, data, &got)
		}
	})
}

// checkPacket tests what Packet promises of every packet.
func checkPacket(t *testing.T, data []byte, p *packet.Packet) {
	t.Helper()
	ok := p.Status == packet.OK
	switch {
	case (p.Reason != "") != (p.Status == packet.Malformed):
		t.Errorf("status %v, reason %q", p.Status, p.Reason)
	case (p.Payload != nil) != ok:
		t.Errorf("status %v, payload %v", p.Status, p.Payload)
	case !ok && (p.HasPorts || p.Echo || p.HasInner):
		t.Errorf("status %v, ports %v, echo %v, inner %v", p.Status, p.HasPorts, p.Echo, p.HasInner)
	case (ok || p.Status == packet.Fragment) && (!p.Src.IsValid() || !p.Dst.IsValid()):
		t.Errorf("status %v, %v > %v", p.Status, p.Src, p.Dst)
	case len(p.Payload) > 0 && !within(data, p.Payload):
		t.Errorf("payload % x is not a part of the packet", p.Payload)
	}
}

// within returns whether part is memory of whole.
func within(whole, part []byte) bool {
	from := uintptr(unsafe.Pointer(unsafe.SliceData(whole)))
	at := uintptr(unsafe.Pointer(unsafe.SliceData(part)))
	return from <= at && at+uintptr(len(part)) <= from+uintptr(len(whole))
}

// isPlain returns whether gopacket must read the packet as Decode did: no IP
// options or extension headers, no fragment, a real length field, no TCP
// options.
func isPlain(data []byte, p *packet.Packet) bool {
	switch {
	case p.Status != packet.OK || p.MoreFragments || p.ExtHeaders > 0:
		return false
	case p.Version == 4 && (data[0] != 0x45 || data[2]|data[3] == 0):
		return false
	case p.Version == 6 && data[4]|data[5] == 0:
		return false
	case p.Protocol == packet.ProtoTCP:
		header := map[uint8]int{4: 20, 6: 40}[p.Version]
		return data[header+12]>>4 == 5
	}
	return p.Protocol == packet.ProtoUDP || p.Protocol == packet.ProtoSCTP
}

func checkGopacket(t *testing.T, data []byte, p *packet.Packet) {
	t.Helper()
	first := layers.LayerTypeIPv4
	if p.Version == 6 {
		first = layers.LayerTypeIPv6
	}
	theirs := gopacket.NewPacket(data, first, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	ip, transport := theirs.NetworkLayer(), theirs.TransportLayer()
	if ip == nil || transport == nil {
		t.Fatalf("gopacket decodes % x as %v, want %v > %v", data, theirs, p.Src, p.Dst)
	}
	src, dst := ip.NetworkFlow().Endpoints()
	sport, dport := transport.TransportFlow().Endpoints()
	key := packet.Key{Version: p.Version, Protocol: p.Protocol,
		Src: addr16(src.Raw()), Dst: addr16(dst.Raw()),
		SrcPort: uint16(u16(sport.Raw())), DstPort: uint16(u16(dport.Raw()))}
	if diff := cmp.Diff(key, p.Key()); diff != "" {
		t.Errorf("Decode(% x) differs from gopacket: (-gopacket +got)\n%s", data, diff)
	}
}

func addr16(b []byte) [16]byte {
	a, _ := netip.AddrFromSlice(b)
	return a.As16()
}
