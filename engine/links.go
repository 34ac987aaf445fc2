package engine

import "github.com/verdictd/verdictd/packet"

// Links names network interfaces. Each worker has its own, which is for the
// worker's goroutine.
type Links interface {
	// Update takes note of all changes until now, in Unix nanoseconds. It is called
	// before the first packet of a batch and may call the operating system, but not
	// wait.
	Update(now int64)

	// Name returns the name of an interface by its index, and a number that stands
	// for the name: the same for the same name, another for any other. Both are
	// zero if nothing is known. It may only read memory.
	Name(index uint32) (name string, id uint32)
}

// updateLinks makes the names of interfaces those of the batch that m is of: all
// packets of a batch have one time.
func (w *Worker) updateLinks(m *packet.Meta) {
	if w.links != nil && m.Time != w.batch {
		w.batch = m.Time
		w.links.Update(m.Time)
	}
}

// nameLinks makes the interfaces of m facts. Where nobody knows names their numbers
// stand for them.
func (w *Worker) nameLinks(m *packet.Meta) {
	f := &w.facts
	if w.links == nil {
		f.InInterface, f.InLink, f.OutInterface, f.OutLink = "", m.In, "", m.Out
		f.InPort, f.InPortLink, f.OutPort, f.OutPortLink = "", m.PhysIn, "", m.PhysOut
		return
	}
	f.InInterface, f.InLink = w.links.Name(m.In)
	f.OutInterface, f.OutLink = w.links.Name(m.Out)
	f.InPort, f.InPortLink, f.OutPort, f.OutPortLink = "", 0, "", 0
	if m.PhysIn|m.PhysOut != 0 {
		f.InPort, f.InPortLink = w.links.Name(m.PhysIn)
		f.OutPort, f.OutPortLink = w.links.Name(m.PhysOut)
	}
}

// FixedLinks are names that do not change, by index; "" if there is none. No two
// interfaces have the same.
type FixedLinks func(index uint32) string

// Update does nothing.
func (FixedLinks) Update(int64) {}

// Name returns the name and, as the number that stands for it, the index.
func (f FixedLinks) Name(index uint32) (name string, id uint32) {
	if name = f(index); name == "" {
		return "", 0
	}
	return name, index
}
