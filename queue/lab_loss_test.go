package queue

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// kernel returns the kernel's counters of queue num.
func kernel(t *testing.T, ns *lab.Namespace, num uint16) Kernel {
	t.Helper()
	ks, err := ReadKernel(ns.FD(), num)
	if err != nil || len(ks) != 1 {
		t.Fatalf("got %+v, %v, want queue %d", ks, err, num)
	}
	ks[0].PortID = 0
	return ks[0]
}

// Every packet that finds no room is counted, by the kernel and by us, and
// none of those that found room is lost.
func TestLabOverflow(t *testing.T) {
	const count = 1000
	tests := []struct {
		name string
		cfg  Config
		want func(k Kernel, s Stats, delivered int) bool
	}{
		{"queue full", Config{MaxLen: 16}, func(k Kernel, s Stats, delivered int) bool {
			return k.QueueDropped == count-16 && k.UserDropped == 0 && s.Gaps == 0 && delivered == 16
		}},
		{"queue full, fail open", Config{MaxLen: 16, FailOpen: true}, func(k Kernel, s Stats, delivered int) bool {
			return k.QueueDropped == 0 && s.Gaps == 0 && delivered == count
		}},
		{"receive buffer full", Config{RecvBuffer: 32 << 10}, func(k Kernel, s Stats, delivered int) bool {
			return k.QueueDropped == 0 && k.UserDropped > 0 && s.Gaps == uint64(k.UserDropped) && delivered+int(s.Gaps) == count
		}},
		{"receive buffer full, fail open", Config{RecvBuffer: 32 << 10, FailOpen: true}, func(k Kernel, s Stats, delivered int) bool {
			return k.QueueDropped == 0 && k.UserDropped == 0 && s.Gaps > 0 && delivered == count
		}},
		{"room for all", Config{MaxLen: count}, func(k Kernel, s Stats, delivered int) bool {
			return k.QueueDropped == 0 && k.UserDropped == 0 && s.Gaps == 0 && delivered == count
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ns := namespace(t)
			labtest.IPTables(t, ns, "-A", "INPUT", "-j", "NFQUEUE", "--queue-num", "0")
			s := sink(t, ns, lo4)
			q := open(t, ns, tt.cfg)
			flood(t, ns, lab.Flood{To: lo4, Count: count}) // nobody answers yet
			k := kernel(t, ns, 0)
			stop := run(t, q, judge(accept))
			if !lab.Poll(5*time.Second, func() bool { return kernel(t, ns, 0).Depth == 0 }) {
				t.Fatalf("queue is not empty: %+v", kernel(t, ns, 0))
			}
			flood(t, ns, lab.Flood{To: lo4, Count: 1, First: count}) // shows the gap at the end
			if !lab.Poll(5*time.Second, func() bool { return q.Stats().Accepted == uint64(kernel(t, ns, 0).LastID)-q.Stats().Gaps }) {
				t.Errorf("ids do not add up: %+v %+v", kernel(t, ns, 0), q.Stats())
			}
			stats := stop()
			delivered := s.Wait(count+2, 20*time.Millisecond).Distinct - 1
			if !tt.want(k, stats, delivered) || stats.Received != stats.Accepted || stats.Overruns != 0 {
				t.Errorf("delivered %d of %d\nkernel %+v\nstats %+v", delivered, count, k, stats)
			}
		})
	}
}

// The removal of an unrelated base chain empties all queues. The kernel's
// counters stay 0; ours say exactly what was lost.
func TestLabHookFlush(t *testing.T) {
	const count = 200
	labtest.Require(t, labtest.NFTBinary)
	ns := namespace(t)
	labtest.BothTables(t, ns, "-A", "INPUT", "-j", "NFQUEUE", "--queue-num", "0")
	sinks := []*lab.Sink{sink(t, ns, lo4), sink(t, ns, lo6)}
	q := open(t, ns, Config{})
	for _, s := range sinks {
		flood(t, ns, lab.Flood{To: s.Addr(), Count: count})
	}
	labtest.Output(t, ns, "nft", "add table inet other; add chain inet other c { type filter hook output priority 100; }; delete table inet other")
	stop := run(t, q, judge(byNumber))
	lab.Poll(5*time.Second, func() bool { return q.Stats().Received == 2*count })
	for _, s := range sinks {
		flood(t, ns, lab.Flood{To: s.Addr(), Count: count, First: count})
		if got := s.Wait(count/2, 5*time.Second); got.Distinct != count/2 {
			t.Errorf("%v: %d delivered after the flush, want %d", s.Addr(), got.Distinct, count/2)
		}
	}
	got := stop()
	want := Stats{Received: 4 * count, Accepted: 2 * count, Dropped: count, Rejected: count, HookFlush: count, LateDrop: count}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
	if k := kernel(t, ns, 0); k.QueueDropped != 0 || k.UserDropped != 0 {
		t.Errorf("kernel counts %+v", k)
	}
}

// Binding and unbinding under load loses nothing: what comes before or after
// passes by --queue-bypass.
func TestLabStartAndStopUnderLoad(t *testing.T) {
	const count, rate, rounds = 10_000, 20_000, 3
	for range rounds {
		ns := namespace(t)
		rule := []string{"INPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "0", "--queue-bypass"}
		labtest.IPTables(t, ns, append([]string{"-A"}, rule...)...)
		s := sink(t, ns, lo4)
		flooded := make(chan error, 1)
		go func() {
			_, err := ns.Flood(t.Context(), lab.Flood{To: lo4, Count: count, Rate: rate})
			flooded <- err
		}()
		s.Wait(count/5, 5*time.Second)
		q := open(t, ns, Config{})
		stop := run(t, q, judge(accept))
		s.Wait(3*count/5, 5*time.Second)
		labtest.IPTables(t, ns, append([]string{"-D"}, rule...)...)
		got := stop()
		q.Close()
		if err := <-flooded; err != nil {
			t.Fatal(err)
		}
		if got.Accepted == 0 || got.Accepted == count || got.Gaps != 0 {
			t.Errorf("the queue did not see the middle of the flood: %+v", got)
		}
		if got := s.Wait(count, 5*time.Second); got.Distinct != count || got.Duplicates != 0 {
			t.Errorf("%d delivered, %d twice, want %d once", got.Distinct, got.Duplicates, count)
		}
	}
}
