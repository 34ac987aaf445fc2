package attribution

import (
	"sync"
	"time"
)

// poolConfig bounds a pool.
type poolConfig struct {
	workers int           // jobs that run at a time
	share   int           // of them, jobs of one group
	hung    int           // workers that may hang; each is replaced until then
	limit   time.Duration // after which a worker hangs
}

// A pool runs jobs that a judged process can slow, or make hang for ever. Jobs are
// in groups, one for each user: the group that has cost least time so far is
// served first. Who runs longer than the limit is given up: another worker takes
// its place, and the group may have fewer of them.
type pool struct {
	cfg poolConfig

	mu      sync.Mutex
	ready   sync.Cond // there is something to do
	lanes   map[uint32]*lane
	spent   time.Duration // of the lane that was served last: new ones begin there
	waiting int
	live    int // workers that do not hang
	hung    int
	lost    uint64 // jobs that were given up
	closed  bool
	soon    *time.Timer   // wakes a worker for patient jobs; nil: no such job came yet
	rousing bool          // soon will
	idle    chan struct{} // closed when the last live worker has ended
}

// A job is what a pool runs. Jobs of a group run in the order of their sizes.
type job struct {
	group uint32
	size  int64
	// patient says that it may wait for gatherTime, so that a worker that is woken
	// finds several to run.
	patient bool
	// run does a part of the job and says whether there is more to do; it may
	// change the size.
	run func(j *job) (more bool)
	// lost is called, once and from any goroutine, if the job was given up while it
	// ran. It may still come to its end.
	lost func()
	// drop, if it is not nil, is called if a job that has more to do is not gone on
	// with.
	drop func()
}

// lane are the jobs of a group.
type lane struct {
	jobs    []job
	running int
	hung    int
	spent   time.Duration
}

func (l *lane) done() bool { return len(l.jobs) == 0 && l.running == 0 && l.hung == 0 }

// gatherTime is how long patient jobs may wait for more. It is shorter than what the
// records of a log wait for facts about their owners.
const gatherTime = 20 * time.Millisecond

// Bounds of what waits.
const (
	maxJobs    = 4096
	maxOfGroup = 512
	rootGroup  = 0 // whose jobs are taken however many workers hang
)

// groupOf returns the group of a user. Users that another can become by a user
// namespace have numbers from 65,536 up, given out in blocks of that size: each
// block counts as one.
func groupOf(uid uint32) uint32 {
	const block = 1 << 16
	if uid < block {
		return uid
	}
	return block + uid/block
}

func newPool(cfg poolConfig) *pool {
	p := &pool{cfg: cfg, lanes: map[uint32]*lane{}, idle: make(chan struct{})}
	p.ready.L = &p.mu
	p.mu.Lock()
	defer p.mu.Unlock()
	for range cfg.workers {
		p.start()
	}
	return p
}

// start starts a worker. The caller holds the lock.
func (p *pool) start() {
	p.live++
	go p.work()
}

// add takes a job, unless too many of its group wait or hang. It does not wait.
func (p *pool) add(j job) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.lanes[j.group]
	if l == nil {
		l = &lane{}
	}
	crowded := p.hung >= p.cfg.hung && j.group != rootGroup
	if p.closed || crowded || p.waiting >= maxJobs || len(l.jobs) >= maxOfGroup || l.hung >= max(p.cfg.hung/4, 1) {
		return false
	}
	p.lanes[j.group] = l
	p.push(l, j)
	if j.patient {
		p.rouseSoon()
	} else {
		p.ready.Signal()
	}
	return true
}

// rouseSoon wakes a worker when patient jobs have waited long enough. The caller holds
// the lock.
func (p *pool) rouseSoon() {
	switch {
	case p.rousing:
		return
	case p.soon == nil:
		p.soon = time.AfterFunc(gatherTime, p.hurry)
	default:
		p.soon.Reset(gatherTime)
	}
	p.rousing = true
}

// hurry wakes a worker for what waits, if there is anything.
func (p *pool) hurry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rousing {
		p.rousing = false
		p.soon.Stop()
		p.ready.Signal()
	}
}

// push puts a job into its place, behind those of the same size.
func (p *pool) push(l *lane, j job) {
	if len(l.jobs) == 0 && l.running == 0 {
		l.spent = max(l.spent, p.spent) // who was idle has saved up nothing
	}
	at := len(l.jobs)
	for at > 0 && l.jobs[at-1].size > j.size {
		at--
	}
	l.jobs = append(l.jobs, job{})
	copy(l.jobs[at+1:], l.jobs[at:])
	l.jobs[at] = j
	p.waiting++
}

// pick returns the lane that is to be served, nil if there is none.
func (p *pool) pick() *lane {
	var best *lane
	for group, l := range p.lanes {
		if l.done() && l.spent <= p.spent {
			delete(p.lanes, group) // there is nothing to remember
			continue
		}
		if len(l.jobs) > 0 && l.running < p.cfg.share && (best == nil || l.spent < best.spent) {
			best = l
		}
	}
	return best
}

// turn is one run of a job.
type turn struct {
	lane  *lane
	since time.Time
	over  bool // it ended, or was given up
}

// work runs jobs until the pool is closed, or one of them was given up.
func (p *pool) work() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed {
		l := p.pick()
		if l == nil {
			p.ready.Wait()
			continue
		}
		if !p.serve(l) {
			return // another works in our place
		}
	}
	p.leave()
}

// serve runs the first job of a lane. It returns false if it was given up.
func (p *pool) serve(l *lane) bool {
	j := l.jobs[0]
	l.jobs = append(l.jobs[:0], l.jobs[1:]...)
	if p.waiting--; p.waiting > len(l.jobs) {
		p.ready.Signal() // others do not wait for this group
	}
	l.running++
	p.spent = max(p.spent, l.spent)
	t := &turn{lane: l, since: time.Now()}
	p.mu.Unlock()
	timer := time.AfterFunc(p.cfg.limit, func() { p.giveUp(t, &j) })
	more := j.run(&j)
	timer.Stop()
	p.mu.Lock()
	gone := t.over
	if gone {
		p.hung--
		l.hung--
	} else {
		t.over = true
		l.running--
		l.spent += time.Since(t.since)
	}
	switch {
	case more && !gone && !p.closed:
		p.push(l, j)
	case more && j.drop != nil:
		j.drop()
	}
	return !gone
}

// giveUp gives up a job that runs too long.
func (p *pool) giveUp(t *turn, j *job) {
	p.mu.Lock()
	if t.over {
		p.mu.Unlock()
		return
	}
	t.over = true
	p.lost++
	p.hung++
	t.lane.hung++
	t.lane.running--
	t.lane.spent += p.cfg.limit
	if p.hung <= p.cfg.hung && !p.closed {
		p.start()
	}
	p.leave()
	p.ready.Signal()
	p.mu.Unlock()
	j.lost()
}

// leave notes that a worker has ended or hangs.
func (p *pool) leave() {
	if p.live--; p.live == 0 && p.closed {
		close(p.idle)
	}
}

// stats returns how many workers hang now, and how many jobs were given up so far.
func (p *pool) stats() (hung int, lost uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hung, p.lost
}

// closePatience is how long close waits for jobs that run.
const closePatience = 250 * time.Millisecond

// close ends the pool. Jobs that wait are dropped; those that run are waited for a
// moment: it returns false if one goes on.
func (p *pool) close() bool {
	p.mu.Lock()
	p.closed = true
	if p.soon != nil {
		p.soon.Stop()
	}
	for _, l := range p.lanes {
		for _, j := range l.jobs {
			if j.drop != nil {
				j.drop()
			}
		}
		l.jobs = nil
	}
	p.ready.Broadcast()
	none := p.live == 0
	p.mu.Unlock()
	if !none {
		select {
		case <-p.idle:
		case <-time.After(closePatience):
			return false
		}
	}
	hung, _ := p.stats()
	return hung == 0
}
