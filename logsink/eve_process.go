package logsink

import (
	"bytes"
	"time"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/rules"
)

// maxOwners bounds the owners that an Encoder keeps encoded. A full set begins
// anew.
const maxOwners = 256

// appendOwner appends who owns the local socket, under that name. An owner never
// changes, and mostly has more than one flow: it is encoded once.
func (x *Encoder) appendOwner(b []byte, name string, o *process.Owner) []byte {
	b = key(b, name)
	if text, ok := x.owners[o.ID]; ok {
		return append(b, text...)
	}
	begin := len(b)
	b = encodeOwner(b, o)
	if o.ID == 0 { // it is of no daemon
		return b
	}
	if len(x.owners) >= maxOwners {
		clear(x.owners)
	}
	x.owners[o.ID] = bytes.Clone(b[begin:])
	return b
}

// encodeOwner appends an owner as JSON. Its keys are those of input.process, but
// that parents is an array. Texts are cut at the bounds of a record.
func encodeOwner(b []byte, o *process.Owner) []byte {
	begin, c := len(b), cuts{}
	b = append(b, '{')
	b = text(b, "source", o.Source.String())
	if o.Process != nil {
		b = appendProcess(b, o.Process, &c)
	}
	if o.HasUID {
		b = number(b, "uid", uint64(o.UID))
	}
	if o.HasGID {
		b = number(b, "gid", uint64(o.GID))
	}
	b = c.text(b, "user", "user", o.User, maxShort)
	b = appendCgroup(b, &o.Cgroup, &c)
	if p := o.Process; p != nil {
		b = c.text(b, "cmdline", "cmdline", p.Cmdline, max(begin+maxOwner-len(b), minCmdline))
	}
	return append(c.append(b), '}')
}

func appendProcess(b []byte, p *process.Process, c *cuts) []byte {
	b = nonzero(b, "pid", uint64(p.PID))
	b = nonzero(b, "start", uint64(max(p.Start, 0))/uint64(time.Second))
	b = c.text(b, "comm", "comm", p.Comm, maxShort)
	b = c.text(b, "tty", "tty", p.TTY, maxShort)
	e := &p.Exe
	b = c.text(b, "exe", "exe", e.Path, maxExe)
	b = c.text(b, "exe_inside", "exe_inside", e.Inside, maxExe)
	b = c.text(b, "exe_sha256", "exe_sha256", e.SHA256, maxShort)
	b = c.text(b, "exe_no_sha256", "exe_no_sha256", e.NoSHA256, maxShort)
	if e.Inode != 0 {
		b = number(b, "exe_inode", e.Inode)
		b = number(b, "exe_device", e.Device)
	}
	if e.Path != "" || e.Inside != "" {
		b = boolean(b, "exe_deleted", e.Deleted)
	}
	if len(p.Parents) == 0 {
		return b
	}
	b = append(key(b, "parents"), '[')
	for i := range p.Parents[:min(len(p.Parents), process.MaxParents)] {
		if i > 0 {
			b = append(b, ',')
		}
		b = nonzero(append(b, '{'), "pid", uint64(p.Parents[i].PID))
		b, c.parents[i].exe = bounded(b, "exe", p.Parents[i].Exe, maxAncestor)
		b, c.parents[i].comm = bounded(b, "comm", p.Parents[i].Comm, maxShort)
		b = append(b, '}')
	}
	return append(b, ']')
}

func appendCgroup(b []byte, g *process.Cgroup, c *cuts) []byte {
	b = c.text(b, "cgroup", "cgroup", g.Path, maxGroup)
	b = c.text(b, "unit", "unit", g.Unit, maxName)
	b = c.text(b, "user_unit", "user_unit", g.UserUnit, maxName)
	b = c.text(b, "slice", "slice", g.Slice, maxName)
	if g.ContainerID == "" && g.Runtime == "" && g.PodUID == "" {
		return b
	}
	b = append(key(b, "container"), '{')
	b = c.text(b, "id", "container.id", g.ContainerID, maxName)
	b = c.text(b, "runtime", "container.runtime", g.Runtime, maxShort)
	return append(c.text(b, "pod", "container.pod", g.PodUID, maxShort), '}')
}

// ownerLine has the keys of encodeOwner.
type ownerLine struct {
	Source    process.Source `json:"source"`
	PID       uint32         `json:"pid"`
	Start     int64          `json:"start"`
	Comm      string         `json:"comm"`
	Cmdline   string         `json:"cmdline"`
	TTY       string         `json:"tty"`
	Exe       string         `json:"exe"`
	Inside    string         `json:"exe_inside"`
	SHA256    string         `json:"exe_sha256"`
	NoSHA256  string         `json:"exe_no_sha256"`
	Inode     uint64         `json:"exe_inode"`
	Device    uint64         `json:"exe_device"`
	Deleted   bool           `json:"exe_deleted"`
	UID       *uint32        `json:"uid"`
	GID       *uint32        `json:"gid"`
	User      string         `json:"user"`
	Cgroup    string         `json:"cgroup"`
	Unit      string         `json:"unit"`
	UserUnit  string         `json:"user_unit"`
	Slice     string         `json:"slice"`
	Container struct {
		ID      string `json:"id"`
		Runtime string `json:"runtime"`
		Pod     string `json:"pod"`
	} `json:"container"`
	Parents []parentLine `json:"parents"`
	Cut     []string     `json:"cut"`
}

type parentLine struct {
	PID  uint32 `json:"pid"`
	Exe  string `json:"exe"`
	Comm string `json:"comm"`
}

// owner returns what the record says of the owner. Without a word of it, it has
// every fact: carries then says that none is known.
func (l *ownerLine) owner() *process.Owner {
	if l == nil {
		return rules.AnyOwner()
	}
	o := &process.Owner{Source: l.Source, User: l.User, Cgroup: process.Cgroup{
		Path: l.Cgroup, Unit: l.Unit, UserUnit: l.UserUnit, Slice: l.Slice,
		ContainerID: l.Container.ID, Runtime: l.Container.Runtime, PodUID: l.Container.Pod,
	}}
	if l.UID != nil {
		o.UID, o.HasUID = *l.UID, true
	}
	if l.GID != nil {
		o.GID, o.HasGID = *l.GID, true
	}
	if l.PID == 0 && l.Comm == "" && l.TTY == "" && l.Exe == "" && l.Inside == "" && l.Inode == 0 {
		return o
	}
	o.Process = &process.Process{
		PID: l.PID, Start: l.Start * int64(time.Second), Comm: l.Comm, Cmdline: l.Cmdline, TTY: l.TTY,
		Exe: process.Exe{Path: l.Exe, Inside: l.Inside, Inode: l.Inode, Device: l.Device, Deleted: l.Deleted, SHA256: l.SHA256, NoSHA256: l.NoSHA256},
	}
	for _, p := range l.Parents[:min(len(l.Parents), process.MaxParents)] {
		o.Process.Parents = append(o.Process.Parents, process.Parent{PID: p.PID, Exe: p.Exe, Comm: p.Comm})
	}
	return o
}

// prettyOwner names the owner for people: program, pid and unit.
func prettyOwner(b []byte, e *Event) []byte {
	o := e.Owner
	if o == nil {
		return b
	}
	if p := o.Process; p != nil {
		switch {
		case p.Exe.Path != "":
			b = word(b, "exe", p.Exe.Path)
		case p.Exe.Inside != "": // which proves nothing
			b = word(b, "exe_inside", p.Exe.Inside)
		default:
			b = word(b, "comm", p.Comm)
		}
		if p.PID != 0 {
			b = count(b, "pid", uint64(p.PID))
		}
	} else if o.Source == process.Kernel && e.Hook != packet.Input {
		b = pair(b, "from", "kernel")
	}
	return word(word(b, "unit", o.Cgroup.Unit), "container", o.Cgroup.ContainerID)
}
