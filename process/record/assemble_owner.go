package record

import (
	"unsafe"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// The stack of all programs that look at the current process. Slots of eight
// bytes; the owner record is on top.
const (
	slotOwner  = -int16(unsafe.Sizeof(ownerRecord{}))
	slotCookie = slotOwner - 8
	slotThread = slotOwner - 16 // pid_tgid: key of the scratch map
	slotTGID   = slotOwner - 24 // u32: the pid
	slotZero   = slotOwner - 32 // u32: key of one-element arrays
	slotStart  = slotOwner - 40 // start of the process
	slotExec   = slotOwner - 48 // self_exec_id
	slotTemp   = slotOwner - 56
	slotHow    = slotOwner - 64         // flags of the update
	slotChild  = slotOwner - 72         // processKey
	walkAt     = slotChild - windowSize // part of a structure
	slotBottom = walkAt
)

// owner assembles the program for a cgroup hook: cookie of the socket to owner
// record of the caller. It lets everything pass.
//
// Registers: R6 context, R7 task.
func (p *programs) owner(hook Hook) asm.Instructions {
	c := &code{}
	c.add(asm.Mov.Reg(asm.R6, asm.R1), asm.FnGetSocketCookie.Call(), asm.JEq.Imm(asm.R0, 0, "out"))
	c.zero(slotBottom, -int(slotBottom))
	c.add(asm.StoreMem(asm.R10, slotCookie, asm.R0, asm.DWord))
	if p.offsets != nil {
		p.madeByKernel(c, hook)
	}
	p.current(c)
	if p.offsets != nil { // a thread of the kernel acts for somebody else
		c.follow(asm.R8, asm.R7, p.offsets.taskMM, slotTemp)
		c.add(asm.JEq.Imm(asm.R8, 0, "out"))
	}
	p.caller(c, hook)
	p.unchanged(c, "known")
	p.write(c)
	c.label("known")
	if p.offsets != nil {
		p.used(c)
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

// write completes the owner record and stores it: in place of the one that R0 points
// to, or anew if that is 0 and the share of the caller is not used up.
func (p *programs) write(c *code) {
	var r ownerRecord
	share := slotOwner + int16(unsafe.Offsetof(r.Share))
	c.label("write")
	c.add(
		asm.JEq.Imm(asm.R0, 0, "new"),
		asm.LoadMem(asm.R1, asm.R0, int16(unsafe.Offsetof(r.Share)), asm.DWord),
		asm.StoreMem(asm.R10, share, asm.R1, asm.DWord),
		asm.StoreImm(asm.R10, slotHow, updateThere, asm.Word),
		asm.Ja.Label("complete"),
	)
	c.label("new")
	p.share(c)
	c.add(asm.StoreImm(asm.R10, slotHow, updateNew, asm.Word))
	c.label("complete")
	c.stack(asm.R1, slotOwner+int16(unsafe.Offsetof(r.Comm)))
	c.add(
		asm.Mov.Imm(asm.R2, int32(len(r.Comm))), asm.FnGetCurrentComm.Call(),
		asm.FnKtimeGetCoarseNs.Call(),
		asm.StoreMem(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Tick)), asm.R0, asm.DWord),
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Stamp)), asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R10, slotCookie, asm.DWord),
		asm.Xor.Reg(asm.R1, asm.R0),
		asm.StoreMem(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Check)), asm.R1, asm.DWord),
	)
	c.label("store")
	p.store(c)
}

// share says in the owner record for whom the socket counts, and jumps to full if
// that one has as many as anybody may have: so nobody can make others unknown by
// opening sockets. It is the control group below that of the first level, which is a
// service, a container or all that a user runs, or the user where there is none.
func (p *programs) share(c *code) {
	const level = 2
	var r ownerRecord
	share := slotOwner + int16(unsafe.Offsetof(r.Share))
	grouped := c.fresh()
	c.add(
		asm.Mov.Imm(asm.R1, level), asm.FnGetCurrentAncestorCgroupId.Call(),
		asm.JNE.Imm(asm.R0, 0, grouped),
		asm.LoadMem(asm.R0, asm.R10, slotOwner+int16(unsafe.Offsetof(r.UID)), asm.Word),
		asm.LoadImm(asm.R1, -1<<63, asm.DWord),
		asm.Or.Reg(asm.R0, asm.R1),
	)
	c.label(grouped)
	c.add(asm.StoreMem(asm.R10, share, asm.R0, asm.DWord))
	p.limit(c)
}

// limit jumps to full if the share of the owner record is used up.
func (p *programs) limit(c *code) {
	within := c.fresh()
	c.lookup(p.maps.shares.FD(), slotOwner+int16(unsafe.Offsetof(ownerRecord{}.Share)))
	c.add(
		asm.JEq.Imm(asm.R0, 0, within),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.JSLT.Imm(asm.R1, int32(p.maps.owners.MaxEntries()/fairShare), within),
	)
	c.count(p.maps.counters.FD(), countOwners)
	c.add(asm.Ja.Label("full"))
	c.label(within)
}

// store puts the owner record into the map as slotHow says. A new one counts for its
// share. The label full is at the end of it.
func (p *programs) store(c *code) {
	share := slotOwner + int16(unsafe.Offsetof(ownerRecord{}.Share))
	first, stored := c.fresh(), c.fresh()
	c.stack(asm.R3, slotOwner)
	c.add(asm.LoadMapPtr(asm.R1, p.maps.owners.FD()))
	c.stack(asm.R2, slotCookie)
	c.add(
		asm.LoadMem(asm.R4, asm.R10, slotHow, asm.Word), asm.FnMapUpdateElem.Call(),
		asm.JEq.Imm(asm.R0, 0, stored),
		asm.JEq.Imm(asm.R0, -int32(unix.EEXIST), "full"), asm.JEq.Imm(asm.R0, -int32(unix.ENOENT), "full"), // another thread was faster
	)
	c.count(p.maps.counters.FD(), countOwners)
	c.add(asm.Ja.Label("full"))
	c.label(stored)
	c.add(asm.LoadMem(asm.R1, asm.R10, slotHow, asm.Word), asm.JNE.Imm(asm.R1, updateNew, "full"))
	c.lookup(p.maps.shares.FD(), share)
	c.add(
		asm.JEq.Imm(asm.R0, 0, first),
		asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Ja.Label("full"),
	)
	c.label(first)
	c.add(asm.Mov.Imm(asm.R1, 1), asm.StoreMem(asm.R10, slotTemp, asm.R1, asm.DWord))
	c.stack(asm.R3, slotTemp)
	c.update(p.maps.shares.FD(), share, updateAny)
	c.label("full")
}

// release assembles the program for the end of a socket: its record leaves the
// owners, and stays for a while for what the kernel still sends by the socket.
func (p *programs) release() asm.Instructions {
	c := &code{}
	c.add(asm.FnGetSocketCookie.Call(), asm.JEq.Imm(asm.R0, 0, "out"))
	c.zero(slotBottom, -int(slotBottom))
	c.add(asm.StoreMem(asm.R10, slotCookie, asm.R0, asm.DWord))
	p.close(c)
	c.label("out")
	c.end(1)
	return c.ins
}

// close moves the record of the socket in slotCookie from the owners to the closed,
// or jumps to out.
func (p *programs) close(c *code) {
	var r ownerRecord
	torn := c.fresh()
	c.lookup(p.maps.owners.FD(), slotCookie)
	c.add(asm.JEq.Imm(asm.R0, 0, "out"))
	p.copyOwner(c, asm.R0, slotOwner, slotCookie, torn)
	c.stack(asm.R3, slotOwner)
	c.update(p.maps.closed.FD(), slotCookie, updateAny)
	c.label(torn)
	c.erase(p.maps.owners.FD(), slotCookie)
	c.add(asm.JNE.Imm(asm.R0, 0, "out"))
	c.lookup(p.maps.shares.FD(), slotOwner+int16(unsafe.Offsetof(r.Share)))
	c.add(
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, -1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
	)
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
