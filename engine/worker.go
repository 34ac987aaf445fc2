package engine

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/rules"
)

// Worker judges packets. It owns a flow table and is for one goroutine.
type Worker struct {
	engine  *Engine
	ring    *logsink.Ring
	decoder *packet.Decoder
	table   *table
	now     *published // the snapshot this packet is judged by

	pkt      packet.Packet
	facts    rules.Facts
	value    rules.Value   // scratch
	bits     uint32        // the ruleset's value in the packet's mark, 0 if none
	settled  bool          // the packet is accepted by a final decision
	first    bool          // and is the first of its flow that is
	markFree bool          // the packet's mark has room for the ruleset's values
	local    packet.Key    // in the direction in which the local socket sends; scratch
	data     []byte        // of the packet at hand
	mark     uint32        // of it, as it came
	pending  process.Facts // of the owner, not known yet
	lacking  process.Facts // of them, what the evaluation read
	out      Outcome
	said     rules.Decision // what the policy said last

	known, older knownDecisions
	links        Links      // nil: nobody can tell names of interfaces
	batch        int64      // time of the packets that links are up to date for
	attributor   Attributor // nil: nobody can tell who owns a socket
	owners       owners
	held         holding
	spare        entry // of the latest flow that had no room
	nextFlow     uint64
	lastFlow     atomic.Uint64 // nextFlow, when stats were published
	lastTick     int64
	published    int64
	counts       Stats
	stats        atomic.Pointer[Stats]
	seen         atomic.Uint32 // epoch of the latest Tick
	steps        atomic.Uint64 // see Steps
	closed       atomic.Bool
}

// knownDecisions are the decisions made under one snapshot. Flow entries
// refer to them by index, so that a flow costs no pointers, and a policy that
// gives a million flows the same answer costs one Decision.
type knownDecisions struct {
	epoch   uint32
	list    []*rules.Decision
	index   map[rules.Decision]uint32
	shapes  []shape
	byReads map[rules.FieldSet]uint16
}

// maxDecisions bounds the distinct decisions remembered of one snapshot, for
// policies that write something new into every reason.
const maxDecisions = 1 << 16

func newWorker(e *Engine, ring *logsink.Ring) *Worker {
	w := &Worker{engine: e, ring: ring, decoder: packet.NewDecoder(), table: newTable(e.cfg.Flows)}
	if e.cfg.Links != nil {
		w.links = e.cfg.Links()
	}
	if e.cfg.Attributor != nil {
		w.attributor = e.cfg.Attributor()
	}
	w.facts.Packet = &w.pkt
	w.out.Packet = &w.pkt
	return w
}

// Handle judges one packet. It implements packet.Handler: m and data are lent
// until it returns.
func (w *Worker) Handle(m *packet.Meta, data []byte) packet.Verdict {
	v := w.judgePacket(m, data)
	if v.Action < packet.Again {
		w.counts.Packets++
	}
	return v
}

// judgePacket judges a packet, or holds it.
func (w *Worker) judgePacket(m *packet.Meta, data []byte) packet.Verdict {
	known := w.take(m, data)
	if w.pkt.Cut && m.More {
		return packet.Verdict{Action: packet.Again}
	}
	if !known {
		return w.finish(nil, packet.Drop, ReasonNoPolicy)
	}
	v := w.handle(m)
	if v.Action == packet.Hold {
		return v
	}
	if v.Action == packet.Accept {
		w.engine.asked.note(m, &w.pkt)
	}
	return w.giveMark(v, m)
}

// take makes a packet the one at hand. It returns false if nothing says how to judge
// it.
func (w *Worker) take(m *packet.Meta, data []byte) bool {
	w.out = Outcome{Packet: &w.pkt}
	w.data, w.pending, w.lacking = data, 0, 0
	w.decoder.Decode(m, data, &w.pkt)
	if w.now = w.engine.current.Load(); w.now == nil {
		return false
	}
	if w.known.epoch != w.now.epoch {
		w.older, w.known = w.known, newKnown(w.now.epoch)
	}
	w.updateLinks(m)
	w.facts.Meta, w.facts.Owner, w.facts.Related = m, nil, false
	w.mark = m.Mark
	w.takeMark(m)
	w.facts.AnswersMulticast = w.engine.asked.answered(m, &w.pkt)
	return true
}

// handle judges the decoded packet.
func (w *Worker) handle(m *packet.Meta) packet.Verdict {
	switch {
	case w.pkt.Status == packet.NotIP:
		return w.finish(nil, packet.Accept, ReasonNotIP)
	case w.pkt.Status == packet.Malformed:
		w.counts.Malformed++
		action := packet.Drop
		if w.now.PassMalformed {
			action = packet.Accept
		}
		v := w.finish(nil, action, ReasonMalformed)
		w.logPacket(m)
		return v
	case w.pkt.HasInner:
		return w.handleError(m)
	case !hasFlow(&w.pkt):
		return w.handleSingle(m)
	}
	return w.handleFlow(m)
}

// Tick lets the worker expire flows and publish its counts. The owner calls
// it between packets, at least once a second, with the current time in Unix
// nanoseconds (in a replay, the capture's).
func (w *Worker) Tick(now int64) {
	if p := w.engine.current.Load(); p != nil {
		w.seen.Store(p.epoch)
	}
	// The whole table is swept once in sweepPeriod, a part at each tick.
	const sweepPeriod = int64(10 * time.Second)
	if since := now - w.lastTick; since > 0 && w.lastTick != 0 {
		sets := uint64(len(w.table.tags))
		due := sets
		if since < sweepPeriod {
			due = sets * uint64(since) / uint64(sweepPeriod)
		}
		if due == 0 {
			return // too little time for one set: let it add up
		}
		w.table.sweep(int(min(due, maxSweep)), now, w.endFlow)
	}
	w.lastTick = now
	if now-w.published >= statsEvery || now < w.published {
		w.published = now
		w.publishStats()
	}
}

// Steps returns a number that is another one after each evaluation that has begun:
// all else that a packet can cost is little. It may be called from any goroutine.
func (w *Worker) Steps() uint64 { return w.steps.Load() }

// statsEvery is how often the counts are copied for others to read. The copy
// allocates, so it is not made after each batch of packets.
const statsEvery = int64(100 * time.Millisecond)

// maxSweep bounds the sets that one Tick looks at, to bound the time that
// packets wait for it.
const maxSweep = 4096

// EndFlows ends all flows, so that their last events are written. Where the log is
// slower than they end it waits for room, until ctx is done: what finds none then
// is lost, and counted. Nothing but Close may follow.
func (w *Worker) EndFlows(ctx context.Context) {
	w.table.clear(func(e *entry, why string) {
		for w.ring != nil && w.ring.Full() && ctx.Err() == nil {
			time.Sleep(roomEvery)
		}
		w.endFlow(e, why)
	})
}

// roomEvery is how often EndFlows looks for room.
const roomEvery = time.Millisecond

// Close ends all flows, so that their last events are written, and publishes
// the final counts. The worker is not to be used afterwards.
func (w *Worker) Close() {
	w.table.clear(w.endFlow)
	w.publishStats()
	w.closed.Store(true)
}

func (w *Worker) publishStats() {
	s := w.counts
	s.Flows, s.Holding = w.table.used, uint64(len(w.held.list))
	w.stats.Store(&s)
	w.lastFlow.Store(w.nextFlow)
}

// hasFlow returns whether what is decided about p holds for a flow. Fragments
// without ports and ICMP messages other than echo are judged one by one.
func hasFlow(p *packet.Packet) bool {
	return p.Status == packet.OK && (!p.IsICMP() || p.Echo)
}

// handleSingle judges a packet that belongs to no flow.
func (w *Worker) handleSingle(m *packet.Meta) packet.Verdict {
	w.attributeSingle(m)
	if w.waits(nil) {
		return packet.Verdict{Action: packet.Hold}
	}
	d, err := w.evaluate()
	if w.hold(nil, m) {
		return packet.Verdict{Action: packet.Hold}
	}
	d = w.without(d)
	v := w.conclude(d, d.Action, err)
	w.logPacket(m)
	return v
}

// live returns whether the slot says accept by the current snapshot.
func (w *Worker) live(s *slot) bool { return s.accept && s.epoch == w.now.epoch }

// handleFlow judges a packet of a flow: from memory if it can.
func (w *Worker) handleFlow(m *packet.Meta) packet.Verdict {
	var key flowKey
	dir := key.ofPacket(&w.pkt, m.Hook)
	e := w.table.find(&key)
	if e == nil {
		return w.firstPacket(m, &key, dir)
	}
	if e.expired(m.Time) || w.reopened(e) {
		w.restart(e, dir, m)
	}
	if e.held {
		return w.behind(e, m)
	}
	w.attribute(e, dir, m)
	w.count(e, m, dir)
	w.out.Flow = e.id
	e.reset = e.reset || e.accepted()
	own, other := &e.slot[dir], &e.slot[1-dir]
	// What was dropped before its flow was accepted is a reply since then.
	alone := own.accept || w.starts(e, dir)
	if own.epoch == w.now.epoch && w.holds(own, m.Time) && (alone || !other.accept && !w.adopt(e, dir, m)) {
		w.counts.Known++
		return w.repeat(e, own, m)
	}
	return w.judgeFlow(e, dir, m)
}

// count notes the packet at hand, once.
func (w *Worker) count(e *entry, m *packet.Meta, dir int) {
	if p := w.held.again; p == nil || !p.counted {
		e.count(m.Time, &w.pkt, dir)
		w.noteCall(e, dir)
	}
}

// inTable returns e, nil if it is not in the flow table.
func (w *Worker) inTable(e *entry) *entry {
	if e == &w.spare {
		return nil
	}
	return e
}

// judgeFlow judges a packet of flow e, of direction dir, that its own direction
// says nothing about yet. What the kernel calls an answer stands and falls with
// what it answers.
func (w *Worker) judgeFlow(e *entry, dir int, m *packet.Meta) packet.Verdict {
	other := &e.slot[1-dir]
	if w.answers(e, dir, m) {
		w.counts.Established++
		w.settle(e, other)
		return w.finish(w.decisionOf(other), packet.Accept, ReasonEstablished)
	}
	if w.isReply() && other.epoch == w.now.epoch {
		w.counts.Known++
		return w.repeat(e, other, m)
	}
	return w.judge(e, dir, m)
}

// answers returns whether the packet, of direction dir, is a reply to what was
// accepted in the other. That it is a reply is known from the flow's own past,
// or the ruleset says it: then the other direction is judged even if no packet
// of it was seen. What begins a connection of its own answers nothing.
func (w *Worker) answers(e *entry, dir int, m *packet.Meta) bool {
	s := &e.slot[1-dir]
	if !s.accept && !w.isReply() || w.starts(e, dir) {
		return false
	}
	if !s.accept {
		w.adopt(e, dir, m)
	}
	return w.stillAccepted(e, s, m)
}

// reopened returns whether the packet starts a new connection in the place of
// one that has ended.
func (w *Worker) reopened(e *entry) bool {
	return e.closed() && w.pkt.Begins
}

// restart ends the flow and lets its entry begin anew, undecided.
func (w *Worker) restart(e *entry, dir int, m *packet.Meta) {
	why := endReused
	if e.expired(m.Time) {
		why = e.endReason()
	}
	w.endFlow(e, why)
	*e = entry{key: e.key}
	w.begin(e, dir, m)
}

func (w *Worker) begin(e *entry, dir int, m *packet.Meta) {
	w.nextFlow++
	w.counts.FlowsNew++
	e.id = w.nextFlow
	w.place(e, dir, m)
}

// place notes when and where the flow begins.
func (w *Worker) place(e *entry, dir int, m *packet.Meta) {
	e.start, e.last = m.Time, m.Time
	e.initiator, e.hook, e.known = uint8(dir), m.Hook, 0
	if w.isReply() {
		e.initiator, e.hook = uint8(1-dir), reverseHook(m.Hook)
	}
	if w.pkt.HasPorts {
		e.known = hasPorts
	}
}

// holds returns whether what the slot says holds for the current packet: the
// volatile fields that it was read from have the same values.
func (w *Worker) holds(s *slot, now int64) bool {
	if s.shape == noReuse {
		return false
	}
	if s.failed && now/int64(errorHold) != int64(s.values[0]) {
		return false
	}
	if s.failed || s.shape == 0 {
		return true
	}
	shape := &w.known.shapes[s.shape]
	if shape.links {
		w.nameLinks(w.facts.Meta)
	}
	v, free := shape.pack(&w.facts, &w.value)
	return v.agrees(&s.values, &free)
}

// repeat answers from a slot of the current snapshot.
func (w *Worker) repeat(e *entry, s *slot, m *packet.Meta) packet.Verdict {
	d := w.decisionOf(s)
	if s.logged && d.Action != packet.Accept {
		w.countRepeat(e, s, m)
	}
	if s.failed {
		return w.finish(nil, d.Action, ReasonPolicyError)
	}
	w.noteRemarked(e, s, m)
	w.settle(e, s)
	return w.finish(d, w.refusal(e, d), ReasonPolicy)
}

// firstPacket judges a packet of a flow that is not in the table.
func (w *Worker) firstPacket(m *packet.Meta, key *flowKey, dir int) packet.Verdict {
	if answersEcho(key, dir) && !w.isReply() {
		if _, asked := w.askPeers(key, 1-dir); !asked {
			return w.handleSingle(m) // an answer that nobody asked for starts no flow
		}
	}
	e := w.table.insert(key, m.Time, w.begunHere(m), w.endFlow)
	if e == nil {
		w.counts.FlowsNoRoom++
		return w.judgeSpare(m, key, dir)
	}
	w.begin(e, dir, m)
	w.attribute(e, dir, m)
	w.count(e, m, dir)
	w.out.Flow = e.id
	return w.judgeFlow(e, dir, m)
}

// judgeSpare judges a packet of a flow that has no room in the table, as if the
// flow began with it. So what the kernel calls an answer still stands and falls
// with what it answers.
func (w *Worker) judgeSpare(m *packet.Meta, key *flowKey, dir int) packet.Verdict {
	e := &w.spare
	w.owners.give(e.owner)
	w.owners.give(e.judged)
	*e = entry{key: *key}
	w.place(e, dir, m)
	w.attribute(e, dir, m)
	e.count(m.Time, &w.pkt, dir)
	w.noteCall(e, dir)
	return w.judgeFlow(e, dir, m)
}

// answersEcho returns whether a packet of direction dir is an echo reply.
func answersEcho(key *flowKey, dir int) bool { return key.asker != 0 && int(key.asker) != dir+1 }

// begunHere returns whether this host begins the flow whose first packet this is.
func (w *Worker) begunHere(m *packet.Meta) bool {
	if w.isReply() {
		return m.Hook == packet.Input
	}
	return m.Hook == packet.Output
}
