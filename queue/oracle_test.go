package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
)

// seen is what a reader of the queue learns of a packet.
type seen struct {
	Meta packet.Meta // without Time and Queue
	Data []byte
}

// oracle reads queue 1 of ns with go-nfqueue's own loop and accepts all. stop
// returns what it saw.
func oracle(t *testing.T, ns *lab.Namespace) (stop func() []seen) {
	t.Helper()
	nf, err := nfqueue.Open(&nfqueue.Config{
		NetNS: ns.FD(), NfQueue: 1, MaxQueueLen: 8192, MaxPacketLen: 256, Copymode: nfqueue.NfQnlCopyPacket,
		Flags: nfqueue.NfQaCfgFlagGSO | nfqueue.NfQaCfgFlagUIDGid,
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []seen
	ctx, cancel := context.WithCancel(context.Background())
	err = nf.RegisterWithErrorFunc(ctx, func(a nfqueue.Attribute) int {
		got = append(got, fromOracle(a))
		if err := nf.SetVerdict(*a.PacketID, nfqueue.NfAccept); err != nil {
			t.Error(err)
		}
		return 0
	}, func(error) int { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	return func() []seen {
		cancel()
		nf.Close() // waits for the loop; its unbinding may come after the end of the socket
		return got
	}
}

// fromOracle translates what go-nfqueue decoded.
func fromOracle(a nfqueue.Attribute) seen {
	s := seen{Data: *a.Payload}
	m := &s.Meta
	m.ID, m.Hook, m.EtherType = *a.PacketID, packet.Hook(*a.Hook), *a.HwProtocol
	m.In, m.Out = value(a.InDev), value(a.OutDev)
	m.PhysIn, m.PhysOut = value(a.PhysInDev), value(a.PhysOutDev)
	m.Mark, m.Priority = value(a.Mark), value(a.SkbPrio)
	m.UID, m.HasUID = value(a.UID), a.UID != nil
	m.GID, m.HasGID = value(a.GID), a.GID != nil
	m.Length = uint32(len(s.Data))
	if a.CapLen != nil {
		m.Length = *a.CapLen
	}
	if a.SkbInfo != nil {
		info := binary.BigEndian.Uint32(*a.SkbInfo)
		m.ChecksumPending, m.GSO = info&skbChecksumNotReady != 0, info&skbGSO != 0
	}
	return s
}

func value(p *uint32) uint32 {
	if p == nil {
		return 0
	}
	return *p
}

// The same packets, read by go-nfqueue's loop and then by ours, have the same
// metadata and bytes: each hook, both families, TCP super-packets, marked and
// prioritised packets, local ones with an owner.
func TestLabOracle(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.IPTablesBinary)
	labtest.Leaks(t)
	net := labtest.Router(t)
	r := net.Router
	labtest.BothTables(t, r, "-t", "raw", "-A", "PREROUTING", "-p", "udp", "-j", "MARK", "--set-mark", "0xfedcba98")
	for _, chain := range []string{"INPUT", "FORWARD", "OUTPUT"} {
		for table, num := range map[string]string{"mangle": "1", "filter": "2"} {
			for _, proto := range []string{"udp", "tcp", "icmp"} {
				labtest.IPTables(t, r, "-t", table, "-A", chain, "-p", proto, "-j", "NFQUEUE", "--queue-num", num)
			}
			for _, proto := range []string{"udp", "tcp"} {
				labtest.IP6Tables(t, r, "-t", table, "-A", chain, "-p", proto, "-j", "NFQUEUE", "--queue-num", num)
			}
		}
	}
	stopOracle := oracle(t, r)
	var got []seen
	stop := run(t, open(t, r, Config{Num: 2}), judge(func(m *packet.Meta, data []byte) packet.Verdict {
		s := seen{*m, bytes.Clone(data)}
		s.Meta.Time, s.Meta.Queue, s.Meta.More = 0, 0, false
		got = append(got, s)
		return packet.Verdict{Action: packet.Accept}
	}))
	oracleTraffic(t, net)
	stats := stop()
	want := stopOracle()
	alignOwners(want, got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("go-nfqueue and we differ (-want +got):\n%.4000s", diff)
	}
	if stats.Gaps != 0 || stats.Malformed != 0 || stats.Unknown != 0 {
		t.Errorf("stats %+v", stats)
	}
	kinds := map[string]bool{}
	for i := range got {
		m := &got[i].Meta
		kinds[m.Hook.String()] = true
		kinds["mark"] = kinds["mark"] || m.Mark == 0xfedcba98
		kinds["priority"] = kinds["priority"] || m.Priority != 0
		kinds["owner"] = kinds["owner"] || m.HasUID && m.HasGID
		kinds["gso"] = kinds["gso"] || m.GSO
		kinds["checksum pending"] = kinds["checksum pending"] || m.ChecksumPending
		kinds["cut"] = kinds["cut"] || int(m.Length) > len(got[i].Data)
		kinds["ipv4"] = kinds["ipv4"] || m.EtherType == packet.EtherTypeIPv4
		kinds["ipv6"] = kinds["ipv6"] || m.EtherType == packet.EtherTypeIPv6
	}
	for _, kind := range []string{"input", "forward", "output", "mark", "priority", "owner", "gso", "checksum pending", "cut", "ipv4", "ipv6"} {
		if !kinds[kind] {
			t.Errorf("among %d packets none was %s", len(got), kind)
		}
	}
}

// alignOwners makes want's owner of a TCP packet that of got if only one of
// them has one: the socket was accepted or closed between the first look at
// the packet and the second, and outside of that the kernel knows no owner.
func alignOwners(want, got []seen) {
	for i := range min(len(want), len(got)) {
		w, g, data := &want[i].Meta, &got[i].Meta, want[i].Data
		tcp := len(data) > 9 && (data[0]>>4 == 4 && data[9] == packet.ProtoTCP || data[0]>>4 == 6 && data[6] == packet.ProtoTCP)
		if tcp && w.HasUID != g.HasUID {
			w.HasUID, w.HasGID, w.UID, w.GID = g.HasUID, g.HasGID, g.UID, g.GID
		}
	}
}

// oracleTraffic sends a bit of everything through and to the router and
// returns when all of it has been answered.
func oracleTraffic(t *testing.T, net *lab.Network) {
	t.Helper()
	probe := func(p lab.Probe) {
		t.Helper()
		p.Timeout = 5 * time.Second
		if got, err := net.Client.Probe(p); got != lab.Answered || err != nil {
			t.Errorf("%v to %v: %v, %v", p.Proto, p.To, got, err)
		}
	}
	for _, at := range []struct {
		ns   *lab.Namespace
		addr string
	}{
		{net.Server, "10.99.2.2:7"}, {net.Server, "[fd99:2::2]:7"}, {net.Router, "10.99.1.1:7"}, {net.Router, "[fd99:1::1]:7"},
	} {
		to := netip.MustParseAddrPort(at.addr)
		echo, err := at.ns.Echo(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		probe(lab.Probe{Proto: lab.UDP, To: to})
		probe(lab.Probe{Proto: lab.UDP, To: to, Payload: make([]byte, 1200)})
		probe(lab.Probe{Proto: lab.TCP, To: to, Payload: make([]byte, 200_000)})
		probe(lab.Probe{Proto: lab.ICMP, To: to})
		echo.Close()
	}
	// A forwarded packet's priority follows its type of service: 0x10, low delay.
	p, err := lab.UDPPacket(netip.MustParseAddrPort("10.99.1.2:9"), netip.MustParseAddrPort("10.99.2.2:9"), []byte("urgent"))
	if err != nil {
		t.Fatal(err)
	}
	p[1] = 0x10
	s, err := net.Server.Sink(t.Context(), netip.MustParseAddrPort("10.99.2.2:9"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := net.Client.SendIP(p); err != nil {
		t.Fatal(err)
	}
	if !lab.Poll(5*time.Second, func() bool { return s.Received().Datagrams == 1 }) {
		t.Error("the packet with a type of service did not arrive")
	}
}
