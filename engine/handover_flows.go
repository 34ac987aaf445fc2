package engine

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/verdictd/verdictd/packet"
)

// A block of flows is a header, the size of a record and its form as little
// endian 16-bit numbers, and then whole records. A later version may append to
// the record: an older reader skips what it does not know, and what an older
// writer left out is 0. Form changes only if an old record must not be read.
const (
	blockHeader = 4
	flowForm    = 1
	flowSize    = 220
	oldSize     = 212 // without entry.next, and with other bits in entry.known and entry.tcp
	blockFlows  = 1024
)

// EachFlows gives all flows of the worker to yield, in blocks that AddFlows
// reads, until yield returns an error, which EachFlows returns. A block is
// lent. The worker must not run.
func (w *Worker) EachFlows(yield func(block []byte) error) error {
	le := binary.LittleEndian
	empty := le.AppendUint16(le.AppendUint16(make([]byte, 0, blockHeader+blockFlows*flowSize), flowSize), flowForm)
	block := empty
	for set, tags := range w.table.tags {
		for way := range uint64(ways) {
			if uint8(tags>>(8*way)) == 0 {
				continue
			}
			block = w.table.entries[uint64(set)*ways+way].append(block)
			if len(block) < cap(block) {
				continue
			}
			if err := yield(block); err != nil {
				return err
			}
			block = empty
		}
	}
	if len(block) == blockHeader {
		return nil
	}
	return yield(block)
}

// AddFlows puts the flows of a block into the table, before Handle is first
// called, and returns how many there were. What has no room is left out and
// counted as if it came as a packet.
func (w *Worker) AddFlows(block []byte) (n int, err error) {
	le := binary.LittleEndian
	if len(block) < blockHeader {
		return 0, errors.New("flows handed over: block without header")
	}
	size, form := int(le.Uint16(block)), le.Uint16(block[2:])
	if form != flowForm || size == 0 || (len(block)-blockHeader)%size != 0 {
		return 0, fmt.Errorf("flows handed over: block of %d bytes in form %d with records of %d bytes (this program reads form %d)",
			len(block), form, size, flowForm)
	}
	var record [flowSize]byte
	for rest := block[blockHeader:]; len(rest) > 0; rest = rest[size:] {
		clear(record[:])
		copy(record[:], rest[:size])
		var e entry
		e.decode(record[:])
		if size <= oldSize {
			e.complete()
		}
		w.add(&e)
		n++
	}
	return n, nil
}

// add puts one flow into the table.
func (w *Worker) add(e *entry) {
	place := w.table.find(&e.key)
	if place == nil {
		place = w.table.insert(&e.key, e.last, e.hook == packet.Output, w.endFlow)
	}
	if place == nil {
		w.counts.FlowsNoRoom++
		return
	}
	for dir := range e.slot {
		w.distrust(&e.slot[dir])
	}
	*place = *e
	if w.engine.peers == nil {
		return
	}
	// The replies may come to another worker, which has not seen them yet.
	for dir := range e.slot {
		s := &e.slot[dir]
		if s.accept && !s.peer && e.packets[1-dir] == 0 {
			w.engine.peers.tell(e, dir, s.epoch, s.logged, false)
		}
	}
}

// distrust makes a slot that refers to a decision or shape which was not handed
// over hold for nothing: its next packet is judged anew. So does one that holds
// for an owner or an interface: their numbers mean nothing in another process.
func (w *Worker) distrust(s *slot) {
	known := s.epoch == w.known.epoch && int(s.decision) < len(w.known.list) && int(s.shape) < len(w.known.shapes)
	if s.epoch == w.known.epoch && (!known || w.known.shapes[s.shape].owner || w.known.shapes[s.shape].links) {
		s.shape = noReuse
	}
	if s.owned {
		s.values = bitsOf{} // of no holder
	}
}

// append appends the flow's record, of flowSize bytes.
func (e *entry) append(b []byte) []byte {
	le := binary.LittleEndian
	for _, a := range [...]address{e.key.lo, e.key.hi} {
		b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, a[0]), a[1])
	}
	b = le.AppendUint16(le.AppendUint16(b, e.key.loPort), e.key.hiPort)
	b = append(b, e.key.protocol, e.key.version, e.key.place, e.known, e.initiator|e.key.asker<<1, e.tcp, uint8(e.hook), flags(e.offloaded, e.reset))
	for _, v := range [...]uint64{e.id, uint64(e.start), uint64(e.last), e.packets[0], e.packets[1], e.bytes[0], e.bytes[1]} {
		b = le.AppendUint64(b, v)
	}
	for _, v := range [...]uint32{e.uid, e.gid, e.repeats, e.reported} {
		b = le.AppendUint32(b, v)
	}
	for i := range e.slot {
		b = e.slot[i].append(b)
	}
	return le.AppendUint32(le.AppendUint32(b, e.next[0]), e.next[1])
}

// decode reads a record of flowSize bytes, overwriting all of e. Values that a
// table cannot hold are made harmless: the record comes from another program.
func (e *entry) decode(b []byte) {
	le := binary.LittleEndian
	e.key.lo, e.key.hi = addressOf([16]byte(b)), addressOf([16]byte(b[16:]))
	e.key.loPort, e.key.hiPort = le.Uint16(b[32:]), le.Uint16(b[34:])
	e.key.protocol, e.key.version, e.key.place = b[36], b[37], b[38]
	e.known, e.initiator, e.tcp, e.hook = b[39], b[40]&1, b[41], packet.Hook(b[42])
	e.key.asker = b[40] >> 1 & 3
	e.offloaded, e.reset = b[43]&1 != 0, b[43]&2 != 0
	e.id, e.start, e.last = le.Uint64(b[44:]), int64(le.Uint64(b[52:])), int64(le.Uint64(b[60:]))
	for dir := range 2 {
		e.packets[dir] = le.Uint64(b[68+8*dir:])
		e.bytes[dir] = le.Uint64(b[84+8*dir:])
	}
	e.uid, e.gid, e.repeats, e.reported = le.Uint32(b[100:]), le.Uint32(b[104:]), le.Uint32(b[108:]), le.Uint32(b[112:])
	for i := range e.slot {
		e.slot[i].decode(b[116+slotSize*i:])
	}
	e.next = [2]uint32{le.Uint32(b[oldSize:]), le.Uint32(b[oldSize+4:])}
}

// complete makes up for what the record of an older program leaves out: there, who
// had sent in both directions was connected.
func (e *entry) complete() {
	for dir := range 2 {
		if e.packets[dir] > 0 {
			e.known |= seen0 << dir
		}
	}
	if e.tcp &= seenFIN0 | seenFIN1 | seenRST; e.key.protocol == packet.ProtoTCP && e.replied() {
		e.tcp |= connected
	}
}

const slotSize = 48

func (s *slot) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(le.AppendUint32(b, s.epoch), s.decision)
	for _, v := range s.values {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint16(le.AppendUint16(b, s.shape), uint16(flags(s.accept, s.failed, s.peer, s.logged, s.final, s.owned)))
	return append(b, make([]byte, slotSize-36)...)
}

// flags returns a number with bit i set if the i-th value is true.
func flags(values ...bool) (set uint8) {
	for i, on := range values {
		if on {
			set |= 1 << i
		}
	}
	return set
}

func (s *slot) decode(b []byte) {
	le := binary.LittleEndian
	s.epoch, s.decision = le.Uint32(b), le.Uint32(b[4:])
	for i := range s.values {
		s.values[i] = le.Uint64(b[8+8*i:])
	}
	s.shape = le.Uint16(b[32:])
	set := le.Uint16(b[34:])
	s.accept, s.failed, s.peer = set&1 != 0, set&2 != 0, set&4 != 0
	s.logged, s.final, s.owned = set&8 != 0, set&16 != 0, set&32 != 0
}
