package record

import (
	"unsafe"

	"github.com/cilium/ebpf/asm"
)

// Values of linux/bpf.h and net/tcp_states.h.
const (
	opTimeoutInit = 1  // BPF_SOCK_OPS_TIMEOUT_INIT
	opWindowInit  = 2  // BPF_SOCK_OPS_RWND_INIT
	opPassive     = 5  // BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
	opState       = 10 // BPF_SOCK_OPS_STATE_CB
	tcpNewSynRecv = 12 // TCP_NEW_SYN_RECV: a request, not yet a socket
	tcpClose      = 7  // TCP_CLOSE

	stateCalls   = 1 << 2 // BPF_SOCK_OPS_STATE_CB_FLAG
	opsNewState  = 8      // struct bpf_sock_ops: args[1]
	opsCallFlags = 84     // bpf_sock_ops_cb_flags
)

// accept assembles the sock_ops program. When a SYN has made a request, the
// request's cookie, which the accepted socket will have, gets the owner of the
// listener. Requests are kept apart: anybody can make them. When the connection is
// complete the record becomes one of the owners, and it leaves them when the
// connection ends: what nobody accepts, nobody closes.
//
// Registers: R6 context, R7 request, R8 listener.
func (p *programs) accept() asm.Instructions {
	c := &code{}
	c.add(
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R1, asm.R6, 0, asm.Word), // bpf_sock_ops.op
		asm.JEq.Imm(asm.R1, opTimeoutInit, "request"),
		asm.JEq.Imm(asm.R1, opWindowInit, "request"),
		asm.JEq.Imm(asm.R1, opPassive, "complete"),
		asm.JNE.Imm(asm.R1, opState, "out"),
		asm.LoadMem(asm.R1, asm.R6, opsNewState, asm.Word),
		asm.JNE.Imm(asm.R1, tcpClose, "out"),
	)
	p.cookieOf(c)
	p.close(c)
	c.add(asm.Ja.Label("out"))
	p.request(c)
	c.add(asm.Ja.Label("out"))
	p.complete(c)
	c.label("out")
	c.end(1)
	return c.ins
}

// cookieOf clears the stack and puts the cookie of the context's socket there.
func (p *programs) cookieOf(c *code) {
	c.zero(slotBottom, -int(slotBottom))
	c.add(
		asm.Mov.Reg(asm.R1, asm.R6), asm.FnGetSocketCookie.Call(),
		asm.StoreMem(asm.R10, slotCookie, asm.R0, asm.DWord),
	)
}

// request notes whose request it is.
func (p *programs) request(c *code) {
	var r ownerRecord
	o := p.offsets
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
	c.update(p.maps.requests.FD(), slotCookie, updateAny)
}

// complete makes the record of a request one of the owners.
func (p *programs) complete(c *code) {
	c.label("complete")
	p.cookieOf(c)
	c.lookup(p.maps.requests.FD(), slotCookie)
	c.add(asm.JEq.Imm(asm.R0, 0, "out"))
	p.copyOwner(c, asm.R0, slotOwner, slotCookie, "out")
	p.limit(c)
	c.add(
		asm.StoreImm(asm.R10, slotHow, updateNew, asm.Word),
		asm.LoadMem(asm.R2, asm.R6, opsCallFlags, asm.Word), asm.Or.Imm(asm.R2, stateCalls),
		asm.Mov.Reg(asm.R1, asm.R6), asm.FnSockOpsCbFlagsSet.Call(),
	)
	p.store(c)
	c.erase(p.maps.requests.FD(), slotCookie)
}
