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
// zero value is ready. It may be used by one goroutine at a time.
type Overload struct {
	told map[alarm]*told
}

// Told is what an Overload has told of one loss, for the one that goes on in
// another process: a loss is told once, whoever tells it.
type Told struct {
	Queue int       `json:"queue"`
	What  string    `json:"what"`
	Cause string    `json:"cause"`
	Total uint64    `json:"total"`
	At    time.Time `json:"at"`
}

// Past returns what has been told, in no order.
func (o *Overload) Past() []Told {
	var all []Told
	for a, t := range o.told {
		all = append(all, Told{Queue: a.queue, What: a.what, Cause: a.cause, Total: t.total, At: t.at})
	}
	return all
}

// NewOverload returns an Overload that goes on after past.
func NewOverload(past []Told) *Overload {
	o := &Overload{told: make(map[alarm]*told)}
	for _, t := range past {
		o.told[alarm{t.Queue, t.What, t.Cause}] = &told{at: t.At, total: t.Total}
	}
	return o
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
		{"lost", "interface_down", func(a *Account) *uint64 { return &a.Lost.InterfaceDown }, "none in verdictd: the kernel discards what waits for an interface that goes down; see what takes it down"},
		{"lost", "unsent", func(a *Account) *uint64 { return &a.Lost.Unsent }, "the kernel is short of memory: free some"},
		{"unjudged", "receive_buffer", func(a *Account) *uint64 { return &a.Unjudged.ReceiveBuffer }, moreBuffer},
		{"refused", "verdict", func(a *Account) *uint64 { return &a.Refused }, "verdictd needs CAP_NET_ADMIN as long as it runs: start it again"},
	}
}

// totalCauses are known for all queues together.
func totalCauses() []cause {
	return []cause{
		{"unjudged", "queue_full", func(a *Account) *uint64 { return &a.Unjudged.QueueFull }, moreRoom + "; with --fail closed such packets are dropped"},
		{"lost", "not_queued", func(a *Account) *uint64 { return &a.Lost.NotQueued }, "the kernel does not queue copies and errors of packets whose connection it has not confirmed yet: " +
			"let a rule before the queue accept them (ct status ! confirmed); if none can be meant, the kernel is short of memory: free some"},
	}
}

const moreBuffer = "lower --copy-range, give verdictd more CPU, or start it with CAP_NET_ADMIN over the initial user namespace (or raise net.core.rmem_max)"
