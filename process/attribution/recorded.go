package attribution

import (
	"bytes"
	"slices"
	"strings"
	"time"

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

// ticked is the key by which a process is looked up in /proc, which rounds its
// start.
func (k processKey) ticked() processKey {
	const tick = uint64(10 * time.Millisecond)
	k.start -= k.start % tick
	return k
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
	process  *process.Process // nil: it is not known
	source   process.Source
	uid, gid uint32
	hasGID   bool
	cgroup   uint64
	grouped  bool   // the path of the control group is known
	socket   uint32 // inode of one whose holder is being looked up; else 0
}

// known is what an Attributor knows of a process.
type known struct {
	p       *process.Process
	start   uint64        // as the record has it, or /proc
	pending process.Facts // that will be known later
	args    programKey    // by which its arguments are asked for
	tick    uint64        // record.Owner.Tick
	execs   uint32        // present.execs
	retry   int64         // present.retry
	bare    bool          // nobody knows what it runs: it ran something else than now
}

// subject says where more may become known of an owner.
type subject struct {
	image   programKey
	args    programKey
	present processKey
	socket  uint32
	pending process.Facts
}

// caches are what an Attributor has found out.
type caches struct {
	images  map[imageKey]known   // as recorded
	present map[processKey]known // as /proc had them
	owners  map[ownerKey]*process.Owner
	cgroups map[uint64]process.Cgroup
	lines   map[programKey][]process.Parent // a recorded program and its ancestors, where all are known
}

func newCaches() caches {
	return caches{
		images: map[imageKey]known{}, present: map[processKey]known{},
		owners: map[ownerKey]*process.Owner{}, cgroups: map[uint64]process.Cgroup{},
		lines: map[programKey][]process.Parent{},
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
func (a *Attributor) recorded(o *record.Owner, source process.Source) (*process.Owner, process.Facts) {
	switch {
	case o.Tunnel:
		return a.r.kernel, 0
	case o.Unclear:
		a.r.unclear.Store(true)
		a.r.search() // tells whether it is a tunnel's
		return a.r.nobody, 0
	case o.Seeded:
		source = process.Diag
	}
	p, pending, vouched := a.process(o)
	if !vouched {
		source = min(source, process.LookedUp)
	}
	k := ownerKey{
		process: p, source: source, uid: o.UID, gid: o.GID, hasGID: !o.Seeded, cgroup: o.CgroupID,
	}
	return a.whole(k, pending)
}

// process returns the process that a record names, with what it ran when it used
// the socket. vouched says that the kernel recorded what that is, when it executed it.
// Else the process is older than the recording, and /proc is asked, unless it runs
// something else by now.
func (a *Attributor) process(o *record.Owner) (p *process.Process, pending process.Facts, vouched bool) {
	name, group := processKey{o.PID, o.Start}, groupOf(o.UID)
	if o.Seeded {
		p, pending = a.now(name, o)
		return p, pending, false
	}
	k := imageKey{name, o.ExecID, o.Comm}
	a.subject = subject{image: programKey{name, o.ExecID}, args: programKey{name, o.ExecID}}
	c, ok := a.images[k]
	switch {
	case ok && (c.p.Exe.NoSHA256 != process.NoHashFresh || o.Tick <= c.tick):
	case o.Start != 0 && a.r.rec.Process(o.PID, o.ExecID, &a.proc) && a.proc.Start == o.Start:
		c = put(a.images, k, a.fromRecord(o))
	case o.Start != 0 && a.r.rec.Running(o.PID, &a.proc) && a.proc.Start == o.Start:
		c = put(a.images, k, known{p: a.bare(o), bare: true})
	default:
		p, pending = a.now(name, o)
		return p, pending, false
	}
	if c.pending == 0 {
		return c.p, 0, !c.bare
	}
	before, refused := c, process.Facts(0)
	const looked = process.FactPath | process.FactFile | process.FactParents
	if c.pending&looked != 0 {
		refused |= a.takeImage(&c, programKey{name, o.ExecID}, group)
	}
	refused |= a.complete(&c, group)
	if c != before {
		put(a.images, k, c)
	}
	return c.p, c.pending &^ refused, true
}

// takeImage adds what was looked up of a recorded program, and returns what will
// not be known.
func (a *Attributor) takeImage(c *known, k programKey, group uint32) process.Facts {
	const looked = process.FactPath | process.FactFile | process.FactParents
	at := a.r.images.at(k)
	i := at.answer.Load()
	switch {
	case i == nil && !a.r.askImage(at, k, c, group):
		a.refused = true
		return looked
	case i == nil:
		return 0
	}
	c.pending &^= looked
	exe := i.exe
	exe.Changed, exe.NoSHA256 = c.p.Exe.Changed, c.p.Exe.NoSHA256
	if i.gaveUp || c.p.Exe == exe && slices.Equal(c.p.Parents, i.parents) {
		return 0
	}
	p := *c.p
	p.Exe, p.Parents = exe, i.parents
	c.p = &p
	return 0
}

// complete adds arguments and hash if they are known by now, and returns what will
// not be.
func (a *Attributor) complete(c *known, group uint32) (refused process.Facts) {
	if c.pending&process.FactArgs != 0 {
		at := a.r.lines.at(c.args)
		switch l := at.answer.Load(); {
		case l != nil:
			c.pending &^= process.FactArgs
			if !l.gaveUp && strings.HasPrefix(l.text, c.p.Cmdline) && l.text != c.p.Cmdline {
				p := *c.p
				p.Cmdline = l.text
				c.p = &p
			}
		case !a.r.askLine(at, c.args, group):
			a.refused = true
			refused |= process.FactArgs
		}
	}
	if c.pending&process.FactHash == 0 || c.pending&process.FactFile != 0 || !a.r.hashes.wanted.Load() {
		return refused
	}
	at := a.r.hashes.find(fileOf(c.p, c.start))
	if at == nil {
		return refused
	}
	if h := at.answer.Load(); h != nil {
		c.pending &^= process.FactHash
		p := *c.p
		p.Exe.SHA256, p.Exe.NoSHA256 = h.sum, h.why
		c.p = &p
	} else if at.refused.Load() {
		a.r.askHash(at, c.p, c.start, group)
	}
	return refused
}

// bare returns what the owner's own record says of its process.
func (a *Attributor) bare(o *record.Owner) *process.Process {
	p := &process.Process{PID: o.PID, Comm: comm(&o.Comm)}
	if o.Start != 0 {
		p.Start = a.r.unixOf(o.Start)
	}
	return p
}

// now returns the process as /proc has it, or what o says if it has ended. It is
// not looked at again before the process executes another program.
func (a *Attributor) now(name processKey, o *record.Owner) (*process.Process, process.Facts) {
	if name.start == 0 {
		return a.bare(o), 0
	}
	name = name.ticked()
	c, ok := a.present[name]
	stale := !ok || c.execs != a.r.rec.Execs(name.pid) || c.retry != 0 && time.Now().UnixNano() > c.retry
	return a.presentNow(name, c, stale, groupOf(o.UID), o)
}

// presentNow returns what is known of a process as /proc has it: c, unless that is
// stale. o, if it is not nil, is what is known of one that has ended.
func (a *Attributor) presentNow(name processKey, c known, stale bool, group uint32, o *record.Owner) (*process.Process, process.Facts) {
	refused := process.Facts(0)
	a.subject = subject{present: name, args: c.args}
	if stale {
		at := a.r.presents.at(name)
		answer := at.answer.Load()
		if answer == nil || a.outdated(name, answer) {
			refused = process.FactsOfProcess
			if a.r.askPresent(at, name, group) {
				refused = 0
			} else {
				a.refused = true
			}
			if c.p == nil && o != nil { // the same one until more is known
				c = known{p: a.bare(o), execs: a.r.rec.Execs(name.pid) - 1}
				put(a.present, name, c)
			}
			return c.p, process.FactsOfProcess &^ refused
		}
		c = a.fromPresent(c, answer, o)
	}
	before := c
	refused = a.complete(&c, group)
	if stale || c != before {
		put(a.present, name, c)
	}
	return c.p, c.pending &^ refused
}

// outdated tells whether an answer is to be asked for again.
func (a *Attributor) outdated(name processKey, c *present) bool {
	return a.r.rec != nil && c.p != nil && c.execs != a.r.rec.Execs(name.pid) || c.retry != 0 && time.Now().UnixNano() > c.retry
}

// fromPresent makes what is known of an answer.
func (a *Attributor) fromPresent(c known, answer *present, o *record.Owner) known {
	switch {
	case answer.p == nil && o != nil:
		return known{p: a.bare(o), execs: a.r.rec.Execs(o.PID), retry: answer.retry}
	case answer.p == nil:
		return known{retry: answer.retry}
	case c.args == answer.args && c.p != nil: // nothing has changed
		c.execs = answer.execs
		return c
	}
	return known{
		p: answer.p, start: answer.args.start, execs: answer.execs, args: answer.args,
		pending: process.FactArgs | process.FactHash,
	}
}

// fromRecord makes a process of a.proc, the record of the process that o names.
// What the record cannot know is pending.
func (a *Attributor) fromRecord(o *record.Owner) known {
	r := &a.proc
	c := known{start: r.Start, tick: o.Tick, args: programKey{processKey{r.PID, r.Start}, o.ExecID}}
	p := &process.Process{
		PID: r.PID, Start: a.r.unixOf(r.Start), Comm: comm(&o.Comm),
		Cmdline: process.Text([]byte(r.Args)), TTY: process.Text([]byte(r.TTY)),
	}
	c.p = p
	p.Exe, c.pending = a.recordedExe(r)
	if p.Exe.Inode != 0 {
		p.Exe.Changed, p.Exe.NoSHA256 = r.Changed, a.r.contents.doubt(r, o.Tick)
	}
	if p.Exe.Inode != 0 && p.Exe.NoSHA256 == "" {
		c.pending |= process.FactHash
	}
	if r.ArgsCut && !r.Exited {
		c.pending |= process.FactArgs
	}
	var whole bool
	p.Parents, whole = a.parents(programKey{processKey{r.ParentPID, r.ParentStart}, r.ParentExecID})
	if !whole {
		c.pending |= process.FactParents
	}
	return c
}

// recordedExe returns what a recorded process runs, and what of it is to be looked
// up. A path that the kernel has walked in the mount namespace of the host is the
// host's; that of another namespace may lead there too.
func (a *Attributor) recordedExe(r *record.Process) (process.Exe, process.Facts) {
	exe := process.Exe{Inode: r.Inode, Device: r.Device}
	switch {
	case r.Inode == 0: // a thread of the kernel, or nobody could tell
		return exe, process.FactPath | process.FactFile
	case r.PathCut || !strings.HasPrefix(r.Path, "/"):
		return exe, process.FactPath | process.FactFile
	}
	exe.Inside, exe.Deleted = process.Text([]byte(r.Path)), r.Nlink0
	if a.r.hostMounts == 0 || r.MountNS != a.r.hostMounts {
		return exe, process.FactPath | process.FactFile
	}
	exe.Path = exe.Inside
	return exe, process.FactFile
}

// parents returns the process k and its ancestors as far as they are known now, and
// whether that is all. Those that one process starts, while it runs the same program,
// have the same ancestors. It overwrites a.proc.
func (a *Attributor) parents(k programKey) (chain []process.Parent, whole bool) {
	if chain, ok := a.lines[k]; ok {
		return chain, true
	}
	if chain, whole = a.recordedParents(k); whole {
		put(a.lines, k, chain)
	}
	return chain, whole
}

func (a *Attributor) recordedParents(k programKey) (chain []process.Parent, whole bool) {
	r := &a.proc
	whole = true
	for k.pid != 0 && len(chain) < process.MaxParents {
		if !a.r.rec.Process(k.pid, k.exec, r) || r.Start != k.start {
			c := a.r.presents.peek(k.ticked())
			if c == nil {
				return chain, false
			}
			return append(chain, chainOf(c.p, process.MaxParents-len(chain))...), whole
		}
		exe, pending := a.recordedExe(r)
		whole = whole && pending&process.FactPath == 0
		chain = append(chain, process.Parent{
			PID: k.pid, Start: a.r.unixOf(k.start), Comm: process.Text([]byte(r.Comm)), Exe: exe.Path,
		})
		k = programKey{processKey{r.ParentPID, r.ParentStart}, r.ParentExecID}
	}
	return chain, whole
}

// cgroup returns the control group of an id, as far as it is known.
func (a *Attributor) cgroup(id uint64, group uint32) (c process.Cgroup, pending process.Facts) {
	if c, ok := a.cgroups[id]; ok || id == 0 {
		return c, 0
	}
	at := a.r.cgroups.at(id)
	if c := at.answer.Load(); c != nil {
		return put(a.cgroups, id, *c), 0
	}
	if a.r.askCgroup(at, id, group) {
		pending = process.FactCgroup
	} else {
		a.refused = true
	}
	return process.Cgroup{ID: id}, pending
}

// byUID returns the owner of whom only the user is known, by the packet; nobody if
// not even that is.
func (a *Attributor) byUID(m *packet.Meta) (*process.Owner, process.Facts) {
	if !m.HasUID {
		return a.r.nobody, 0
	}
	a.subject = subject{}
	return a.whole(ownerKey{source: process.UIDOnly, uid: m.UID, gid: m.GID, hasGID: m.HasGID}, 0)
}

// bySocketUser is the same by what sock_diag says of the socket. It asks for a
// search, after which more may be known.
func (a *Attributor) bySocketUser(s *sockdiag.Socket, m *packet.Meta, pending process.Facts) (*process.Owner, process.Facts) {
	if s.Inode != 0 {
		a.r.search()
	}
	a.subject = subject{socket: s.Inode}
	k := ownerKey{source: process.UIDOnly, uid: s.UID}
	if pending != 0 {
		k.socket = s.Inode
	}
	if s.HasCgroup {
		k.cgroup = s.CgroupID
	}
	if m.HasUID && m.HasGID && m.UID == s.UID {
		k.gid, k.hasGID = m.GID, true
	}
	return a.whole(k, pending)
}

// whole returns the owner with these facts, of which some are pending.
func (a *Attributor) whole(k ownerKey, pending process.Facts) (*process.Owner, process.Facts) {
	c, unknown := a.cgroup(k.cgroup, groupOf(k.uid))
	pending |= unknown
	k.grouped = c.Path != ""
	if o, ok := a.owners[k]; ok && o.User == a.r.users.Name(k.uid) {
		return o, pending
	}
	o := a.r.named(process.Owner{
		Source: k.source, UID: k.uid, HasUID: true, GID: k.gid, HasGID: k.hasGID,
		User: a.r.users.Name(k.uid), Process: k.process, Cgroup: c,
	})
	if pending&^process.FactHash != 0 {
		at, r := a.subject, a.r
		at.pending = pending
		o.Later = func() (*process.Owner, bool) { return r.later(o, at) }
	}
	return put(a.owners, k, o), pending
}

// comm returns the name of a process.
func comm(b *[16]byte) string {
	name, _, _ := bytes.Cut(b[:], []byte{0})
	return process.Text(name)
}
