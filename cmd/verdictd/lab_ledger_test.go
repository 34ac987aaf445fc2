package main_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/internal/control"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/ledger"
)

// told is what the tests read of a status.
type told struct {
	PID    int    `json:"pid"`
	Fail   string `json:"fail"`
	Policy struct {
		Generation uint64 `json:"generation"`
		SHA256     string `json:"sha256"`
		Errors     uint64 `json:"errors"`
		Overruns   uint64 `json:"overruns"`
	} `json:"policy"`
	Packets ledger.Ledger `json:"packets"`
	Audit   struct {
		Events      uint64 `json:"events"`
		Unwritten   uint64 `json:"unwritten"`
		WriteErrors uint64 `json:"write_errors"`
	} `json:"audit"`
}

// observed is a daemon with a control socket of its own.
type observed struct {
	*daemon
	socket string
}

// observe starts a daemon that sees every packet: what passes by the queue is
// in no account.
func observe(t *testing.T, ns *lab.Namespace, policy string, args ...string) *observed {
	t.Helper()
	args = append(args, "--offload", "off")
	socket := filepath.Join(t.TempDir(), "sock")
	return &observed{startDaemon(t, ns, policy, append(args, "--control", socket)...), socket}
}

func (d *observed) status() told {
	d.t.Helper()
	var st told
	if err := control.Call(d.t.Context(), d.socket, "status", &st); err != nil {
		d.t.Fatal(err)
	}
	return st
}

// books waits until the daemon has answered so many packets and none waits,
// and returns its ledger, which must close.
func (d *observed) books(received uint64) ledger.Ledger {
	d.t.Helper()
	var l ledger.Ledger
	rest := func() bool {
		l = d.status().Packets
		return l.Settled && l.Total.Waiting == 0 && l.Total.Received >= received
	}
	if !lab.Poll(wait, rest) || !l.Closes {
		d.t.Errorf("the books do not close after %d packets: %+v", received, l)
	}
	return l
}

// balance compares the daemon's books with those of sender and receiver: what
// was sent was delivered, dropped or lost, and nothing else. uncounted of what
// was delivered are in no books.
func (d *observed) balance(sent, uncounted int, sinks ...*lab.Sink) ledger.Ledger {
	d.t.Helper()
	l := d.books(0)
	a := &l.Total
	arrived := int(a.Accepted+a.Unjudged.Sum()) + uncounted
	delivered := func() (n int) {
		for _, s := range sinks {
			r := s.Received()
			if n += r.Distinct; r.Duplicates+r.Lost > 0 {
				d.t.Fatalf("sink %s: %d twice, %d lost by itself", s.Addr(), r.Duplicates, r.Lost)
			}
		}
		return n
	}
	lab.Poll(wait, func() bool { return delivered() >= arrived })
	got := delivered()
	if sum := got + int(a.Dropped+a.Rejected+a.Lost.Sum()); sum != sent || got != arrived {
		d.t.Errorf("got %d delivered + %d dropped + %d rejected + %d lost = %d, want %d sent, %d delivered; %+v",
			got, a.Dropped, a.Rejected, a.Lost.Sum(), sum, sent, arrived, *a)
	}
	return l
}

// quiet keeps the kernel's own IPv6 packets, such as listener reports, away
// from the rules: neighbours are known without them.
func quiet(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	labtest.IP6Tables(t, ns, "-t", "raw", "-A", "OUTPUT", "-p", "ipv6-icmp", "-j", "DROP")
}

// both sends count datagrams to each of both families of the server's port.
func both(t *testing.T, net *lab.Network, port uint16, count int, first uint32, more lab.Flood) {
	t.Helper()
	for i, addr := range addrs("10.99.0.2", "fd99::2") {
		f := more
		f.To, f.Count, f.First = netip.AddrPortFrom(addr, port), count, first+uint32(i*count)
		flood(t, net.Client, f)
	}
}

// TestLabLedger closes the books of sender, daemon and receiver for every cause
// of a loss, with rules of verdictd and of the user, failing closed and open.
func TestLabLedger(t *testing.T) {
	const count = 150 // of each family and port
	plain := func(t *testing.T, net *lab.Network, d *observed) int {
		both(t, net, deniedSinkPort, count, 0, lab.Flood{})
		both(t, net, sinkPort, count, 0, lab.Flood{})
		return 4 * count
	}
	stalled := func(f lab.Flood) func(*testing.T, *lab.Network, *observed) int {
		return func(t *testing.T, net *lab.Network, d *observed) int {
			stopProcess(t, d.daemon)
			both(t, net, sinkPort, count, 0, f)
			d.Signal(syscall.SIGCONT)
			return 2 * count
		}
	}
	flushed := func(t *testing.T, net *lab.Network, d *observed) int {
		stopProcess(t, d.daemon)
		both(t, net, deniedSinkPort, count, 0, lab.Flood{})
		both(t, net, sinkPort, count, 0, lab.Flood{})
		rebuildOther(t, net.Client)
		d.Signal(syscall.SIGCONT)
		d.books(4 * count)
		both(t, net, sinkPort, count, 2*count, lab.Flood{})
		return 6 * count
	}
	const room = 40
	tests := []struct {
		name   string
		args   []string
		play   func(*testing.T, *lab.Network, *observed) int // returns how many were sent
		closed ledger.Account                                // what is expected, but for Queued and Received
		open   ledger.Account
	}{
		{
			"judged", []string{"--queue", "0-3"}, plain,
			ledger.Account{Accepted: 2 * count, Dropped: 2 * count},
			ledger.Account{Accepted: 2 * count, Dropped: 2 * count},
		},
		{
			"stalled", nil, stalled(lab.Flood{}),
			ledger.Account{Accepted: 2 * count},
			ledger.Account{Accepted: 2 * count},
		},
		{
			"queue full", []string{"--queue-length", fmt.Sprint(room)}, stalled(lab.Flood{}),
			ledger.Account{Accepted: room, Lost: ledger.Losses{QueueFull: 2*count - room}},
			ledger.Account{Accepted: room, Unjudged: ledger.Passes{QueueFull: 2*count - room}},
		},
		{
			"hook flush", nil, flushed,
			ledger.Account{Accepted: 2 * count, Dropped: 2 * count, LateDrops: 2 * count, Lost: ledger.Losses{HookFlush: 2 * count}},
			ledger.Account{Accepted: 2 * count, Dropped: 2 * count, LateDrops: 2 * count, Lost: ledger.Losses{HookFlush: 2 * count}},
		},
		{
			"receive buffer", []string{"--queue-length", fmt.Sprint(2 * count), "--copy-range", "65531"}, stalled(lab.Flood{Size: 60_000, From: make([]netip.AddrPort, count)}),
			ledger.Account{Accepted: 2 * count, Lost: ledger.Losses{ReceiveBuffer: some}},
			ledger.Account{Accepted: 2 * count, Unjudged: ledger.Passes{ReceiveBuffer: some}},
		},
	}
	for _, tt := range tests {
		for _, rules := range []string{"own", "user"} {
			for _, fail := range []string{"closed", "open"} {
				t.Run(fmt.Sprint(tt.name, "/", rules, "/", fail), func(t *testing.T) {
					setup(t, labtest.NFTBinary)
					net := labtest.Pair(t)
					quiet(t, net.Client)
					good, bad := sink(t, net.Server, sinkPort), sink(t, net.Server, deniedSinkPort)
					args := append(slices.Clone(tt.args), "--fail", fail)
					if rules == "own" {
						args = append(args, "--hook", "output")
					}
					d := observe(t, net.Client, portsPolicy, args...)
					if rules == "user" {
						d.rule(append([]string{"OUTPUT", "-p", "udp", "-j", "NFQUEUE"}, target(tt.args)...)...)
					}
					sent, want, uncounted := tt.play(t, net, d), tt.closed, uint64(0)
					if fail == "open" {
						want = tt.open
					}
					if rules == "user" {
						// What a full queue lets pass nobody counts then.
						uncounted, want.Unjudged.QueueFull = want.Unjudged.QueueFull, 0
					}
					l := d.balance(sent, int(uncounted), good, bad)
					expectSome(t, &want, &l.Total)
					want.Queued = uint64(sent) - uncounted
					want.Received = want.Accepted + want.Dropped + want.Lost.HookFlush
					if diff := cmp.Diff(want, l.Total); diff != "" {
						t.Errorf("total (-want +got):\n%s", diff)
					}
					if l.Rules != (rules == "own") {
						t.Errorf("got that the rules count: %v, with rules of %s", l.Rules, rules)
					}
				})
			}
		}
	}
}

// some stands for a number that is not known, but not 0: how many packets fit
// into the receive buffer is the kernel's.
const some = 1 << 40

// expectSome puts what was got in the place of some in want, and takes it from
// what was to be accepted.
func expectSome(t *testing.T, want, got *ledger.Account) {
	t.Helper()
	for _, n := range []struct{ want, got *uint64 }{
		{&want.Lost.ReceiveBuffer, &got.Lost.ReceiveBuffer}, {&want.Unjudged.ReceiveBuffer, &got.Unjudged.ReceiveBuffer},
	} {
		if *n.want != some {
			continue
		}
		if *n.got == 0 || *n.got >= want.Accepted {
			t.Errorf("got %d packets that found no room in the receive buffer, want some of %d", *n.got, want.Accepted)
		}
		*n.want = *n.got
		want.Accepted -= *n.got
	}
}

// target returns what a rule says to reach the queues that args name.
func target(args []string) []string {
	if slices.Contains(args, "--queue") {
		return []string{"--queue-balance", "0:3"}
	}
	return []string{"--queue-num", "0"}
}

// rebuildOther makes and deletes a table that has nothing to do with us: with
// its base chain the kernel discards what waits in all queues.
func rebuildOther(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	labtest.Output(t, ns, "nft", "add table inet other; add chain inet other c { type filter hook output priority 100; }; delete table inet other")
}
