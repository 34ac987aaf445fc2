package record

import (
	"unsafe"

	"github.com/cilium/ebpf/asm"
)

// The stack of all programs that look at the current process. Slots of eight
// bytes; the owner record is on top.
const (
	slotOwner  = -int16(unsafe.Sizeof(ownerRecord{}))
	slotCookie = slotOwner - 8
	slotThread = slotOwner - 16 // pid_tgid: key of the scratch map
	slotTGID   = slotOwner - 24 // processKey
	slotZero   = slotOwner - 32 // u32: key of one-element arrays
	slotStart  = slotOwner - 40 // start of the process
	slotExec   = slotOwner - 48 // self_exec_id
	slotTemp   = slotOwner - 56
	slotCtx    = slotOwner - 64         // spilled context
	slotChild  = slotOwner - 72         // processKey
	walkAt     = slotChild - windowSize // part of a structure
	slotBottom = walkAt
)

// owner assembles the program for a cgroup hook: cookie of the socket to owner
// record of the caller, and a process record where there is none. It lets
// everything pass.
//
// Registers: R6 context, R7 task.
func (p *programs) owner(hook Hook) asm.Instructions {
	c := &code{}
	c.add(asm.Mov.Reg(asm.R6, asm.R1), asm.FnGetSocketCookie.Call(), asm.JEq.Imm(asm.R0, 0, "out"))
	c.zero(slotBottom, -int(slotBottom))
	c.add(asm.StoreMem(asm.R10, slotCookie, asm.R0, asm.DWord))
	p.current(c)
	p.caller(c, hook)
	p.unchanged(c, "known")
	p.write(c)
	c.label("known")
	if p.offsets != nil {
		p.ensure(c)
	}
	c.label("out")
	c.end(1)
	return c.ins
}

// current notes which process and thread is running. R7 becomes its task.
func (p *programs) current(c *code) {
	c.add(
		asm.FnGetCurrentPidTgid.Call(),
		asm.StoreMem(asm.R10, slotThread, asm.R0, asm.DWord),
		asm.RSh.Imm(asm.R0, 32),
		asm.StoreMem(asm.R10, slotTGID, asm.R0, asm.Word),
	)
	if p.offsets == nil {
		return
	}
	c.add(asm.FnGetCurrentTask.Call(), asm.Mov.Reg(asm.R7, asm.R0))
	c.follow(asm.R8, asm.R7, p.offsets.taskLeader, slotTemp)
	c.probe(slotStart, 8, asm.R8, p.offsets.taskStart)
	c.probe(slotExec, 8, asm.R7, p.offsets.taskExecID)
	p.keyExec(c, slotTGID)
}

// keyExec completes a processKey on the stack, of which the pid is there, by the
// number in slotExec.
func (p *programs) keyExec(c *code, key int16) {
	var k processKey
	c.add(
		asm.LoadMem(asm.R1, asm.R10, slotExec, asm.DWord),
		asm.StoreMem(asm.R10, key+int16(unsafe.Offsetof(k.ExecID)), asm.R1, asm.Word), // the low half
	)
}

// caller fills in the owner record, but for its stamp, check and name.
func (p *programs) caller(c *code, hook Hook) {
	var r ownerRecord
	put := func(offset uintptr, src asm.Register, size asm.Size) {
		c.add(asm.StoreMem(asm.R10, slotOwner+int16(offset), src, size))
	}
	move := func(offset uintptr, slot int16, size asm.Size) {
		c.add(asm.LoadMem(asm.R1, asm.R10, slot, size))
		put(offset, asm.R1, size)
	}
	move(unsafe.Offsetof(r.Cookie), slotCookie, asm.DWord)
	move(unsafe.Offsetof(r.PID), slotTGID, asm.Word)
	move(unsafe.Offsetof(r.Start), slotStart, asm.DWord)
	move(unsafe.Offsetof(r.ExecID), slotExec, asm.DWord)
	c.add(asm.LoadMem(asm.R1, asm.R10, slotThread, asm.DWord))
	put(unsafe.Offsetof(r.TID), asm.R1, asm.Word) // the low half
	c.add(asm.FnGetCurrentUidGid.Call())
	put(unsafe.Offsetof(r.UID), asm.R0, asm.Word)
	c.add(asm.RSh.Imm(asm.R0, 32))
	put(unsafe.Offsetof(r.GID), asm.R0, asm.Word)
	c.add(asm.FnGetCurrentCgroupId.Call())
	put(unsafe.Offsetof(r.CgroupID), asm.R0, asm.DWord)
	c.add(asm.Mov.Reg(asm.R1, asm.R6), asm.FnGetNetnsCookie.Call())
	put(unsafe.Offsetof(r.NetNS), asm.R0, asm.DWord)
	c.add(asm.StoreImm(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Hook)), int64(hook), asm.Word))
	if p.offsets == nil {
		return
	}
	none := c.fresh()
	c.follow(asm.R8, asm.R7, p.offsets.taskMM, slotTemp)
	c.add(asm.JEq.Imm(asm.R8, 0, none))
	c.follow(asm.R8, asm.R8, p.offsets.mmExe, slotTemp)
	c.add(asm.JEq.Imm(asm.R8, 0, none))
	c.follow(asm.R1, asm.R8, p.offsets.fileInode, slotTemp)
	put(unsafe.Offsetof(r.Image), asm.R1, asm.DWord)
	c.label(none)
}

// unchanged jumps to known if the socket's record is of the same caller. A
// record is stamped anew only by another one: so flows are not written, nor
// readers disturbed, by each datagram.
func (p *programs) unchanged(c *code, known string) {
	var r ownerRecord
	c.lookup(p.maps.owners.FD(), slotCookie)
	c.add(asm.JEq.Imm(asm.R0, 0, "write"))
	words := []uintptr{unsafe.Offsetof(r.Cookie), unsafe.Offsetof(r.PID), unsafe.Offsetof(r.CgroupID),
		unsafe.Offsetof(r.NetNS), unsafe.Offsetof(r.Start), unsafe.Offsetof(r.ExecID)}
	for _, offset := range words {
		c.add(
			asm.LoadMem(asm.R1, asm.R0, int16(offset), asm.DWord),
			asm.LoadMem(asm.R2, asm.R10, slotOwner+int16(offset), asm.DWord),
			asm.JNE.Reg(asm.R1, asm.R2, "write"),
		)
	}
	gid := int16(unsafe.Offsetof(r.GID))
	c.add(
		asm.LoadMem(asm.R1, asm.R0, gid, asm.Word),
		asm.LoadMem(asm.R2, asm.R10, slotOwner+gid, asm.Word),
		asm.JEq.Reg(asm.R1, asm.R2, known),
	)
}

// write completes the owner record and stores it.
func (p *programs) write(c *code) {
	var r ownerRecord
	c.label("write")
	c.stack(asm.R1, slotOwner+int16(unsafe.Offsetof(r.Comm)))
	c.add(
		asm.Mov.Imm(asm.R2, int32(len(r.Comm))), asm.FnGetCurrentComm.Call(),
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Stamp)), asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R10, slotCookie, asm.DWord),
		asm.Xor.Reg(asm.R1, asm.R0),
		asm.StoreMem(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Check)), asm.R1, asm.DWord),
	)
	c.stack(asm.R3, slotOwner)
	c.update(p.maps.owners.FD(), slotCookie, updateAny)
	c.countFailure(p.maps.counters.FD(), countOwners)
}

// Values of linux/bpf.h and net/tcp_states.h.
const (
	opTimeoutInit = 1  // BPF_SOCK_OPS_TIMEOUT_INIT
	opWindowInit  = 2  // BPF_SOCK_OPS_RWND_INIT
	tcpNewSynRecv = 12 // TCP_NEW_SYN_RECV: a request, not yet a socket
)

// accept assembles the sock_ops program: when a SYN has made a request, the
// request's cookie, which the accepted socket will have, gets the owner of the
// listener.
//
// Registers: R6 context, R7 request, R8 listener.
func (p *programs) accept() asm.Instructions {
	var r ownerRecord
	o, c := p.offsets, &code{}
	c.add(
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R1, asm.R6, 0, asm.Word), // bpf_sock_ops.op
		asm.JEq.Imm(asm.R1, opTimeoutInit, "request"),
		asm.JNE.Imm(asm.R1, opWindowInit, "out"),
	)
	c.label("request")
	c.zero(slotBottom, -int(slotBottom))
	c.follow(asm.R7, asm.R6, o.opsSock, slotTemp)
	c.probe(slotTemp, 1, asm.R7, o.sockState)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, slotTemp, asm.Byte),
		asm.JNE.Imm(asm.R1, tcpNewSynRecv, "out"),
	)
	c.follow(asm.R8, asm.R7, o.sockListener, slotTemp)
	c.probe(slotCookie, 8, asm.R8, o.sockCookie)
	c.lookup(p.maps.owners.FD(), slotCookie)
	c.add(asm.JEq.Imm(asm.R0, 0, "out"))
	p.copyOwner(c, asm.R0, slotOwner, slotCookie, "out")
	c.add(
		asm.Mov.Reg(asm.R1, asm.R6), asm.FnGetSocketCookie.Call(),
		asm.StoreMem(asm.R10, slotCookie, asm.R0, asm.DWord),
		asm.StoreMem(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Cookie)), asm.R0, asm.DWord),
		asm.StoreImm(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Hook)), int64(HookAccept), asm.Word),
		asm.LoadMem(asm.R1, asm.R10, slotOwner+int16(unsafe.Offsetof(r.Stamp)), asm.DWord),
		asm.Xor.Reg(asm.R1, asm.R0),
		asm.StoreMem(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Check)), asm.R1, asm.DWord),
	)
	c.stack(asm.R3, slotOwner)
	c.update(p.maps.owners.FD(), slotCookie, updateNew)
	c.label("out")
	c.end(1)
	return c.ins
}

// copyOwner copies the owner record that src points to onto the stack, and jumps
// to torn if it is not the whole record of the cookie in a slot.
func (p *programs) copyOwner(c *code, src asm.Register, at, cookie int16, torn string) {
	var r ownerRecord
	for i := int16(0); i < int16(ownerSize); i += 8 {
		c.add(asm.LoadMem(asm.R1, src, i, asm.DWord), asm.StoreMem(asm.R10, at+i, asm.R1, asm.DWord))
	}
	c.add(
		asm.LoadMem(asm.R1, asm.R10, cookie, asm.DWord),
		asm.LoadMem(asm.R2, asm.R10, at+int16(unsafe.Offsetof(r.Cookie)), asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, torn),
		asm.LoadMem(asm.R2, asm.R10, at+int16(unsafe.Offsetof(r.Stamp)), asm.DWord),
		asm.Xor.Reg(asm.R1, asm.R2),
		asm.LoadMem(asm.R2, asm.R10, at+int16(unsafe.Offsetof(r.Check)), asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, torn),
	)
}
