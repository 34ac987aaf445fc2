package queue

import (
	"sync"
	"time"
)

// Flush counts accepted packets that the kernel had dropped before the verdict
// came, and that had the same interfaces.
type Flush struct {
	In, Out uint32    // low InterfaceBits bits of the indices; 0 for none
	At      time.Time // when the latest of them was known
	Packets uint64
}

// InterfaceBits is how many bits of an interface's index a Flush has.
const InterfaceBits = interfaceBits

// flushes are the Flushes that nobody has taken yet. It is locked for packets that
// are lost, and for no other.
type flushes struct {
	mu      sync.Mutex
	pending map[uint32]*Flush
}

// add counts a packet with such interfaces; now is in Unix nanoseconds.
func (f *flushes) add(interfaces uint32, now int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending == nil {
		f.pending = map[uint32]*Flush{}
	}
	p := f.pending[interfaces]
	if p == nil {
		p = &Flush{In: interfaces & interfaceMask, Out: interfaces >> interfaceBits}
		f.pending[interfaces] = p
	}
	p.At = time.Unix(0, now)
	p.Packets++
}

// Flushes returns what has been added to Stats.HookFlush since it was called last.
// It may be called from any goroutine.
func (q *Queue) Flushes() []Flush {
	f := &q.flushes
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []Flush
	for _, p := range f.pending {
		all = append(all, *p)
	}
	f.pending = nil
	return all
}
