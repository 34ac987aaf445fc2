package engine

import (
	"time"

	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
)

// event returns a slot of the ring with everything that is common to the
// events of the current packet filled in, or nil if there is no ring or no
// room in it. The caller completes it and commits.
func (w *Worker) event(kind logsink.EventKind, m *packet.Meta) *logsink.Event {
	if w.ring == nil {
		return nil
	}
	ev := w.ring.Next()
	if ev == nil {
		w.counts.EventsLost++
		return nil
	}
	*ev = logsink.Event{
		Kind: kind, Flow: w.out.Flow, Action: w.out.Action, Decision: w.out.Decision,
		Reason: w.out.Reason, Monitor: w.out.Monitor, Owner: w.facts.Owner,
	}
	ev.Generation, ev.Policy = w.now.Generation, w.now.Hash
	ev.SetPacket(m, &w.pkt)
	w.nameLinks(m)
	ev.In, ev.Out = w.facts.InInterface, w.facts.OutInterface
	return ev
}

// wanted returns whether the outcome at hand is to be logged: the policy can
// leave out what it decided itself, nothing else.
func (w *Worker) wanted() bool { return w.out.Decision == nil || w.out.Decision.Log }

// logPacket logs the decision about a packet that belongs to no flow.
func (w *Worker) logPacket(m *packet.Meta) {
	if !w.wanted() {
		return
	}
	if ev := w.event(logsink.FlowDecision, m); ev != nil {
		w.complete(ev)
	}
}

// logAnswer logs the answer that slot s of flow e has got in place of before, if
// it is another one or for another owner, and notes for whom it is.
func (w *Worker) logAnswer(e *entry, before, s *slot, m *packet.Meta) {
	if !w.sameAnswer(before, s) || w.tellsOwner(e, s, m) {
		s.logged = w.logFlow(e, m)
	} else {
		s.logged = before.logged
	}
	if s.owned && e.judged != e.owner {
		w.owners.give(e.judged)
		e.judged = w.owners.again(e.owner)
	}
}

// tellsOwner returns whether it is to be logged that the decision of slot s is for
// another owner than the one before, though it says the same: the first time, and
// then not more often than drops are.
func (w *Worker) tellsOwner(e *entry, s *slot, m *packet.Meta) bool {
	if !s.owned || e.judged == 0 || e.judged == e.owner {
		return false
	}
	first := e.known&toldOwner == 0
	e.known |= toldOwner
	return first || uint32(m.Time/int64(time.Second))-e.reported >= repeatEvery
}

// logFlow logs a new decision about a flow and returns whether it is to be
// followed up by repeats and the flow's end.
func (w *Worker) logFlow(e *entry, m *packet.Meta) bool {
	if !w.wanted() {
		return false
	}
	e.reported, e.repeats = uint32(m.Time/int64(time.Second)), 0
	if ev := w.event(logsink.FlowDecision, m); ev != nil {
		ev.FlowStart = e.start
		if e.judged != 0 && e.judged != e.owner {
			ev.OtherOwner = w.owners.get(e.judged)
		}
		w.complete(ev)
	}
	return true
}

// complete adds what only a decision event has, and commits it.
func (w *Worker) complete(ev *logsink.Event) {
	switch {
	case w.out.Error != nil:
		ev.Text = w.out.Error.Error()
	case w.pkt.Status == packet.Malformed:
		ev.Text = w.pkt.Reason
	default:
		ev.Text = w.engine.factNames[w.lacking]
	}
	if w.engine.cfg.Now != nil {
		ev.LatencyNS = w.engine.cfg.Now() - ev.Time
	}
	w.ring.Commit()
}

// countRepeat counts one more dropped packet of a flow whose drop was logged,
// and reports the sum now and then.
func (w *Worker) countRepeat(e *entry, s *slot, m *packet.Meta) {
	e.repeats++
	now := uint32(m.Time / int64(time.Second))
	if now-e.reported < repeatEvery {
		return
	}
	d := w.decisionOf(s)
	w.explain(d, w.refusal(e, d), ReasonPolicy)
	if s.failed {
		w.explain(nil, d.Action, ReasonPolicyError)
	}
	if ev := w.event(logsink.FlowRepeat, m); ev != nil {
		ev.FlowStart, ev.Packets[0] = e.start, uint64(e.repeats)
		w.ring.Commit()
		e.repeats, e.reported = 0, now
	}
}

// endFlow logs the end of a flow that was logged at its start.
func (w *Worker) endFlow(e *entry, why string) {
	owner, other := w.owners.get(e.owner), (*process.Owner)(nil)
	if e.judged != 0 && e.judged != e.owner {
		owner, other = w.owners.get(e.judged), owner
	}
	w.owners.give(e.owner)
	w.owners.give(e.judged)
	if why == endEvicted {
		w.counts.FlowsEvict++
	}
	s := &e.slot[e.initiator]
	if s.epoch == 0 {
		s = &e.slot[1-e.initiator]
	}
	if w.ring == nil || !s.logged {
		return
	}
	ev := w.ring.Next()
	if ev == nil {
		w.counts.EventsLost++
		return
	}
	src, dst := e.endpoints()
	d := w.decisionOf(s)
	*ev = logsink.Event{
		Kind: logsink.FlowEnd, Time: e.last, Flow: e.id, FlowStart: e.start, EndReason: why,
		Hook: e.hook, Protocol: e.key.protocol, Status: packet.OK,
		Src: src.Addr(), Dst: dst.Addr(), SrcPort: src.Port(), DstPort: dst.Port(),
		HasPorts: e.known&hasPorts != 0,
		HasUID:   e.known&hasUID != 0, UID: e.uid, HasGID: e.known&hasGID != 0, GID: e.gid, Owner: owner, OtherOwner: other,
		Packets: e.packets, Bytes: e.bytes, Offloaded: e.offloaded, Decision: d, Reason: ReasonPolicy,
	}
	if e.initiator == 1 {
		ev.Packets = [2]uint64{e.packets[1], e.packets[0]}
		ev.Bytes = [2]uint64{e.bytes[1], e.bytes[0]}
	}
	w.describeEnd(ev, s)
	w.ring.Commit()
}

// describeEnd fills in what slot s, the initiator's, was told last.
func (w *Worker) describeEnd(ev *logsink.Event, s *slot) {
	if s.accept {
		ev.Action = packet.Accept
	}
	if ev.Decision != nil {
		ev.Action = ev.Decision.Action
	}
	switch {
	case s.failed:
		ev.Decision, ev.Reason = nil, ReasonPolicyError
	case s.peer:
		ev.Reason = ReasonEstablished
	}
	if w.now == nil {
		return
	}
	ev.Generation, ev.Policy = w.now.Generation, w.now.Hash
	if w.now.Mode == Monitor && ev.Action != packet.Accept {
		ev.Action, ev.Monitor = packet.Accept, true
	}
}
