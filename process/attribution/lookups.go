package attribution

import (
	"slices"
	"time"

	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/record"
)

// What is looked up here can wait for a judged process, or for a file system that
// one serves. It runs in a pool, and who asks gets the answer later, by answers
// and a new revision.

// retryAfter is when a question that was given up may be asked again.
const retryAfter = 30 * time.Second

// programKey names a program that a process runs, from one execve to the next.
type programKey struct {
	processKey
	exec uint64 // record.Owner.ExecID; of a process without a record, a number of our own
}

// image is what was looked up of a program whose start was recorded.
type image struct {
	exe     process.Exe
	parents []process.Parent
	gaveUp  bool
}

// present is a process as /proc has it.
type present struct {
	p     *process.Process // without arguments; nil: it has ended, or was given up
	execs uint32           // record.Recorder.Execs before it was looked at
	args  programKey       // by which its arguments are asked for
	retry int64            // Unix ns from which it may be asked again if it was given up; 0: it has ended
}

// line are the arguments of a program.
type line struct {
	text   string
	gaveUp bool
}

// askImage has a recorded program looked up, of which is known what c says.
func (r *Resolver) askImage(at *place[image], k programKey, c *known, group uint32) bool {
	p, patient := c.p, c.pending&(process.FactPath|process.FactParents) == 0
	return at.ask(func() bool {
		return r.lookers.add(job{group: group, patient: patient, run: func(*job) bool {
			if patient && r.fs.LeadsTo(p.Exe.Path, p.Exe.Inode, p.Exe.Device) {
				at.set(&image{exe: exeAt(p.Exe.Path, p.Exe.Inode, p.Exe.Device), parents: p.Parents})
			} else {
				at.set(r.lookImage(k))
			}
			r.learned()
			return false
		}, lost: func() {
			at.set(&image{gaveUp: true})
			r.learned()
		}})
	})
}

// lookImage looks at the file of a recorded program, and at what its ancestors
// run.
func (r *Resolver) lookImage(k programKey) *image {
	var p record.Process
	if !r.rec.Process(k.pid, k.exec, &p) || p.Start != k.start {
		return &image{gaveUp: true} // the record has been forgotten
	}
	i := &image{exe: r.exe(&p)}
	i.parents = r.parents(programKey{processKey{p.ParentPID, p.ParentStart}, p.ParentExecID})
	return i
}

// exe returns what a recorded process runs. If the recorded path leads to the very
// file, that is all there is to say, whatever the process does now.
func (r *Resolver) exe(p *record.Process) process.Exe {
	path := p.Path
	if p.PathCut {
		path = ""
	}
	if r.fs.LeadsTo(path, p.Inode, p.Device) {
		return exeAt(process.Text([]byte(path)), p.Inode, p.Device)
	}
	return r.fs.ResolveExe(path, p.Inode, p.Device, p.MountNS, p.PID, p.Start)
}

// exeAt returns the executable that a path of the host leads to.
func exeAt(path string, inode, device uint64) process.Exe {
	return process.Exe{Path: path, Inside: path, Inode: inode, Device: device}
}

// parents returns the process k and its ancestors, by their records as long as
// there are any.
func (r *Resolver) parents(k programKey) []process.Parent {
	var chain []process.Parent
	var p record.Process
	for k.pid != 0 && len(chain) < process.MaxParents {
		if !r.rec.Process(k.pid, k.exec, &p) || p.Start != k.start {
			return append(chain, r.parentsNow(k.processKey, process.MaxParents-len(chain))...)
		}
		chain = append(chain, process.Parent{
			PID: k.pid, Start: r.unixOf(k.start), Comm: process.Text([]byte(p.Comm)), Exe: r.exe(&p).Path,
		})
		k = programKey{processKey{p.ParentPID, p.ParentStart}, p.ParentExecID}
	}
	return chain
}

// parentsNow returns the same of a process without a record, such as one that has
// started no other since the recording began, as /proc has it, if it lives.
func (r *Resolver) parentsNow(k processKey, most int) []process.Parent {
	k = k.ticked()
	c := r.presents.peek(k)
	if c == nil {
		c = r.lookPresent(k)
		r.presents.at(k).set(c)
	}
	return chainOf(c.p, most)
}

// chainOf returns a process and its ancestors.
func chainOf(p *process.Process, most int) []process.Parent {
	if p == nil {
		return nil
	}
	chain := append([]process.Parent{{PID: p.PID, Start: p.Start, Comm: p.Comm, Exe: p.Exe.Path}}, p.Parents...)
	return chain[:min(len(chain), most)]
}

// askPresent has a process looked up in /proc.
func (r *Resolver) askPresent(at *place[present], k processKey, group uint32) bool {
	return at.ask(func() bool {
		return r.lookers.add(job{group: group, run: func(*job) bool {
			at.set(r.lookPresent(k))
			r.learned()
			return false
		}, lost: func() {
			at.set(&present{retry: time.Now().Add(retryAfter).UnixNano()})
			r.learned()
		}})
	})
}

// lookPresent looks at a process. What has not changed is the same Process as
// before.
func (r *Resolver) lookPresent(k processKey) *present {
	c := &present{args: programKey{k, r.looks.Add(1)}}
	if r.rec != nil {
		c.execs = r.rec.Execs(k.pid) // before it is looked at
	}
	p, err := r.fs.Program(k.pid)
	if err != nil || k.start == 0 || !r.fs.SameStart(p.Start, r.unixOf(k.start)) {
		return c
	}
	c.p = p
	if before := r.presents.peek(k); before != nil && before.p != nil && sameProcess(before.p, p) {
		c.p, c.args = before.p, before.args
	}
	return c
}

// sameProcess tells whether two processes are equal to the last field.
func sameProcess(p, q *process.Process) bool {
	return p.PID == q.PID && p.Start == q.Start && p.Comm == q.Comm && p.Cmdline == q.Cmdline && p.TTY == q.TTY &&
		p.Exe == q.Exe && slices.Equal(p.Parents, q.Parents)
}

// askLine has the arguments of a program looked up.
func (r *Resolver) askLine(at *place[line], k programKey, group uint32) bool {
	return at.ask(func() bool {
		return r.lookers.add(job{group: group, size: 1, run: func(*job) bool {
			text, err := r.fs.Cmdline(k.pid, k.start)
			at.set(&line{text, err != nil})
			r.learned()
			return false
		}, lost: func() {
			at.set(&line{gaveUp: true})
			r.learned()
		}})
	})
}

// askCgroup has a control group looked up.
func (r *Resolver) askCgroup(at *place[process.Cgroup], id uint64, group uint32) bool {
	return at.ask(func() bool {
		return r.lookers.add(job{group: group, run: func(*job) bool {
			at.set(r.lookCgroup(id))
			r.learned()
			return false
		}, lost: func() {
			at.set(&process.Cgroup{ID: id})
			r.learned()
		}})
	})
}

// lookCgroup returns the control group of an id; one that cannot be found any more
// has nothing but the id.
func (r *Resolver) lookCgroup(id uint64) *process.Cgroup {
	c, err := r.fs.Cgroup(id)
	if err != nil {
		c = process.Cgroup{ID: id}
	}
	return &c
}

// survey looks at the processes that are there already, which are the ancestors of
// those that will begin, for as long as patience lasts.
func (r *Resolver) survey(patience time.Duration) {
	if r.rec == nil {
		return
	}
	var asked []*place[present]
	pids, err := r.fs.Pids()
	if err != nil {
		r.counts.failed.Add(1)
	}
	for _, pid := range pids {
		start, err := r.fs.StartBoot(pid)
		if err != nil {
			continue
		}
		k := processKey{pid, start}.ticked()
		at := r.presents.at(k)
		if at.answer.Load() == nil && r.askPresent(at, k, rootGroup) {
			asked = append(asked, at)
		}
	}
	for end := time.Now().Add(patience); len(asked) > 0 && time.Now().Before(end); {
		if asked[0].answer.Load() == nil {
			time.Sleep(time.Millisecond)
			continue
		}
		asked = asked[1:]
	}
}
