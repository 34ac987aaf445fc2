package ledger

import (
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/queue"
)

func TestAccount(t *testing.T) {
	bound := func(k queue.Kernel) queue.Kernel { k.PortID = 1; return k }
	tests := []struct {
		name     string
		kernel   queue.Kernel
		stats    queue.Stats
		failOpen bool
		moving   bool
		want     Account
		open     bool // does not close
	}{
		{name: "nothing", kernel: bound(queue.Kernel{})},
		{
			name:   "all judged",
			kernel: bound(queue.Kernel{LastID: 10}),
			stats:  queue.Stats{Received: 10, Accepted: 5, Dropped: 3, Rejected: 2, LateDrop: 1},
			want:   Account{Queued: 10, Received: 10, Accepted: 5, Dropped: 3, Rejected: 2, LateDrops: 1},
		},
		{
			name:   "every loss, some waiting",
			kernel: bound(queue.Kernel{LastID: 100, QueueDropped: 7, UserDropped: 11, Depth: 20}),
			stats:  queue.Stats{Received: 69, Accepted: 60, Dropped: 6, Unsent: 3, HookFlush: 4, Gaps: 9, Overruns: 1},
			want: Account{
				Queued: 107, Received: 69, Accepted: 56, Dropped: 6, Waiting: 20, Overruns: 1,
				Lost: Losses{QueueFull: 7, ReceiveBuffer: 11, HookFlush: 4, Unsent: 3},
			},
		},
		{
			name:     "fail open, gap at the end",
			failOpen: true,
			kernel:   bound(queue.Kernel{LastID: 100}),
			stats:    queue.Stats{Received: 80, Accepted: 80, Gaps: 15},
			want:     Account{Queued: 100, Received: 80, Accepted: 80, Unjudged: Passes{ReceiveBuffer: 20}},
		},
		{
			name:   "under way",
			moving: true,
			kernel: bound(queue.Kernel{LastID: 100, Depth: 3}),
			stats:  queue.Stats{Received: 80, Accepted: 60},
			want:   Account{Queued: 100, Received: 80, Accepted: 60, Waiting: 40},
		},
		{
			name:   "some missing",
			kernel: bound(queue.Kernel{LastID: 100, Depth: 3}),
			stats:  queue.Stats{Received: 90, Accepted: 90},
			want:   Account{Queued: 100, Received: 90, Accepted: 90, Waiting: 3, Unexplained: 7},
			open:   true,
		},
		{
			name:   "verdicts refused",
			kernel: bound(queue.Kernel{LastID: 100, Depth: 3}),
			stats:  queue.Stats{Received: 100, Accepted: 100, NotPermitted: 1, Refused: 2},
			want:   Account{Queued: 100, Received: 100, Accepted: 100, Waiting: 3, Unexplained: -3, Refused: 3},
			open:   true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var w wide
			got := w.account(tt.kernel, &tt.stats, tt.failOpen, !tt.moving)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("account (-want +got):\n%s", diff)
			}
			if got.Closes() == tt.open {
				t.Errorf("got that it closes: %v, want %v", got.Closes(), !tt.open)
			}
		})
	}
}

// The kernel's counters have 32 bits, and are 0 once the queue is gone.
func TestCountersWrap(t *testing.T) {
	var w wide
	const step = math.MaxUint32/2 + 1
	var id uint32
	for range 6 {
		id += step
		w.add(queue.Kernel{PortID: 1, LastID: id, QueueDropped: id, UserDropped: id})
	}
	w.add(queue.Kernel{})
	const want = 6 * uint64(step)
	if w.ids != want || w.queueDropped != want || w.userDropped != want {
		t.Errorf("got %d, %d and %d, want %d", w.ids, w.queueDropped, w.userDropped, want)
	}
}

func TestFromRules(t *testing.T) {
	tests := []struct {
		name     string
		sent     int64
		failOpen bool
		moving   bool
		want     Account // but for Accepted, which is 100
		open     bool
	}{
		{name: "as many", sent: 100, want: Account{Queued: 100}},
		{name: "more came, from others", sent: 90, want: Account{Queued: 100, Foreign: 10}},
		{name: "fewer came", sent: 130, want: Account{Queued: 130, Unexplained: 30}, open: true},
		{name: "fewer came yet", sent: 130, moving: true, want: Account{Queued: 100}},
		{name: "a full queue let them pass", sent: 130, failOpen: true, want: Account{Queued: 130, Unjudged: Passes{QueueFull: 30}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Account{Queued: 100, Accepted: 100}
			var b Book
			b.fromRules(&got, tt.sent, tt.failOpen, !tt.moving)
			tt.want.Accepted = 100
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("account (-want +got):\n%s", diff)
			}
			if got.Closes() == tt.open {
				t.Errorf("got that it closes: %v, want %v", got.Closes(), !tt.open)
			}
		})
	}
}

// What is once known to have passed unjudged stays known, when packets move
// between the readings.
func TestUnjudgedOnlyGrows(t *testing.T) {
	var b Book
	var got []uint64
	for _, sent := range []int64{100, 140, 120, 90, 150} {
		a := Account{Queued: 100}
		b.fromRules(&a, sent, true, false)
		got = append(got, a.Unjudged.QueueFull)
	}
	if diff := cmp.Diff([]uint64{0, 40, 40, 40, 50}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What came while the rules' counters were put in relation to the queues' is
// neither lost nor unjudged.
func TestSlack(t *testing.T) {
	r := reading{
		before: []queue.Kernel{{LastID: 0xffffffff, QueueDropped: 7}, {LastID: 5}},
		kernel: []queue.Kernel{{LastID: 1, QueueDropped: 8}, {LastID: 5}},
	}
	b := Book{slack: r.moved()}
	for sent, want := range map[int64]int64{99: 0, 100: 0, 103: 0, 104: 1} {
		a := Account{Queued: 100}
		b.fromRules(&a, sent, false, true)
		if a.Unexplained != want {
			t.Errorf("%d sent: got %d unexplained, want %d", sent, a.Unexplained, want)
		}
	}
}

// Every number of an Account is added up, and each has a field or a reason not
// to have one.
func TestAccountIsWhole(t *testing.T) {
	var a, b Account
	fill(reflect.ValueOf(&a).Elem(), 1)
	fill(reflect.ValueOf(&b).Elem(), 2)
	sum := a
	sum.add(&b)
	var want Account
	fill(reflect.ValueOf(&want).Elem(), 3)
	if diff := cmp.Diff(want, sum); diff != "" {
		t.Errorf("sum (-want +got):\n%s", diff)
	}
	numbers := len(a.counters())
	const withoutField = 1 // Malformed
	if got := len(Fields()); got != numbers-withoutField {
		t.Errorf("got %d fields, want %d", got, numbers-withoutField)
	}
	seen := make(map[string]bool)
	for _, f := range Fields() {
		if name := f.Name + " " + f.Cause; seen[name] || f.Value(&a) != 1 {
			t.Errorf("field %s: twice, or got %d, want 1", name, f.Value(&a))
		} else {
			seen[name] = true
		}
	}
}

// fill sets all numbers in v.
func fill(v reflect.Value, n int64) {
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Struct:
			fill(f, n)
		case reflect.Int64:
			f.SetInt(n)
		default:
			f.SetUint(uint64(n))
		}
	}
}

func TestOverload(t *testing.T) {
	var o Overload
	l := &Ledger{Queues: []QueueAccount{{Queue: 4, Length: 100}}}
	q := &l.Queues[0]
	start := time.Unix(1000, 0)
	steps := []struct {
		name string
		at   time.Duration
		do   func()
		last bool
		want []Warning
	}{
		{"all well", 0, func() { q.Waiting = 89 }, false, nil},
		{"nearly full", 1 * time.Second, func() { q.Waiting = 90 }, false, []Warning{{Queue: 4, What: NearlyFull, Count: 90, Total: 100}}},
		{"first loss at once", 2 * time.Second, func() { q.Lost.QueueFull = 5 }, false, []Warning{{Queue: 4, What: "lost", Cause: "queue_full", Count: 5, Total: 5}}},
		{"more of both too early", 30 * time.Second, func() { q.Lost.QueueFull = 8 }, false, nil},
		{"another cause at once", 31 * time.Second, func() { q.Lost.HookFlush = 2 }, false, []Warning{{Queue: 4, What: "lost", Cause: "hook_flush", Count: 2, Total: 2}}},
		{"a minute later", 62 * time.Second, func() { q.Waiting = 0 }, false, []Warning{{Queue: 4, What: "lost", Cause: "queue_full", Count: 3, Total: 8}}},
		{"nothing new", 300 * time.Second, func() {}, false, nil},
		{"all queues", 301 * time.Second, func() { l.Total.Unjudged.QueueFull = 9 }, false, []Warning{{Queue: -1, What: "unjudged", Cause: "queue_full", Count: 9, Total: 9}}},
		{"at the end", 302 * time.Second, func() { l.Total.Unjudged.QueueFull, q.Lost.Unsent, q.Waiting = 10, 1, 100 }, true, []Warning{
			{Queue: 4, What: "lost", Cause: "unsent", Count: 1, Total: 1},
			{Queue: -1, What: "unjudged", Cause: "queue_full", Count: 1, Total: 10},
		}},
	}
	for _, s := range steps {
		s.do()
		got := o.Check(start.Add(s.at), l, s.last)
		for i := range got {
			if !strings.Contains(got[i].Remedy, "--") && got[i].Cause != "hook_flush" && got[i].Cause != "unsent" {
				t.Errorf("%s: got remedy %q, want an option to set", s.name, got[i].Remedy)
			}
			got[i].Remedy = ""
		}
		if diff := cmp.Diff(s.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s.name, diff)
		}
	}
}
