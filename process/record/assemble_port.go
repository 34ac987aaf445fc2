package record

import "github.com/cilium/ebpf/asm"

// Fields of the contexts that the kernel gives to programs at cgroup hooks.
//
// Source: struct bpf_sock and struct bpf_sock_addr, include/uapi/linux/bpf.h.
const (
	ctxProtocol     = 12 // bpf_sock
	ctxPort         = 44
	ctxAddrProtocol = 36 // bpf_sock_addr
	ctxAddrSock     = 64

	protocolTCP = 6
	protocolUDP = 17
)

// portTaken assembles the program for post_bind: another socket may receive now
// what comes to its port. TCP needs none of this: a connection is its socket's, and
// of a new one the owner is looked for anyway.
func (p *programs) portTaken() asm.Instructions {
	c := &code{}
	c.add(
		asm.LoadMem(asm.R2, asm.R1, ctxProtocol, asm.Word), asm.JEq.Imm(asm.R2, protocolTCP, "out"),
		asm.LoadMem(asm.R8, asm.R1, ctxPort, asm.Word),
	)
	p.countPort(c)
	return c.ins
}

// portConnected is the same for connect: of the sockets of a port, the one that is
// connected to the sender receives. The hook comes before the kernel connects it,
// so who is told must ask more than once.
func (p *programs) portConnected() asm.Instructions {
	c := &code{}
	c.add(
		asm.LoadMem(asm.R2, asm.R1, ctxAddrProtocol, asm.Word), asm.JEq.Imm(asm.R2, protocolTCP, "out"),
		asm.LoadMem(asm.R2, asm.R1, ctxAddrSock, asm.DWord), asm.JEq.Imm(asm.R2, 0, "out"),
		asm.LoadMem(asm.R8, asm.R2, ctxPort, asm.Word),
	)
	p.countPort(c)
	return c.ins
}

// portReleased is the same for the end of a socket, behind which another may wait
// for the port.
func (p *programs) portReleased() asm.Instructions {
	const port = -8
	c := &code{}
	c.add(asm.LoadMem(asm.R2, asm.R1, ctxProtocol, asm.Word), asm.JEq.Imm(asm.R2, protocolTCP, "out"), asm.Mov.Reg(asm.R6, asm.R1))
	c.zero(port, 8)
	c.probe(port, 2, asm.R6, p.offsets.sockPort) // the context is the kernel's own socket
	c.add(asm.LoadMem(asm.R8, asm.R10, port, asm.Half))
	p.countPort(c)
	return c.ins
}

// countPort counts a change of the port in R8, unless that is 0, and ends the
// program. The label out is at the end of it.
func (p *programs) countPort(c *code) {
	c.add(
		asm.JEq.Imm(asm.R8, 0, "out"),
		asm.And.Imm(asm.R8, buckets-1), asm.LSh.Imm(asm.R8, 2),
		asm.LoadMapValue(asm.R1, p.maps.changes.FD(), 2*buckets*4),
		asm.Add.Reg(asm.R1, asm.R8),
		asm.Mov.Imm(asm.R2, 1),
		asm.StoreXAdd(asm.R1, asm.R2, asm.Word),
	)
	c.label("out")
	c.end(1)
}
