package attribution

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/process"
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
	socket  socket
	crowded bool // and more than those
}

// socket is what the kernel's list of holders says of a socket itself.
type socket struct {
	cookie, cgroup uint64 // 0: it does not say
	uid            uint32
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
	asked := r.findTunnels()
	if err != nil && ctx.Err() == nil {
		r.counts.failed.Add(1)
	}
	before := r.holders.Swap(&found)
	r.shareSockets(found)
	r.searches.Add(1)
	if before == nil || asked || !sameHolders(*before, found) {
		r.changed()
	}
}

// list finds out who holds which socket: from the kernel's own tables, if they can
// be had, else from /proc.
func (r *Resolver) list(ctx context.Context, tables bool) (map[uint32]holder, error) {
	if tables {
		found := map[uint32]holder{}
		err := r.rec.Holders(ctx, func(h *record.Holder) error {
			note(found, h.Inode, holder{
				pid: h.PID, fd: int(h.FD), start: h.Start,
				socket: socket{cookie: h.Cookie, cgroup: h.CgroupID, uid: h.UID},
			})
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

// findTunnels notes by which sockets the kernel receives for itself, and returns
// whether somebody has asked that since the last time.
func (r *Resolver) findTunnels() (asked bool) {
	if r.rec == nil {
		return false
	}
	asked = r.unclear.Swap(false)
	if err := nfnl.InNetNS(r.cfg.NetNS, r.rec.FindTunnels); err != nil {
		r.counts.failed.Add(1)
	}
	return asked
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
	const surveyPatience = 200 * time.Millisecond
	r.scan(ctx)
	if r.rec == nil {
		return
	}
	holders := *r.holders.Load()
	for _, h := range holders { // of all network namespaces
		r.seed(&record.Owner{Cookie: h.socket.cookie, UID: h.socket.uid, CgroupID: h.socket.cgroup}, h)
	}
	diag, err := r.openDiag()
	if err != nil {
		r.counts.failed.Add(1)
		return
	}
	defer diag.Close()
	err = diag.Dump(ctx, func(s *sockdiag.Socket) error {
		if h, ok := holders[s.Inode]; ok {
			o := record.Owner{Cookie: s.Cookie, UID: s.UID}
			if s.HasCgroup {
				o.CgroupID = s.CgroupID
			}
			r.seed(&o, h)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		r.counts.failed.Add(1)
	}
	r.survey(surveyPatience)
	r.changed()
}

// seed tells the record that the holder owns a socket, if it alone holds it.
func (r *Resolver) seed(o *record.Owner, h holder) {
	if h.many() || h.start == 0 || o.Cookie == 0 {
		return
	}
	o.PID, o.TID, o.Start, o.Seeded = h.pid, h.pid, h.start, true
	if err := r.rec.Seed(o); err != nil {
		r.counts.failed.Add(1)
	}
}

// shareSockets makes the sockets that several processes hold known by their cookies.
func (r *Resolver) shareSockets(found map[uint32]holder) {
	shared := map[uint64]sockdiag.Socket{}
	for inode, h := range found {
		if s := h.socket; s.cookie != 0 && h.many() {
			shared[s.cookie] = sockdiag.Socket{Inode: inode, Cookie: s.cookie, UID: s.uid, CgroupID: s.cgroup, HasCgroup: s.cgroup != 0}
		}
	}
	r.several.Store(&shared)
}

// found is who holds a socket.
type found struct {
	process  processKey       // its pid is 0: no one process
	alike    *process.Process // what all holders agree in, if they are several
	args     programKey       // of its present
	at       time.Time
	searches uint64 // Resolver.searches then
}

// holds tells whether the answer still counts: for a second, or where nobody was
// found, and until the next search.
func (f *found) holds(searches uint64) bool {
	const fresh = time.Second
	return f.searches == searches && (f.process.pid == 0 && f.alike == nil || time.Since(f.at) < fresh)
}

// askHolder has it found out who holds a socket.
func (r *Resolver) askHolder(at *place[found], inode, group uint32) bool {
	return at.ask(func() bool {
		return r.lookers.add(job{group: group, run: func(*job) bool {
			at.set(r.lookHolder(inode))
			r.learned()
			return false
		}, lost: func() {
			at.set(&found{at: time.Now(), searches: r.searches.Load()})
			r.learned()
		}})
	})
}

// lookHolder finds out which one process holds the socket, as the last search saw it
// and as it still is, or has begun to since.
func (r *Resolver) lookHolder(inode uint32) *found {
	f := &found{at: time.Now(), searches: r.searches.Load()}
	holders := r.holders.Load()
	if holders == nil {
		return f
	}
	h, ok := (*holders)[inode]
	switch {
	case !ok:
		if h, ok = r.young(inode); !ok {
			return f
		}
	case h.many():
		f.alike = r.shared(h, inode)
		return f
	case h.start == 0:
		return f
	case !h.holds(inode): // to look at all descriptors takes long
		if _, still := r.fs.HoldersOf([]uint32{h.pid}, inode); !still {
			return f
		}
	}
	k, c := r.current(h)
	if c.p != nil {
		f.process, f.args = k, c.args
	}
	return f
}

// current returns a holder as /proc has it now.
func (r *Resolver) current(h holder) (processKey, *present) {
	k := processKey{h.pid, h.start}.ticked()
	at := r.presents.at(k)
	c := at.answer.Load()
	if c == nil || c.p == nil || !r.fs.Runs(h.pid, c.p.Exe.Inode, c.p.Exe.Device) {
		c = r.lookPresent(k)
		at.set(c)
	}
	return k, c
}

// holds tells whether the descriptor is still that of the socket.
func (h *holder) holds(inode uint32) bool {
	var link [64]byte
	n, err := unix.Readlink(fmt.Sprintf("/proc/%d/fd/%d", h.pid, h.fd), link[:])
	return err == nil && string(link[:n]) == fmt.Sprintf("socket:[%d]", inode)
}

// Searches returns how often /proc was searched for who holds which socket.
func (r *Resolver) Searches() uint64 { return r.searches.Load() }
