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
		down     uint64
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
			name:   "an interface went down",
			kernel: bound(queue.Kernel{LastID: 10}),
			stats:  queue.Stats{Received: 10, Accepted: 10, HookFlush: 5},
			down:   3,
			want:   Account{Queued: 10, Received: 10, Accepted: 5, Lost: Losses{HookFlush: 2, InterfaceDown: 3}},
		},
		{
			name:   "after an owner of whom nothing is known",
			kernel: bound(queue.Kernel{LastID: 100, QueueDropped: 7, UserDropped: 5}),
			stats:  queue.Stats{Received: 10, Accepted: 10, Earlier: 88, EarlierQueueDropped: 6, EarlierUserDropped: 3},
			want:   Account{Queued: 13, Received: 10, Accepted: 10, Lost: Losses{QueueFull: 1, ReceiveBuffer: 2}},
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
			got := w.account(tt.kernel, &tt.stats, tt.down, tt.failOpen, !tt.moving)
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
	if w.IDs != want || w.QueueDropped != want || w.UserDropped != want {
		t.Errorf("got %d, %d and %d, want %d", w.IDs, w.QueueDropped, w.UserDropped, want)
	}
}

func TestFromRules(t *testing.T) {
	type step struct {
		sent         int64
		full, moving bool
		unjudged     uint64
		notQueued    uint64
	}
	tests := []struct {
		name    string
		steps   []step // of which each reading gets 100 packets from the queues
		foreign uint64
	}{
		{"as many", []step{{sent: 100}}, 0},
		{"more came, from others", []step{{sent: 90}}, 10},
		{"fewer came", []step{{sent: 130, notQueued: 30}}, 0},
		{"fewer came yet", []step{{sent: 130, moving: true}, {sent: 100}}, 0},
		{"fewer came and do not come", []step{{sent: 130, moving: true}, {sent: 140, moving: true, notQueued: 30}, {sent: 140, moving: true, notQueued: 40}}, 0},
		{"a full queue let them pass", []step{{sent: 130, full: true, moving: true, unjudged: 30}}, 0},
		{"what is known stays known", []step{
			{sent: 140, full: true, moving: true, unjudged: 40}, {sent: 120, full: true, unjudged: 40}, {sent: 150, full: true, unjudged: 50},
		}, 0},
		{"first not queued, then full", []step{
			{sent: 130, notQueued: 30}, {sent: 140, full: true, unjudged: 10, notQueued: 30}, {sent: 145, unjudged: 10, notQueued: 35},
		}, 0},
		{"in doubt, then full", []step{{sent: 130, moving: true}, {sent: 140, full: true, unjudged: 10, notQueued: 30}}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b Book
			var got Account
			for i, s := range tt.steps {
				got = Account{Queued: 100, Accepted: 100}
				b.fromRules(&got, s.sent, s.full, !s.moving)
				want := Account{Queued: 100 + s.unjudged + s.notQueued, Accepted: 100, Foreign: got.Foreign}
				want.Unjudged.QueueFull, want.Lost.NotQueued = s.unjudged, s.notQueued
				if diff := cmp.Diff(want, got); diff != "" || !got.Closes() {
					t.Errorf("reading %d: account (-want +got), closes: %v\n%s", i, got.Closes(), diff)
				}
			}
			if got.Foreign != tt.foreign {
				t.Errorf("got %d from others, want %d", got.Foreign, tt.foreign)
			}
		})
	}
}

// What came while the rules' counters were put in relation to the queues' is
// neither lost nor unjudged.
func TestSlack(t *testing.T) {
	r := reading{
		before: []queue.Kernel{{LastID: 0xffffffff, QueueDropped: 7}, {LastID: 5}},
		kernel: []queue.Kernel{{LastID: 1, QueueDropped: 8}, {LastID: 5}},
	}
	for sent, want := range map[int64]uint64{99: 0, 100: 0, 103: 0, 104: 1} {
		b := Book{slack: r.moved()}
		a := Account{Queued: 100}
		b.fromRules(&a, sent, false, true)
		if a.Lost.NotQueued != want {
			t.Errorf("%d sent: got %d not queued, want %d", sent, a.Lost.NotQueued, want)
		}
	}
}

// A loss that one process told is not told by the next one.
func TestOverloadGoesOn(t *testing.T) {
	l := &Ledger{Queues: []QueueAccount{{Queue: 4, Length: 100}}}
	l.Queues[0].Lost.QueueFull, l.Total.Lost.NotQueued = 50, 3
	now := time.Unix(1000, 0)
	var o Overload
	if got := o.Check(now, l, true); len(got) != 2 {
		t.Fatalf("got %+v, want two warnings", got)
	}
	next := NewOverload(o.Past())
	if got := next.Check(now.Add(2*Interval), l, true); got != nil {
		t.Errorf("got %+v, want nothing: it has been told", got)
	}
	l.Queues[0].Lost.QueueFull = 57
	if got := next.Check(now.Add(3*Interval), l, true); len(got) != 1 || got[0].Count != 7 || got[0].Total != 57 {
		t.Errorf("got %+v, want the 7 that are new", got)
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
