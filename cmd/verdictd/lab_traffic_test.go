package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/verdictd/verdictd/internal/lab"
)

// echo serves an echo server on the ports of all addresses of the namespace.
func echo(t *testing.T, ns *lab.Namespace, ports ...uint16) {
	t.Helper()
	for _, port := range ports {
		s, err := ns.Echo(t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
	}
}

// sink counts the datagrams to a port of all addresses of the namespace.
func sink(t *testing.T, ns *lab.Namespace, port uint16) *lab.Sink {
	t.Helper()
	s, err := ns.Sink(t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// capture counts the IP packets that come to eth0 and match.
func capture(t *testing.T, ns *lab.Namespace, match func([]byte) bool) *lab.Capture {
	t.Helper()
	c, err := ns.Capture(t.Context(), "eth0", 0, match)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// isTo returns whether an IP packet goes to the address.
func isTo(p []byte, addr string) bool {
	dst := netip.MustParseAddr(addr).AsSlice()
	if p[0]>>4 == 4 {
		return bytes.Equal(p[16:20], dst)
	}
	return p[0]>>4 == 6 && bytes.Equal(p[24:40], dst)
}

// flood sends numbered datagrams; all must reach the kernel's OUTPUT hook.
func flood(t *testing.T, ns *lab.Namespace, f lab.Flood) {
	t.Helper()
	sent, err := ns.Flood(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	if sent.OK+sent.Denied != f.Count {
		t.Fatalf("got %+v sent, want %d", sent, f.Count)
	}
}

// floodAll sends f from the namespace to each sink at each address. The numbers
// of two addresses differ, f.Count apart.
func floodAll(t *testing.T, from *lab.Namespace, f lab.Flood, to []netip.Addr, sinks ...*lab.Sink) {
	t.Helper()
	for _, addr := range to {
		for _, s := range sinks {
			f.To = netip.AddrPortFrom(addr, s.Addr().Port())
			flood(t, from, f)
		}
		f.First += uint32(f.Count)
	}
}

// want fails the test if the sink does not get exactly so many datagrams, each
// once.
func want(t *testing.T, s *lab.Sink, count int) {
	t.Helper()
	got := s.Wait(count, wait)
	if got.Distinct != count || got.Datagrams != count || got.Lost != 0 {
		t.Errorf("sink %s: got %d datagrams, %d distinct, %d lost by the sink, want %d", s.Addr(), got.Datagrams, got.Distinct, got.Lost, count)
	}
}

// question is a probe and the answer it should get.
type question struct {
	from *lab.Namespace
	lab.Probe
	want lab.Outcome
}

// questions returns a probe of each protocol to each address that portsPolicy
// accepts, and one that it drops.
func questions(from *lab.Namespace, to ...netip.Addr) []question {
	var all []question
	payload := func(n int) []byte { return []byte(strings.Repeat("x", n)) }
	for _, addr := range to {
		for _, proto := range []lab.Proto{lab.TCP, lab.UDP, lab.ICMP} {
			good, bad := uint16(echoPort), uint16(deniedEchoPort)
			if proto == lab.ICMP {
				good, bad = 0, 0
			}
			all = append(all,
				question{from, lab.Probe{Proto: proto, To: netip.AddrPortFrom(addr, good), Payload: payload(small), Timeout: wait}, lab.Answered},
				question{from, lab.Probe{Proto: proto, To: netip.AddrPortFrom(addr, bad), Payload: payload(large), Timeout: silence}, lab.Silent})
		}
	}
	return all
}

// ask asks all questions at once.
func ask(t *testing.T, all []question) {
	t.Helper()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, q := range all {
		wg.Go(func() {
			got, err := q.from.Probe(q.Probe)
			if err == nil && got != q.want {
				err = fmt.Errorf("%s to %s with %d bytes from %s: got %s, want %s", q.Proto, q.To, len(q.Payload), q.from.Name(), got, q.want)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

// answered asks whether the echo port answers a UDP probe.
func answered(t *testing.T, from *lab.Namespace, to string) {
	t.Helper()
	ask(t, []question{{from, lab.Probe{Proto: lab.UDP, To: netip.MustParseAddrPort(to), Timeout: wait}, lab.Answered}})
}

func addrs(list ...string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i := range list {
		out[i] = netip.MustParseAddr(list[i])
	}
	return out
}

// to returns the address and port.
func to(addr string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
}
