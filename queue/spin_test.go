package queue

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/packet"
)

// unbound returns a Queue with a real socket that has bound no queue: any
// process may have one.
func unbound(t *testing.T, cfg Config) *Queue {
	t.Helper()
	cfg, err := cfg.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	s, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	q, err := newQueue(cfg, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	return q
}

// provoke makes the kernel send a message: the refusal of a nonsensical one.
func provoke(t *testing.T, q *Queue) {
	t.Helper()
	w := nfnl.NewWriter(64)
	w.Begin(nfnl.Header{Type: nfnl.Type(200, 0), Flags: nfnl.FlagRequest}, 0, 0)
	w.End()
	if err := q.conn.Send(w.Bytes()); err != nil {
		t.Fatal(err)
	}
}

func TestSpinEnds(t *testing.T) {
	done, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name    string
		ctx     context.Context
		spin    time.Duration
		comes   bool // before the spinning begins
		close   bool
		want    error
		atLeast time.Duration
	}{
		{name: "time is over", ctx: t.Context(), spin: 3 * time.Millisecond, atLeast: 3 * time.Millisecond},
		{name: "something is there", ctx: t.Context(), spin: MaxSpin, comes: true},
		{name: "told to stop", ctx: done, spin: MaxSpin},
		{name: "closed", ctx: t.Context(), spin: MaxSpin, close: true, want: os.ErrClosed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q := unbound(t, Config{Spin: tt.spin})
			if tt.comes {
				provoke(t, q)
			}
			if tt.close {
				q.Close()
			}
			start := time.Now()
			err := q.spin(tt.ctx)
			if took := time.Since(start); took < tt.atLeast {
				t.Errorf("took %v, want at least %v", took, tt.atLeast)
			}
			if !errors.Is(err, tt.want) || q.conn.Pending() != tt.comes {
				t.Errorf("got %v and messages: %v, want %v and %v", err, q.conn.Pending(), tt.want, tt.comes)
			}
		})
	}
}

// What came while the queue spun is not waited for again.
func TestReceiveSpinning(t *testing.T) {
	q := unbound(t, Config{Spin: MaxSpin})
	if err := q.conn.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	provoke(t, q)
	if err := q.receive(t.Context(), true); err != nil || q.answer(judge(accept), 1) != 1 {
		t.Errorf("got %v, want the message, whatever the deadline is", err)
	}
	if err := q.receive(t.Context(), true); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want %v after spinning", err, os.ErrDeadlineExceeded)
	}
}

func TestSpinNoAllocs(t *testing.T) {
	q := unbound(t, Config{Spin: time.Microsecond})
	ctx := t.Context()
	if got := testing.AllocsPerRun(1000, func() { _ = q.spin(ctx) }); got != 0 {
		t.Errorf("got %v allocations per spin, want 0", got)
	}
}

func TestSpinRange(t *testing.T) {
	for _, spin := range []time.Duration{-1, MaxSpin + 1} {
		if _, err := (Config{Spin: spin}).withDefaults(); err == nil {
			t.Errorf("%v: got no error", spin)
		}
	}
}

// A spinning queue answers, ticks, rests and stops.
func TestLabSpin(t *testing.T) {
	const count = 1000
	ns := namespace(t)
	labtest.IPTables(t, ns, "-A", "INPUT", "-j", "NFQUEUE", "--queue-num", "0")
	s := sink(t, ns, lo4)
	var ticks atomic.Int64
	q := open(t, ns, Config{Spin: MaxSpin})
	stop := run(t, q, tickJudge{judge(byNumber), func(int64) { ticks.Add(1) }})
	flood(t, ns, lab.Flood{To: lo4, Count: count, Rate: 2000}) // it does not sleep between two of them
	if got := s.Wait(count/2, 5*time.Second); got.Distinct != count/2 {
		t.Errorf("%d datagrams delivered, want %d", got.Distinct, count/2)
	}
	before, began, worked := ticks.Load(), time.Now(), cpuTime(t)
	if before == 0 {
		t.Error("no tick while packets came")
	}
	if !lab.Poll(3*Idle, func() bool { time.Sleep(Idle / 10); return ticks.Load() > before }) {
		t.Errorf("no tick for %v without packets", time.Since(began))
	}
	if used, took := cpuTime(t)-worked, time.Since(began); used > took/4 {
		t.Errorf("used %v of the CPU in %v without packets", used, took)
	}
	if got := stop(); got.Received != count || got.Accepted != count/2 {
		t.Errorf("got %+v, want %d received and half of them accepted", got, count)
	}
}

// cpuTime returns what the process has used.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Packets that never pause do not keep a spinning queue from stopping.
func TestLabSpinStops(t *testing.T) {
	ns := namespace(t)
	labtest.IPTables(t, ns, "-A", "INPUT", "-j", "NFQUEUE", "--queue-num", "0")
	q := open(t, ns, Config{Spin: MaxSpin})
	seen := make(chan struct{}, 1)
	stop := run(t, q, judge(func(*packet.Meta, []byte) packet.Verdict {
		select {
		case seen <- struct{}{}:
		default:
		}
		return packet.Verdict{Action: packet.Drop}
	}))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := ns.Flood(ctx, lab.Flood{To: lo4, Count: 1 << 20, Rate: 5000})
		ended <- err
	}()
	<-seen
	start := time.Now()
	stop()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("took %v to stop", took)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
