package hook_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// install installs the ruleset in the namespace and deletes it after the test.
func install(t *testing.T, ns *lab.Namespace, c hook.Config) *hook.Ruleset {
	t.Helper()
	c.NetNS = ns.FD()
	r, err := hook.Install(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func addrs(v4, v6 string) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
}

func echo(t *testing.T, ns *lab.Namespace) uint16 {
	t.Helper()
	s, err := ns.Echo(t.Context(), netip.MustParseAddrPort("[::]:0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s.Addr().Port()
}

func probe(t *testing.T, ns *lab.Namespace, p lab.Probe) lab.Outcome {
	t.Helper()
	got, err := ns.Probe(p)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestHooks sends TCP, UDP and ICMP over both families through each hook.
func TestHooks(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	tests := []struct {
		hook hook.Hook
		at   func(*lab.Network) *lab.Namespace
	}{
		{hook.Prerouting, func(n *lab.Network) *lab.Namespace { return n.Server }},
		{hook.Input, func(n *lab.Network) *lab.Namespace { return n.Server }},
		{hook.Forward, func(n *lab.Network) *lab.Namespace { return n.Router }},
		{hook.Output, func(n *lab.Network) *lab.Namespace { return n.Client }},
		{hook.Postrouting, func(n *lab.Network) *lab.Namespace { return n.Router }},
	}
	for _, tt := range tests {
		t.Run(tt.hook.String(), func(t *testing.T) {
			net := labtest.Router(t)
			port := echo(t, net.Server)
			r := receive(t, tt.at(net), 5)
			rules := install(t, tt.at(net), hook.Config{Hooks: []hook.Hook{tt.hook}, QueueFirst: 5})
			for _, addr := range addrs("10.99.2.2", "fd99:2::2") {
				for proto, number := range map[lab.Proto][2]uint8{lab.TCP: {6, 6}, lab.UDP: {17, 17}, lab.ICMP: {1, 58}} {
					if got := probe(t, net.Client, lab.Probe{Proto: proto, To: netip.AddrPortFrom(addr, port)}); got != lab.Answered {
						t.Errorf("%s to %s: got %s, want %s", proto, addr, got, lab.Answered)
					}
					want := number[0]
					if addr.Is6() {
						want = number[1]
					}
					if len(r.packets(func(p packet) bool { return p.is(tt.hook, want) && p.data[0]>>4 == ipVersion(addr) })) == 0 {
						t.Errorf("%s to %s: no such packet in the queue", proto, addr)
					}
				}
			}
			checkCounters(t, rules, tt.hook, r)
			if err := rules.Verify(); err != nil {
				t.Error(err)
			}
		})
	}
}

func ipVersion(a netip.Addr) byte {
	if a.Is6() {
		return 6
	}
	return 4
}

// checkCounters compares the kernel's count with what the receiver got. The end
// of a TCP connection may still be on its way, so they are polled.
func checkCounters(t *testing.T, rules *hook.Ruleset, h hook.Hook, r *receiver) {
	t.Helper()
	var last []hook.Counter
	same := func() bool {
		var err error
		if last, err = rules.Counters(); err != nil || len(last) != 1 {
			t.Fatalf("counters %v, error %v", last, err)
		}
		var bytes uint64
		all := r.packets(nil)
		for _, p := range all {
			bytes += uint64(len(p.data))
		}
		return last[0] == hook.Counter{Hook: h, Packets: uint64(len(all)), Bytes: bytes}
	}
	if !lab.Poll(wait, same) {
		t.Errorf("got counters %v, want the %d packets received", last, len(r.packets(nil)))
	}
}

// TestLoopback sends datagrams over lo.
func TestLoopback(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	for _, queued := range []bool{false, true} {
		net := labtest.Pair(t)
		port := echo(t, net.Client)
		r := receive(t, net.Client, 0)
		install(t, net.Client, hook.Config{Hooks: []hook.Hook{hook.Output, hook.Input, hook.Prerouting, hook.Postrouting}, Loopback: queued})
		for _, addr := range addrs("127.0.0.1", "::1") {
			if got := probe(t, net.Client, lab.Probe{Proto: lab.UDP, To: netip.AddrPortFrom(addr, port)}); got != lab.Answered {
				t.Errorf("loopback %v, %s: got %s, want answered", queued, addr, got)
			}
		}
		want := 0
		if queued {
			want = 2 * 2 * 4 // two families, question and answer, four hooks
		}
		datagram := func(p packet) bool { return p.proto() == unix.IPPROTO_UDP } // not what a new interface sends by itself
		if got := len(r.packets(datagram)); got != want {
			t.Errorf("loopback %v: got %d packets in the queue, want %d", queued, got, want)
		}
	}
}

// TestNeighbour injects ICMPv6 from the wire: only neighbour discovery with hop
// limit 255 passes by the queue.
func TestNeighbour(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	from, to := netip.MustParseAddr("fd99::1"), netip.MustParseAddr("fd99::2")
	tests := []struct {
		name           string
		kind, hopLimit byte
		strict, want   bool
	}{
		{"below the range", 132, 255, false, true},
		{"router solicitation", 133, 255, false, false},
		{"neighbour solicitation", 135, 255, false, false},
		{"redirect", 137, 255, false, false},
		{"above the range", 138, 255, false, true},
		{"echo request", 128, 255, false, true},
		{"solicitation from afar", 135, 254, false, true},
		{"strict solicitation", 135, 255, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			net := labtest.Pair(t)
			r := receive(t, net.Server, 0)
			install(t, net.Server, hook.Config{Hooks: []hook.Hook{hook.Input}, StrictNeighbour: tt.strict})
			p, err := lab.IPPacket(from, to, unix.IPPROTO_ICMPV6, append([]byte{tt.kind}, make([]byte, 23)...))
			if err != nil {
				t.Fatal(err)
			}
			p[7] = tt.hopLimit
			last, err := lab.UDPPacket(netip.AddrPortFrom(from, 1), netip.AddrPortFrom(to, 2), nil)
			if err != nil {
				t.Fatal(err)
			}
			// Packets arrive in order: when the last is there, the first has been.
			if err := net.Client.Inject("eth0", p, last); err != nil {
				t.Fatal(err)
			}
			udp := func(p packet) bool { return p.is(hook.Input, unix.IPPROTO_UDP) }
			if !lab.Poll(wait, func() bool { return len(r.packets(udp)) == 1 }) {
				t.Fatal("the packet after it did not arrive")
			}
			icmp := func(p packet) bool { return p.is(hook.Input, unix.IPPROTO_ICMPV6) }
			if got := len(r.packets(icmp)) == 1; got != tt.want {
				t.Errorf("queued: got %v, want %v", got, tt.want)
			}
		})
	}
}

// TestOwnMark sends marked datagrams.
func TestOwnMark(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	net := labtest.Pair(t)
	r := receive(t, net.Client, 0)
	install(t, net.Client, hook.Config{Hooks: []hook.Hook{hook.Output}, OwnMark: 0x500, OwnMask: 0xff00})
	for i, mark := range []int{0, 0x500, 0x5ff, 0x600, 0x10500, 5} {
		send := func() error { return sendMarked(mark, byte(i)) }
		if err := net.Client.Do(send); err != nil {
			t.Fatal(err)
		}
	}
	if !r.waitFor(3) {
		t.Fatalf("got %d packets, want 3", len(r.packets(nil)))
	}
	var got []byte
	for _, p := range r.packets(nil) {
		got = append(got, p.data[len(p.data)-1])
	}
	if want := "\x00\x03\x05"; string(got) != want {
		t.Errorf("queued: got datagrams %v, want %v: those whose mark & 0xff00 is not 0x500", got, []byte(want))
	}
}

func sendMarked(mark int, payload byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
		return err
	}
	return unix.Sendto(fd, []byte{payload}, 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 99, 0, 2}})
}

// TestNobodyBound sends while no program has bound the queue.
func TestNobodyBound(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFTables)
	for _, bypass := range []bool{false, true} {
		net := labtest.Pair(t)
		port := echo(t, net.Server)
		rules := install(t, net.Server, hook.Config{Hooks: []hook.Hook{hook.Input}, QueueFirst: 3, Bypass: bypass})
		want := lab.Silent
		if bypass {
			want = lab.Answered
		}
		for _, addr := range addrs("10.99.0.2", "fd99::2") {
			p := lab.Probe{Proto: lab.UDP, To: netip.AddrPortFrom(addr, port), Timeout: 200 * time.Millisecond}
			if got := probe(t, net.Client, p); got != want {
				t.Errorf("bypass %v, %s: got %s, want %s", bypass, addr, got, want)
			}
		}
		counters, err := rules.Counters()
		if err != nil {
			t.Fatal(err)
		}
		if got := counters[0].Packets; got != 2 {
			t.Errorf("bypass %v: counted %d packets, want 2", bypass, got)
		}
	}
}

// TestRange spreads flows over queues by their addresses.
func TestRange(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	net := labtest.Pair(t)
	r := receive(t, net.Server, 10, 11, 12, 13)
	install(t, net.Server, hook.Config{Hooks: []hook.Hook{hook.Input}, QueueFirst: 10, QueueLast: 13})
	const flows, each = 64, 2
	for range each {
		for i := range flows {
			from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 99, 0, byte(100 + i)}), 1000)
			p, err := lab.UDPPacket(from, netip.MustParseAddrPort("10.99.0.2:9"), []byte{byte(i)})
			if err != nil {
				t.Fatal(err)
			}
			if err := net.Client.Inject("eth0", p); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !r.waitFor(flows * each) {
		t.Fatalf("got %d packets, want %d", len(r.packets(nil)), flows*each)
	}
	byQueue, byFlow := make(map[uint16]int), make(map[uint32]uint16)
	for _, p := range r.packets(nil) {
		byQueue[p.queue]++
		from := binary.BigEndian.Uint32(p.data[12:])
		if q, seen := byFlow[from]; seen && q != p.queue {
			t.Errorf("flow %x is on queues %d and %d", from, q, p.queue)
		}
		byFlow[from] = p.queue
	}
	if len(byQueue) != 4 {
		t.Errorf("got packets by queue %v, want some on each of 10 to 13", byQueue)
	}
}

// TestAfterFilter puts a chain of the host at priority filter: what it drops
// does not come up, what it accepts does.
func TestAfterFilter(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	for verdict, want := range map[expr.VerdictKind]int{expr.VerdictDrop: 0, expr.VerdictAccept: 1} {
		net := labtest.Pair(t)
		port := echo(t, net.Server)
		r := receive(t, net.Server, 0)
		install(t, net.Server, hook.Config{Hooks: []hook.Hook{hook.Input}})
		addForeign(t, net.Server, "foreign", nftables.ChainHookInput, verdict)
		p := lab.Probe{Proto: lab.UDP, To: netip.AddrPortFrom(addrs("10.99.0.2", "fd99::2")[0], port), Timeout: 200 * time.Millisecond}
		got := probe(t, net.Client, p)
		if answered := got == lab.Answered; answered != (want == 1) {
			t.Errorf("verdict %d of the filter chain: got %s", verdict, got)
		}
		if got := len(r.packets(nil)); got != want {
			t.Errorf("verdict %d of the filter chain: got %d packets in the queue, want %d", verdict, got, want)
		}
	}
}
