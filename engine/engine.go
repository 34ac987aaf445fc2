package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/rules"
)

// Config are the settings of an Engine that do not change while it runs.
type Config struct {
	// Flows is how many flows each worker remembers; 0 means 65,536. See
	// BytesPerFlow for what one costs. Memory is taken when a worker is made
	// and never grows.
	Flows int

	// Workers is how many workers there will be; 0 means 1.
	Workers int

	// Links makes what names interfaces for a worker; nil means that nobody can, as
	// in a replay.
	Links func() Links

	// Attributor makes who tells a worker who owns a packet's socket; nil means
	// that nobody can, as in a replay.
	Attributor func() Attributor

	// HoldFacts and HoldHash are how long a packet is held for facts about its owner
	// that the policy reads and that are being looked up: all but the hash of the
	// program, and that. 0 means DefaultHoldFacts and DefaultHoldHash,
	// negative not at all. Packets are held only after Worker.Begin.
	HoldFacts, HoldHash time.Duration

	// AcceptUnhashed lets a policy accept although it read the hash of the program
	// and that is not known yet. The zero value drops.
	AcceptUnhashed bool

	// Now is the clock that latencies are measured with, in Unix nanoseconds;
	// nil leaves them out, as a replay must.
	Now func() int64
}

// Engine holds what all workers share: the current Snapshot.
type Engine struct {
	cfg     Config
	fields  []rules.Field
	outside outside
	digest  func() string // of the fields
	peers   *peers        // nil with one worker
	asked   questions
	current atomic.Pointer[published]

	factNames [1 << factBits]string

	mu      sync.Mutex // serialises Publish and Refresh; guards workers
	workers []*Worker
}

// published is a Snapshot with the number that flow entries remember it by.
type published struct {
	Snapshot
	epoch uint32
}

// New returns an Engine that drops everything until a Snapshot is published.
func New(cfg Config) *Engine {
	if cfg.Flows == 0 {
		cfg.Flows = 1 << 16
	}
	if cfg.HoldFacts == 0 {
		cfg.HoldFacts = DefaultHoldFacts
	}
	if cfg.HoldHash == 0 {
		cfg.HoldHash = DefaultHoldHash
	}
	e := &Engine{cfg: cfg, fields: rules.Fields(), factNames: factNames(), digest: sync.OnceValue(fieldsDigest)}
	e.outside = newOutside(e.fields)
	if cfg.Workers > 1 {
		e.peers = newPeers()
	}
	return e
}

// Publish makes s what packets are judged by, from the next packet on. What
// flows remember of earlier snapshots no longer counts. It may be called from
// any goroutine.
func (e *Engine) Publish(s Snapshot) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.publish(s)
}

// Refresh makes workers judge every flow anew by the same policy, because
// something that it was judged by has changed.
func (e *Engine) Refresh() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.current.Load(); p != nil {
		e.publish(p.Snapshot)
	}
}

func (e *Engine) publish(s Snapshot) {
	epoch := uint32(0)
	if p := e.current.Load(); p != nil {
		epoch = p.epoch
	}
	e.current.Store(&published{Snapshot: s, epoch: nextEpoch(epoch)})
}

// nextEpoch never returns 0, which marks a slot that holds no decision.
func nextEpoch(epoch uint32) uint32 { return max(epoch+1, 1) }

// Snapshot returns the current snapshot; ok is false if none was published.
func (e *Engine) Snapshot() (s Snapshot, ok bool) {
	if p := e.current.Load(); p != nil {
		return p.Snapshot, true
	}
	return Snapshot{}, false
}

// flowBits is how many low bits of a flow's id count the flows of one worker.
// Those above number the worker: no two flows of an engine have the same id.
const flowBits = 40

// NewWorker returns a worker that puts its events into ring; nil means none.
func (e *Engine) NewWorker(ring *logsink.Ring) *Worker {
	w := newWorker(e, ring)
	e.mu.Lock()
	defer e.mu.Unlock()
	w.nextFlow = uint64(len(e.workers)) << flowBits
	e.workers = append(e.workers, w)
	return w
}

// Stats returns the sum of what all workers counted, as of their last Tick.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	var sum Stats
	for _, w := range e.workers {
		if s := w.stats.Load(); s != nil {
			sum.add(s)
		}
	}
	return sum
}
