package queue

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

func TestLabSecondBinder(t *testing.T) {
	ns := namespace(t)
	open(t, ns, Config{Num: 40})
	_, err := Open(Config{Num: 40, NetNS: ns.FD()})
	want := regexp.MustCompile(`^bind queue 40: already bound by port id \d+ \(pid \d+, queue\.test\) \(stop the other program or choose another --queue\)$`)
	if !errors.Is(err, ErrInUse) || !want.MatchString(err.Error()) {
		t.Errorf("got %v, want %v", err, want)
	}
	if err != nil && !strings.Contains(err.Error(), "(pid "+strconv.Itoa(os.Getpid())+",") {
		t.Errorf("%v does not name us, %d", err, os.Getpid())
	}
}

// withoutNetAdmin runs fn in ns on a thread that may not administer networks.
func withoutNetAdmin(t *testing.T, ns *lab.Namespace, fn func() error) error {
	t.Helper()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	return ns.Do(func() error {
		var caps [2]unix.CapUserData
		if err := unix.Capget(&hdr, &caps[0]); err != nil {
			return err
		}
		all := caps[0].Effective
		caps[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&hdr, &caps[0]); err != nil {
			return err
		}
		defer func() {
			caps[0].Effective = all
			if err := unix.Capset(&hdr, &caps[0]); err != nil {
				t.Errorf("give back capabilities: %v", err)
			}
		}()
		return fn()
	})
}

func TestLabNoCapability(t *testing.T) {
	ns := namespace(t)
	err := withoutNetAdmin(t, ns, func() error {
		q, err := Open(Config{Num: 40})
		if err == nil {
			q.Close()
		}
		return err
	})
	const want = "bind queue 40: operation not permitted (needs CAP_NET_ADMIN)"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// A process that loses the right to give verdicts goes on and counts; with the
// right back, the packets that still wait are not forgotten by the kernel.
func TestLabVerdictNotPermitted(t *testing.T) {
	ns := namespace(t)
	labtest.IPTables(t, ns, "-A", "INPUT", "-j", "NFQUEUE", "--queue-num", "0")
	q := open(t, ns, Config{Drain: -1})
	flood(t, ns, lab.Flood{To: lo4, Count: 1})
	ctx, cancel := context.WithCancel(t.Context())
	err := withoutNetAdmin(t, ns, func() error {
		return q.Run(ctx, tickJudge{judge(accept), func(int64) {
			if q.Stats().NotPermitted > 0 {
				cancel()
			}
		}})
	})
	cancel()
	if err != nil {
		t.Error(err)
	}
	if got := q.Stats(); got.NotPermitted != 1 || got.HookFlush != 0 {
		t.Errorf("got %+v, want one verdict not permitted", got)
	}
	if got := kernel(t, ns, 0).Depth; got != 1 {
		t.Errorf("depth %d, want 1", got)
	}
}

// tickJudge is a Handler that is also a Ticker.
type tickJudge struct {
	judge
	tick func(now int64)
}

func (h tickJudge) Tick(now int64) { h.tick(now) }

// Tick comes about once a second without packets, and after each batch.
func TestLabTick(t *testing.T) {
	ns := namespace(t)
	labtest.IPTables(t, ns, "-A", "INPUT", "-j", "NFQUEUE", "--queue-num", "0")
	ticks := make(chan int64, 100)
	start := time.Now()
	stop := run(t, open(t, ns, Config{}), tickJudge{judge(accept), func(now int64) { ticks <- now }})
	first := time.Unix(0, <-ticks).Sub(start)
	if first < Idle*9/10 || first > 3*Idle {
		t.Errorf("first tick after %v, want about %v", first, Idle)
	}
	flood(t, ns, lab.Flood{To: lo4, Count: 1})
	if second := time.Unix(0, <-ticks).Sub(start); second-first > Idle/2 {
		t.Errorf("no tick after a packet for %v", second-first)
	}
	stop()
}

func TestLabCloseWhileRunning(t *testing.T) {
	ns := namespace(t)
	q := open(t, ns, Config{Num: 2})
	done := make(chan error)
	go func() { done <- q.Run(context.Background(), judge(accept)) }()
	q.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) || !strings.HasPrefix(err.Error(), "read queue 2: ") {
		t.Errorf("got %v, want %v", err, os.ErrClosed)
	}
	if ks, err := ReadKernel(ns.FD()); len(ks) != 0 || err != nil {
		t.Errorf("after Close: %+v, %v", ks, err)
	}
}
