package engine

import (
	"time"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/rules"
)

// An Attributor tells who owns the local socket of a packet: at OUTPUT and
// POSTROUTING the one that sends, at INPUT and PREROUTING the one that receives,
// at FORWARD that of a local network namespace. Each worker has its own, which
// is for the worker's goroutine.
type Attributor interface {
	// Owner returns the owner, never nil, and what of it is not known yet but will
	// be: then Revision tells. m and p are lent. It is asked about the first packet of
	// a flow, about packets that belong to none, again when Changes says so, and when
	// Revision does if a decision about the flow lacks one of the pending facts. It
	// waits for nothing that a process can slow.
	Owner(m *packet.Meta, p *packet.Packet) (o *process.Owner, pending process.Facts)

	// Changes returns a number that is another one whenever Owner may give
	// another answer about the flow k than before, but by what was pending; it is
	// never 0. k is lent, in the direction in which the local socket sends. It is
	// called for every packet, so it may only read memory.
	Changes(k *packet.Key) uint32

	// Revision returns a number that is another one once anything that was pending
	// has become known, or who holds which socket has changed. It only reads memory.
	Revision() uint32

	// Notify has wake called, from any goroutine, whenever Revision changes; wake
	// does not wait. It is called once, before packets are judged.
	Notify(wake func())

	// Hurry says that a decision lacks facts that are pending, which else may be looked
	// up together with those of others. It does not wait.
	Hurry()

	// WantHash asks for the SHA-256 of the owner's program, which a policy read
	// and which is pending, and returns false if it will not be known. It does not
	// wait: Owner gives it when it is there.
	WantHash(o *process.Owner, pending process.Facts) bool
}

// owners are the owners that flows of a worker refer to by number, so that a
// flow holds no pointer.
type owners struct {
	slots []ownerSlot
	free  []uint32
	byID  map[uint32]uint32 // numbers, by Owner.ID
}

type ownerSlot struct {
	owner *process.Owner
	flows uint32
}

// get returns the owner with that number; nil for 0.
func (t *owners) get(number uint32) *process.Owner {
	if number == 0 {
		return nil
	}
	return t.slots[number-1].owner
}

// take returns the owner's number for one more flow.
func (t *owners) take(o *process.Owner) uint32 {
	if n, ok := t.byID[o.ID]; ok {
		t.slots[n-1].flows++
		return n
	}
	if t.byID == nil {
		t.byID = map[uint32]uint32{}
	}
	var n uint32
	if last := len(t.free) - 1; last >= 0 {
		n, t.free = t.free[last], t.free[:last]
	} else {
		t.slots = append(t.slots, ownerSlot{})
		n = uint32(len(t.slots))
	}
	t.slots[n-1] = ownerSlot{o, 1}
	t.byID[o.ID] = n
	return n
}

// again returns a number for one more flow.
func (t *owners) again(number uint32) uint32 {
	if number != 0 {
		t.slots[number-1].flows++
	}
	return number
}

// give returns a number that a flow no longer needs.
func (t *owners) give(number uint32) {
	if number == 0 {
		return
	}
	s := &t.slots[number-1]
	if s.flows--; s.flows > 0 {
		return
	}
	delete(t.byID, s.owner.ID)
	s.owner = nil
	t.free = append(t.free, number)
}

// settleTime is how long after a change the owner of a flow is looked for at each
// packet, in nanoseconds: what changes hands is counted as it begins, and takes the
// kernel some microseconds.
const settleTime = int64(5 * time.Millisecond)

// attribute makes the owner of the socket of flow e a fact about the packet, of
// direction dir. It is looked for only if it may have changed since the flow's last
// packet, or if the packet begins a connection. Of a forwarded flow it is only known
// from what its socket sends.
func (w *Worker) attribute(e *entry, dir int, m *packet.Meta) {
	a := w.attributor
	if a == nil {
		return
	}
	if m.Hook == packet.Forward && dir != int(e.initiator) && e.owner != 0 {
		if w.starts(e, dir) {
			w.attributeSingle(m)
			return
		}
		w.facts.Owner = w.owners.get(e.owner)
		return
	}
	w.local = w.pkt.Key()
	if m.Hook == packet.Input || m.Hook == packet.Prerouting {
		w.local = w.local.Reverse()
	}
	now, otherUser := a.Changes(&w.local), w.otherUser(e, m)
	if now != e.changes || otherUser || m.Time < e.settles || w.pkt.Begins || w.mayLearn(e) {
		if e.changes != 0 && now != e.changes {
			e.settles = m.Time + settleTime
		}
		e.sender = sender(m)
		e.changes, e.revision = now, a.Revision() // read before Owner: what changes meanwhile is seen next time
		o, pending := a.Owner(m, &w.pkt)
		if w.replaceOwner(e, o) {
			e.pending = pending
			e.lacking = e.lacking&pending | w.lackedBy(&e.slot[0], pending) | w.lackedBy(&e.slot[1], pending)
		}
	}
	w.facts.Owner, w.pending = w.owners.get(e.owner), e.pending
}

// sender returns the user whom the kernel names with a packet that a local socket sends,
// plus 1, or 0 if it names none. Of other packets it returns a value that is no user's:
// neither is -1, nor in practice the one before.
func sender(m *packet.Meta) uint32 {
	switch {
	case m.Hook.Direction() != "out":
		return ^uint32(0)
	case !m.HasUID:
		return 0
	}
	return m.UID + 1
}

// otherUser returns whether the kernel names another user with a packet that is sent
// than with the one by which the owner of flow e was looked for. Packets of two sockets
// that have used the same ports, one after the other, wait together.
func (w *Worker) otherUser(e *entry, m *packet.Meta) bool {
	return m.Hook.Direction() == "out" && sender(m) != e.sender
}

// mayLearn returns whether facts have become known since the owner of flow e was
// looked for, and the flow lacks some: its decisions read them, or are still to be
// made.
func (w *Worker) mayLearn(e *entry) bool {
	undecided := e.slot[0].epoch != w.now.epoch && e.slot[1].epoch != w.now.epoch
	return e.pending != 0 && (e.lacking != 0 || undecided) && w.attributor.Revision() != e.revision
}

// lackedBy returns which pending facts the decision in a slot read.
func (w *Worker) lackedBy(s *slot, pending process.Facts) process.Facts {
	if pending == 0 || s.epoch != w.now.epoch {
		return 0
	}
	if d := w.decisionOf(s); d != nil {
		return w.among(pending, &d.Reads)
	}
	return pending // another worker's decision
}

// among returns the facts that a decision read.
func (w *Worker) among(facts process.Facts, reads *rules.FieldSet) (read process.Facts) {
	for i := range w.engine.outside.facts {
		if bit := process.Facts(1) << i; facts&bit != 0 && reads.Intersects(w.engine.outside.facts[i]) {
			read |= bit
		}
	}
	if facts&process.FactRefused != 0 && reads.Intersects(w.engine.outside.holder) {
		read |= process.FactRefused
	}
	return read
}

// replaceOwner takes the owner for that of the flow. A TCP connection keeps the
// owner that it has if nobody is found now: the rest of a closed socket's packets
// are sent by the kernel. Any other flow can be another socket's by now. It returns
// whether the owner is o.
func (w *Worker) replaceOwner(e *entry, o *process.Owner) bool {
	before := w.owners.get(e.owner)
	rest := w.pkt.Protocol == packet.ProtoTCP && !w.pkt.Begins
	if before != o && (rest && before != nil && before.Process != nil && o.Process == nil || knownBetter(before, o)) {
		return false
	}
	if before != o {
		w.owners.give(e.owner)
		e.owner = w.owners.take(o)
	}
	return true
}

// knownBetter returns whether o is the process that before names, found in a
// weaker way: an answer tells less than what its socket sends.
func knownBetter(before, o *process.Owner) bool {
	if before == nil || before.Process == nil || o.Process == nil || before.Source <= o.Source {
		return false
	}
	p, q := before.Process, o.Process
	return p.PID == q.PID && p.Start == q.Start && before.UID == o.UID && before.HasUID == o.HasUID && before.Cgroup == o.Cgroup &&
		p.Exe.Path == q.Exe.Path && p.Exe.Inode == q.Exe.Inode && p.Exe.Device == q.Exe.Device &&
		(q.Exe.SHA256 == "" || p.Exe.SHA256 == q.Exe.SHA256)
}

// holder returns the ID of the current packet's owner, 0 if nobody was asked.
func (w *Worker) holder() uint32 {
	if w.facts.Owner == nil {
		return 0
	}
	return w.facts.Owner.ID
}

// holdsSocket returns whether the decision of slot s, of flow e, was made for who
// holds the socket of the current packet, or for whoever does.
func (w *Worker) holdsSocket(e *entry, s *slot, m *packet.Meta) bool {
	if !s.owned {
		return true
	}
	otherUser := m.HasUID && e.known&hasUID != 0 && m.UID != e.uid
	return s.holder() == w.holder() && !otherUser
}

// attributeSingle does the same for a packet that belongs to no flow.
func (w *Worker) attributeSingle(m *packet.Meta) {
	if a := w.attributor; a != nil {
		w.facts.Owner, w.pending = a.Owner(m, &w.pkt)
	}
}
