package ledger

import "time"

// Warning says that something goes wrong, and what to do.
type Warning struct {
	Queue  int    // number of the queue; -1 if all are meant
	What   string // "lost", "unjudged", "refused" or NearlyFull
	Cause  string // "queue_full"; empty for NearlyFull
	Count  uint64 // packets since the last such warning; for NearlyFull those that wait now
	Total  uint64 // packets since the start; for NearlyFull how many may wait
	Remedy string
}

// NearlyFull is the Warning.What of a queue that is 90 % full.
const NearlyFull = "nearly_full"

// Overload finds what is worth a warning in one Ledger after the other. The
// zero value is ready. It is for one goroutine.
type Overload struct {
	told map[alarm]*told
}

// alarm is what warnings are repeated about.
type alarm struct {
	queue       int
	what, cause string
}

type told struct {
	at    time.Time
	total uint64
}

// Interval is how much time lies at least between two warnings about the same.
const Interval = time.Minute

// Check returns the warnings that are due: each loss, by queue and cause, and
// each queue that is 90 % full. What came within an Interval of the last
// warning is summed up in the next. With last it returns all that has not been
// told yet.
func (o *Overload) Check(now time.Time, l *Ledger, last bool) []Warning {
	var due []Warning
	note := func(q int, a *Account, causes []cause) {
		for _, c := range causes {
			if w, ok := o.grown(now, alarm{q, c.what, c.name}, *c.count(a), last); ok {
				w.Remedy = c.remedy
				due = append(due, w)
			}
		}
	}
	for i := range l.Queues {
		q := &l.Queues[i]
		note(int(q.Queue), &q.Account, queueCauses())
		if !last && q.Waiting*10 >= uint64(q.Length)*9 && o.due(now, alarm{int(q.Queue), NearlyFull, ""}) {
			due = append(due, Warning{
				Queue: int(q.Queue), What: NearlyFull, Count: q.Waiting, Total: uint64(q.Length), Remedy: moreRoom,
			})
		}
	}
	note(-1, &l.Total, totalCauses())
	return due
}

// grown returns a warning if total has grown and one is due.
func (o *Overload) grown(now time.Time, a alarm, total uint64, last bool) (Warning, bool) {
	var before uint64
	if t := o.told[a]; t != nil {
		before = t.total
	}
	if total <= before || !last && !o.due(now, a) {
		return Warning{}, false
	}
	o.tell(now, a).total = total
	return Warning{Queue: a.queue, What: a.what, Cause: a.cause, Count: total - before, Total: total}, true
}

// due returns whether the last warning about a is long enough ago, and if so
// notes this one.
func (o *Overload) due(now time.Time, a alarm) bool {
	if t := o.told[a]; t != nil && now.Sub(t.at) < Interval {
		return false
	}
	o.tell(now, a)
	return true
}

func (o *Overload) tell(now time.Time, a alarm) *told {
	if o.told == nil {
		o.told = make(map[alarm]*told)
	}
	if o.told[a] == nil {
		o.told[a] = &told{}
	}
	o.told[a].at = now
	return o.told[a]
}

const moreRoom = "raise --queue-length, spread the packets over more queues (--queue 0-3), or give verdictd more CPU"

// cause is a number that should not grow.
type cause struct {
	what, name string
	count      func(*Account) *uint64
	remedy     string
}

// queueCauses are known for each queue.
func queueCauses() []cause {
	return []cause{
		{"lost", "queue_full", func(a *Account) *uint64 { return &a.Lost.QueueFull }, moreRoom + "; with --fail open such packets pass unjudged"},
		{"lost", "receive_buffer", func(a *Account) *uint64 { return &a.Lost.ReceiveBuffer }, moreBuffer},
		{"lost", "hook_flush", func(a *Account) *uint64 { return &a.Lost.HookFlush }, "let other programs empty their nf_tables base chains instead of deleting them: a deletion discards what is queued"},
		{"lost", "unsent", func(a *Account) *uint64 { return &a.Lost.Unsent }, "the kernel is short of memory: free some"},
		{"unjudged", "receive_buffer", func(a *Account) *uint64 { return &a.Unjudged.ReceiveBuffer }, moreBuffer},
		{"refused", "verdict", func(a *Account) *uint64 { return &a.Refused }, "verdictd needs CAP_NET_ADMIN as long as it runs: start it again"},
	}
}

// totalCauses are known for all queues together.
func totalCauses() []cause {
	return []cause{
		{"unjudged", "queue_full", func(a *Account) *uint64 { return &a.Unjudged.QueueFull }, moreRoom + "; with --fail closed such packets are dropped"},
	}
}

const moreBuffer = "lower --copy-range, give verdictd more CPU, or start it with CAP_NET_ADMIN over the initial user namespace (or raise net.core.rmem_max)"
