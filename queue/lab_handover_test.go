package queue

import (
	"context"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/packet"
)

// runUntil runs q until stop, with that cause.
func runUntil(t *testing.T, q *Queue, h packet.Handler, cause error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx, h) }()
	return func() {
		t.Helper()
		cancel(cause)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// next takes over q as another process would.
func next(t *testing.T, ns *lab.Namespace, q *Queue, at *Position) *Queue {
	t.Helper()
	f, err := q.File()
	if err != nil {
		t.Fatal(err)
	}
	cfg := q.cfg
	cfg.NetNS = ns.FD()
	n, err := Attach(cfg, f, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// A queue changes its owner ten times under load: nothing is lost and the
// counters go on. A spinning owner, which never sleeps at that rate, lets go too.
func TestLabHandOver(t *testing.T) {
	for name, spin := range map[string]time.Duration{"sleeping": 0, "spinning": MaxSpin} {
		t.Run(name, func(t *testing.T) { handOver(t, spin) })
	}
}

func handOver(t *testing.T, spin time.Duration) {
	const count, rate, rounds = 20_000, 20_000, 10
	ns := namespace(t)
	labtest.IPTables(t, ns, "-A", "INPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "7")
	s := sink(t, ns, lo4)
	q := open(t, ns, Config{Num: 7, MaxLen: 32768, Spin: spin})
	stop := runUntil(t, q, judge(accept), nfnl.ErrHandOver)
	flooded := make(chan error, 1)
	go func() {
		_, err := ns.Flood(t.Context(), lab.Flood{To: lo4, Count: count, Rate: rate})
		flooded <- err
	}()
	for i := range rounds {
		s.Wait((i+1)*count/(rounds+1), 10*time.Second)
		stop()
		at := q.Position()
		n := next(t, ns, q, &at)
		q.Close()
		q = n
		stop = runUntil(t, q, judge(accept), nfnl.ErrHandOver)
	}
	if err := <-flooded; err != nil {
		t.Fatal(err)
	}
	got := s.Wait(count, 10*time.Second)
	stop()
	if got.Distinct != count || got.Duplicates != 0 {
		t.Errorf("%d delivered, %d twice, want %d once", got.Distinct, got.Duplicates, count)
	}
	want := Stats{Received: count, Accepted: count}
	if diff := cmp.Diff(want, q.Stats()); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
}

// An owner reads packets and is gone without answering. The next one has them
// all back, with and without packets that come afterwards, and judges them.
func TestLabRecover(t *testing.T) {
	const count = 200
	for name, later := range map[string]int{"more packets come": count, "silence": 0} {
		t.Run(name, func(t *testing.T) {
			ns := namespace(t)
			labtest.IPTables(t, ns, "-A", "INPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "0")
			s := sink(t, ns, lo4)
			dead := open(t, ns, Config{})
			flood(t, ns, lab.Flood{To: lo4, Count: count})
			read := 0
			for read < count/2 { // some, as a crash would have it
				if err := dead.conn.Recv(); err != nil {
					t.Fatal(err)
				}
				for dead.conn.Next(&dead.msg) {
					read++
				}
			}
			if later > 0 {
				flood(t, ns, lab.Flood{To: lo4, Count: later, First: count})
			}
			q := next(t, ns, dead, nil)
			var odd atomic.Int32
			stop := run(t, q, judge(func(m *packet.Meta, data []byte) packet.Verdict {
				if number(data)%2 == 1 {
					odd.Add(1)
					return packet.Verdict{Action: packet.Drop}
				}
				return packet.Verdict{Action: packet.Accept}
			}))
			total := count + later
			got := s.Wait(total/2, 5*time.Second)
			if !lab.Poll(5*time.Second, func() bool { return int(odd.Load()) >= total/2 }) {
				t.Errorf("%d packets dropped, want %d", odd.Load(), total/2)
			}
			stats := stop()
			if got.Distinct != total/2 || got.Duplicates != 0 {
				t.Errorf("%d delivered, %d twice, want %d once", got.Distinct, got.Duplicates, total/2)
			}
			stats.Backlog = 0 // how it is now
			want := Stats{Received: uint64(total), Accepted: uint64(total / 2), Dropped: uint64(total / 2), Earlier: uint64(read), Repeats: 1}
			if diff := cmp.Diff(want, stats); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
		})
	}
}

// Where nothing is left to repeat, nothing is counted as refused.
func TestLabRecoverNothing(t *testing.T) {
	ns := namespace(t)
	labtest.IPTables(t, ns, "-A", "INPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "0")
	s := sink(t, ns, lo4)
	stop := run(t, next(t, ns, open(t, ns, Config{}), nil), judge(accept))
	time.Sleep(2 * quiet)
	flood(t, ns, lab.Flood{To: lo4, Count: 1})
	s.Wait(1, 5*time.Second)
	if diff := cmp.Diff(Stats{Received: 1, Accepted: 1, Repeats: 1}, stop()); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
}

func TestLabAttachErrors(t *testing.T) {
	ns := namespace(t)
	q := open(t, ns, Config{Num: 4})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	file, err := q.File()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		cfg  Config
		f    *os.File
		at   *Position
		want string
	}{
		{"no socket", Config{Num: 4}, r, &Position{}, "attach queue 4: "},
		{"not bound", Config{Num: 5}, file, &Position{}, "attach queue 5: the socket has not bound it"},
		{"out of range", Config{Num: 4, MaxLen: MaxMaxLen + 1}, nil, &Position{}, "more than the kernel's"},
	}
	for _, tt := range tests {
		tt.cfg.NetNS = ns.FD()
		if _, err := Attach(tt.cfg, tt.f, tt.at); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
	// The queue of another socket.
	other := open(t, ns, Config{Num: 6})
	if file, err = q.File(); err != nil {
		t.Fatal(err)
	}
	_, err = Attach(Config{Num: other.Num(), NetNS: ns.FD()}, file, &Position{})
	if err == nil || !strings.Contains(err.Error(), "it is bound by port id") || !strings.Contains(err.Error(), syscall.EPERM.Error()) {
		t.Errorf("got %v, want EPERM and the owner", err)
	}
}
