package record

import (
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// mptcpOffsets are the places by which a subflow leads to its connection.
type mptcpOffsets struct {
	is, ulp, conn, first, request, requestConn int16
	join                                       int16 // byte of the bit mp_join of a request
	joinMask                                   uint8
	known                                      bool
}

// mptcp reads them. A kernel without MPTCP has none, and needs none.
func (f *fields) mptcp() (o mptcpOffsets) {
	if f.err != nil {
		return o
	}
	g := &fields{spec: f.spec}
	o.is = g.at("tcp_sock", 1, "is_mptcp")
	o.ulp = g.at("inet_connection_sock", 8, "icsk_ulp_data")
	o.conn = g.at("mptcp_subflow_context", 8, "conn")
	o.first = g.at("mptcp_sock", 8, "first")
	o.request = g.at("tcp_request_sock", 1, "is_mptcp")
	o.requestConn = g.at("mptcp_subflow_request_sock", 8, "msk")
	o.join, o.joinMask = g.bit("mptcp_subflow_request_sock", "mp_join")
	o.known = g.err == nil
	return o
}

// madeByKernel looks at a socket that the kernel has made: who is in a system call
// while the kernel acts on it need not be whose it is. It goes on if a process has made
// the socket, or acts by it (TCP).
//
// Registers: R6 context; R8 becomes the socket, R9 is lost.
func (p *programs) madeByKernel(c *code, hook Hook) {
	o := p.offsets
	c.add(asm.Mov.Reg(asm.R8, asm.R6))
	if hook == HookConnect || hook == HookSend {
		c.follow(asm.R8, asm.R6, o.addrSock, slotTemp)
	}
	c.probe(slotTemp, 1, asm.R8, o.kernSock)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, slotTemp, asm.Byte),
		asm.And.Imm(asm.R1, int32(o.kernMask)), asm.JEq.Imm(asm.R1, 0, "process"),
	)
	c.probe(slotTemp, 2, asm.R8, o.sockProtocol)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, slotTemp, asm.Half),
		asm.JEq.Imm(asm.R1, protocolTCP, "stream"), asm.JNE.Imm(asm.R1, protocolUDP, "process"),
	)
	p.unclear(c)
	c.add(asm.Ja.Label("out"))
	c.label("stream")
	if o.mptcp.known {
		p.subflow(c)
	}
	c.label("process")
}

// unclear notes that the kernel made the socket in slotCookie, for itself or for whom
// it does not say.
func (p *programs) unclear(c *code) {
	p.ofKernel(c, ownerUnclear)
	c.stack(asm.R3, slotOwner)
	c.update(p.maps.requests.FD(), slotCookie, updateNew)
}

// ofKernel fills in an owner record that names nobody.
func (p *programs) ofKernel(c *code, flag int64) {
	var r ownerRecord
	c.add(
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Stamp)), asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R10, slotCookie, asm.DWord),
		asm.StoreMem(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Cookie)), asm.R1, asm.DWord),
		asm.Xor.Reg(asm.R1, asm.R0),
		asm.StoreMem(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Check)), asm.R1, asm.DWord),
		asm.StoreImm(asm.R10, slotOwner+int16(unsafe.Offsetof(r.Flags)), flag, asm.Word),
	)
}

// subflow gives a later subflow of an MPTCP connection, which the kernel opens, the
// owner of the connection: that of its first subflow. It goes on if the socket (R8) is
// no subflow, or is the first. R9 is lost.
func (p *programs) subflow(c *code) {
	o := p.offsets.mptcp
	c.probe(slotTemp, 1, asm.R8, o.is)
	c.add(asm.LoadMem(asm.R1, asm.R10, slotTemp, asm.Byte), asm.JEq.Imm(asm.R1, 0, "process"))
	c.follow(asm.R9, asm.R8, o.ulp, slotTemp)
	c.add(asm.JEq.Imm(asm.R9, 0, "process"))
	c.follow(asm.R9, asm.R9, o.conn, slotTemp)
	c.add(asm.JEq.Imm(asm.R9, 0, "process"))
	c.follow(asm.R1, asm.R9, o.first, slotTemp)
	c.add(asm.JEq.Reg(asm.R1, asm.R8, "process"))
	c.lookup(p.maps.owners.FD(), slotCookie)
	c.add(asm.JNE.Imm(asm.R0, 0, "out")) // it has one
	p.ownerOfConnection(c, "out")
	p.limit(c)
	c.add(asm.StoreImm(asm.R10, slotHow, updateNew, asm.Word), asm.Ja.Label("store"))
}

// ownerOfConnection copies the owner of an MPTCP connection (R9) into the owner record,
// made one of the socket in slotCookie, or jumps to none. It is the owner of its first
// subflow or, if that is gone, who made the connection's own socket.
func (p *programs) ownerOfConnection(c *code, none string) {
	const other = slotChild // cookie of a socket of the connection
	var r ownerRecord
	found, gone := c.fresh(), c.fresh()
	at := func(offset uintptr) int16 { return slotOwner + int16(offset) }
	c.follow(asm.R1, asm.R9, p.offsets.mptcp.first, slotTemp)
	c.add(asm.JEq.Imm(asm.R1, 0, gone))
	c.probe(other, 8, asm.R1, p.offsets.sockCookie)
	for _, owners := range []*ebpf.Map{p.maps.owners, p.maps.requests, p.maps.closed} {
		c.lookup(owners.FD(), other)
		c.add(asm.JNE.Imm(asm.R0, 0, found))
	}
	c.label(gone)
	c.probe(other, 8, asm.R9, p.offsets.sockCookie)
	c.lookup(p.maps.owners.FD(), other)
	c.add(asm.JEq.Imm(asm.R0, 0, none))
	c.label(found)
	p.copyOwner(c, asm.R0, slotOwner, other, none)
	c.add(
		asm.LoadMem(asm.R0, asm.R10, slotCookie, asm.DWord),
		asm.StoreMem(asm.R10, at(unsafe.Offsetof(r.Cookie)), asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R10, at(unsafe.Offsetof(r.Stamp)), asm.DWord),
		asm.Xor.Reg(asm.R1, asm.R0),
		asm.StoreMem(asm.R10, at(unsafe.Offsetof(r.Check)), asm.R1, asm.DWord),
	)
}
