package engine

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// Past is what an engine leaves to the engine of another process that takes
// over its flows. It travels as JSON; unknown keys are ignored.
type Past struct {
	Epoch      uint32 `json:"epoch"`
	Generation uint64 `json:"generation"`
	Hash       string `json:"hash"`
	Mode       Mode   `json:"mode"`
	FailOpen   bool   `json:"fail_open"`
	Fields     string `json:"fields"`    // digest of the input document
	NextFlow   uint64 `json:"next_flow"` // the most flows that a worker has numbered
}

// WorkerPast is what a worker leaves beside its flows.
type WorkerPast struct {
	Stats Stats           `json:"stats"`
	Known KnownDecisions  `json:"known"` // of the latest epoch that the worker judged in
	Older *KnownDecisions `json:"older"` // of the one before, nil if there is none
}

// KnownDecisions are the decisions that flows of an epoch refer to by index.
type KnownDecisions struct {
	Epoch  uint32           `json:"epoch"`
	List   []rules.Decision `json:"list"`
	Shapes []rules.FieldSet `json:"shapes"` // by index; the first is empty
}

// Past returns what to tell a successor. No worker may run.
func (e *Engine) Past() Past {
	for _, w := range e.workers {
		w.publishStats()
	}
	return e.Published()
}

// Published is Past while workers run: flows that they have put into the table in
// the last tenth of a second may be missing in NextFlow.
func (e *Engine) Published() Past {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := Past{Fields: e.digest()}
	if now := e.current.Load(); now != nil {
		p.Epoch, p.Generation, p.Hash, p.Mode, p.FailOpen = now.epoch, now.Generation, now.Hash, now.Mode, now.FailOpen
	}
	for _, w := range e.workers {
		p.NextFlow = max(p.NextFlow, w.lastFlow.Load()&(1<<flowBits-1))
	}
	return p
}

// Recover makes a new engine number flows and count on after one that died, of
// which past and stats are what was known last. Its flows and decisions are not
// known. It must be called before any worker runs.
func (e *Engine) Recover(past Past, stats Stats) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.workers {
		w.nextFlow += past.NextFlow + unknownFlows
	}
	if len(e.workers) > 0 {
		e.workers[0].counts = stats
		e.workers[0].publishStats()
	}
}

// unknownFlows is more than a worker can have put into its table between the last
// Published and its death.
const unknownFlows = 1 << 24

// fieldsDigest identifies the input document: what was remembered of its
// fields means something only to a program with the same ones.
func fieldsDigest() string {
	sum := sha256.Sum256([]byte(rules.Schema()))
	return hex.EncodeToString(sum[:])
}

// Continues returns whether s judges as the past snapshot did: same policy, mode,
// failure setting and input document.
func (p *Past) Continues(s Snapshot) bool {
	return p.Epoch != 0 && p.Hash == s.Hash && p.Mode == s.Mode && p.FailOpen == s.FailOpen && p.Fields == fieldsDigest()
}

// Succeed publishes s as the snapshot that follows the past one, before any
// worker runs, and returns its generation. If s continues the past snapshot, it
// keeps that one's generation and what flows remember holds. Else s gets the
// next generation, and flows are judged anew as after a reload.
func (e *Engine) Succeed(past Past, s Snapshot) (generation uint64) {
	s.Generation = past.Generation
	epoch := past.Epoch
	if !past.Continues(s) {
		s.Generation++
		epoch = nextEpoch(epoch)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.current.Store(&published{Snapshot: s, epoch: epoch})
	for _, w := range e.workers {
		w.nextFlow += past.NextFlow
	}
	return s.Generation
}

// Past returns what to tell the worker's successor beside its flows.
func (w *Worker) Past() WorkerPast {
	p := WorkerPast{Stats: w.counts, Known: w.known.past()}
	if w.older.epoch != 0 {
		older := w.older.past()
		p.Older = &older
	}
	return p
}

func (k *knownDecisions) past() KnownDecisions {
	p := KnownDecisions{Epoch: k.epoch, Shapes: make([]rules.FieldSet, len(k.shapes))}
	for _, d := range k.list {
		p.List = append(p.List, *d)
	}
	for reads, i := range k.byReads {
		if i != 0 && i != noReuse {
			p.Shapes[i] = reads
		}
	}
	return p
}

// Inherit takes over what a worker of another process left, before Handle is
// first called: first this, then its flows by AddFlows. same is what
// Past.Continues returned.
func (w *Worker) Inherit(p WorkerPast, same bool) {
	w.counts = p.Stats
	w.known = w.remembered(p.Known, same)
	if p.Older != nil {
		w.older = w.remembered(*p.Older, false)
	}
	w.publishStats()
}

// remembered makes the memory of an epoch out of its past form. Unless the
// fields are the same, their indices mean nothing here, and the memory serves
// only to tell that a new decision says what the old one said.
func (w *Worker) remembered(p KnownDecisions, same bool) knownDecisions {
	k := newKnown(p.Epoch)
	for i := range p.List {
		d := &p.List[i]
		if d.Action > packet.Reject {
			d.Action = packet.Drop
		}
		if !same {
			d.Reads = rules.FieldSet{}
		}
		k.list = append(k.list, d)
		k.index[*d] = uint32(i)
	}
	for i := 1; same && i < len(p.Shapes); i++ {
		s, _ := newShape(w.engine.fields, p.Shapes[i])
		k.shapes = append(k.shapes, s)
		k.byReads[p.Shapes[i]] = uint16(i)
	}
	return k
}

// newKnown returns the empty memory of an epoch.
func newKnown(epoch uint32) knownDecisions {
	return knownDecisions{
		epoch:   epoch,
		index:   map[rules.Decision]uint32{},
		shapes:  []shape{{}}, // 0: nothing volatile
		byReads: map[rules.FieldSet]uint16{},
	}
}

// Leave ends the worker without ending its flows, which go on elsewhere, and
// publishes the final counts.
func (w *Worker) Leave() {
	w.publishStats()
	w.closed.Store(true)
}
