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
	flow    record.Flow
	owner   record.Owner
	proc    record.Process
	socket  sockdiag.Socket
	key     packet.Key
	subject subject
	refused bool // something of the owner at hand could not be asked for

	caches
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
	a.r.waiting.Delete(a)
	if a.diag == nil {
		return nil
	}
	return a.diag.Close()
}

// Changes reads three numbers in memory.
func (a *Attributor) Changes(k *packet.Key) uint32 {
	n := a.r.changes.Load()
	if a.r.rec != nil {
		n += a.r.rec.Changes(k)
	}
	return max(n+1, 1)
}

// Revision returns a number that is another one once more is known.
func (a *Attributor) Revision() uint32 { return a.r.revision.Load() }

// Notify has wake called whenever Revision changes, until Close.
func (a *Attributor) Notify(wake func()) { a.r.waiting.Store(a, wake) }

// Owner returns who owns the local socket of a packet, and what of that is not known
// yet but will be: then Revision tells.
//
// It asks the kernel's records and sock_diag, and nobody else: what a process can
// slow is looked up beside, by a pool.
func (a *Attributor) Owner(m *packet.Meta, p *packet.Packet) (*process.Owner, process.Facts) {
	a.refused = false
	o, pending := a.find(m, p)
	if a.refused {
		pending |= process.FactRefused
	}
	a.r.counts.sources[o.Source].Add(1)
	return o, pending
}

func (a *Attributor) find(m *packet.Meta, p *packet.Packet) (*process.Owner, process.Facts) {
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
		if o, pending := a.bySocket(true, m, p); o != nil {
			return o, pending
		}
		if a.answersTunnel() {
			return a.r.kernel, 0
		}
		return a.byUID(m)
	}
	return a.forwarded(m)
}

// answersTunnel tells whether a packet that no socket receives is of a flow that a
// tunnel of the kernel sends (GRE).
func (a *Attributor) answersTunnel() bool {
	k := a.key.Reverse()
	return a.r.rec != nil && a.r.rec.Flow(&k, 0, record.NoUser, &a.flow) && a.flow.Kernel
}

// forwarded returns who of another network namespace of this host sent a packet. Only
// a record can tell, of a packet that came in by the same interface.
func (a *Attributor) forwarded(m *packet.Meta) (*process.Owner, process.Facts) {
	o, pending, ok := a.recordedFlow(m.In, record.NoUser)
	if o != nil {
		return o, pending
	}
	several := a.r.several.Load()
	if !ok || a.flow.Cookie == 0 || a.flow.Ambiguous || several == nil {
		return a.r.nobody, 0
	}
	s, ok := (*several)[a.flow.Cookie] // older than the record
	if !ok {
		return a.r.nobody, 0
	}
	a.socket = s
	return a.ownerOf(&a.socket, m)
}

// sender returns who sends a packet.
func (a *Attributor) sender(m *packet.Meta, p *packet.Packet) (*process.Owner, process.Facts) {
	user := record.NoUser
	if m.HasUID {
		user = record.UserOf(m.UID)
	}
	o, pending, ok := a.recordedFlow(0, user)
	switch {
	case o != nil:
		return o, pending
	case ok && a.flow.Kernel: // the user that comes with it is that of the packet inside
		return a.r.kernel, 0
	case ok && a.flow.Doubtful:
		return a.r.nobody, 0
	case ok && a.flow.Ambiguous: // the socket that is there now need not be the sender's
		return a.byUID(m)
	}
	if !ok || a.flow.Cookie != 0 {
		if o, pending := a.bySocket(false, m, p); o != nil {
			return o, pending
		}
	}
	if !ok {
		if o, pending := a.byPing(m, p); o != nil {
			return o, pending
		}
	}
	// The kernel names the user of every socket that a process has open: without
	// one, the packet is the kernel's own, or the rest of a closed connection's.
	if !m.HasUID && (ok && a.flow.Cookie == 0 || p.Protocol != packet.ProtoTCP || p.TCPFlags&packet.RST != 0) {
		return a.r.kernel, 0
	}
	return a.byUID(m)
}

// recordedFlow returns who sent the flow a.key, here (in is 0) or in the namespace that
// an interface leads to, by the record that was made before the packet was queued, nil
// if the record does not tell. ok says that there is a record: a.flow.
func (a *Attributor) recordedFlow(in uint32, user record.User) (o *process.Owner, pending process.Facts, ok bool) {
	rec := a.r.rec
	if rec == nil || !rec.Flow(&a.key, in, user, &a.flow) {
		return nil, 0, false
	}
	switch f := &a.flow; {
	case f.Ambiguous || f.Cookie == 0:
		return nil, 0, true
	case f.HasOwner && f.Owner.Unclear && rec.Owner(f.Cookie, &a.owner): // clear by now, perhaps
		o, pending = a.recorded(&a.owner, process.BPFFlow)
	case f.HasOwner:
		o, pending = a.recorded(&f.Owner, process.BPFFlow)
	case rec.Owner(f.Cookie, &a.owner): // told later, by Seed
		o, pending = a.recorded(&a.owner, process.BPFFlow)
	}
	return o, pending, true
}

// bySocket returns the owner of the socket that sock_diag finds for a.key, nil
// if there is no socket.
func (a *Attributor) bySocket(incoming bool, m *packet.Meta, p *packet.Packet) (*process.Owner, process.Facts) {
	if !a.findSocket(incoming, m) {
		return nil, 0
	}
	switch {
	case incoming || a.socket.Inode == 0:
	case m.HasUID && a.socket.UID != m.UID, !m.HasUID && a.r.rec != nil && !answersSYN(p):
		return nil, 0 // another one by now: the kernel names the user of a socket that a file belongs to
	}
	if o, pending := a.ownerOf(&a.socket, m); o.Source != process.Unknown {
		return o, pending
	}
	return nil, 0
}

// answersSYN tells whether the packet is sent by a request for a connection, of which
// sock_diag finds the listener.
func answersSYN(p *packet.Packet) bool {
	return p.Protocol == packet.ProtoTCP && p.TCPFlags&(packet.SYN|packet.ACK) == packet.SYN|packet.ACK
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

// ownerOf returns the owner of a socket that sock_diag has found, for the packet m
// or for none.
func (a *Attributor) ownerOf(s *sockdiag.Socket, m *packet.Meta) (*process.Owner, process.Facts) {
	if a.r.rec != nil && s.Cookie != 0 && a.r.rec.Owner(s.Cookie, &a.owner) {
		return a.recorded(&a.owner, process.BPFCookie)
	}
	o, pending := a.held(s)
	if o != nil {
		return o, pending
	}
	if s.Inode == 0 {
		return a.r.nobody, 0 // not accepted yet, or closed: then its user says nothing
	}
	return a.bySocketUser(s, m, pending)
}

// held returns the one process that holds the socket, as it was found beside the
// packets less than a second ago; nil if there is none, or none is known yet.
func (a *Attributor) held(s *sockdiag.Socket) (*process.Owner, process.Facts) {
	if s.Inode == 0 {
		return nil, 0
	}
	group := groupOf(s.UID)
	at := a.r.sockets.at(s.Inode)
	h := at.answer.Load()
	pending := process.Facts(0)
	if h == nil || !h.holds(a.r.searches.Load()) {
		if a.r.askHolder(at, s.Inode, group) {
			pending = process.FactOwner
		} else {
			h, a.refused = nil, true // nobody will look whether that still is so
		}
	}
	if h != nil && h.alike != nil {
		a.subject = subject{}
		k := ownerKey{process: h.alike, source: process.Diag, uid: s.UID}
		if s.HasCgroup {
			k.cgroup = s.CgroupID
		}
		return a.whole(k, pending)
	}
	if h == nil || h.process.pid == 0 {
		return nil, pending
	}
	c := a.present[h.process]
	p, more := a.presentNow(h.process, c, c.p == nil || c.args != h.args, group, nil)
	if p == nil {
		return nil, pending | more
	}
	k := ownerKey{process: p, source: process.Diag, uid: s.UID}
	if s.HasCgroup {
		k.cgroup = s.CgroupID
	}
	return a.whole(k, pending|more)
}

// byPing returns who holds the ping socket that sends the packet, as the last
// search saw it; nil if it saw none.
func (a *Attributor) byPing(m *packet.Meta, p *packet.Packet) (*process.Owner, process.Facts) {
	pings := a.r.pings.Load()
	if !p.Echo || pings == nil {
		return nil, 0
	}
	s, ok := (*pings)[pingKey{p.Version, p.EchoID}]
	if !ok || m.HasUID && m.UID != s.UID {
		a.r.search()
		return nil, 0
	}
	a.socket = sockdiag.Socket{Family: s.Family, UID: s.UID, Inode: s.Inode}
	return a.held(&a.socket)
}

// Hurry has what waits for others of its kind looked up now.
func (a *Attributor) Hurry() { a.r.lookers.hurry() }

// WantHash asks for the hash of the owner's program, and returns whether there
// will be an answer.
func (a *Attributor) WantHash(o *process.Owner, pending process.Facts) bool {
	r := a.r
	r.hashes.wanted.Store(true)
	if pending&process.FactFile != 0 {
		return true // once it is known which file
	}
	if o.Process == nil || o.Process.PID == 0 || o.Process.Exe.Inode == 0 || o.Process.Exe.NoSHA256 != "" { // several hold the socket: a hash is made of what one process runs
		return false
	}
	start := r.bootTime(o.Process.Start)
	at := r.hashes.at(fileOf(o.Process, start))
	if at.answer.Load() == nil {
		r.askHash(at, o.Process, start, groupOf(o.UID)) // if too many wait, it is asked for again
	}
	return true
}
