package record

import (
	"unsafe"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// arrive assembles the program for the tracepoint netif_receive_skb, where a packet
// of another network namespace of this host still has the socket that sent it, and
// has the interface already that it comes in by. It records the two together: so a
// record is believed only of packets that came the same way.
//
// A packet without a socket (of another machine, or one that a namespace forwards) can
// be none that is recorded: if there is a record of its tuple and interface, that is of
// nobody from then on. Interfaces by which no packet with a socket ever came are left
// alone after two loads.
//
// Registers as in flow; before, R8 is the device and R9 the socket.
func (p *programs) arrive() asm.Instructions {
	q := *p
	q.arriving = true
	o, c := p.offsets, &code{}
	in := flowAtKey + int16(unsafe.Offsetof(flowKey{}.In))
	c.add(asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord))
	c.zero(flowBottom, -int(flowBottom))
	c.follow(asm.R8, asm.R6, o.skbDev, flowAtTemp)
	c.add(asm.JEq.Imm(asm.R8, 0, "out"))
	c.probe(in, 4, asm.R8, o.devIndex)
	c.follow(asm.R9, asm.R6, o.skbSock, flowAtTemp)
	c.add(asm.JNE.Imm(asm.R9, 0, "sent"))
	q.interfaceAt(c)
	c.add(asm.LoadMem(asm.R1, asm.R1, 0, asm.Byte), asm.JEq.Imm(asm.R1, 0, "out"))
	c.label("sent")
	c.follow(asm.R1, asm.R8, o.devNet, flowAtTemp)
	c.follow(asm.R1, asm.R1, o.netCookie, flowAtTemp)
	c.add(
		asm.LoadImm(asm.R2, int64(p.own), asm.DWord), asm.JNE.Reg(asm.R1, asm.R2, "out"),
		asm.JEq.Imm(asm.R9, 0, "read"),
	)
	c.probe(flowAtTemp, 2, asm.R9, o.sockFamily)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtTemp, asm.Half),
		asm.JEq.Imm(asm.R1, unix.AF_INET, "inet"), asm.JNE.Imm(asm.R1, unix.AF_INET6, "read"), // AF_PACKET: anybody's
	)
	c.label("inet")
	c.probe(flowAtCookie, 8, asm.R9, o.sockCookie)
	c.label("read")
	c.probe(flowAtData, 8, asm.R6, o.skbData)
	c.probe(flowAtTemp, 4, asm.R6, o.skbDataLen)
	c.add(asm.LoadMem(asm.R8, asm.R10, flowAtTemp, asm.Word))
	c.probe(flowAtTemp, 4, asm.R6, o.skbLen)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtTemp, asm.Word),
		asm.Sub.Reg(asm.R1, asm.R8),
		asm.StoreMem(asm.R10, flowAtLength, asm.R1, asm.DWord),
	)
	q.network(c)
	q.transport(c)
	q.hash(c)
	q.compare(c)
	q.record(c)
	c.label("out")
	c.end(0)
	return c.ins
}

// loadLinear is load for a packet whose address is in flowAtData. What is not in one
// piece there is not read.
func (p *programs) loadLinear(c *code, at int16, size int32) {
	c.add(
		asm.Mov.Reg(asm.R3, asm.R2), asm.Add.Imm(asm.R3, size),
		asm.LoadMem(asm.R1, asm.R10, flowAtLength, asm.DWord),
		asm.JSGT.Reg(asm.R3, asm.R1, "out"),
		asm.LoadMem(asm.R3, asm.R10, flowAtData, asm.DWord), asm.Add.Reg(asm.R3, asm.R2),
	)
	c.stack(asm.R1, at)
	c.add(asm.Mov.Imm(asm.R2, size), asm.FnProbeReadKernel.Call(), asm.JNE.Imm(asm.R0, 0, "out"))
}

// interfaceAt points R1 to the byte of the interface that the packet came in by.
func (p *programs) interfaceAt(c *code) {
	c.add(
		asm.LoadMem(asm.R2, asm.R10, flowAtKey+int16(unsafe.Offsetof(flowKey{}.In)), asm.Word),
		asm.And.Imm(asm.R2, interfaces-1),
		asm.LoadMapValue(asm.R1, p.maps.interfaces.FD(), 0),
		asm.Add.Reg(asm.R1, asm.R2),
	)
}

// markInterface notes that flows are recorded that come in by the interface.
func (p *programs) markInterface(c *code) {
	p.interfaceAt(c)
	c.add(asm.StoreImm(asm.R1, 0, 1, asm.Byte))
}
