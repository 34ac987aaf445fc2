package logsink

import "sync/atomic"

// Ring is a bounded queue of events from one producer to one consumer. Put
// never blocks, locks or allocates; when the ring is full it counts the event
// as lost.
type Ring struct {
	slots []Event
	mask  uint64
	head  atomic.Uint64  // events committed
	told  *atomic.Uint64 // the same, where it outlives the process
	lost  *atomic.Uint64
	_     [64]byte // keeps what both ends read apart from what one writes
	tail  atomic.Uint64
	_     [64]byte
}

// NewRing returns a ring that holds size events, rounded up to a power of two.
func NewRing(size int) *Ring {
	var own struct {
		head atomic.Uint64
		_    [64]byte
		lost atomic.Uint64
	}
	return newRing(size, &own.head, &own.lost)
}

// newRing returns a ring that counts in head and lost, which are 0, for who reads them
// after its end: the ends of the ring agree by a word of its own.
func newRing(size int, head, lost *atomic.Uint64) *Ring {
	n := uint64(1)
	for n < uint64(size) {
		n <<= 1
	}
	return &Ring{slots: make([]Event, n), mask: n - 1, told: head, lost: lost}
}

// Next returns the slot for the next event, or nil if the ring is full: then
// the event is counted as lost. The slot holds an old event; the producer
// overwrites it and then calls Commit. For the producer only.
func (r *Ring) Next() *Event {
	head := r.head.Load()
	if head-r.tail.Load() > r.mask {
		r.lost.Add(1)
		return nil
	}
	return &r.slots[head&r.mask]
}

// Commit hands the slot that Next returned to the consumer.
func (r *Ring) Commit() {
	head := r.head.Load() + 1
	r.told.Store(head)
	r.head.Store(head)
}

// Drain calls fn for each event in the ring, in order, and returns how many
// there were. The event is lent to fn. For the consumer only.
func (r *Ring) Drain(fn func(*Event)) int {
	tail, head := r.tail.Load(), r.head.Load()
	for i := tail; i != head; i++ {
		fn(&r.slots[i&r.mask])
		r.tail.Store(i + 1)
	}
	return int(head - tail)
}

// Full returns whether Next would find no room. For the producer only.
func (r *Ring) Full() bool { return r.head.Load()-r.tail.Load() > r.mask }

// drainWhile is Drain until fn returns false: that event stays. fn is told how many
// events there are from its own on.
func (r *Ring) drainWhile(fn func(e *Event, left int) bool) int {
	tail, head := r.tail.Load(), r.head.Load()
	i := tail
	for ; i != head && fn(&r.slots[i&r.mask], int(head-i)); i++ {
		r.tail.Store(i + 1)
	}
	return int(i - tail)
}

// Lost returns how many events did not fit. It may be called from anywhere.
func (r *Ring) Lost() uint64 { return r.lost.Load() }
