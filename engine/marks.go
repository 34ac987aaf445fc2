package engine

import (
	"context"
	"time"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// Marks are the values of packet marks that a Worker and the kernel's ruleset
// tell each other things with, in the bits of Mask. The zero value means that no
// ruleset knows them: then nothing is offloaded, and what is rejected is dropped
// in silence.
//
// A worker takes these values out of a packet's mark before the policy sees it.
// Any other value in the bits of Mask is somebody else's: the policy sees it, it
// stays in the mark, and the packet's flow is not offloaded, as there is no room
// in the mark to say so.
type Marks struct {
	Mask   uint32
	Reject uint32 // told the ruleset: reject the packet
	Reply  uint32 // told by the ruleset: the packet answers, and what it answers came by the ruleset too
	// Related is told by the ruleset: the packet is an ICMP error about a flow that
	// passes by the queue.
	Related uint32
	Accept  uint32 // told the ruleset: the whole flow is accepted; 0: never told
}

// outside are the fields whose value may change during a flow, by what the flow
// is: a decision that read one of them is not final. Those of socket and owner
// hold for a TCP connection once they are known.
type outside struct {
	tcp, udp, icmp, other rules.FieldSet
	socket, owner         rules.FieldSet
	holder                rules.FieldSet           // both of them
	facts                 [factBits]rules.FieldSet // by what has to be looked up, the bits of process.Facts
	related               int                      // the field icmp.related
}

func newOutside(fields []rules.Field) (o outside) {
	for i := range fields {
		f := &fields[i]
		for _, of := range []struct {
			set   *rules.FieldSet
			proto uint8
		}{
			{&o.tcp, packet.ProtoTCP}, {&o.udp, packet.ProtoUDP}, {&o.icmp, packet.ProtoICMP}, {&o.other, 0},
		} {
			if !f.Final(of.proto, true) {
				of.set.Add(i)
			}
		}
		switch f.Scope {
		case rules.PerSocket:
			o.socket.Add(i)
			o.holder.Add(i)
		case rules.PerOwner:
			o.owner.Add(i)
			o.holder.Add(i)
		}
		if f.Path == rules.RelatedPath {
			o.related = i
		}
		for bit := range o.facts {
			if f.Facts>>bit&1 != 0 {
				o.facts[bit].Add(i)
			}
		}
	}
	return o
}

// of returns the set for a packet.
func (o *outside) of(p *packet.Packet) *rules.FieldSet {
	switch p.Protocol {
	case packet.ProtoTCP:
		return &o.tcp
	case packet.ProtoUDP:
		return &o.udp
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return &o.icmp
	}
	return &o.other
}

// final returns whether a decision about the current packet holds for its whole
// flow, both directions, so that the kernel can let the rest pass. One that sets
// a mark does not: each packet needs it. Nor do questions by multicast: each has
// answers of its own. Nor one about SCTP or DCCP: the ruleset does not know the
// packets that begin a connection, which may come from both ends.
func (w *Worker) final(d *rules.Decision) bool {
	if w.pkt.Protocol == packet.ProtoSCTP || w.pkt.Protocol == packet.ProtoDCCP {
		return false
	}
	return d.Action == packet.Accept && !d.SetMark && !isQuestion(&w.pkt) &&
		!d.Reads.Intersects(*w.engine.outside.of(&w.pkt)) && w.ownerKnown(d.Reads) && w.lacking == 0
}

// ownerKnown returns whether what reads asks of the socket's owner is known, so
// that absence says something about the owner and not about us.
func (w *Worker) ownerKnown(reads rules.FieldSet) bool {
	o, out := w.facts.Owner, &w.engine.outside
	return (w.facts.Meta.HasUID || !reads.Intersects(out.socket)) &&
		(o != nil && o.Process != nil || !reads.Intersects(out.owner))
}

// settle notes whether the packet at hand, of flow e, is accepted by a final
// decision: that of slot s.
func (w *Worker) settle(e *entry, s *slot) {
	w.settled = s.accept && s.final && w.now.Marks.Accept != 0 && w.markFree
	w.first = w.settled && !e.offloaded
	e.offloaded = e.offloaded || w.settled
}

// remarkAfter is how old a flow is before its packets count as Remarked: those of
// its beginning may have been queued before the kernel was told.
const remarkAfter = 2 * time.Second

// noteRemarked counts a packet that the kernel should have let pass by.
func (w *Worker) noteRemarked(e *entry, s *slot, m *packet.Meta) {
	if e.offloaded && s.accept && s.final && w.markFree && m.Time-e.start > int64(remarkAfter) && !w.pkt.Begins {
		w.counts.Remarked++
	}
}

// isReply returns whether the ruleset says that the packet answers.
func (w *Worker) isReply() bool { return w.bits != 0 && w.bits == w.now.Marks.Reply }

// takeMark takes the ruleset's value out of the packet's mark, and notes whether
// the mark has room for another one.
//
// At OUTPUT the kernel routes a packet anew whose mark is another one after the
// queue than before it, and forgets what the program asked for (IP_PKTINFO). So
// an answer, which went into the queue with the ruleset's mark, must leave it
// with that; the ruleset takes it off at POSTROUTING. Its flow can be offloaded
// with the next packet that it answers.
func (w *Worker) takeMark(m *packet.Meta) {
	k := &w.now.Marks
	w.settled = false
	w.bits = m.Mark & k.Mask
	switch w.bits {
	case 0, k.Reject, k.Reply, k.Related, k.Accept:
	default:
		w.bits, w.markFree = 0, false
		return
	}
	w.markFree = w.bits == 0 || w.bits == k.Reply && m.Hook != packet.Output
	m.Mark &^= k.Mask
}

// giveMark completes a verdict with what the ruleset is to do. A packet that
// was sent round before and came to the queue again has met no rule for its
// mark. It is not sent round twice: it passes, or is dropped if it was to be
// rejected.
func (w *Worker) giveMark(v packet.Verdict, m *packet.Meta) packet.Verdict {
	k := &w.now.Marks
	if k.Mask == 0 {
		return v
	}
	mark := m.Mark
	if v.SetMark {
		mark = v.Mark&^k.Mask | m.Mark&k.Mask
	}
	switch {
	case w.bits != 0 && w.bits != k.Reply && w.bits != k.Related:
		w.counts.Returned++
	case v.Action == packet.Reject:
		v.Repeat, mark = true, mark&^k.Mask|k.Reject
	case v.Action == packet.Accept && w.settled:
		if w.first {
			w.counts.Offloaded++
		}
		v.Repeat, mark = true, mark|k.Accept
	}
	if v.Repeat || v.SetMark || w.bits != 0 && m.Hook != packet.Output {
		v.SetMark, v.Mark = true, mark
	}
	return v
}

// refusal returns what happens to a packet of flow e by decision d. With
// Snapshot.ResetDenied a TCP connection that was let through once and is denied
// now ends with resets: each side gets one when it sends.
func (w *Worker) refusal(e *entry, d *rules.Decision) packet.Action {
	if d.Action != packet.Drop || !w.now.ResetDenied || w.pkt.Protocol != packet.ProtoTCP {
		return d.Action
	}
	if w.pkt.Begins {
		e.reset = false // a new connection
	}
	if !e.reset {
		return d.Action
	}
	return packet.Reject
}

// midstream returns whether a packet of no known flow belongs to a connection
// that has begun earlier. Without the owner of its socket a policy that asks for
// it cannot be said to deny the connection.
func (w *Worker) midstream(reads rules.FieldSet) bool {
	return w.pkt.Protocol == packet.ProtoTCP && w.pkt.TCPFlags&(packet.SYN|packet.RST) == 0 && w.ownerKnown(reads)
}

// awaitEvery is how often Await looks.
const awaitEvery = 5 * time.Millisecond

// Await waits until no worker uses an earlier Snapshot than the one that is
// current now: every verdict by an earlier one is with the kernel. That takes as
// long as a worker takes for a batch, or until its next Tick if it has none. It
// returns the error of ctx if that ends first.
func (e *Engine) Await(ctx context.Context) error {
	p := e.current.Load()
	if p == nil {
		return nil
	}
	tick := time.NewTicker(awaitEvery)
	defer tick.Stop()
	for !e.seen(p.epoch) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

func (e *Engine) seen(epoch uint32) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.workers {
		if !w.closed.Load() && int32(w.seen.Load()-epoch) < 0 {
			return false
		}
	}
	return true
}
