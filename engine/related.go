package engine

import "github.com/verdictd/verdictd/packet"

// The longest ICMP errors that ride a flow. Whoever sends one quotes no more of
// the packet than fits (RFC 1812 §4.3.2.3, RFC 4443 §2.4); what is longer carries
// something else.
const (
	maxICMPError   = 576
	maxICMPv6Error = 1280
)

// handleError judges an ICMP error. One about an accepted flow passes, for without
// these errors path MTU discovery breaks, unless the policy asked for that
// (icmp.related) and says otherwise. About all else the policy decides.
func (w *Worker) handleError(m *packet.Meta) packet.Verdict {
	e, dir := w.quoted(m)
	told := w.bits != 0 && w.bits == w.now.Marks.Related
	if e == nil && !told || !w.isToSender() {
		return w.handleSingle(m)
	}
	w.facts.Related = true
	if e != nil {
		w.facts.Owner, w.pending = w.owners.get(e.owner), e.pending
		w.out.Flow = e.id
		e.packets[1-dir]++
		e.bytes[1-dir] += uint64(w.pkt.TotalLength)
	}
	if d, err := w.evaluate(); err != nil || d.Reads.Has(w.engine.outside.related) {
		d = w.without(d)
		v := w.conclude(d, d.Action, err)
		w.logPacket(m)
		return v
	}
	w.counts.Related++
	v := w.finish(nil, packet.Accept, ReasonRelated)
	w.logError(e, m)
	return v
}

// quoted returns the accepted flow that the ICMP error speaks about, nil if there
// is none of which a packet like the quoted one was seen, and that packet's
// direction.
func (w *Worker) quoted(m *packet.Meta) (e *entry, dir int) {
	key, dir := flowOf(&w.pkt.Inner, reverseHook(m.Hook))
	e = w.table.find(&key)
	if e == nil || !(w.live(&e.slot[0]) || w.live(&e.slot[1])) {
		return nil, dir
	}
	if e.known&(seen0<<dir) == 0 && !e.offloaded { // of an offloaded flow not all is seen
		return nil, dir
	}
	return e, dir
}

// isToSender returns whether the ICMP error goes to who sent the packet that it
// quotes, and is no longer than such errors are.
func (w *Worker) isToSender() bool {
	most := uint32(maxICMPError)
	if w.pkt.Version == 6 {
		most = maxICMPv6Error
	}
	return w.pkt.Inner.Src == w.pkt.Dst.As16() && w.pkt.TotalLength <= most
}

// logError logs the first error about flow e, if the flow is logged, and each if
// the flow is not known here any more.
func (w *Worker) logError(e *entry, m *packet.Meta) {
	if e != nil && (e.known&toldError != 0 || !e.slot[0].logged && !e.slot[1].logged) {
		return
	}
	if e != nil {
		e.known |= toldError
	}
	w.logPacket(m)
}
