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
	tcpTimeWait   = 6  // TCP_TIME_WAIT
	tcpNewSynRecv = 12 // TCP_NEW_SYN_RECV: a request, not yet a socket
)

// accept assembles the sock_ops program. When a SYN has made a request, the
// request's cookie, which the accepted socket will have, gets the owner of the
// listener. Requests are kept apart: anybody can make them. When the connection is
// complete the record becomes one of the owners.
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
		asm.Ja.Label("out"),
	)
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
	if o.mptcp.known {
		p.join(c)
	}
	c.label("plain")
	c.follow(asm.R8, asm.R7, o.sockListener, slotTemp)
	c.probe(slotCookie, 8, asm.R8, o.sockCookie)
	c.lookup(p.maps.owners.FD(), slotCookie)
	c.add(asm.JEq.Imm(asm.R0, 0, "out"))
	p.copyOwner(c, asm.R0, slotOwner, slotCookie, "out")
	c.add(
		asm.Mov.Reg(asm.R1, asm.R6), asm.FnGetSocketCookie.Call(),
		asm.StoreMem(asm.R10, slotCookie, asm.R0, asm.DWord),
		asm.StoreMem(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Cookie)), asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R10, slotOwner+int16(unsafe.Offsetof(r.Stamp)), asm.DWord),
		asm.Xor.Reg(asm.R1, asm.R0),
		asm.StoreMem(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Check)), asm.R1, asm.DWord),
	)
	c.label("whose")
	c.add(asm.StoreImm(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Hook)), int64(HookAccept), asm.Word))
	c.stack(asm.R3, slotOwner)
	c.update(p.maps.requests.FD(), slotCookie, updateAny)
}

// join notes the request for a later subflow of an MPTCP connection (R7): it is of the
// connection's owner, whoever listens where it came. It goes on if it is none.
func (p *programs) join(c *code) {
	o := p.offsets.mptcp
	c.probe(slotTemp, 1, asm.R7, o.request)
	c.add(asm.LoadMem(asm.R1, asm.R10, slotTemp, asm.Byte), asm.JEq.Imm(asm.R1, 0, "plain"))
	c.probe(slotTemp, 1, asm.R7, o.join)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, slotTemp, asm.Byte),
		asm.And.Imm(asm.R1, int32(o.joinMask)), asm.JEq.Imm(asm.R1, 0, "plain"),
	)
	c.follow(asm.R9, asm.R7, o.requestConn, slotTemp)
	c.add(
		asm.JEq.Imm(asm.R9, 0, "out"),
		asm.Mov.Reg(asm.R1, asm.R6), asm.FnGetSocketCookie.Call(),
		asm.StoreMem(asm.R10, slotCookie, asm.R0, asm.DWord),
	)
	p.ownerOfConnection(c, "out")
	c.add(asm.Ja.Label("whose"))
}

// complete makes the record of a request one of the owners.
func (p *programs) complete(c *code) {
	c.label("complete")
	p.cookieOf(c)
	c.lookup(p.maps.requests.FD(), slotCookie)
	c.add(asm.JEq.Imm(asm.R0, 0, "out"))
	p.copyOwner(c, asm.R0, slotOwner, slotCookie, "out")
	p.limit(c)
	c.add(asm.StoreImm(asm.R10, slotHow, updateNew, asm.Word))
	p.store(c)
	c.erase(p.maps.requests.FD(), slotCookie)
}

// destroyed assembles the program for the tracepoint tcp_destroy_sock. Sockets that the
// kernel has made, or that nobody has accepted, nobody closes: their records leave the
// owners here.
func (p *programs) destroyed() asm.Instructions {
	c := &code{}
	c.add(asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord))
	c.zero(slotBottom, -int(slotBottom))
	c.probe(slotCookie, 8, asm.R6, p.offsets.sockCookie)
	c.add(asm.LoadMem(asm.R1, asm.R10, slotCookie, asm.DWord), asm.JEq.Imm(asm.R1, 0, "out"))
	p.close(c)
	c.label("out")
	c.end(0)
	return c.ins
}
