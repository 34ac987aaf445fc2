package rules

import (
	"fmt"
	"math"
	"time"

	"github.com/verdictd/verdictd/process"
)

// HashPath is the field whose value is computed beside the packets: it can be
// absent at first and known later.
const HashPath = "process.exe_sha256"

// processFields are the facts about the process that owns the local socket: at
// output the one that sends, at input the one that receives or listens. All are
// absent in a replay, and those that nobody could tell are absent live too, but
// for process.source.
func processFields() []Field {
	owner := func(get func(o *process.Owner, v *Value) bool) func(f *Facts, v *Value) bool {
		return func(f *Facts, v *Value) bool { return f.Owner != nil && get(f.Owner, v) }
	}
	known := func(get func(p *process.Process, v *Value) bool) func(f *Facts, v *Value) bool {
		return owner(func(o *process.Owner, v *Value) bool { return o.Process != nil && get(o.Process, v) })
	}
	exe := func(get func(e *process.Exe, v *Value) bool) func(f *Facts, v *Value) bool {
		return known(func(p *process.Process, v *Value) bool { return get(&p.Exe, v) })
	}
	return []Field{
		{Path: "process.source", Facts: process.FactOwner, Kind: String, Scope: PerOwner, Enum: process.Sources(),
			Doc: "How the process was found: bpf-flow (recorded with the packet, before it was queued), bpf-cookie (recorded when its socket was used), looked-up (recorded when its socket was used, but what it runs was looked up, and it can choose that: it is older than the recording), diag (the socket is open in that process now, which need not be the one that uses it), uid-only (no process is known, but input.uid), kernel (no process sent the packet), unknown.",
			Get: owner(func(o *process.Owner, v *Value) bool { v.Str = o.Source.String(); return true })},
		{Path: "process.pid", Facts: process.FactOwner, Kind: Int, Scope: PerOwner, Max: math.MaxInt32, Doc: "Process id, in the initial pid namespace.",
			Get: known(func(p *process.Process, v *Value) bool { return p.PID > 0 && num(v, p.PID) })},
		{Path: "process.start", Facts: process.FactOwner, Kind: Int, Scope: PerOwner, Max: 1<<53 - 1, Doc: "When the process came into being, in seconds since 1970-01-01 UTC.",
			Get: known(func(p *process.Process, v *Value) bool {
				return p.Start > 0 && num(v, p.Start/int64(time.Second))
			})},
		{Path: "process.comm", Facts: process.FactOwner, Kind: String, Scope: PerOwner, Doc: "Name that the process gives itself, at most 15 bytes: proof of nothing.",
			Get: known(func(p *process.Process, v *Value) bool { return str(v, p.Comm) })},
		{Path: "process.cmdline", Facts: process.FactOwner | process.FactArgs, Kind: String, Scope: PerOwner, Doc: "Arguments of the program, separated by blanks, at most 4096 bytes: the process can change them.",
			Get: known(func(p *process.Process, v *Value) bool { return str(v, p.Cmdline) })},
		{Path: "process.tty", Facts: process.FactOwner, Kind: String, Scope: PerOwner, Doc: "Controlling terminal, such as pts/3.",
			Get: known(func(p *process.Process, v *Value) bool { return str(v, p.TTY) })},
		{Path: "process.exe", Facts: process.FactOwner | process.FactPath, Kind: String, Scope: PerOwner,
			Doc: "Path of the program in the file system of the host, as process 1 sees it. Absent if no such path leads to the file that runs: that of a container's program is in process.exe_inside.",
			Get: exe(func(e *process.Exe, v *Value) bool { return str(v, e.Path) })},
		{Path: "process.exe_inside", Facts: process.FactOwner | process.FactPath, Kind: String, Scope: PerOwner,
			Doc: "Path of the program as its own mount namespace has it. Programs can choose it: test the container too.",
			Get: exe(func(e *process.Exe, v *Value) bool { return str(v, e.Inside) })},
		{Path: HashPath, Facts: process.FactOwner | process.FactHash, Kind: String, Scope: PerOwner,
			Doc: "SHA-256 of the program's file, in hex. It is computed beside the packets, once for each file, so the first packet of a program that was never seen before may lack it.",
			Get: exe(func(e *process.Exe, v *Value) bool { return str(v, e.SHA256) })},
		{Path: "process.exe_inode", Facts: process.FactOwner | process.FactFile, Kind: Int, Scope: PerOwner, Max: math.MaxInt64, Doc: "Inode of the program's file.",
			Get: exe(func(e *process.Exe, v *Value) bool { return e.Inode != 0 && wide(v, e.Inode) })},
		{Path: "process.exe_device", Facts: process.FactOwner | process.FactFile, Kind: Int, Scope: PerOwner, Max: math.MaxInt64, Doc: "Device of that inode, as stat(2) numbers it.",
			Get: exe(func(e *process.Exe, v *Value) bool { return e.Inode != 0 && wide(v, e.Device) })},
		{Path: "process.exe_deleted", Facts: process.FactOwner | process.FactPath | process.FactFile, Kind: Bool, Scope: PerOwner, Doc: "The program's file had been deleted or replaced when its first packet was seen.",
			Get: exe(func(e *process.Exe, v *Value) bool { return (e.Path != "" || e.Inside != "") && flag(v, e.Deleted) })},
		{Path: "process.uid", Kind: Int, Scope: PerOwner, Max: 1<<32 - 1, Doc: "User id by which the process used the socket.",
			Get: owner(func(o *process.Owner, v *Value) bool { return o.HasUID && num(v, o.UID) })},
		{Path: "process.gid", Kind: Int, Scope: PerOwner, Max: 1<<32 - 1, Doc: "Group id by which the process used the socket.",
			Get: owner(func(o *process.Owner, v *Value) bool { return o.HasGID && num(v, o.GID) })},
		{Path: "process.user", Kind: String, Scope: PerOwner, Doc: "Name of that user in /etc/passwd.",
			Get: owner(func(o *process.Owner, v *Value) bool { return str(v, o.User) })},
	}
}

// cgroupFields are the facts that the control group of the owner gives.
func cgroupFields() []Field {
	group := func(get func(c *process.Cgroup) string) func(f *Facts, v *Value) bool {
		return func(f *Facts, v *Value) bool { return f.Owner != nil && str(v, get(&f.Owner.Cgroup)) }
	}
	return []Field{
		{Path: "process.cgroup", Facts: process.FactOwner | process.FactCgroup, Kind: String, Scope: PerOwner, Doc: "Path of the control group (version 2), such as /system.slice/ssh.service.",
			Get: group(func(c *process.Cgroup) string { return c.Path })},
		{Path: "process.unit", Facts: process.FactOwner | process.FactCgroup, Kind: String, Scope: PerOwner, Doc: "systemd unit of the system, such as ssh.service or session-3.scope; user@1000.service for all units of that user.",
			Get: group(func(c *process.Cgroup) string { return c.Unit })},
		{Path: "process.user_unit", Facts: process.FactOwner | process.FactCgroup, Kind: String, Scope: PerOwner, Doc: "systemd unit of the user's own manager. The user can name it as he likes: test process.uid or process.unit too.",
			Get: group(func(c *process.Cgroup) string { return c.UserUnit })},
		{Path: "process.slice", Facts: process.FactOwner | process.FactCgroup, Kind: String, Scope: PerOwner, Doc: "Innermost systemd slice that the unit is in, such as system.slice.",
			Get: group(func(c *process.Cgroup) string { return c.Slice })},
		{Path: "process.container.id", Facts: process.FactOwner | process.FactCgroup, Kind: String, Scope: PerOwner, Doc: "Container that the process runs in: its full id, or its name for nspawn and lxc. Users can make groups of any name below their own: test process.unit too.",
			Get: group(func(c *process.Cgroup) string { return c.ContainerID })},
		{Path: "process.container.runtime", Facts: process.FactOwner | process.FactCgroup, Kind: String, Scope: PerOwner, Doc: "What runs that container: docker, podman, containerd, crio, ...",
			Get: group(func(c *process.Cgroup) string { return c.Runtime })},
		{Path: "process.container.pod", Facts: process.FactOwner | process.FactCgroup, Kind: String, Scope: PerOwner, Doc: "Uid of the Kubernetes pod.",
			Get: group(func(c *process.Cgroup) string { return c.PodUID })},
	}
}

// parentFields are the facts about the processes that the owner descends from.
// process.parents is an object, of which `some p in input.process.parents` gives
// one after the other.
func parentFields() []Field {
	const parents = process.FactOwner | process.FactParents
	var fields []Field
	for i := range process.MaxParents {
		parent := func(get func(p *process.Parent, v *Value) bool) func(f *Facts, v *Value) bool {
			return func(f *Facts, v *Value) bool {
				return f.Owner != nil && f.Owner.Process != nil && i < len(f.Owner.Process.Parents) && get(&f.Owner.Process.Parents[i], v)
			}
		}
		path, which := fmt.Sprintf("process.parents.%d.", i+1), fmt.Sprintf("ancestor %d, where 1 is the parent", i+1)
		fields = append(fields,
			Field{Path: path + "pid", Facts: parents, Kind: Int, Scope: PerOwner, Max: math.MaxInt32, Doc: "Process id of " + which + ".",
				Get: parent(func(p *process.Parent, v *Value) bool { return p.PID > 0 && num(v, p.PID) })},
			Field{Path: path + "exe", Facts: parents, Kind: String, Scope: PerOwner, Doc: "Path of the program of " + which + ".",
				Get: parent(func(p *process.Parent, v *Value) bool { return str(v, p.Exe) })},
			Field{Path: path + "comm", Facts: parents, Kind: String, Scope: PerOwner, Doc: "Name of " + which + ".",
				Get: parent(func(p *process.Parent, v *Value) bool { return str(v, p.Comm) })},
		)
	}
	return fields
}

// str gives a text, unless it is empty: then the packet has no such field.
func str(v *Value, s string) bool {
	v.Str = s
	return s != ""
}

// wide gives a number of which only the lower 63 bits are ever used.
func wide(v *Value, n uint64) bool {
	v.Int = int64(n & math.MaxInt64)
	return true
}
