package engine

import (
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// evaluate asks the policy about the current packet and facts. The result is
// w.said, overwritten by the next evaluation.
func (w *Worker) evaluate() (*rules.Decision, error) {
	m := w.facts.Meta
	w.counts.Evaluated++
	w.steps.Add(1)
	w.nameLinks(m)
	w.said = rules.Decision{}
	err := w.now.Policy.Evaluate(&w.facts, &w.said)
	if err != nil {
		w.counts.PolicyErrors++
		w.said = rules.Decision{Action: w.failAction(), Log: true, Reads: w.said.Reads}
	}
	w.lacking = w.lacks(&w.said.Reads)
	w.out.Error = err
	return &w.said, err
}

// conclude turns a fresh evaluation into a verdict: action, by decision d.
func (w *Worker) conclude(d *rules.Decision, action packet.Action, err error) packet.Verdict {
	if err != nil {
		return w.finish(nil, d.Action, ReasonPolicyError)
	}
	return w.finish(w.intern(d), action, ReasonPolicy)
}

// judge asks the policy about a packet of flow e and remembers the answer.
func (w *Worker) judge(e *entry, dir int, m *packet.Meta) packet.Verdict {
	if m.HasUID && m.Hook.Direction() == "out" {
		e.uid, e.gid = m.UID, m.GID
		e.known = e.known&^hasGID | hasUID
		if m.HasGID {
			e.known |= hasGID
		}
	}
	known := w.inTable(e)
	if w.waits(known) {
		return packet.Verdict{Action: packet.Hold}
	}
	d, err := w.evaluate()
	e.lacking |= w.among(e.pending, &d.Reads)
	if w.hold(known, m) {
		return packet.Verdict{Action: packet.Hold}
	}
	d = w.without(d)
	if d.Action != packet.Accept && w.adopt(e, dir, m) && w.stillAccepted(e, &e.slot[1-dir], m) {
		w.counts.Established++
		return w.finish(nil, packet.Accept, ReasonEstablished)
	}
	before := e.slot[dir]
	e.reset = e.reset || e.packets[0]+e.packets[1] == 1 && w.midstream(d.Reads)
	v := w.conclude(d, w.refusal(e, d), err)
	w.remember(&e.slot[dir], d, err)
	w.settle(e, &e.slot[dir])
	if d.Action == packet.Accept && w.pkt.Begins && !e.slot[1-dir].accept { // what came before is not its beginning
		e.initiator, e.hook, e.known = uint8(dir), m.Hook, e.known|calling
	}
	if d.Action == packet.Accept && w.engine.peers != nil && !w.engine.peers.tell(e, dir, w.now.epoch, w.wanted(), w.pkt.Begins && e.packets[dir] == 1) {
		w.counts.FlowsNoRoom++
	}
	w.logAnswer(e, &before, &e.slot[dir], m)
	return v
}

// adopt returns whether another worker accepted the flow's other direction
// under the current snapshot. If so, e knows it from then on. It says nothing
// about packets of that direction: should they come here too, they are judged.
func (w *Worker) adopt(e *entry, dir int, m *packet.Meta) bool {
	p, ok := w.askPeers(&e.key, 1-dir)
	if !ok || w.pkt.Begins && (p.answered || m.Time-p.told > peerHold) {
		return false
	}
	e.slot[1-dir] = slot{epoch: w.now.epoch, accept: true, peer: true, logged: p.log, shape: noReuse, owned: p.owned}
	e.initiator, e.hook = uint8(1-dir), reverseHook(m.Hook)
	if w.pkt.Begins {
		e.known |= calling
	}
	if p.known&hasUID != 0 {
		e.uid, e.gid, e.known = p.uid, p.gid, e.known|p.known&(hasUID|hasGID)
	}
	return true
}

// askPeers returns what another worker told of the flow's direction dir; ok is
// false if none accepted it under the current snapshot.
func (w *Worker) askPeers(key *flowKey, dir int) (p peerPlace, ok bool) {
	if w.engine.peers == nil {
		return peerPlace{}, false
	}
	return w.engine.peers.accepted(key, dir, w.now.epoch, !w.pkt.Begins)
}

// remember writes an answer into a slot, with what it depends on.
func (w *Worker) remember(s *slot, d *rules.Decision, err error) {
	*s = slot{epoch: w.now.epoch, accept: d.Action == packet.Accept, shape: noReuse}
	i, ok := w.indexOf(d)
	if !ok {
		s.epoch, s.accept = 0, false // ask again at each packet
		return
	}
	s.decision, s.owned = i, d.Reads.Intersects(w.engine.outside.holder)
	if err != nil {
		s.failed, s.owned, s.shape = true, false, 0
		s.values[0] = uint64(w.facts.Meta.Time / int64(errorHold))
		return
	}
	s.final = w.final(d)
	switch s.shape = w.shapeOf(d.Reads); s.shape {
	case 0:
	case noReuse:
		s.values[0] = uint64(w.holder())
	default:
		s.values, _ = w.known.shapes[s.shape].pack(&w.facts, &w.value)
	}
}

// sameAnswer returns whether two slots say the same, perhaps for different
// reasons or by different generations.
func (w *Worker) sameAnswer(a, b *slot) bool {
	if a.epoch == 0 || b.epoch == 0 || a.failed != b.failed || a.peer != b.peer {
		return false
	}
	x, y := w.decisionOf(a), w.decisionOf(b)
	return x != nil && y != nil && x.Action == y.Action && x.Rule == y.Rule && x.Reason == y.Reason
}

// stillAccepted returns whether the other direction of a flow, which was
// accepted once, is accepted by the current snapshot, for who owns the socket now.
// If it was not judged by it yet, or for another owner, it is judged now, on a
// packet made from the reply at hand: else a flow that a new policy forbids could
// go on as long as only the far end sends, and who takes over a port would get
// and send by the flow that was accepted for another.
func (w *Worker) stillAccepted(e *entry, s *slot, m *packet.Meta) bool {
	same := w.holdsSocket(e, s, m)
	if s.epoch == w.now.epoch && same {
		return s.accept
	}
	reply, before, asked, lacking := w.pkt, *s, w.said, w.lacking
	mirror := *m
	mirror.Hook = reverseHook(m.Hook)
	mirror.In, mirror.Out = m.Out, m.In
	mirror.PhysIn, mirror.PhysOut = m.PhysOut, m.PhysIn
	w.mirrorUser(e, &mirror, same)
	reversePacket(&w.pkt)
	w.facts.Meta = &mirror
	d, err := w.evaluate()
	e.lacking |= w.among(e.pending, &d.Reads)
	d = w.without(d)
	w.remember(s, d, err)
	if err != nil {
		w.explain(nil, d.Action, ReasonPolicyError)
	} else {
		w.explain(w.intern(d), d.Action, ReasonPolicy)
	}
	w.logAnswer(e, &before, s, &mirror)
	w.pkt, w.facts.Meta, w.said, w.lacking = reply, m, asked, lacking
	w.nameLinks(m)
	return s.accept
}

// mirrorUser gives a packet that is made from a reply the user of the socket: of
// the flow as it began or, if another holds the socket now, of that one.
func (w *Worker) mirrorUser(e *entry, mirror *packet.Meta, same bool) {
	o := w.facts.Owner
	switch {
	case mirror.Hook.Direction() != "out":
		mirror.HasUID, mirror.HasGID = false, false
	case same:
		mirror.UID, mirror.HasUID = e.uid, e.known&hasUID != 0
		mirror.GID, mirror.HasGID = e.gid, e.known&hasGID != 0
	case o != nil && !mirror.HasUID:
		mirror.UID, mirror.HasUID, mirror.GID, mirror.HasGID = o.UID, o.HasUID, o.GID, o.HasGID
	}
}

// reversePacket turns a reply into a packet of the direction it answers.
func reversePacket(p *packet.Packet) {
	p.Src, p.Dst = p.Dst, p.Src
	p.SrcPort, p.DstPort = p.DstPort, p.SrcPort
	switch {
	case p.Echo && p.Version == 4:
		p.ICMPType = packet.ICMPEchoRequest
	case p.Echo:
		p.ICMPType = packet.ICMPv6EchoRequest
	}
}

// decisionOf returns what the slot says; nil if that is no longer known.
func (w *Worker) decisionOf(s *slot) *rules.Decision {
	for _, k := range []*knownDecisions{&w.known, &w.older} {
		if k.epoch == s.epoch && !s.peer && int(s.decision) < len(k.list) {
			return k.list[s.decision]
		}
	}
	return nil
}

// indexOf returns the index under which the decision is kept; ok is false if
// there are too many.
func (w *Worker) indexOf(d *rules.Decision) (i uint32, ok bool) {
	if i, ok := w.known.index[*d]; ok {
		return i, true
	}
	if len(w.known.list) >= maxDecisions {
		return 0, false
	}
	kept := *d
	i = uint32(len(w.known.list))
	w.known.list = append(w.known.list, &kept)
	w.known.index[kept] = i
	return i, true
}

// intern returns a copy of the decision that stays valid.
func (w *Worker) intern(d *rules.Decision) *rules.Decision {
	if i, ok := w.indexOf(d); ok {
		return w.known.list[i]
	}
	kept := *d
	return &kept
}

// shapeOf returns the index of the shape of reads' volatile fields.
func (w *Worker) shapeOf(reads rules.FieldSet) uint16 {
	if i, ok := w.known.byReads[reads]; ok {
		return i
	}
	i := uint16(noReuse)
	s, ok := newShape(w.engine.fields, reads)
	switch {
	case ok && len(s.parts) == 0:
		i = 0
	case ok && len(w.known.shapes) < maxShapes:
		i = uint16(len(w.known.shapes))
		w.known.shapes = append(w.known.shapes, s)
	}
	if len(w.known.byReads) < maxDecisions {
		w.known.byReads[reads] = i
	}
	return i
}
