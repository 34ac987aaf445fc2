package policy_test

import (
	"math/rand/v2"
	"net/netip"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// pick returns one of the choices.
func pick[T any](r *rand.Rand, choices ...T) T { return choices[r.IntN(len(choices))] }

// mutate changes one thing of a packet, to values that policies test for.
func mutate(r *rand.Rand, f *rules.Facts) {
	p, m := f.Packet, f.Meta
	changes := []func(){
		func() { p.Src, p.Version = address(r) },
		func() { p.Dst, _ = address(r) },
		func() { setProtocol(r, p) },
		func() { p.SrcPort = pick[uint16](r, 53, 1024, 40000) },
		func() { p.DstPort = pick[uint16](r, 22, 23, 25, 53, 80, 123, 443, 2003, 8081) },
		func() { p.TCPFlags = packet.TCPFlags(r.IntN(512)) },
		func() { p.Seq, p.AckNum, p.Window = r.Uint32(), r.Uint32(), uint16(r.Uint32()) },
		func() { p.TTL = pick[uint8](r, 1, 64, 255) },
		func() { p.TOS = uint8(r.Uint32()) },
		func() { p.TotalLength = pick[uint32](r, 40, 60, 100, 101, 1500) },
		func() { p.UDPLength = uint16(r.Uint32()) },
		func() { p.MoreFragments = !p.MoreFragments },
		func() { p.ICMPType, p.ICMPCode = pick[uint8](r, 0, 3, 5, 8, 128, 135), pick[uint8](r, 0, 3) },
		func() {
			p.Echo, p.EchoID, p.EchoSeq = !p.Echo && p.IsICMP(), uint16(r.Uint32()), pick[uint16](r, 1, 2, 3)
		},
		func() { m.Hook = packet.Hook(r.IntN(5)) },
		func() { m.Mark = pick[uint32](r, 0, 1, 1<<32-1) },
		func() { m.UID, m.HasUID = pick[uint32](r, 0, 105, 1000, 3003), r.IntN(2) == 0 },
		func() { m.GID, m.HasGID = pick[uint32](r, 0, 1000), r.IntN(2) == 0 },
		func() { m.Time = r.Int64N(1 << 61) },
		func() { m.Queue = pick[uint16](r, 0, 1, 7) },
		func() { f.InInterface = pick(r, "", "eth0", "wan0") },
		func() { f.OutInterface = pick(r, "", "eth0") },
	}
	changes[r.IntN(len(changes))]()
}

func address(r *rand.Rand) (netip.Addr, uint8) {
	a := pick(r, "10.0.0.53", "10.99.0.1", "192.168.1.7", "8.8.8.8", "172.16.0.9", "fd99::1", "2001:db8::1", "fe80::1")
	addr := netip.MustParseAddr(a)
	if addr.Is4() {
		return addr, 4
	}
	return addr, 6
}

func setProtocol(r *rand.Rand, p *packet.Packet) {
	p.Status = pick(r, packet.OK, packet.OK, packet.OK, packet.Fragment)
	p.Protocol = pick[uint8](r, packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMP, packet.ProtoICMPv6, packet.ProtoSCTP, 47)
	p.HasPorts = p.Status == packet.OK && (p.Protocol == packet.ProtoTCP || p.Protocol == packet.ProtoUDP || p.Protocol == packet.ProtoSCTP)
	p.Echo = p.Echo && p.IsICMP()
}

// clone returns a copy of f that shares nothing.
func clone(f *rules.Facts) *rules.Facts {
	m, p := *f.Meta, *f.Packet
	return &rules.Facts{Meta: &m, Packet: &p, InInterface: f.InInterface, OutInterface: f.OutInterface}
}

func randomFacts(r *rand.Rand) *rules.Facts {
	f := facts(packet.ProtoTCP, "10.99.0.1:40000", "192.168.1.7:443")
	for range 40 {
		mutate(r, f)
	}
	return f
}
