package attribution

import (
	"bytes"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/record"
	"github.com/verdictd/verdictd/process/sockdiag"
)

// maxCached bounds each cache of an Attributor. A full one begins anew.
const maxCached = 1 << 14

// processKey names a process for good.
type processKey struct {
	pid   uint32
	start uint64 // ns of CLOCK_BOOTTIME
}

// threadKey names a process under the name of one of its threads, of which each
// can have its own.
type threadKey struct {
	processKey
	comm [16]byte
}

// image tells what a process runs: that can change in its life.
type image struct{ exec, inode, device uint64 }

// imageOf returns what a recorded process runs.
func imageOf(r *record.Process) image { return image{r.Exec, r.Inode, r.Device} }

// lineKey names a process with what it ran when it started others: so it does with
// the ancestors that it had by then.
type lineKey struct {
	processKey
	image
}

// ownerKey are all facts of an owner that can differ.
type ownerKey struct {
	process  *process.Process
	source   process.Source
	uid, gid uint32
	hasGID   bool
	cgroup   uint64
}

type userKey struct {
	uid, gid uint32
	hasGID   bool
	cgroup   uint64
}

type cachedProcess struct {
	image image
	p     *process.Process
}

// caches are what an Attributor has found out.
type caches struct {
	procs   map[threadKey]cachedProcess
	lines   map[lineKey][]process.Parent // a process and its ancestors
	owners  map[ownerKey]*process.Owner
	users   map[userKey]*process.Owner
	cgroups map[uint64]process.Cgroup
}

func newCaches() caches {
	return caches{
		procs: map[threadKey]cachedProcess{}, lines: map[lineKey][]process.Parent{}, owners: map[ownerKey]*process.Owner{},
		users: map[userKey]*process.Owner{}, cgroups: map[uint64]process.Cgroup{},
	}
}

// put puts a value into a bounded cache.
func put[K comparable, V any](cache map[K]V, k K, v V) V {
	if len(cache) >= maxCached {
		clear(cache)
	}
	cache[k] = v
	return v
}

// recorded returns the owner that a record names.
func (a *Attributor) recorded(o *record.Owner, source process.Source) *process.Owner {
	if o.Seeded {
		source = process.Diag
	}
	p := a.process(o)
	k := ownerKey{
		process: p, source: source, uid: o.UID, gid: o.GID, hasGID: !o.Seeded, cgroup: o.CgroupID,
	}
	return a.whole(k)
}

// process returns the process that a record names, with what it runs now.
func (a *Attributor) process(o *record.Owner) *process.Process {
	k := threadKey{processKey{o.PID, o.Start}, o.Comm}
	cached, ok := a.procs[k]
	var now image
	known := a.r.rec.Process(o.PID, &a.proc) && (o.Start == 0 || a.proc.Start == o.Start)
	if known {
		now = imageOf(&a.proc)
	}
	switch {
	case ok && (cached.image == now || !known):
		return a.withHash(k, cached)
	case known:
		return a.keep(k, cachedProcess{image: now, p: a.fromRecord(o)})
	}
	// Without a record, or with that of another process of the same pid by now.
	if p, err := a.r.fs.Process(o.PID); err == nil && (o.Start == 0 || a.r.fs.SameStart(p.Start, a.r.fs.UnixOf(o.Start))) {
		return a.keepCurrent(k.processKey, p)
	}
	p := &process.Process{PID: o.PID, Comm: comm(&o.Comm)}
	if o.Start != 0 {
		p.Start = a.r.fs.UnixOf(o.Start)
	}
	return put(a.procs, k, cachedProcess{p: p}).p
}

// keep keeps the process.
func (a *Attributor) keep(k threadKey, c cachedProcess) *process.Process {
	return a.withHash(k, put(a.procs, k, c))
}

// withHash returns the kept process, completed with the hash of its program if that
// is known by now.
func (a *Attributor) withHash(k threadKey, c cachedProcess) *process.Process {
	if c.p.Exe.SHA256 != "" {
		return c.p
	}
	sum, ok := a.r.hashes.of(k.processKey, &c.p.Exe)
	if !ok {
		return c.p
	}
	p := *c.p
	p.Exe.SHA256 = sum
	c.p = &p
	return put(a.procs, k, c).p
}

// fromRecord makes a process of a.proc, the record of the process that o names.
func (a *Attributor) fromRecord(o *record.Owner) *process.Process {
	r := &a.proc
	p := &process.Process{
		PID: r.PID, Start: a.r.fs.UnixOf(r.Start), Comm: comm(&o.Comm),
		Cmdline: process.Text([]byte(r.Args)), TTY: process.Text([]byte(r.TTY)), Exe: a.exe(r),
	}
	if r.ArgsCut && !r.Exited {
		if whole, err := a.r.fs.Process(r.PID); err == nil && a.r.fs.SameStart(whole.Start, p.Start) {
			p.Cmdline = whole.Cmdline
		}
	}
	p.Parents = a.parents(r.ParentPID, r.ParentStart)
	return p
}

// exe returns what a recorded process runs. If the recorded path leads to the very
// file, that is all there is to say, whatever the process does now.
func (a *Attributor) exe(r *record.Process) process.Exe {
	path := r.Path
	if r.PathCut {
		path = ""
	}
	if r.Inode != 0 && leadsTo(path, r.Inode, r.Device) {
		text := process.Text([]byte(path))
		return process.Exe{Path: text, Inside: text, Inode: r.Inode, Device: r.Device}
	}
	return a.r.fs.ResolveExe(path, r.Inode, r.Device, r.MountNS, r.PID, r.Start)
}

// leadsTo tells whether an absolute path leads to a file, without going to a server
// for it.
func leadsTo(path string, inode, device uint64) bool {
	var stx unix.Statx_t
	const flags = unix.AT_STATX_DONT_SYNC | unix.AT_NO_AUTOMOUNT
	return strings.HasPrefix(path, "/") && unix.Statx(unix.AT_FDCWD, path, flags, unix.STATX_INO, &stx) == nil &&
		stx.Ino == inode && unix.Mkdev(stx.Dev_major, stx.Dev_minor) == device
}

// parents returns the process and its ancestors. Processes that are started by the
// same one, while it runs the same program, have the same ancestors. It overwrites
// a.proc.
func (a *Attributor) parents(pid uint32, start uint64) []process.Parent {
	now, ok := a.running(pid, start)
	if !ok {
		return nil
	}
	k := lineKey{processKey{pid, start}, now}
	if line, ok := a.lines[k]; ok {
		return line
	}
	line := a.line(pid, start)
	if len(line) == 0 {
		return nil
	}
	return put(a.lines, k, line)
}

// running returns what the process runs. Without a record of it that is what runs
// under its pid: if that is another process by now it does not know the ancestors.
func (a *Attributor) running(pid uint32, start uint64) (image, bool) {
	if pid == 0 {
		return image{}, false
	}
	if a.r.rec.Process(pid, &a.proc) && a.proc.Start == start {
		return imageOf(&a.proc), true
	}
	exe, err := a.r.fs.Exe(pid)
	return image{inode: exe.Inode, device: exe.Device}, err == nil
}

// line looks the same up, by their records as long as there are any.
func (a *Attributor) line(pid uint32, start uint64) []process.Parent {
	var chain []process.Parent
	r := &a.proc
	for pid != 0 && len(chain) < process.MaxParents {
		if !a.r.rec.Process(pid, r) || r.Start != start {
			return append(chain, a.parentsNow(pid, start, process.MaxParents-len(chain))...)
		}
		chain = append(chain, process.Parent{
			PID: pid, Start: a.r.fs.UnixOf(start), Comm: process.Text([]byte(r.Comm)), Exe: a.exe(r).Path,
		})
		pid, start = r.ParentPID, r.ParentStart
	}
	return chain
}

// parentsNow returns the same of a process without a record, if it lives.
func (a *Attributor) parentsNow(pid uint32, start uint64, most int) []process.Parent {
	p, err := a.r.fs.Process(pid)
	if err != nil || !a.r.fs.SameStart(p.Start, a.r.fs.UnixOf(start)) {
		return nil
	}
	chain := append([]process.Parent{{PID: p.PID, Start: p.Start, Comm: p.Comm, Exe: p.Exe.Path}}, p.Parents...)
	return chain[:min(len(chain), most)]
}

// cgroup returns the control group of an id; one that cannot be found any more
// has nothing but the id.
func (a *Attributor) cgroup(id uint64) process.Cgroup {
	if c, ok := a.cgroups[id]; ok || id == 0 {
		return c
	}
	c, err := a.r.fs.Cgroup(id)
	if err != nil {
		return process.Cgroup{ID: id}
	}
	return put(a.cgroups, id, c)
}

// byUID returns the owner of whom only the user is known, by the packet; nobody if
// not even that is.
func (a *Attributor) byUID(m *packet.Meta) *process.Owner {
	if !m.HasUID {
		return a.r.nobody
	}
	return a.user(userKey{uid: m.UID, gid: m.GID, hasGID: m.HasGID})
}

// bySocketUser is the same by what sock_diag says of the socket. It asks for a
// search, after which more may be known.
func (a *Attributor) bySocketUser(s *sockdiag.Socket, m *packet.Meta) *process.Owner {
	if s.Inode != 0 {
		a.r.search()
	}
	k := userKey{uid: s.UID}
	if s.HasCgroup {
		k.cgroup = s.CgroupID
	}
	if m.HasUID && m.HasGID && m.UID == s.UID {
		k.gid, k.hasGID = m.GID, true
	}
	return a.user(k)
}

func (a *Attributor) user(k userKey) *process.Owner {
	if o, ok := a.users[k]; ok && o.User == a.r.users.Name(k.uid) {
		return o
	}
	return put(a.users, k, a.r.named(process.Owner{
		Source: process.UIDOnly, UID: k.uid, HasUID: true, GID: k.gid, HasGID: k.hasGID,
		User: a.r.users.Name(k.uid), Cgroup: a.cgroup(k.cgroup),
	}))
}

// whole returns the owner with these facts.
func (a *Attributor) whole(k ownerKey) *process.Owner {
	if o, ok := a.owners[k]; ok && o.User == a.r.users.Name(k.uid) {
		return o
	}
	return put(a.owners, k, a.r.named(process.Owner{
		Source: k.source, UID: k.uid, HasUID: true, GID: k.gid, HasGID: k.hasGID,
		User: a.r.users.Name(k.uid), Process: k.process, Cgroup: a.cgroup(k.cgroup),
	}))
}

// comm returns the name of a process.
func comm(b *[16]byte) string {
	name, _, _ := bytes.Cut(b[:], []byte{0})
	return process.Text(name)
}
