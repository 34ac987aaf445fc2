package record

import (
	"unsafe"

	"github.com/cilium/ebpf/asm"
)

// pathSteps bounds the walk up from a file: components and mounts. The verifier
// takes as many rounds.
const pathSteps = 32

// field returns the offset of a field of the process record.
func field(offset uintptr) int16 { return int16(offset) }

// used notes that the current process has used a socket: so what it runs is kept
// when it ends. current has been put in before.
func (p *programs) used(c *code) {
	done := c.fresh()
	c.lookup(p.maps.running.FD(), slotTGID)
	c.add(asm.JEq.Imm(asm.R0, 0, done))
	p.note(c, asm.R0, processUsed, done)
	c.label(done)
}

// note sets a flag of the record that reg points to and jumps to done. R1 and R2
// are lost.
func (p *programs) note(c *code, reg asm.Register, flag int32, done string) {
	at := field(unsafe.Offsetof(processRecord{}.Flags))
	c.add(
		asm.LoadMem(asm.R1, reg, at, asm.Word),
		asm.Mov.Reg(asm.R2, asm.R1), asm.And.Imm(asm.R2, flag), asm.JNE.Imm(asm.R2, 0, done),
		asm.Or.Imm(asm.R1, flag),
		asm.StoreMem(reg, at, asm.R1, asm.Word),
	)
}

// describe records the current process, which has just executed a program: only
// then nobody but the kernel has said what that is. R7 is the task. It jumps to done
// when it cannot, or goes on.
//
// The record is made in an element of the scratch map that is this thread's own:
// a program can be interrupted by another thread on the same CPU, so memory per
// CPU would mix two processes.
func (p *programs) describe(c *code, done string) {
	c.add(asm.StoreImm(asm.R10, slotZero, 0, asm.Word))
	c.lookup(p.maps.zeros.FD(), slotZero)
	c.add(asm.JEq.Imm(asm.R0, 0, done))
	p.scratch(c, done)
	p.identify(c)
	finish := c.fresh()
	c.follow(asm.R7, asm.R7, p.offsets.taskMM, slotTemp)
	c.add(asm.JEq.Imm(asm.R7, 0, finish))
	p.arguments(c)
	c.follow(asm.R7, asm.R7, p.offsets.mmExe, slotTemp)
	c.add(asm.JEq.Imm(asm.R7, 0, finish))
	p.executable(c)
	p.walk(c)
	c.label(finish)
	c.add(asm.Mov.Reg(asm.R3, asm.R8))
	c.update(p.maps.running.FD(), slotTGID, updateAny)
	c.countFailure(p.maps.counters.FD(), countProcesses)
	c.erase(p.maps.scratch.FD(), slotThread)
}

// scratch copies the process record that R0 points to into this thread's scratch
// element and points R8 to it, or jumps to done.
func (p *programs) scratch(c *code, done string) {
	free := c.fresh()
	c.add(asm.Mov.Reg(asm.R3, asm.R0))
	c.update(p.maps.scratch.FD(), slotThread, updateAny)
	c.add(asm.JEq.Imm(asm.R0, 0, free))
	c.count(p.maps.counters.FD(), countBusy)
	c.add(asm.Ja.Label(done))
	c.label(free)
	c.lookup(p.maps.scratch.FD(), slotThread)
	c.add(asm.JEq.Imm(asm.R0, 0, done), asm.Mov.Reg(asm.R8, asm.R0))
}

// identify fills in ids, times, parent, name and terminal. R7 is the task, R8
// the record, R9 is lost.
func (p *programs) identify(c *code) {
	var r processRecord
	o := p.offsets
	p.name(c, slotTGID)
	c.add(asm.FnKtimeGetBootNs.Call(), asm.StoreMem(asm.R8, field(unsafe.Offsetof(r.Exec)), asm.R0, asm.DWord))
	p.parent(c, asm.R7)
	c.follow(asm.R9, asm.R7, o.taskLeader, slotTemp)
	c.probeTo(asm.R8, field(unsafe.Offsetof(r.Comm)), int32(len(r.Comm)), asm.R9, o.taskComm)
	c.follow(asm.R9, asm.R7, o.taskSignal, slotTemp)
	c.follow(asm.R9, asm.R9, o.signalTTY, slotTemp)
	none := c.fresh()
	c.add(
		asm.JEq.Imm(asm.R9, 0, none),
		asm.Mov.Reg(asm.R1, asm.R8), asm.Add.Imm(asm.R1, int32(unsafe.Offsetof(r.TTY))),
		asm.Mov.Imm(asm.R2, ttySize),
		asm.Mov.Reg(asm.R3, asm.R9), asm.Add.Imm(asm.R3, int32(o.ttyName)),
		asm.FnProbeReadKernelStr.Call(),
	)
	c.label(none)
}

// name fills in what names the process: the pid of the key on the stack, and what
// slotStart and slotExec hold. R8 is the record.
func (p *programs) name(c *code, key int16) {
	var r processRecord
	c.add(
		asm.LoadMem(asm.R1, asm.R10, key, asm.Word),
		asm.StoreMem(asm.R8, field(unsafe.Offsetof(r.PID)), asm.R1, asm.Word),
		asm.LoadMem(asm.R2, asm.R10, slotStart, asm.DWord),
		asm.StoreMem(asm.R8, field(unsafe.Offsetof(r.Start)), asm.R2, asm.DWord),
		asm.Xor.Reg(asm.R1, asm.R2),
		asm.LoadMem(asm.R2, asm.R10, slotExec, asm.DWord),
		asm.StoreMem(asm.R8, field(unsafe.Offsetof(r.ExecID)), asm.R2, asm.DWord),
		asm.Xor.Reg(asm.R1, asm.R2),
		asm.StoreMem(asm.R8, field(unsafe.Offsetof(r.Check)), asm.R1, asm.DWord),
	)
}

// parent fills in the parent of a task, and what it ran when it made the task: if
// it has ended since, the parent is another one, and the record of what that ran is
// not found. R8 is the record, R9 is lost.
func (p *programs) parent(c *code, task asm.Register) {
	var r processRecord
	o := p.offsets
	c.follow(asm.R9, task, o.taskParent, slotTemp)
	c.probeTo(asm.R8, field(unsafe.Offsetof(r.ParentPID)), 4, asm.R9, o.taskTGID)
	c.follow(asm.R9, asm.R9, o.taskLeader, slotTemp)
	c.probeTo(asm.R8, field(unsafe.Offsetof(r.ParentStart)), 8, asm.R9, o.taskStart)
	c.probeTo(asm.R8, field(unsafe.Offsetof(r.ParentExecID)), 8, task, o.taskParentExecID)
}

// arguments copies the beginning of the arguments from the memory of the
// process. R7 is the memory map, R8 the record, R9 is lost.
func (p *programs) arguments(c *code) {
	var r processRecord
	fits, none := c.fresh(), c.fresh()
	c.follow(asm.R9, asm.R7, p.offsets.mmArgStart, slotTemp)
	c.follow(asm.R2, asm.R7, p.offsets.mmArgEnd, slotTemp)
	c.add(
		asm.Sub.Reg(asm.R2, asm.R9),
		asm.JLE.Imm(asm.R2, argsSize, fits),
		asm.Mov.Imm(asm.R2, argsSize),
		asm.StoreImm(asm.R8, field(unsafe.Offsetof(r.Flags)), processArgsCut, asm.Word),
	)
	c.label(fits)
	c.add(
		asm.StoreMem(asm.R8, field(unsafe.Offsetof(r.ArgsLen)), asm.R2, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R8), asm.Add.Imm(asm.R1, int32(unsafe.Offsetof(r.Args))),
		asm.Mov.Reg(asm.R3, asm.R9), asm.FnProbeReadUser.Call(),
		asm.JEq.Imm(asm.R0, 0, none),
		asm.StoreImm(asm.R8, field(unsafe.Offsetof(r.ArgsLen)), 0, asm.Word), // swapped out
	)
	c.label(none)
}

// executable fills in inode, state and namespace of the file that runs. R7 is the file
// and becomes its dentry, R6 becomes its mount, R8 is the record, R9 is lost.
func (p *programs) executable(c *code) {
	var r processRecord
	o := p.offsets
	c.follow(asm.R6, asm.R7, o.fileInode, slotTemp)
	c.probeTo(asm.R8, field(unsafe.Offsetof(r.Inode)), 8, asm.R6, o.inodeNumber)
	c.probeTo(asm.R8, field(unsafe.Offsetof(r.Nlink)), 4, asm.R6, o.inodeLinks)
	p.device(c)
	p.content(c)
	c.follow(asm.R6, asm.R7, o.fileMount, slotTemp) // struct vfsmount within struct mount
	c.add(asm.Sub.Imm(asm.R6, int32(o.mountBase)))
	c.follow(asm.R7, asm.R7, o.fileDentry, slotTemp)
	c.follow(asm.R9, asm.R6, o.mountNS, slotTemp)
	c.probeTo(asm.R8, field(unsafe.Offsetof(r.MountNS)), 4, asm.R9, o.nsNumber)
}

// content fills in when the file was changed last, and in what file system. R6 is
// the inode, R8 the record, R9 is lost.
func (p *programs) content(c *code) {
	var r processRecord
	o := p.offsets
	const word, long = 4, 8
	c.probeTo(asm.R8, field(unsafe.Offsetof(r.Changed)), long, asm.R6, o.inodeChanged)
	c.probeTo(asm.R8, field(unsafe.Offsetof(r.ChangedNanos)), word, asm.R6, o.inodeChangedNanos)
	c.follow(asm.R9, asm.R6, o.inodeSuper, slotTemp)
	c.probeTo(asm.R8, field(unsafe.Offsetof(r.Granularity)), word, asm.R9, o.superGranularity)
	c.follow(asm.R1, asm.R9, o.superMagic, slotTemp)
	c.add(asm.StoreMem(asm.R8, field(unsafe.Offsetof(r.Magic)), asm.R1, asm.Word))
	c.follow(asm.R9, asm.R9, o.superUserNS, slotTemp)
	c.probeTo(asm.R8, field(unsafe.Offsetof(r.UserNS)), word, asm.R9, o.nsLevel)
}

// walk goes from a file up to the root of its mount namespace and notes the
// names on the way. R6 is the mount, R7 the dentry, R8 the record; R9 counts.
//
// How many bytes are used is kept in the record and read back in each round: so
// the verifier sees all rounds alike and does not follow each combination.
func (p *programs) walk(c *code) {
	var r processRecord
	o := p.offsets
	top, component, cut, end := c.fresh(), c.fresh(), c.fresh(), c.fresh()
	c.add(asm.Mov.Imm(asm.R9, 0))
	c.label(top)
	c.add(asm.JGE.Imm(asm.R9, pathSteps, cut), asm.Add.Imm(asm.R9, 1))
	mount := c.window(walkAt, asm.R6, o.mountRoot, o.mountParent, o.mountPoint)
	c.add(asm.LoadMem(asm.R1, asm.R10, mount(o.mountRoot), asm.DWord), asm.JNE.Reg(asm.R1, asm.R7, component))
	// The root of a mount: go on where that is mounted.
	c.add(
		asm.LoadMem(asm.R1, asm.R10, mount(o.mountParent), asm.DWord),
		asm.JEq.Reg(asm.R1, asm.R6, end), asm.JEq.Imm(asm.R1, 0, end),
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R10, mount(o.mountPoint), asm.DWord),
		asm.Ja.Label(top),
	)
	c.label(component)
	dentry := c.window(walkAt, asm.R7, o.dentryParent, o.dentryName)
	c.add(
		asm.LoadMem(asm.R1, asm.R8, field(unsafe.Offsetof(r.PathLen)), asm.Word),
		asm.JGT.Imm(asm.R1, pathLimit, cut),
		asm.Add.Reg(asm.R1, asm.R8), asm.Add.Imm(asm.R1, int32(unsafe.Offsetof(r.Path))),
		asm.Mov.Imm(asm.R2, componentSize),
		asm.LoadMem(asm.R3, asm.R10, dentry(o.dentryName), asm.DWord),
		asm.FnProbeReadKernelStr.Call(),
		asm.JSLE.Imm(asm.R0, 0, cut),
		asm.LoadMem(asm.R1, asm.R8, field(unsafe.Offsetof(r.PathLen)), asm.Word),
		asm.Add.Reg(asm.R1, asm.R0),
		asm.StoreMem(asm.R8, field(unsafe.Offsetof(r.PathLen)), asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R10, dentry(o.dentryParent), asm.DWord),
	)
	detached := c.fresh()
	c.add(asm.JEq.Reg(asm.R1, asm.R7, detached), asm.Mov.Reg(asm.R7, asm.R1), asm.Ja.Label(top))
	c.label(detached)
	p.flag(c, processDetached)
	c.add(asm.Ja.Label(end))
	c.label(cut)
	p.flag(c, processPathCut)
	c.label(end)
}

// flag sets flags of the record that R8 points to.
func (p *programs) flag(c *code, flags int32) {
	at := field(unsafe.Offsetof(processRecord{}.Flags))
	c.add(
		asm.LoadMem(asm.R1, asm.R8, at, asm.Word),
		asm.Or.Imm(asm.R1, flags),
		asm.StoreMem(asm.R8, at, asm.R1, asm.Word),
	)
}

// exec assembles the program for sched_process_exec: current runs another file.
func (p *programs) exec() asm.Instructions {
	c := &code{}
	c.zero(slotBottom, -int(slotBottom))
	p.current(c)
	c.add(
		asm.LoadMem(asm.R8, asm.R10, slotTGID, asm.Word),
		asm.And.Imm(asm.R8, buckets-1), asm.LSh.Imm(asm.R8, 2),
		asm.LoadMapValue(asm.R1, p.maps.changes.FD(), buckets*4),
		asm.Add.Reg(asm.R1, asm.R8),
		asm.Mov.Imm(asm.R2, 1),
		asm.StoreXAdd(asm.R1, asm.R2, asm.Word),
	)
	c.lookup(p.maps.running.FD(), slotTGID)
	c.add(asm.JEq.Imm(asm.R0, 0, "describe"), asm.Mov.Reg(asm.R8, asm.R0))
	p.keep(c, "describe")
	c.label("describe")
	p.describe(c, "out")
	// Where it could not be described, what it ran before must not stand for it.
	c.add(asm.Ja.Label("end"))
	c.label("out")
	c.erase(p.maps.running.FD(), slotTGID)
	c.label("end")
	c.end(0)
	return c.ins
}

// keep copies the record of a running process that R8 points to into the past, if
// anything can refer to it, else jumps to done. slotChild is lost.
func (p *programs) keep(c *code, done string) {
	var r processRecord
	var k processKey
	c.add(
		asm.LoadMem(asm.R1, asm.R8, field(unsafe.Offsetof(r.Flags)), asm.Word),
		asm.And.Imm(asm.R1, processUsed|processParent),
		asm.JEq.Imm(asm.R1, 0, done),
		asm.LoadMem(asm.R1, asm.R8, field(unsafe.Offsetof(r.PID)), asm.Word),
		asm.StoreMem(asm.R10, slotChild+int16(unsafe.Offsetof(k.PID)), asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R8, field(unsafe.Offsetof(r.ExecID)), asm.DWord),
		asm.StoreMem(asm.R10, slotChild+int16(unsafe.Offsetof(k.ExecID)), asm.R1, asm.Word), // the low half
		asm.Mov.Reg(asm.R3, asm.R8),
	)
	c.update(p.maps.past.FD(), slotChild, updateAny)
	c.countFailure(p.maps.counters.FD(), countProcesses)
}

// fork assembles the program for sched_process_fork: the child runs what current
// runs. Its second argument is the child's task, in R6. Of a process without a
// record, which is older than the recorder, the child has none either.
func (p *programs) fork() asm.Instructions {
	var r processRecord
	o, c := p.offsets, &code{}
	c.add(asm.LoadMem(asm.R6, asm.R1, 8, asm.DWord))
	c.zero(slotBottom, -int(slotBottom))
	c.probe(slotChild, 4, asm.R6, o.taskTGID)
	c.probe(slotTemp, 4, asm.R6, o.taskPID)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, slotChild, asm.Word),
		asm.LoadMem(asm.R2, asm.R10, slotTemp, asm.Word),
		asm.JNE.Reg(asm.R1, asm.R2, "out"), // a thread
	)
	p.current(c)
	p.borrow(c, "out")
	c.probe(slotStart, 8, asm.R6, o.taskStart)
	c.probe(slotExec, 8, asm.R6, o.taskExecID)
	p.name(c, slotChild)
	p.parent(c, asm.R6)
	c.probeTo(asm.R8, field(unsafe.Offsetof(r.Comm)), int32(len(r.Comm)), asm.R6, o.taskComm)
	flags := field(unsafe.Offsetof(r.Flags))
	c.add(
		asm.LoadMem(asm.R1, asm.R8, flags, asm.Word),
		asm.And.Imm(asm.R1, processPathCut|processDetached|processArgsCut),
		asm.StoreMem(asm.R8, flags, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R3, asm.R8),
	)
	c.update(p.maps.running.FD(), slotChild, updateAny)
	c.countFailure(p.maps.counters.FD(), countProcesses)
	c.label("release")
	c.erase(p.maps.scratch.FD(), slotThread)
	c.label("out")
	c.end(0)
	return c.ins
}

// exit assembles the program for sched_process_exit: the last thread ends. Its
// first argument is the task.
func (p *programs) exit() asm.Instructions {
	c := &code{}
	c.add(asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord))
	c.zero(slotBottom, -int(slotBottom))
	c.follow(asm.R8, asm.R6, p.offsets.taskSignal, slotTemp)
	c.probe(slotTemp, 4, asm.R8, p.offsets.signalLive)
	c.add(asm.LoadMem(asm.R1, asm.R10, slotTemp, asm.Word), asm.JNE.Imm(asm.R1, 0, "out"))
	p.current(c)
	c.lookup(p.maps.running.FD(), slotTGID)
	c.add(asm.JEq.Imm(asm.R0, 0, "out"), asm.Mov.Reg(asm.R8, asm.R0))
	p.flag(c, processExited)
	p.keep(c, "gone")
	c.label("gone")
	c.erase(p.maps.running.FD(), slotTGID)
	c.label("out")
	c.end(0)
	return c.ins
}

// borrow copies the record of the current process into scratch memory and points
// R8 to it, and notes in the original that the process has a child. It jumps to done
// if there is none, and to the label release if the copy is not whole or of another
// process of that pid.
func (p *programs) borrow(c *code, done string) {
	var r processRecord
	noted := c.fresh()
	c.lookup(p.maps.running.FD(), slotTGID)
	c.add(asm.JEq.Imm(asm.R0, 0, done))
	p.note(c, asm.R0, processParent, noted)
	c.label(noted)
	p.scratch(c, done)
	c.add(
		asm.LoadMem(asm.R1, asm.R8, field(unsafe.Offsetof(r.PID)), asm.Word),
		asm.LoadMem(asm.R2, asm.R10, slotTGID, asm.Word),
		asm.JNE.Reg(asm.R1, asm.R2, "release"),
		asm.LoadMem(asm.R2, asm.R8, field(unsafe.Offsetof(r.Start)), asm.DWord),
		asm.LoadMem(asm.R3, asm.R10, slotStart, asm.DWord),
		asm.JNE.Reg(asm.R2, asm.R3, "release"),
		asm.Xor.Reg(asm.R1, asm.R2),
		asm.LoadMem(asm.R2, asm.R8, field(unsafe.Offsetof(r.ExecID)), asm.DWord),
		asm.LoadMem(asm.R3, asm.R10, slotExec, asm.DWord),
		asm.JNE.Reg(asm.R2, asm.R3, "release"),
		asm.Xor.Reg(asm.R1, asm.R2),
		asm.LoadMem(asm.R2, asm.R8, field(unsafe.Offsetof(r.Check)), asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, "release"),
	)
}
