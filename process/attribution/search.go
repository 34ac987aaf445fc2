package attribution

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/procfs"
	"github.com/verdictd/verdictd/process/record"
	"github.com/verdictd/verdictd/process/sockdiag"
)

// How often the search through /proc may be repeated: where nothing is recorded
// it is the only way from a socket to a process.
const (
	searchEvery         = 200 * time.Millisecond
	searchEveryRecorded = 5 * time.Second
)

// holder is the process that holds a socket open. Of a socket that several hold,
// nobody can say who used it: only what is true of each of them is.
type holder struct {
	pid     uint32
	fd      int      // one of its descriptors of the socket
	start   uint64   // ns of CLOCK_BOOTTIME
	others  []holder // that hold it too
	crowded bool     // and more than those
}

// search asks for a search. It does not wait.
func (r *Resolver) search() {
	select {
	case r.wantSearch <- struct{}{}:
	default: // asked for already
	}
}

// searcher searches when it is asked to.
func (r *Resolver) searcher(ctx context.Context) {
	every := searchEvery
	if r.rec != nil {
		every = searchEveryRecorded
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wantSearch:
		}
		r.scan(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
	}
}

// scan finds out who holds which socket. What cannot be read is left out.
func (r *Resolver) scan(ctx context.Context) {
	found, err := r.list(ctx, r.tables)
	r.readPings()
	r.counts.searches.Add(1)
	if err != nil && ctx.Err() == nil {
		r.counts.failed.Add(1)
	}
	before := r.holders.Swap(&found)
	if before == nil || !sameHolders(*before, found) {
		r.revision.Add(1)
	}
}

// list finds out who holds which socket: from the kernel's own tables, if they can
// be had, else from /proc.
func (r *Resolver) list(ctx context.Context, tables bool) (map[uint32]holder, error) {
	if tables {
		found := map[uint32]holder{}
		err := r.rec.Holders(ctx, func(h *record.Holder) error {
			note(found, h.Inode, holder{pid: h.PID, fd: int(h.FD), start: h.Start})
			return nil
		})
		if err == nil || ctx.Err() != nil {
			return found, err
		}
		r.counts.failed.Add(1)
	}
	found := map[uint32]holder{}
	starts := map[uint32]uint64{}
	err := r.fs.Holders(ctx, func(inode, pid uint32, fd int) error {
		start, known := starts[pid]
		if !known {
			start, _ = r.fs.StartBoot(pid) // 0, if it ended: then it is no process's
			starts[pid] = start
		}
		note(found, inode, holder{pid: pid, fd: fd, start: start})
		return nil
	})
	return found, err
}

// pingKey names a ping socket: by IP version and echo identifier.
type pingKey struct {
	version uint8
	id      uint16
}

// readPings notes the ping sockets that there are: sock_diag does not show them.
func (r *Resolver) readPings() {
	raw, err := sockdiag.ReadRaw(r.cfg.NetNS)
	if err != nil {
		r.counts.failed.Add(1)
		return
	}
	found := map[pingKey]sockdiag.Raw{}
	for _, s := range raw {
		if s.Ping {
			found[pingKey{s.Family, s.ID}] = s
		}
	}
	r.pings.Store(&found)
}

// byPing returns who holds the ping socket that sends the packet, as the last
// search saw it; nil if it saw none.
func (a *Attributor) byPing(m *packet.Meta, p *packet.Packet) *process.Owner {
	pings := a.r.pings.Load()
	if !p.Echo || pings == nil {
		return nil
	}
	s, ok := (*pings)[pingKey{p.Version, p.EchoID}]
	if !ok || m.HasUID && m.UID != s.UID {
		a.r.search()
		return nil
	}
	a.socket = sockdiag.Socket{Family: s.Family, UID: s.UID, Inode: s.Inode}
	return a.held(&a.socket, m.Time)
}

func sameHolders(a, b map[uint32]holder) bool {
	if len(a) != len(b) {
		return false
	}
	for inode, h := range a {
		if o, ok := b[inode]; !ok || !h.same(o) {
			return false
		}
	}
	return true
}

// Seed makes the owners of the sockets known that are there already. The hooks are
// in place by now: so no socket is missed between the two. It takes some
// milliseconds, with thousands of processes a second.
func (r *Resolver) Seed(ctx context.Context) {
	r.scan(ctx)
	if r.rec == nil {
		return
	}
	diag, err := r.openDiag()
	if err != nil {
		r.counts.failed.Add(1)
		return
	}
	defer diag.Close()
	holders := *r.holders.Load()
	err = diag.Dump(ctx, func(s *sockdiag.Socket) error {
		h, ok := holders[s.Inode]
		if !ok || h.many() || h.start == 0 || s.Cookie == 0 {
			return nil
		}
		o := record.Owner{Cookie: s.Cookie, PID: h.pid, TID: h.pid, UID: s.UID, Start: h.start, Seeded: true}
		if s.HasCgroup {
			o.CgroupID = s.CgroupID
		}
		if err := r.rec.Seed(&o); err != nil {
			r.counts.failed.Add(1)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		r.counts.failed.Add(1)
	}
	r.revision.Add(1)
}

// held returns the one process that holds the socket, or what all that hold it agree
// in, as the last search saw it and as it still is, or one that has begun since; nil
// if there is none.
func (a *Attributor) held(s *sockdiag.Socket, now int64) *process.Owner {
	holders := a.r.holders.Load()
	if holders == nil || s.Inode == 0 {
		return nil
	}
	h, ok := (*holders)[s.Inode]
	switch {
	case !ok:
		if h, ok = a.young(s, now); !ok {
			return nil
		}
	case h.many():
		return a.diagnosed(a.shared(h, s.Inode), s)
	case h.start == 0:
		return nil
	case !h.holds(s.Inode): // to look at all descriptors takes long
		if _, still := a.r.fs.HoldersOf([]uint32{h.pid}, s.Inode); !still {
			return nil
		}
	}
	return a.diagnosed(a.current(h), s)
}

// diagnosed returns the owner that a process is, which was found to hold the socket.
func (a *Attributor) diagnosed(p *process.Process, s *sockdiag.Socket) *process.Owner {
	if p == nil {
		return nil
	}
	k := ownerKey{process: p, source: process.Diag, uid: s.UID}
	if s.HasCgroup {
		k.cgroup = s.CgroupID
	}
	return a.whole(k)
}

// holds tells whether the descriptor is still that of the socket.
func (h *holder) holds(inode uint32) bool {
	var link [64]byte
	n, err := unix.Readlink(fmt.Sprintf("/proc/%d/fd/%d", h.pid, h.fd), link[:])
	return err == nil && string(link[:n]) == fmt.Sprintf("socket:[%d]", inode)
}

// current returns the process as /proc has it now, nil if it has ended. It is read
// once for each file that the process runs.
func (a *Attributor) current(h holder) *process.Process {
	k := processKey{h.pid, h.start}
	start, err := a.r.fs.StartBoot(h.pid)
	if err != nil || !procfs.SameStartBoot(start, h.start) {
		return nil
	}
	if c, ok := a.present[k]; ok && a.r.fs.Runs(h.pid, c.p.Exe.Inode, c.p.Exe.Device) {
		return a.presentWithHash(k, c)
	}
	p, err := a.r.fs.Process(h.pid)
	if err != nil || !a.r.fs.SameStart(p.Start, a.r.fs.UnixOf(h.start)) {
		return nil
	}
	return a.presentWithHash(k, put(a.present, k, present{p: p}))
}

// Searches returns how often /proc was searched for who holds which socket.
func (r *Resolver) Searches() uint64 { return r.counts.searches.Load() }
