package attribution

import (
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/record"
	"github.com/verdictd/verdictd/process/sockdiag"
)

// Attributor answers for one goroutine. See package engine for what its methods
// promise.
type Attributor struct {
	r    *Resolver
	diag *sockdiag.Conn // nil: sock_diag cannot be asked

	// Scratch, so that questions allocate nothing.
	flow   record.Flow
	owner  record.Owner
	proc   record.Process
	socket sockdiag.Socket
	key    packet.Key

	caches
	lookout lookout
}

// New returns an Attributor. If sock_diag cannot be asked it does without, and
// Report says why. Close frees its socket.
func (r *Resolver) New() *Attributor {
	a := &Attributor{r: r, caches: newCaches()}
	a.diag, _ = r.openDiag() // Report tells
	return a
}

// Close frees the Attributor's socket.
func (a *Attributor) Close() error {
	if a.diag == nil {
		return nil
	}
	return a.diag.Close()
}

// Changes reads three numbers in memory.
func (a *Attributor) Changes(k *packet.Key) uint32 {
	n := a.r.revision.Load()
	if a.r.rec != nil {
		n += a.r.rec.Changes(k)
	}
	return max(n+1, 1)
}

// Owner returns who owns the local socket of a packet.
func (a *Attributor) Owner(m *packet.Meta, p *packet.Packet) *process.Owner {
	o := a.find(m, p)
	a.r.counts.sources[o.Source].Add(1)
	return o
}

func (a *Attributor) find(m *packet.Meta, p *packet.Packet) *process.Owner {
	if p.Status != packet.OK {
		return a.byUID(m) // a fragment: its ports are in another packet
	}
	a.key = p.Key()
	switch m.Hook {
	case packet.Output, packet.Postrouting:
		if m.In != 0 {
			return a.forwarded(m)
		}
		return a.sender(m, p)
	case packet.Input, packet.Prerouting:
		if o := a.bySocket(true, m); o != nil {
			return o
		}
		return a.byUID(m)
	}
	return a.forwarded(m)
}

// forwarded returns who of another network namespace of this host sent a packet. Only
// a record can tell, of a packet that came in by the same interface.
func (a *Attributor) forwarded(m *packet.Meta) *process.Owner {
	if o, ok := a.recordedFlow(m.In); ok && o != nil {
		return o
	}
	return a.r.nobody
}

// sender returns who sends a packet.
func (a *Attributor) sender(m *packet.Meta, p *packet.Packet) *process.Owner {
	o, ok := a.recordedFlow(0)
	switch {
	case o != nil:
		return o
	case ok && a.flow.Ambiguous: // the socket that is there now need not be the sender's
		return a.byUID(m)
	}
	if !ok || a.flow.Cookie != 0 {
		if o := a.bySocket(false, m); o != nil {
			return o
		}
	}
	if !ok {
		if o := a.byPing(m, p); o != nil {
			return o
		}
	}
	// The kernel names the user of every socket that a process has open: without
	// one, the packet is the kernel's own, or the rest of a closed connection's.
	if !m.HasUID && (ok && a.flow.Cookie == 0 || p.Protocol != packet.ProtoTCP || p.TCPFlags&packet.RST != 0) {
		return a.r.kernel
	}
	return a.byUID(m)
}

// recordedFlow returns who sent the flow a.key, here (in is 0) or in the namespace that
// an interface leads to, by the record that was made before the packet was queued, nil if the record does not tell. ok says that there is
// a record: a.flow.
func (a *Attributor) recordedFlow(in uint32) (o *process.Owner, ok bool) {
	rec := a.r.rec
	if rec == nil || !rec.Flow(&a.key, in, &a.flow) {
		return nil, false
	}
	switch f := &a.flow; {
	case f.Ambiguous || f.Cookie == 0:
		return nil, true
	case f.HasOwner:
		return a.recorded(&f.Owner, process.BPFFlow), true
	case rec.Owner(f.Cookie, &a.owner): // told later, by Seed
		return a.recorded(&a.owner, process.BPFFlow), true
	}
	return nil, true
}

// bySocket returns the owner of the socket that sock_diag finds for a.key, nil
// if there is no socket.
func (a *Attributor) bySocket(incoming bool, m *packet.Meta) *process.Owner {
	if !a.findSocket(incoming, m) {
		return nil
	}
	if !incoming && m.HasUID && a.socket.Inode != 0 && a.socket.UID != m.UID {
		return nil // another one by now
	}
	if o := a.ownerOf(&a.socket, m); o.Source != process.Unknown {
		return o
	}
	return nil
}

// findSocket looks the socket up. Of a connection that is not established yet, the
// kernel finds the listener.
func (a *Attributor) findSocket(incoming bool, m *packet.Meta) bool {
	if a.diag == nil {
		return false
	}
	iface := m.Out
	if incoming {
		iface = m.In
	}
	found, err := a.diag.FindOn(&a.key, iface, incoming, &a.socket)
	if err != nil {
		a.r.counts.failed.Add(1)
	}
	return found && err == nil
}

// WantHash asks for the hash of the owner's program.
func (a *Attributor) WantHash(o *process.Owner) {
	if o.Process.PID == 0 {
		return // several hold the socket: a hash is made of what one process runs
	}
	a.r.hashes.want(processKey{o.Process.PID, a.r.bootTime(o.Process.Start)}, &o.Process.Exe)
}
