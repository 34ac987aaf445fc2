package engine

import (
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/rules"
)

// A decision that read a fact of the owner which is being looked up would be one
// about nobody. So the packet is held until the fact is known, or for as long as
// Config says; then it is judged without. Later packets of its flow stay behind it.

// Bounds of what each worker holds, where the queue has room for that. Beyond them a
// packet is judged with what is known. One user may have a quarter, one process a
// sixteenth.
const (
	maxHeld      = 256
	userShare    = 4
	processShare = 16
)

// Defaults of Config.HoldFacts and HoldHash.
const (
	DefaultHoldFacts = 250 * time.Millisecond
	DefaultHoldHash  = 2 * time.Second
)

// holding is what a worker holds.
type holding struct {
	answer func(m *packet.Meta, v packet.Verdict) // nil: nothing is held
	awaits atomic.Bool                            // somebody must say when more is known

	most       int // that may be held
	list, free []*held
	revision   uint32 // Attributor.Revision before the latest look
	fresh      bool   // something was held since
	deadline   int64  // the first of the list's

	again *held // is being judged once more
	force bool  // now, with what is known
}

// held is a packet that waits for a fact, or for another packet of its flow.
type held struct {
	meta     packet.Meta
	data     []byte
	flow     flowKey // the zero value: it belongs to none
	counted  bool    // in its flow
	deadline int64   // Unix nanoseconds
	uid, pid uint32

	// What it was judged by; owner is nil if it stays behind another one.
	owner   *process.Owner
	pending process.Facts
	epoch   uint32
}

// Begin lets the worker hold packets: answer is called, by its own goroutine, with
// the verdict of one that it had held; wake, from any goroutine, to say that Settle
// has something to do; room is how many it may hold. It is called once, before the
// first Handle.
func (w *Worker) Begin(answer func(m *packet.Meta, v packet.Verdict), wake func(), room int) {
	if w.attributor == nil || room <= 0 {
		return
	}
	w.held.answer, w.held.most = answer, min(room, maxHeld)
	w.attributor.Notify(func() {
		if w.held.awaits.Load() {
			wake()
		}
	})
}

// Settle judges the packets that were held and need not be any longer; all of them
// if all is set. It returns when it is to be called again at the latest, in Unix
// nanoseconds; 0 if nothing is held.
func (w *Worker) Settle(now int64, all bool) (next int64) {
	h := &w.held
	if len(h.list) == 0 {
		return 0
	}
	revision := w.attributor.Revision()
	if all || h.fresh || revision != h.revision || now >= h.deadline {
		h.revision, h.fresh = revision, false
		w.settleHeld(func(p *held) bool { return all || now >= p.deadline })
	}
	h.awaits.Store(len(h.list) > 0)
	return h.deadline
}

// settleHeld judges what is held once more, in the order in which it came. What
// force says is judged with what is known.
func (w *Worker) settleHeld(force func(p *held) bool) {
	h := &w.held
	for _, p := range h.list {
		if e := w.table.find(&p.flow); e != nil {
			e.held = false
		}
	}
	list := h.list
	h.list, h.deadline = list[:0], 0
	for _, p := range list {
		h.again, h.force = p, force(p)
		meta := p.meta
		v := w.judgePacket(&meta, p.data)
		h.again, h.force = nil, false
		if v.Action == packet.Hold {
			h.list = append(h.list, p)
			if h.deadline == 0 || p.deadline < h.deadline {
				h.deadline = p.deadline
			}
			continue
		}
		w.counts.Packets++
		h.answer(&p.meta, v)
		h.free = append(h.free, p)
	}
}

// hold holds the packet at hand, whose decision read facts that are pending, and
// returns whether it did. e is its flow, nil if it has none in the table.
func (w *Worker) hold(e *entry, m *packet.Meta) bool {
	h := &w.held
	wait := time.Duration(0)
	if w.lacking&^process.FactHash != 0 {
		wait = w.engine.cfg.HoldFacts
	}
	if w.lacking&process.FactHash != 0 {
		wait = max(wait, w.engine.cfg.HoldHash)
	}
	if w.lacking == 0 || h.answer == nil || h.force || wait <= 0 {
		return false
	}
	p := h.again
	if p == nil {
		o, pid := w.facts.Owner, uint32(0)
		if o.Process != nil {
			pid = o.Process.PID
		}
		if p = w.keep(e, m, o.UID, pid); p == nil {
			return false
		}
		p.counted = e != nil
	}
	p.owner, p.pending, p.epoch = w.facts.Owner, w.pending, w.now.epoch
	p.deadline = p.meta.Time + int64(wait)
	h.await(p)
	if e != nil {
		e.held = true
	}
	return true
}

// waits returns whether the packet at hand, which was held, goes on waiting: nothing
// has become known since it was judged.
func (w *Worker) waits(e *entry) bool {
	p := w.held.again
	same := p != nil && !w.held.force && p.owner != nil && p.owner == w.facts.Owner && p.pending == w.pending && p.epoch == w.now.epoch
	if same && e != nil {
		e.held = true
	}
	return same
}

// behind holds the packet at hand, of a flow of which others are held. If there is
// no room those are judged now, and then this one, so that the order stays.
func (w *Worker) behind(e *entry, m *packet.Meta) packet.Verdict {
	h := &w.held
	if h.again != nil {
		return packet.Verdict{Action: packet.Hold}
	}
	for _, first := range h.list {
		if first.flow != e.key {
			continue
		}
		p := w.keep(e, m, first.uid, first.pid)
		if p == nil {
			break
		}
		p.owner, p.counted, p.deadline = nil, false, math.MaxInt64
		h.await(p)
		return packet.Verdict{Action: packet.Hold}
	}
	flow, data := e.key, w.data
	m.Mark = w.mark
	e.held = false
	w.settleHeld(func(p *held) bool { return p.flow == flow })
	w.take(m, data)
	return w.handle(m)
}

// keep copies the packet at hand to a free place; nil if there is none.
func (w *Worker) keep(e *entry, m *packet.Meta, uid, pid uint32) *held {
	p := w.held.room(uid, pid)
	if p == nil {
		return nil
	}
	w.counts.Held++
	p.meta, p.uid, p.pid, p.flow = *m, uid, pid, flowKey{}
	p.meta.Mark = w.mark
	p.data = append(p.data[:0], w.data...)
	if e != nil {
		p.flow = e.key
	}
	return p
}

// room returns a free place for a packet of a user's process, nil if they have as
// many as they may.
func (h *holding) room(uid, pid uint32) *held {
	ofUser, ofProcess := 0, 0
	for _, p := range h.list {
		if p.uid == uid {
			ofUser++
			if p.pid == pid {
				ofProcess++
			}
		}
	}
	if len(h.list) >= h.most || ofUser >= max(h.most/userShare, 1) || ofProcess >= max(h.most/processShare, 1) && pid != 0 {
		return nil
	}
	if last := len(h.free) - 1; last >= 0 {
		p := h.free[last]
		h.free = h.free[:last]
		return p
	}
	return &held{}
}

// await puts a packet into the list, unless it is being judged once more.
func (h *holding) await(p *held) {
	if p == h.again {
		return
	}
	h.list = append(h.list, p)
	h.fresh = true
	if h.deadline == 0 || p.deadline < h.deadline {
		h.deadline = p.deadline
	}
	h.awaits.Store(true)
}

// lacks returns which facts that a decision read are pending, and has them looked up
// at once.
func (w *Worker) lacks(reads *rules.FieldSet) (lacking process.Facts) {
	if w.pending == 0 || w.facts.Owner == nil {
		return 0
	}
	lacking = w.among(w.pending, reads) &^ process.FactRefused
	if lacking&process.FactHash != 0 && !w.attributor.WantHash(w.facts.Owner, w.pending) {
		lacking &^= process.FactHash
	}
	if lacking != 0 {
		w.attributor.Hurry()
	}
	return lacking
}

// without replaces a decision that was made without facts that are pending, if it
// may not be. It accepts nothing by the absence of a hash that is not known yet, or
// of one that the program will have the next time, unless Config says so.
func (w *Worker) without(d *rules.Decision) *rules.Decision {
	why := ""
	if w.lacking != 0 {
		w.counts.Lacking++
	}
	switch {
	case w.lacking&process.FactHash != 0:
		why = "the hash of the program is not known yet"
	case w.fresh(&d.Reads):
		why = "the program has no hash: " + process.NoHashFresh
	}
	if why != "" && d.Action == packet.Accept && !w.engine.cfg.AcceptUnhashed {
		*d = rules.Decision{Action: packet.Drop, Rule: RuleUnhashed, Reason: why, Log: true, Reads: d.Reads}
	}
	return d
}

// fresh returns whether a decision read the hash of a program that was written as it
// was started. Any other reason to have none is one for the policy to judge: who can
// bring it about can change a byte of the file as well.
func (w *Worker) fresh(reads *rules.FieldSet) bool {
	o := w.facts.Owner
	return o != nil && o.Process != nil && o.Process.Exe.NoSHA256 == process.NoHashFresh && w.among(process.FactHash, reads) != 0
}

// RuleUnhashed is the rule of a Decision that takes the place of one which would
// have accepted without a hash that is not known yet, or that the program has only
// the next time.
const RuleUnhashed = "unhashed"

// factNames returns what to say of each set of facts that a decision did without.
func factNames() (names [1 << factBits]string) {
	words := [factBits]string{"owner", "exe", "exe file", "cmdline", "parents", "cgroup", "exe_sha256"}
	for set := range names {
		var list []string
		for i, word := range words {
			if set>>i&1 != 0 {
				list = append(list, word)
			}
		}
		if list != nil {
			names[set] = "not known in time: " + strings.Join(list, ", ")
		}
	}
	return names
}

// factBits is how many facts there are.
const factBits = 7
