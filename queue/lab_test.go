package queue

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
)

var (
	lo4 = netip.MustParseAddrPort("127.0.0.1:4000")
	lo6 = netip.MustParseAddrPort("[::1]:4000")
)

// namespace returns a fresh network namespace with lo up.
func namespace(t *testing.T) *lab.Namespace {
	t.Helper()
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.IPTablesBinary)
	labtest.Leaks(t)
	ns, err := lab.NewNamespace("queue")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// open binds a queue in ns, closed at the end of the test.
func open(t *testing.T, ns *lab.Namespace, cfg Config) *Queue {
	t.Helper()
	cfg.NetNS = ns.FD()
	q, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	return q
}

// run runs q until stop, which waits for it and returns its counters.
func run(t *testing.T, q *Queue, h packet.Handler) (stop func() Stats) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx, h) }()
	stop = sync.OnceValue(func() Stats {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		return q.Stats()
	})
	t.Cleanup(func() { stop() })
	return stop
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

func flood(t *testing.T, ns *lab.Namespace, f lab.Flood) {
	t.Helper()
	if sent, err := ns.Flood(t.Context(), f); err != nil || sent.OK != f.Count {
		t.Fatalf("sent %d of %d: %v", sent.OK, f.Count, err)
	}
}

// number returns the number of a flood's datagram from the whole IP packet.
func number(data []byte) uint32 { return binary.BigEndian.Uint32(data[len(data)-4:]) }

// byNumber accepts even datagrams, drops half of the odd ones and rejects the
// rest.
func byNumber(_ *packet.Meta, data []byte) packet.Verdict {
	switch number(data) % 4 {
	case 1:
		return packet.Verdict{Action: packet.Drop}
	case 3:
		return packet.Verdict{Action: packet.Reject}
	}
	return packet.Verdict{Action: packet.Accept}
}

// Accept lets packets through, drop and reject do not: exactly, for both
// families on one queue, for each way in which rules reach it.
func TestLabVerdicts(t *testing.T) {
	tests := []struct {
		name  string
		queue uint16
		rule  []string
	}{
		{"QUEUE target", 0, []string{"-A", "INPUT", "-j", "QUEUE"}},
		{"input", 3, []string{"-A", "INPUT", "-j", "NFQUEUE", "--queue-num", "3"}},
		{"output", 65535, []string{"-A", "OUTPUT", "-j", "NFQUEUE", "--queue-num", "65535"}},
		{"bypass", 4, []string{"-A", "INPUT", "-j", "NFQUEUE", "--queue-num", "4", "--queue-bypass"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const count = 400
			ns := namespace(t)
			labtest.BothTables(t, ns, tt.rule...)
			sink4, sink6 := sink(t, ns, lo4), sink(t, ns, lo6)
			stop := run(t, open(t, ns, Config{Num: tt.queue}), judge(byNumber))
			flood(t, ns, lab.Flood{To: lo4, Count: count})
			flood(t, ns, lab.Flood{To: lo6, Count: count})
			for _, s := range []*lab.Sink{sink4, sink6} {
				if got := s.Wait(count/2, 5*time.Second); got.Distinct != count/2 {
					t.Errorf("%v: %d datagrams delivered, want %d", s.Addr(), got.Distinct, count/2)
				}
			}
			got := stop()
			want := Stats{Received: 2 * count, Accepted: count, Dropped: count / 2, Rejected: count / 2}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
			for _, s := range []*lab.Sink{sink4, sink6} {
				if got := s.Received(); got.Datagrams != count/2 {
					t.Errorf("%v: %d datagrams in the end, want %d", s.Addr(), got.Datagrams, count/2)
				}
			}
		})
	}
}

func TestLabBalance(t *testing.T) {
	const count = 800
	ns := namespace(t)
	labtest.IPTables(t, ns, "-A", "INPUT", "-j", "NFQUEUE", "--queue-balance", "0:3")
	s := sink(t, ns, lo4)
	var stops []func() Stats
	for num := range uint16(4) {
		stops = append(stops, run(t, open(t, ns, Config{Num: num}), judge(accept)))
	}
	var from []netip.AddrPort
	for i := range byte(64) {
		from = append(from, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, i + 1}), 5000))
	}
	flood(t, ns, lab.Flood{To: lo4, From: from, Count: count})
	if got := s.Wait(count, 5*time.Second); got.Distinct != count {
		t.Errorf("%d datagrams delivered, want %d", got.Distinct, count)
	}
	var total uint64
	for num, stop := range stops {
		got := stop().Accepted
		if got == 0 {
			t.Errorf("queue %d got nothing", num)
		}
		total += got
	}
	if total != count {
		t.Errorf("%d accepted, want %d", total, count)
	}
}

func TestLabMark(t *testing.T) {
	const count = 100
	ns := namespace(t)
	labtest.BothTables(t, ns, "-A", "OUTPUT", "-j", "MARK", "--set-mark", "0x55", "-t", "raw")
	labtest.BothTables(t, ns, "-A", "OUTPUT", "-j", "NFQUEUE", "--queue-num", "1")
	labtest.BothTables(t, ns, "-t", "mangle", "-A", "POSTROUTING", "-m", "mark", "--mark", "0xdeadbeef")
	labtest.BothTables(t, ns, "-t", "mangle", "-A", "POSTROUTING", "-m", "mark", "--mark", "0x55")
	sinks := []*lab.Sink{sink(t, ns, lo4), sink(t, ns, lo6)}
	var wrong atomic.Int32
	stop := run(t, open(t, ns, Config{Num: 1}), judge(func(m *packet.Meta, data []byte) packet.Verdict {
		if m.Mark != 0x55 {
			wrong.Add(1)
		}
		return packet.Verdict{Action: packet.Accept, SetMark: number(data)%2 == 0, Mark: 0xdeadbeef}
	}))
	for _, s := range sinks {
		flood(t, ns, lab.Flood{To: s.Addr(), Count: count})
		s.Wait(count, 5*time.Second)
	}
	stop()
	if wrong.Load() != 0 {
		t.Errorf("%d packets came without their mark", wrong.Load())
	}
	for family, rules := range [][]labtest.Rule{labtest.Counters(t, ns, "mangle", "POSTROUTING"), labtest.Counters6(t, ns, "mangle", "POSTROUTING")} {
		if rules[0].Packets != count/2 || rules[1].Packets != count/2 {
			t.Errorf("family %d: %d packets with the new mark, %d with the old one, want %d each", family, rules[0].Packets, rules[1].Packets, count/2)
		}
	}
}

// The kernel gives the effective ids that a socket was made with.
func TestLabOwner(t *testing.T) {
	ns := namespace(t)
	labtest.BothTables(t, ns, "-A", "OUTPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "1")
	type ids struct {
		UID, GID uint32
		Has      bool
	}
	got := make(chan ids, 16)
	stop := run(t, open(t, ns, Config{Num: 1}), judge(func(m *packet.Meta, _ []byte) packet.Verdict {
		got <- ids{m.UID, m.GID, m.HasUID && m.HasGID}
		return packet.Verdict{Action: packet.Accept}
	}))
	defer stop()
	for _, want := range []ids{{0, 0, true}, {1234, 567, true}} {
		for _, to := range []netip.AddrPort{lo4, lo6} {
			err := ns.Do(func() error { return sendAs(int(want.UID), int(want.GID), to) })
			if err != nil {
				t.Fatal(err)
			}
			if got := <-got; got != want {
				t.Errorf("to %v: got %+v, want %+v", to, got, want)
			}
		}
	}
}

// sendAs sends a datagram from a socket made with these ids, on the calling
// thread, which must be locked.
func sendAs(uid, gid int, to netip.AddrPort) error {
	syscall.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	syscall.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	defer func() {
		syscall.RawSyscall(unix.SYS_SETFSUID, 0, 0, 0)
		syscall.RawSyscall(unix.SYS_SETFSGID, 0, 0, 0)
	}()
	family, addr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(to.Port()), Addr: [4]byte{127, 0, 0, 1}})
	if to.Addr().Is6() {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte("ids"), 0, addr)
}

// What no one listens to passes with --queue-bypass and is lost without.
func TestLabBypass(t *testing.T) {
	const count = 50
	ns := namespace(t)
	labtest.IPTables(t, ns, "-A", "INPUT", "-p", "udp", "--dport", "4000", "-j", "NFQUEUE", "--queue-num", "1", "--queue-bypass")
	labtest.IPTables(t, ns, "-A", "INPUT", "-p", "udp", "--dport", "4001", "-j", "NFQUEUE", "--queue-num", "1")
	with, without := sink(t, ns, lo4), sink(t, ns, netip.MustParseAddrPort("127.0.0.1:4001"))
	flood(t, ns, lab.Flood{To: without.Addr(), Count: count})
	flood(t, ns, lab.Flood{To: with.Addr(), Count: count})
	if got := with.Wait(count, 5*time.Second); got.Distinct != count {
		t.Errorf("%d delivered with bypass, want %d", got.Distinct, count)
	}
	if got := without.Received(); got.Distinct != 0 {
		t.Errorf("%d delivered without bypass, want 0", got.Distinct)
	}
}
