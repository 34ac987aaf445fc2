package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

func TestFloodCountsExactly(t *testing.T) {
	labtest.Leaks(t)
	p := labtest.Pair(t)
	for _, ends := range [][2]string{{"10.99.0.1", "10.99.0.2"}, {"fd99::1", "fd99::2"}} {
		t.Run(ends[0], func(t *testing.T) {
			sink := sink(t, p.Server, netip.AddrPortFrom(netip.MustParseAddr(ends[1]), 9))
			var from []netip.AddrPort
			for port := range uint16(4) {
				from = append(from, netip.AddrPortFrom(netip.MustParseAddr(ends[0]), 5000+port))
			}
			const count = 20000
			f := lab.Flood{To: sink.Addr(), From: from, Count: count, First: 100, Size: 64}
			sent, err := p.Client.Flood(t.Context(), f)
			if want := (lab.Sent{OK: count}); err != nil || sent != want {
				t.Fatalf("sent %+v, %v, want %+v", sent, err, want)
			}
			got := sink.Wait(count, 5*time.Second)
			if got.Distinct != count || got.Datagrams != count || got.Duplicates+got.Foreign+got.Lost != 0 {
				t.Errorf("received %+v, want %d distinct and nothing else", got, count)
			}
			for _, a := range from {
				if got.Sources[a] != count/len(from) {
					t.Errorf("from %s: got %d, want %d", a, got.Sources[a], count/len(from))
				}
			}
		})
	}
}

func TestSinkTellsKinds(t *testing.T) {
	p := labtest.Pair(t)
	s := sink(t, p.Server, netip.MustParseAddrPort("10.99.0.2:9"))
	flood := func(f lab.Flood) {
		t.Helper()
		f.To = s.Addr()
		if _, err := p.Client.Flood(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	flood(lab.Flood{Count: 3})
	flood(lab.Flood{Count: 2, First: 1})
	flood(lab.Flood{Count: 1, First: 1 << 31})
	short, err := lab.UDPPacket(netip.MustParseAddrPort("10.99.0.1:1"), s.Addr(), []byte{1})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Client.Inject("eth0", short); err != nil {
		t.Fatal(err)
	}
	flood(lab.Flood{Count: 1, First: 3})
	got := s.Wait(4, 5*time.Second)
	if got.Datagrams != 8 || got.Distinct != 4 || got.Duplicates != 2 || got.Foreign != 2 {
		t.Errorf("got %+v, want 8 datagrams: 4 distinct, 2 duplicates, 2 foreign", got)
	}
}

func TestFloodPace(t *testing.T) {
	p := labtest.Pair(t)
	s := sink(t, p.Server, netip.MustParseAddrPort("10.99.0.2:9"))
	const count, rate = 200, 2000
	start := time.Now()
	if _, err := p.Client.Flood(t.Context(), lab.Flood{To: s.Addr(), Count: count, Rate: rate}); err != nil {
		t.Fatal(err)
	}
	least := time.Second*(count-1)/rate - time.Millisecond
	if took := time.Since(start); took < least {
		t.Errorf("%d datagrams at %d/s took %s, want at least %s", count, rate, took, least)
	}
}

func TestFloodEndsWithContext(t *testing.T) {
	p := labtest.Pair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	f := lab.Flood{To: netip.MustParseAddrPort("10.99.0.2:9"), Count: 1000, Rate: 1}
	sent, err := p.Client.Flood(ctx, f)
	if !errors.Is(err, context.DeadlineExceeded) || sent.OK != 1 {
		t.Errorf("got %+v, %v, want 1 sent and %v", sent, err, context.DeadlineExceeded)
	}
}

// TestInjectFragments sends one datagram whole and one in fragments, and lets
// the server's kernel judge both.
func TestInjectFragments(t *testing.T) {
	labtest.Leaks(t)
	p := labtest.Pair(t)
	for _, ends := range [][2]string{{"10.99.0.1:53", "10.99.0.2:9"}, {"[fd99::1]:53", "[fd99::2]:9"}} {
		from, to := netip.MustParseAddrPort(ends[0]), netip.MustParseAddrPort(ends[1])
		for _, way := range []string{"inject", "send"} {
			t.Run(fmt.Sprintf("%s from %s", way, from), func(t *testing.T) {
				s := sink(t, p.Server, to)
				c := capture(t, p.Server, 10)
				packets := wholeAndFragmented(t, from, to)
				if err := put(p.Client, way, packets); err != nil {
					t.Fatal(err)
				}
				got := s.Wait(2, 5*time.Second)
				if got.Distinct != 2 || got.Sources[from] != 2 {
					t.Errorf("sink got %+v, want 2 distinct from %s", got, from)
				}
				if n := c.Wait(len(packets), 5*time.Second); n != len(packets) {
					t.Errorf("captured %d packets, want %d", n, len(packets))
				}
				if _, kept := c.Packets(); way == "inject" && string(kept[1]) != string(packets[1]) {
					t.Errorf("captured %x, want %x as sent", kept[1], packets[1])
				}
			})
		}
	}
}

func wholeAndFragmented(t *testing.T, from, to netip.AddrPort) [][]byte {
	t.Helper()
	whole, err := lab.UDPPacket(from, to, []byte{0, 0, 0, 1})
	if err != nil {
		t.Fatal(err)
	}
	long := make([]byte, 101)
	long[3] = 2
	second, err := lab.UDPPacket(from, to, long)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := lab.Fragment(second, 48, 77)
	if err != nil {
		t.Fatal(err)
	}
	if len(parts) != 3 {
		t.Fatalf("%d fragments, want 3", len(parts))
	}
	return append([][]byte{whole}, parts...)
}

func put(ns *lab.Namespace, way string, packets [][]byte) error {
	if way == "inject" {
		return ns.Inject("eth0", packets...)
	}
	denied, err := ns.SendIP(packets...)
	if err == nil && denied != 0 {
		err = fmt.Errorf("%d denied", denied)
	}
	return err
}

// TestInjectMalformed shows that broken packets arrive as they are.
func TestInjectMalformed(t *testing.T) {
	p := labtest.Pair(t)
	c := capture(t, p.Server, 10)
	broken := [][]byte{
		{0x45}, // one byte
		append([]byte{0x4f, 0, 0, 0}, make([]byte, 16)...), // options that are not there
		append([]byte{0x60}, make([]byte, 20)...),          // half an IPv6 header
	}
	if err := p.Client.Inject("eth0", broken...); err != nil {
		t.Fatal(err)
	}
	if n := c.Wait(len(broken), 5*time.Second); n != len(broken) {
		t.Fatalf("captured %d packets, want %d", n, len(broken))
	}
	_, kept := c.Packets()
	for i, want := range broken {
		if string(kept[i]) != string(want) {
			t.Errorf("packet %d: got %x, want %x", i, kept[i], want)
		}
	}
}

func TestSendIPDenied(t *testing.T) {
	labtest.Require(t, labtest.IPTablesBinary)
	p := labtest.Pair(t)
	labtest.BothTables(t, p.Client, "-A", "OUTPUT", "-j", "DROP")
	for _, ends := range [][2]string{{"10.99.0.1:53", "10.99.0.2:9"}, {"[fd99::1]:53", "[fd99::2]:9"}} {
		packet, err := lab.UDPPacket(netip.MustParseAddrPort(ends[0]), netip.MustParseAddrPort(ends[1]), nil)
		if err != nil {
			t.Fatal(err)
		}
		if denied, err := p.Client.SendIP(packet); denied != 1 || err != nil {
			t.Errorf("to %s: got %d denied, %v, want 1", ends[1], denied, err)
		}
	}
	if _, err := p.Client.SendIP([]byte{0x45, 0}); err == nil {
		t.Error("half a header was sent")
	}
}

func TestCraftErrors(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("[fd00::1]:1")
	if _, err := lab.UDPPacket(v4, v6, nil); err == nil {
		t.Error("UDPPacket took two families")
	}
	if _, err := lab.UDPPacket(v4, v4, make([]byte, 65536)); err == nil {
		t.Error("UDPPacket took too long a payload")
	}
	packet, err := lab.UDPPacket(v4, v4, make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, -8, 12} {
		if _, err := lab.Fragment(packet, size, 1); err == nil {
			t.Errorf("Fragment took size %d", size)
		}
	}
	if _, err := lab.Fragment(packet[:20], 8, 1); err == nil {
		t.Error("Fragment took a bare header")
	}
}

func sink(t *testing.T, ns *lab.Namespace, at netip.AddrPort) *lab.Sink {
	t.Helper()
	s, err := ns.Sink(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// capture counts all but multicast listener reports, which alone begin with an
// IPv6 hop-by-hop header here.
func capture(t *testing.T, ns *lab.Namespace, keep int) *lab.Capture {
	t.Helper()
	notReport := func(p []byte) bool { return len(p) < 40 || p[0]>>4 != 6 || p[6] != 0 }
	c, err := ns.Capture(t.Context(), "eth0", keep, notReport)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
