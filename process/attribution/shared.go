package attribution

import (
	"slices"

	"github.com/verdictd/verdictd/process"
)

// mostHolders bounds how many holders of a socket are compared. Of one that more
// processes hold, nothing is said but its user and control group.
const mostHolders = 64

// holders returns all that hold the socket, nil if they are too many.
func (h *holder) holders() []holder {
	if h.crowded {
		return nil
	}
	return append([]holder{*h}, h.others...)
}

// agreed returns what is true of each of several processes that hold a socket: the
// file that they run, and name and terminal if those are the same. What tells them
// apart, as pid, start, arguments and parents do, is absent: nobody can say which of
// them it is. It returns nil if they run different files, or that is not known.
func agreed(all []*process.Process) *process.Process {
	if len(all) == 0 {
		return nil
	}
	p := &process.Process{Comm: all[0].Comm, TTY: all[0].TTY, Exe: all[0].Exe}
	for _, q := range all {
		exe := q.Exe
		if exe.SHA256 != p.Exe.SHA256 { // known of one of them already
			exe.SHA256, p.Exe.SHA256 = "", ""
		}
		if exe.Inode == 0 || exe != p.Exe {
			return nil
		}
		if q.Comm != p.Comm {
			p.Comm = ""
		}
		if q.TTY != p.TTY {
			p.TTY = ""
		}
	}
	return p
}

// shared returns what all holders of a socket agree in, if each of them still holds
// it; nil if that is nothing, or if one has ended.
func (r *Resolver) shared(h holder, inode uint32) *process.Process {
	var all []*process.Process
	for _, one := range h.holders() {
		if one.start == 0 || !one.holds(inode) {
			r.search()
			return nil
		}
		_, c := r.current(one)
		if c.p == nil {
			r.search()
			return nil
		}
		all = append(all, c.p)
	}
	p := agreed(all)
	if p == nil {
		return nil
	}
	// The same facts are the same process, so that the owner stays who it was.
	if f := r.sockets.peek(inode); f != nil && f.alike != nil && sameProcess(f.alike, p) {
		return f.alike
	}
	return p
}

// same tells whether a search found the same holders as another one.
func (h holder) same(o holder) bool {
	return h.pid == o.pid && h.start == o.start && h.fd == o.fd && h.crowded == o.crowded &&
		slices.EqualFunc(h.others, o.others, func(a, b holder) bool { return a.pid == b.pid && a.start == b.start && a.fd == b.fd })
}

// many tells whether more than one process holds the socket.
func (h *holder) many() bool { return h.crowded || len(h.others) > 0 }

// note adds one descriptor to what was found.
func note(found map[uint32]holder, inode uint32, h holder) {
	first, ok := found[inode]
	switch {
	case !ok:
		first = h
	case first.pid == h.pid || slices.ContainsFunc(first.others, func(o holder) bool { return o.pid == h.pid }):
	case len(first.others) < mostHolders-1:
		first.others = append(first.others, h)
	default:
		first.crowded = true
	}
	found[inode] = first
}
