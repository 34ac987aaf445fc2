package attribution

import (
	"bytes"
	"strings"

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

// imageKey names what a process runs, from one execve to the next, under the name
// of one of its threads, of which each can have its own.
type imageKey struct {
	processKey
	exec uint64 // record.Owner.ExecID
	comm [16]byte
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

// present is a process as /proc had it.
type present struct {
	p     *process.Process
	execs uint32 // record.Recorder.Execs when it was looked at
}

// caches are what an Attributor has found out.
type caches struct {
	images  map[imageKey]*process.Process // as recorded
	present map[processKey]present        // as /proc had them
	lines   map[imageKey][]process.Parent // a process, without a thread's name, and its ancestors
	owners  map[ownerKey]*process.Owner
	users   map[userKey]*process.Owner
	cgroups map[uint64]process.Cgroup
	alike   map[uint32]*process.Process // what all holders of a socket agree in, by its inode
}

func newCaches() caches {
	return caches{
		images: map[imageKey]*process.Process{}, present: map[processKey]present{}, lines: map[imageKey][]process.Parent{},
		owners: map[ownerKey]*process.Owner{}, users: map[userKey]*process.Owner{}, cgroups: map[uint64]process.Cgroup{},
		alike: map[uint32]*process.Process{},
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
	p, vouched := a.process(o)
	if !vouched {
		source = min(source, process.LookedUp)
	}
	k := ownerKey{
		process: p, source: source, uid: o.UID, gid: o.GID, hasGID: !o.Seeded, cgroup: o.CgroupID,
	}
	return a.whole(k)
}

// process returns the process that a record names, with what it ran when it used
// the socket. vouched says that the kernel recorded what that is, when it executed it.
// Else the process is older than the recording, and /proc is asked, unless it runs
// something else by now.
func (a *Attributor) process(o *record.Owner) (p *process.Process, vouched bool) {
	name := processKey{o.PID, o.Start}
	if o.Seeded {
		return a.now(name, o), false
	}
	k := imageKey{name, o.ExecID, o.Comm}
	if p, ok := a.images[k]; ok {
		return a.withHash(k, p), true
	}
	if o.Start != 0 && a.r.rec.Process(o.PID, o.ExecID, &a.proc) && a.proc.Start == o.Start {
		return a.withHash(k, put(a.images, k, a.fromRecord(o))), true
	}
	if o.Start != 0 && a.r.rec.Running(o.PID, &a.proc) && a.proc.Start == o.Start {
		return a.bare(o), false
	}
	return a.now(name, o), false
}

// bare returns what the owner's own record says of its process.
func (a *Attributor) bare(o *record.Owner) *process.Process {
	p := &process.Process{PID: o.PID, Comm: comm(&o.Comm)}
	if o.Start != 0 {
		p.Start = a.r.fs.UnixOf(o.Start)
	}
	return p
}

// now returns the process as /proc has it, or what o says if it has ended. It is
// not read again before the process executes another program.
func (a *Attributor) now(name processKey, o *record.Owner) *process.Process {
	execs := a.r.rec.Execs(name.pid)
	if c, ok := a.present[name]; ok && c.execs == execs {
		return a.presentWithHash(name, c)
	}
	p, err := a.r.fs.Process(name.pid)
	if err != nil || name.start == 0 || !a.r.fs.SameStart(p.Start, a.r.fs.UnixOf(name.start)) {
		return a.bare(o)
	}
	return a.presentWithHash(name, put(a.present, name, present{p, execs}))
}

// withHash returns the kept process, completed with the hash of its program if that
// is known by now.
func (a *Attributor) withHash(k imageKey, p *process.Process) *process.Process {
	if hashed := a.hashed(k.processKey, p); hashed != nil {
		return put(a.images, k, hashed)
	}
	return p
}

// presentWithHash is the same for a process as /proc has it.
func (a *Attributor) presentWithHash(k processKey, c present) *process.Process {
	if hashed := a.hashed(k, c.p); hashed != nil {
		return put(a.present, k, present{hashed, c.execs}).p
	}
	return c.p
}

// hashed returns the process with the hash of its program, nil if it has that
// already or nobody knows it.
func (a *Attributor) hashed(k processKey, p *process.Process) *process.Process {
	if p.Exe.SHA256 != "" {
		return nil
	}
	sum, ok := a.r.hashes.of(k, &p.Exe)
	if !ok {
		return nil
	}
	with := *p
	with.Exe.SHA256 = sum
	return &with
}

// fromRecord makes a process of a.proc, the record of the process that o names.
func (a *Attributor) fromRecord(o *record.Owner) *process.Process {
	r := &a.proc
	p := &process.Process{
		PID: r.PID, Start: a.r.fs.UnixOf(r.Start), Comm: comm(&o.Comm),
		Cmdline: process.Text([]byte(r.Args)), TTY: process.Text([]byte(r.TTY)), Exe: a.exe(r),
	}
	if r.ArgsCut && !r.Exited {
		if whole, err := a.r.fs.Process(r.PID); err == nil && strings.HasPrefix(whole.Cmdline, p.Cmdline) {
			p.Cmdline = whole.Cmdline
		}
	}
	p.Parents = a.parents(imageKey{processKey: processKey{r.ParentPID, r.ParentStart}, exec: r.ParentExecID})
	return p
}

// exe returns what a recorded process runs. If the recorded path leads to the very
// file, that is all there is to say, whatever the process does now.
func (a *Attributor) exe(r *record.Process) process.Exe {
	path := r.Path
	if r.PathCut {
		path = ""
	}
	if a.r.fs.LeadsTo(path, r.Inode, r.Device) {
		text := process.Text([]byte(path))
		return process.Exe{Path: text, Inside: text, Inode: r.Inode, Device: r.Device}
	}
	return a.r.fs.ResolveExe(path, r.Inode, r.Device, r.MountNS, r.PID, r.Start)
}

// parents returns the process k and its ancestors. Processes that are started by
// the same one, while it runs the same program, have the same ancestors. It
// overwrites a.proc.
func (a *Attributor) parents(k imageKey) []process.Parent {
	if line, ok := a.lines[k]; ok || k.pid == 0 {
		return line
	}
	return put(a.lines, k, a.line(k))
}

// line looks the same up, by their records as long as there are any.
func (a *Attributor) line(k imageKey) []process.Parent {
	var chain []process.Parent
	r := &a.proc
	for k.pid != 0 && len(chain) < process.MaxParents {
		if !a.r.rec.Process(k.pid, k.exec, r) || r.Start != k.start {
			return append(chain, a.parentsNow(k.processKey, process.MaxParents-len(chain))...)
		}
		chain = append(chain, process.Parent{
			PID: k.pid, Start: a.r.fs.UnixOf(k.start), Comm: process.Text([]byte(r.Comm)), Exe: a.exe(r).Path,
		})
		k = imageKey{processKey: processKey{r.ParentPID, r.ParentStart}, exec: r.ParentExecID}
	}
	return chain
}

// parentsNow returns the same of a process without a record, such as one that has
// started no other since the recording began, as /proc has it, if it lives.
func (a *Attributor) parentsNow(k processKey, most int) []process.Parent {
	p, err := a.r.fs.Process(k.pid)
	if err != nil || !a.r.fs.SameStart(p.Start, a.r.fs.UnixOf(k.start)) {
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
