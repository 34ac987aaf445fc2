package ledger

import (
	"slices"
	"sync"
	"time"

	"github.com/verdictd/verdictd/queue"
)

// Config says what a Book is about.
type Config struct {
	Queues []*queue.Queue
	NetNS  int // descriptor of the network namespace of the queues; 0 means that of the calling thread

	// WentDown returns whether the interface whose index has these low
	// queue.InterfaceBits bits went down a moment before at, or is gone. nil
	// means that nobody knows.
	WentDown func(low uint32, at time.Time) bool

	Past Past // what the Book of the process before left
}

// Past is what a Book leaves to that of the process that goes on with its
// queues. It travels as JSON.
type Past struct {
	Queues    []QueuePast `json:"queues"`
	Unjudged  uint64      `json:"unjudged"`
	NotQueued uint64      `json:"not_queued"`
}

// QueuePast is what is left of a queue.
type QueuePast struct {
	Num    uint16 `json:"num"`
	Counts wide   `json:"counts"`
	Down   uint64 `json:"down"`
}

// Book reads the counters of queues and rules and makes a Ledger of them. Its
// methods may be called from any goroutine. It must be read at least once per
// 2^32 packets of a queue: the kernel's counters wrap there.
type Book struct {
	cfg   Config
	nums  []uint16
	rules func() (uint64, error) // nil while there are none of ours

	mu        sync.Mutex
	kernel    []wide   // by place in cfg.Queues
	down      []uint64 // packets lost as an interface went down, by place in cfg.Queues
	before    int64    // packets that came to the queues before the counters of the rules began
	slack     int64    // by how much before may be too high, as packets moved while it was read
	unjudged  uint64   // passes of a full queue, as far as they are known
	notQueued uint64   // packets that the kernel did not queue, as far as they are known
	doubtful  uint64   // packets that were in neither at the last reading
	saturated uint64   // of all queues, at the last reading
	follows   bool     // another process, and nothing has been read yet
}

// wide are counters of queue.Kernel that do not wrap.
type wide struct {
	Last         queue.Kernel `json:"last"`
	IDs          uint64       `json:"ids"`
	QueueDropped uint64       `json:"queue_dropped"`
	UserDropped  uint64       `json:"user_dropped"`
}

// reading is what was read of all queues at about the same time.
type reading struct {
	rules    uint64
	hasRules bool
	before   []queue.Kernel // read before the rest
	kernel   []queue.Kernel // read after the rest
	stats    []queue.Stats
}

// NewBook returns a Book about queues that are bound.
func NewBook(cfg Config) *Book {
	past := &cfg.Past
	b := &Book{
		cfg: cfg, kernel: make([]wide, len(cfg.Queues)), down: make([]uint64, len(cfg.Queues)),
		unjudged: past.Unjudged, notQueued: past.NotQueued, follows: past.Queues != nil,
	}
	for i, q := range cfg.Queues {
		b.nums = append(b.nums, q.Num())
		for _, p := range past.Queues {
			if p.Num == q.Num() {
				b.kernel[i], b.down[i] = p.Counts, p.Down
			}
		}
	}
	return b
}

// Past returns what the Book leaves to the next one.
func (b *Book) Past() Past {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := Past{Unjudged: b.unjudged, NotQueued: b.notQueued, Queues: []QueuePast{}}
	for i, num := range b.nums {
		p.Queues = append(p.Queues, QueuePast{Num: num, Counts: b.kernel[i], Down: b.down[i]})
	}
	return p
}

// SetRules says that rules of our own send packets to the queues from now on,
// and gives the function that reads how many they have sent. It is called again
// when the rules were put in anew, so that their counters began again at 0.
func (b *Book) SetRules(sent func() (uint64, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rules = sent
	r, _, err := b.settle()
	if err != nil || !r.hasRules {
		return
	}
	// Packets may have come before the rules did: from rules of an earlier run.
	// Where they never pause, those that came between the readings are in both.
	b.before, b.slack = int64(b.total(&r).Queued+b.unjudged+b.notQueued)-int64(r.rules), r.moved()
}

// Read reads the counters and returns the accounts. It tries for some
// milliseconds to find a moment at which no packet moves. Errors are those of
// queue.ReadKernel.
func (b *Book) Read() (Ledger, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, settled, err := b.settle()
	if err != nil {
		return Ledger{}, err
	}
	return b.balance(&r, settled), nil
}

// Glance is Read, but does not try to find a moment at which no packet moves.
func (b *Book) Glance() (Ledger, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, err := b.read()
	if err != nil {
		return Ledger{}, err
	}
	return b.balance(&r, r.settled()), nil
}

// settle reads until no packet moved meanwhile, for at most some milliseconds.
func (b *Book) settle() (r reading, settled bool, err error) {
	const tries, pause = 10, time.Millisecond
	for range tries {
		if r, err = b.read(); err != nil || r.settled() {
			return r, err == nil, err
		}
		time.Sleep(pause)
	}
	return r, false, nil
}

// read reads everything once. The rules are read before the queues, so that
// never more seems to have reached the queues than the rules sent; and what we
// answered before what the kernel queued.
func (b *Book) read() (r reading, err error) {
	b.readFlushes()
	if r.before, err = b.readKernel(); err != nil {
		return r, err
	}
	if b.rules != nil {
		// Without counters, such as while somebody has removed the table, the
		// books begin at the queues.
		sent, err := b.rules()
		r.rules, r.hasRules = sent, err == nil
	}
	for _, q := range b.cfg.Queues {
		r.stats = append(r.stats, q.Stats())
	}
	for i := range r.stats {
		r.rules -= min(r.stats[i].Again, r.rules) // the rules saw these twice
	}
	r.kernel, err = b.readKernel()
	return r, err
}

// readKernel returns the kernel's counters in the order of cfg.Queues. A queue
// that is not bound any more has the number 0 for everything but its number.
func (b *Book) readKernel() ([]queue.Kernel, error) {
	bound, err := queue.ReadKernel(b.cfg.NetNS, b.nums...)
	all := make([]queue.Kernel, len(b.nums))
	for i, num := range b.nums {
		all[i].Num = num
		for _, k := range bound {
			if k.Num == num {
				all[i] = k
			}
		}
	}
	return all, err
}

// readFlushes finds out which of the packets that were flushed were so because an
// interface went down. The news of that may come a little later than the refusal
// of the verdict.
func (b *Book) readFlushes() {
	const late = 50 * time.Millisecond
	if b.cfg.WentDown == nil {
		return
	}
	for i, q := range b.cfg.Queues {
		for _, f := range q.Flushes() {
			if b.wentDown(&f) {
				b.down[i] += f.Packets
				continue
			}
			if age := time.Since(f.At); age < late {
				time.Sleep(late - age)
				if b.wentDown(&f) {
					b.down[i] += f.Packets
				}
			}
		}
	}
}

func (b *Book) wentDown(f *queue.Flush) bool {
	return f.In != 0 && b.cfg.WentDown(f.In, f.At) || f.Out != 0 && b.cfg.WentDown(f.Out, f.At)
}

// settled returns whether nothing moved between the first and the last number.
func (r *reading) settled() bool {
	for i := range r.kernel {
		s := &r.stats[i]
		if r.kernel[i] != r.before[i] || s.Received != s.Accepted+s.Dropped+s.Rejected+s.Unsent {
			return false
		}
	}
	return true
}

// moved returns how many packets came to the queues between the first and the
// last number.
func (r *reading) moved() (n int64) {
	for i, k := range r.kernel {
		n += int64(k.LastID-r.before[i].LastID) + int64(k.QueueDropped-r.before[i].QueueDropped)
	}
	return n
}

// balance makes the accounts.
func (b *Book) balance(r *reading, settled bool) Ledger {
	l := Ledger{Settled: settled, Rules: r.hasRules, Closes: settled}
	full := b.follows // nobody knows what came before
	saturated := uint64(0)
	for i, q := range b.cfg.Queues {
		s := &r.stats[i]
		a := b.kernel[i].account(r.kernel[i], s, b.down[i], q.FailOpen(), settled)
		saturated += s.Saturated
		full = full || s.Backlog+uint64(r.kernel[i].Depth)+slackOfRun >= uint64(q.MaxLen())
		l.Closes = l.Closes && a.Closes()
		l.Queues = append(l.Queues, QueueAccount{Queue: q.Num(), Length: q.MaxLen(), Account: a})
		l.Total.add(&a)
	}
	if r.hasRules {
		failOpen := slices.ContainsFunc(b.cfg.Queues, (*queue.Queue).FailOpen)
		b.fromRules(&l.Total, int64(r.rules)+b.before, failOpen && (full || saturated != b.saturated), settled)
	}
	b.saturated, b.follows = saturated, false
	l.Closes = l.Closes && l.Total.Closes()
	return l
}

// total returns the sum of the accounts of all queues.
func (b *Book) total(r *reading) *Account {
	var sum Account
	for i, q := range b.cfg.Queues {
		a := b.kernel[i].account(r.kernel[i], &r.stats[i], b.down[i], q.FailOpen(), false)
		sum.add(&a)
	}
	return &sum
}

// slackOfRun is how many packets may have waited before those of Stats.Backlog:
// those of one batch.
const slackOfRun = 64

// fromRules compares what the rules sent with what came to the queues. More
// sent than came: a full queue let it pass, if one may have been full under fail
// open (passes) since the last reading, or the kernel did not queue it. More came
// than sent: others send too.
func (b *Book) fromRules(total *Account, sent int64, passes, settled bool) {
	more := sent - int64(total.Queued)
	if more > 0 {
		more = max(more-b.slack, 0)
	}
	if more < 0 && settled {
		total.Foreign = uint64(-more)
	}
	grown := uint64(max(more-int64(b.unjudged+b.notQueued), 0))
	// What is between rule and queue at this moment is in none of both, and what
	// was so at the last reading is no more.
	sure := min(b.doubtful, grown)
	switch {
	case passes:
		b.unjudged += grown - sure
		grown = sure
	case settled:
		sure = grown
	}
	b.notQueued += sure
	b.doubtful = grown - sure
	total.Unjudged.QueueFull = b.unjudged
	total.Lost.NotQueued = b.notQueued
	total.Queued += b.unjudged + b.notQueued
}

// account makes the account of one queue.
func (w *wide) account(k queue.Kernel, s *queue.Stats, down uint64, failOpen, settled bool) Account {
	w.add(k)
	flushed := min(s.HookFlush, s.Accepted) // which were not read at the same moment
	queueDropped, userDropped := w.QueueDropped-s.EarlierQueueDropped, w.UserDropped-s.EarlierUserDropped
	a := Account{
		Queued:   w.IDs + queueDropped - min(s.Earlier+s.Again, w.IDs), // those came twice
		Received: s.Received,
		Accepted: s.Accepted - flushed,
		Dropped:  s.Dropped,
		Rejected: s.Rejected,
		Lost: Losses{
			QueueFull: queueDropped, ReceiveBuffer: userDropped,
			HookFlush: flushed - min(down, flushed), InterfaceDown: min(down, flushed), Unsent: s.Unsent,
		},
		LateDrops: s.LateDrop,
		Refused:   s.Refused + s.NotPermitted,
		Overruns:  s.Overruns,
		Malformed: s.Malformed,
	}
	if failOpen {
		a.Unjudged.ReceiveBuffer = s.Gaps
	}
	rest := a.Queued - a.placed()
	if !settled {
		a.Waiting = rest
		return a
	}
	a.Waiting = uint64(k.Depth)
	a.Unexplained = int64(rest) - int64(k.Depth)
	if failOpen && a.Unexplained > 0 {
		// The gap will show with the next packet's number.
		a.Unjudged.ReceiveBuffer += uint64(a.Unexplained)
		a.Unexplained = 0
	}
	return a
}

// add continues the counters by those of k.
func (w *wide) add(k queue.Kernel) {
	if k.PortID == 0 {
		return // not bound any more: nothing new
	}
	w.IDs += uint64(k.LastID - w.Last.LastID)
	w.QueueDropped += uint64(k.QueueDropped - w.Last.QueueDropped)
	w.UserDropped += uint64(k.UserDropped - w.Last.UserDropped)
	w.Last = k
}
