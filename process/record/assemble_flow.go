package record

import (
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/verdictd/verdictd/packet"
)

// The stack of the flow program.
const (
	flowAtKey    = -int16(unsafe.Sizeof(flowKey{}))
	flowAtRecord = flowAtKey - int16(unsafe.Sizeof(flowRecord{}))
	flowAtHeader = flowAtRecord - 24 // header bytes as read
	flowAtCookie = flowAtHeader - 8
	flowAtNetNS  = flowAtHeader - 16
	flowAtTemp   = flowAtHeader - 24
	flowAtData   = flowAtHeader - 32 // address of the IP header, and how many bytes are there
	flowAtLength = flowAtHeader - 40
	flowBottom   = flowAtLength
)

// Places in headers, RFC 791, RFC 8200, RFC 792 and RFC 4443.
const (
	ipv4Fragment, ipv4Protocol, ipv4Source, ipv4Destination = 6, 9, 12, 16
	ipv4Header, ipv6Header                                  = 20, 40
	ipv6Next, ipv6Source                                    = 6, 8
	fragmentOffset4, fragmentOffset6                        = 0x1fff, 0xfff8
	icmpID                                                  = 4
	hopByHop, routing, fragment, destination                = 0, 43, 44, 60
	maxExtensions                                           = 8
)

// ingressIfindex is where struct __sk_buff has the interface that a packet came
// in by; linux/bpf.h.
const ingressIfindex = 36

// netHeader makes bpf_skb_load_bytes_relative count from the IP header.
const netHeader = 1 // BPF_HDR_START_NET

// flow assembles the program that records which socket sends a packet: a socket
// filter that a rule calls, a match that never holds.
//
// Registers: R6 context, R7 offset of the transport header, then the record
// there was; R8 hash of the key; R9 protocol, then the owner.
func (p *programs) flow() asm.Instructions {
	c := &code{}
	c.add(asm.Mov.Reg(asm.R6, asm.R1))
	c.zero(flowBottom, -int(flowBottom))
	p.network(c)
	p.transport(c)
	p.hash(c)
	if p.offsets != nil {
		p.user(c)
	}
	p.compare(c)
	p.record(c)
	c.label("out")
	c.end(0)
	return c.ins
}

// load copies size bytes at an offset (in R2) from the IP header to the stack,
// or leaves the program.
func (p *programs) load(c *code, at int16, size int32) {
	if p.arriving {
		p.loadLinear(c, at, size)
		return
	}
	c.add(asm.Mov.Reg(asm.R1, asm.R6))
	c.stack(asm.R3, at)
	c.add(
		asm.Mov.Imm(asm.R4, size), asm.Mov.Imm(asm.R5, netHeader),
		asm.FnSkbLoadBytesRelative.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"),
	)
}

// network reads the IP header into the key. R7 becomes the offset of the
// transport header, R9 the protocol.
func (p *programs) network(c *code) {
	var k flowKey
	c.add(asm.Mov.Imm(asm.R2, 0))
	p.load(c, flowAtHeader, ipv4Header)
	c.add(
		asm.LoadMem(asm.R7, asm.R10, flowAtHeader, asm.Byte),
		asm.Mov.Reg(asm.R1, asm.R7), asm.RSh.Imm(asm.R1, 4),
		asm.StoreMem(asm.R10, flowAtKey+int16(unsafe.Offsetof(k.Version)), asm.R1, asm.Byte),
		asm.JEq.Imm(asm.R1, 6, "ipv6"),
		asm.JNE.Imm(asm.R1, 4, "out"),
		asm.LoadMem(asm.R1, asm.R10, flowAtHeader+ipv4Fragment, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.And.Imm(asm.R1, fragmentOffset4),
		asm.JNE.Imm(asm.R1, 0, "out"), // no ports in it
		asm.LoadMem(asm.R1, asm.R10, flowAtHeader+ipv4Source, asm.Word),
		asm.StoreMem(asm.R10, flowAtKey+12, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R10, flowAtHeader+ipv4Destination, asm.Word),
		asm.StoreMem(asm.R10, flowAtKey+28, asm.R1, asm.Word),
		asm.StoreImm(asm.R10, flowAtKey+10, 0xffff, asm.Half), // v4-mapped
		asm.StoreImm(asm.R10, flowAtKey+26, 0xffff, asm.Half),
		asm.LoadMem(asm.R9, asm.R10, flowAtHeader+ipv4Protocol, asm.Byte),
		asm.And.Imm(asm.R7, 15), asm.LSh.Imm(asm.R7, 2),
		asm.JGE.Imm(asm.R7, ipv4Header, "transport"),
		asm.Ja.Label("out"),
	)
	c.label("ipv6")
	c.add(asm.LoadMem(asm.R9, asm.R10, flowAtHeader+ipv6Next, asm.Byte), asm.Mov.Imm(asm.R2, ipv6Source))
	p.load(c, flowAtKey, 32)
	c.add(asm.Mov.Imm(asm.R7, ipv6Header))
	for range maxExtensions {
		p.extension(c)
	}
	for _, next := range []int32{hopByHop, routing, fragment, destination} {
		c.add(asm.JEq.Imm(asm.R9, next, "out"))
	}
}

// extension passes over one extension header, if R9 says that there is one. The
// same ones are passed over as in package packet: what is behind AH or ESP
// belongs to these.
func (p *programs) extension(c *code) {
	known, whole, next := c.fresh(), c.fresh(), c.fresh()
	c.add(
		asm.JEq.Imm(asm.R9, hopByHop, known), asm.JEq.Imm(asm.R9, routing, known),
		asm.JEq.Imm(asm.R9, destination, known), asm.JNE.Imm(asm.R9, fragment, "transport"),
	)
	c.label(known)
	c.add(asm.Mov.Reg(asm.R2, asm.R7))
	p.load(c, flowAtHeader, 8)
	c.add(
		asm.JNE.Imm(asm.R9, fragment, whole),
		asm.LoadMem(asm.R1, asm.R10, flowAtHeader+2, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.And.Imm(asm.R1, fragmentOffset6),
		asm.JNE.Imm(asm.R1, 0, "out"),
		asm.Add.Imm(asm.R7, 8),
		asm.Ja.Label(next),
	)
	c.label(whole)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtHeader+1, asm.Byte), // in units of 8 bytes, less one
		asm.LSh.Imm(asm.R1, 3),
		asm.Add.Imm(asm.R1, 8),
		asm.Add.Reg(asm.R7, asm.R1),
	)
	c.label(next)
	c.add(asm.LoadMem(asm.R9, asm.R10, flowAtHeader, asm.Byte))
}

// transport puts protocol and ports, or an echo's id, into the key.
func (p *programs) transport(c *code) {
	var k flowKey
	ports := flowAtKey + int16(unsafe.Offsetof(k.Ports))
	c.label("transport")
	c.add(asm.StoreMem(asm.R10, flowAtKey+int16(unsafe.Offsetof(k.Protocol)), asm.R9, asm.Byte))
	for _, proto := range []int32{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP, packet.ProtoDCCP} {
		c.add(asm.JEq.Imm(asm.R9, proto, "ports"))
	}
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtKey+int16(unsafe.Offsetof(k.Version)), asm.Byte),
		asm.JEq.Imm(asm.R1, 6, "icmp6"),
		asm.JNE.Imm(asm.R9, packet.ProtoICMP, "hash"),
		asm.Ja.Label("icmp"),
	)
	c.label("icmp6")
	c.add(asm.JNE.Imm(asm.R9, packet.ProtoICMPv6, "hash"))
	c.label("icmp")
	c.add(asm.Mov.Reg(asm.R2, asm.R7))
	p.load(c, flowAtHeader, 8)
	c.add(
		asm.LoadMem(asm.R2, asm.R10, flowAtHeader, asm.Byte),
		asm.LoadMem(asm.R1, asm.R10, flowAtKey+int16(unsafe.Offsetof(k.Version)), asm.Byte),
		asm.JEq.Imm(asm.R1, 6, "type6"),
		asm.JEq.Imm(asm.R2, packet.ICMPEchoRequest, "echo"),
		asm.JEq.Imm(asm.R2, packet.ICMPEchoReply, "echo"),
		asm.Ja.Label("hash"),
	)
	c.label("type6")
	c.add(
		asm.JEq.Imm(asm.R2, packet.ICMPv6EchoRequest, "echo"),
		asm.JNE.Imm(asm.R2, packet.ICMPv6EchoReply, "hash"),
	)
	c.label("echo")
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtHeader+icmpID, asm.Half),
		asm.StoreMem(asm.R10, ports, asm.R1, asm.Half),
		asm.StoreMem(asm.R10, ports+2, asm.R1, asm.Half),
		asm.Ja.Label("hash"),
	)
	c.label("ports")
	c.add(asm.Mov.Reg(asm.R2, asm.R7))
	p.load(c, ports, 4)
}

// hash computes what the function hash does into R8.
func (p *programs) hash(c *code) {
	c.label("hash")
	c.add(asm.Mov.Imm(asm.R8, 0))
	for i, factor := range []uint64{hash0, hash1, hash2, hash3, hash4} {
		c.add(
			asm.LoadMem(asm.R1, asm.R10, flowAtKey+int16(i)*8, asm.DWord),
			asm.LoadImm(asm.R2, int64(factor), asm.DWord),
			asm.Mul.Reg(asm.R1, asm.R2),
			asm.Add.Reg(asm.R8, asm.R1),
		)
	}
}

// compare leaves the program if the record there is says what it would say now.
// Else R7 is that record, or 0, and R9 the socket's owner, or 0.
func (p *programs) compare(c *code) {
	var r flowRecord
	c.add(asm.Mov.Imm(asm.R9, 0))
	if p.arriving { // the cookie has been read
		c.add(asm.LoadMem(asm.R0, asm.R10, flowAtCookie, asm.DWord), asm.JEq.Imm(asm.R0, 0, "old"))
	} else {
		c.add(
			asm.Mov.Reg(asm.R1, asm.R6), asm.FnGetSocketCookie.Call(),
			asm.StoreMem(asm.R10, flowAtCookie, asm.R0, asm.DWord),
			asm.JNE.Imm(asm.R0, 0, "socket"),
			// Of no socket and not made here: forwarded. Who sent it is not known here.
			asm.LoadMem(asm.R1, asm.R6, ingressIfindex, asm.Word),
			asm.JNE.Imm(asm.R1, 0, "out"),
			asm.Ja.Label("old"),
		)
	}
	c.label("socket")
	if p.offsets != nil { // unless the flow's last packet was this socket's own too
		c.lookup(p.maps.flows.FD(), flowAtKey)
		c.add(
			asm.JEq.Imm(asm.R0, 0, "look"),
			asm.LoadMem(asm.R1, asm.R0, int16(unsafe.Offsetof(r.Cookie)), asm.DWord),
			asm.LoadMem(asm.R2, asm.R10, flowAtCookie, asm.DWord),
			asm.JEq.Reg(asm.R1, asm.R2, "own"),
		)
		c.label("look")
		c.follow(asm.R9, asm.R6, p.offsets.skbSock, flowAtTemp)
		p.origin(c)
	}
	for _, owners := range []*ebpf.Map{p.maps.owners, p.maps.requests, p.maps.closed} {
		c.lookup(owners.FD(), flowAtCookie)
		c.add(asm.Mov.Reg(asm.R9, asm.R0), asm.JNE.Imm(asm.R9, 0, "old"))
	}
	c.label("old")
	c.lookup(p.maps.flows.FD(), flowAtKey)
	c.add(
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.JEq.Imm(asm.R7, 0, "first"),
		asm.LoadMem(asm.R1, asm.R7, int16(unsafe.Offsetof(r.Cookie)), asm.DWord),
		asm.LoadMem(asm.R2, asm.R10, flowAtCookie, asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, "record"),
		asm.LoadMem(asm.R1, asm.R10, flowAtRecord+int16(unsafe.Offsetof(r.Flags)), asm.Word),
		asm.JEq.Imm(asm.R1, 0, "same"),
		asm.LoadMem(asm.R2, asm.R7, int16(unsafe.Offsetof(r.Flags)), asm.Word),
		asm.And.Imm(asm.R2, flowOuter|flowDoubt),
		asm.JNE.Reg(asm.R1, asm.R2, "record"),
	)
	c.label("same")
	p.touch(c)
	c.add(
		asm.JEq.Imm(asm.R9, 0, "out"), // forgotten since, or never known
		asm.LoadMem(asm.R1, asm.R7, int16(unsafe.Offsetof(r.Owner)+unsafe.Offsetof(r.Owner.Stamp)), asm.DWord),
		asm.LoadMem(asm.R2, asm.R9, int16(unsafe.Offsetof(r.Owner.Stamp)), asm.DWord),
		asm.JEq.Reg(asm.R1, asm.R2, "out"),
		asm.Ja.Label("record"),
	)
	c.label("first")
	if p.arriving { // of no socket, and nothing to correct
		c.add(asm.LoadMem(asm.R1, asm.R10, flowAtCookie, asm.DWord), asm.JEq.Imm(asm.R1, 0, "out"))
	}
}

// touch notes a packet in the record R7, and goes on to make a new one if it was
// taken over from somebody else, whose packets cannot wait any more.
func (p *programs) touch(c *code) {
	var r flowRecord
	kept := c.fresh()
	c.add(
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.R7, int16(unsafe.Offsetof(r.Last)), asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R7, int16(unsafe.Offsetof(r.Flags)), asm.Word),
		asm.And.Imm(asm.R1, flowTaken),
		asm.JEq.Imm(asm.R1, 0, kept),
		asm.LoadMem(asm.R1, asm.R7, int16(unsafe.Offsetof(r.Made)), asm.DWord),
		asm.Sub.Reg(asm.R0, asm.R1),
		asm.LoadImm(asm.R1, int64(p.window), asm.DWord),
		asm.JGT.Reg(asm.R0, asm.R1, "record"),
	)
	c.label(kept)
}

// taken marks a record that is made in the place of R7, the record of a socket of
// another program, user or cgroup, whose packets can still wait.
func (p *programs) taken(c *code) {
	var r flowRecord
	plain, mark, first := c.fresh(), c.fresh(), c.fresh()
	owner := int16(unsafe.Offsetof(r.Owner))
	flags := int16(unsafe.Offsetof(r.Flags))
	c.add(
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.R10, flowAtRecord+int16(unsafe.Offsetof(r.Made)), asm.R0, asm.DWord),
		asm.StoreMem(asm.R10, flowAtRecord+int16(unsafe.Offsetof(r.Last)), asm.R0, asm.DWord),
		asm.JEq.Imm(asm.R7, 0, plain),
		// What waited when the record there is was made still does.
		asm.LoadMem(asm.R1, asm.R7, flags, asm.Word),
		asm.And.Imm(asm.R1, flowTaken),
		asm.JEq.Imm(asm.R1, 0, first),
		asm.LoadMem(asm.R1, asm.R7, int16(unsafe.Offsetof(r.Made)), asm.DWord),
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.Sub.Reg(asm.R2, asm.R1),
		asm.LoadImm(asm.R1, int64(p.window), asm.DWord),
		asm.JLE.Reg(asm.R2, asm.R1, mark),
	)
	c.label(first)
	c.add(
		// Of the same socket: whoever sends by it, it was there for both.
		asm.LoadMem(asm.R1, asm.R7, int16(unsafe.Offsetof(r.Cookie)), asm.DWord),
		asm.LoadMem(asm.R2, asm.R10, flowAtCookie, asm.DWord),
		asm.JEq.Reg(asm.R1, asm.R2, plain),
	)
	if !p.arriving { // there, what is of no socket is a stranger's
		other := c.fresh()
		c.add(
			asm.JNE.Imm(asm.R1, 0, other),
			asm.LoadMem(asm.R1, asm.R7, flags, asm.Word),
			asm.And.Imm(asm.R1, flowOuter|flowDoubt),
			asm.JEq.Imm(asm.R1, 0, plain),
		)
		c.label(other)
	}
	c.add(
		asm.LoadMem(asm.R1, asm.R7, flags, asm.Word),
		asm.And.Imm(asm.R1, flowKernel),
		asm.JNE.Imm(asm.R1, 0, plain),
		asm.LoadMem(asm.R1, asm.R7, int16(unsafe.Offsetof(r.Last)), asm.DWord),
		asm.Sub.Reg(asm.R0, asm.R1),
		asm.LoadImm(asm.R1, int64(p.window), asm.DWord),
		asm.JGT.Reg(asm.R0, asm.R1, plain),
	)
	for _, of := range []struct {
		offset uintptr
		size   asm.Size
	}{
		{unsafe.Offsetof(r.Owner.Image), asm.DWord}, {unsafe.Offsetof(r.Owner.CgroupID), asm.DWord},
		{unsafe.Offsetof(r.Owner.UID), asm.Word}, {unsafe.Offsetof(r.Owner.GID), asm.Word},
	} {
		at := owner + int16(of.offset)
		c.add(
			asm.LoadMem(asm.R1, asm.R7, at, of.size),
			asm.LoadMem(asm.R2, asm.R10, flowAtRecord+at, of.size),
			asm.JNE.Reg(asm.R1, asm.R2, mark),
		)
	}
	c.add(asm.Ja.Label(plain))
	known := c.fresh()
	c.label(mark)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtRecord+flags, asm.Word),
		asm.Or.Imm(asm.R1, flowTaken),
		asm.LoadMem(asm.R2, asm.R7, flags, asm.Word),
		asm.Or.Reg(asm.R2, asm.R1),
		asm.And.Imm(asm.R2, flowOuter|flowDoubt|flowMixed),
		asm.JEq.Imm(asm.R2, 0, known),
		asm.Or.Imm(asm.R1, flowMixed),
	)
	c.label(known)
	c.add(
		asm.StoreMem(asm.R10, flowAtRecord+flags, asm.R1, asm.Word),
	)
	c.label(plain)
}

// record writes a new record of the flow, then says that it has changed: who
// reads the number first and the record second never keeps an old record with a
// new number.
func (p *programs) record(c *code) {
	var r flowRecord
	at := func(offset uintptr) int16 { return flowAtRecord + int16(offset) }
	c.label("record")
	c.add(
		asm.StoreMem(asm.R10, at(unsafe.Offsetof(r.Tuple)), asm.R8, asm.DWord),
		asm.LoadMem(asm.R1, asm.R10, flowAtCookie, asm.DWord),
		asm.StoreMem(asm.R10, at(unsafe.Offsetof(r.Cookie)), asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R10, flowAtKey+int16(unsafe.Offsetof(flowKey{}.In)), asm.Word),
		asm.StoreMem(asm.R10, at(unsafe.Offsetof(r.In)), asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R10, flowAtKey+int16(unsafe.Offsetof(flowKey{}.User)), asm.Word),
		asm.StoreMem(asm.R10, at(unsafe.Offsetof(r.User)), asm.R1, asm.Word),
		asm.JEq.Imm(asm.R9, 0, "nobody"),
	)
	p.copyOwner(c, asm.R9, at(unsafe.Offsetof(r.Owner)), flowAtCookie, "torn")
	c.add(
		asm.StoreImm(asm.R10, at(unsafe.Offsetof(r.Flags)), flowHasOwner, asm.Word),
		asm.LoadMem(asm.R1, asm.R10, at(unsafe.Offsetof(r.Owner)+unsafe.Offsetof(r.Owner.NetNS)), asm.DWord),
		asm.StoreMem(asm.R10, flowAtNetNS, asm.R1, asm.DWord),
		asm.Ja.Label("whose"),
	)
	c.label("torn")
	c.zero(at(unsafe.Offsetof(r.Owner)), ownerSize)
	c.label("nobody")
	if p.offsets != nil {
		c.add(
			asm.LoadMem(asm.R1, asm.R10, at(unsafe.Offsetof(r.Flags)), asm.Word),
			asm.JNE.Imm(asm.R1, 0, "whose"),
		)
		p.kernelSocket(c)
		p.namespace(c)
	}
	c.label("whose")
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtNetNS, asm.DWord),
		asm.StoreMem(asm.R10, at(unsafe.Offsetof(r.NetNS)), asm.R1, asm.DWord),
	)
	if p.arriving {
		p.markInterface(c)
	}
	p.taken(c)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtCookie, asm.DWord),
		asm.LoadMem(asm.R2, asm.R10, at(unsafe.Offsetof(r.Owner)+unsafe.Offsetof(r.Owner.Stamp)), asm.DWord),
		asm.Xor.Reg(asm.R1, asm.R2), asm.Xor.Reg(asm.R1, asm.R8),
		asm.StoreMem(asm.R10, at(unsafe.Offsetof(r.Check)), asm.R1, asm.DWord),
	)
	c.stack(asm.R3, flowAtRecord)
	c.update(p.maps.flows.FD(), flowAtKey, updateAny)
	c.countFailure(p.maps.counters.FD(), countFlows)
	c.add(
		asm.RSh.Imm(asm.R8, bucketShift), asm.LSh.Imm(asm.R8, 2),
		asm.LoadMapValue(asm.R1, p.maps.changes.FD(), 0),
		asm.Add.Reg(asm.R1, asm.R8),
		asm.Mov.Imm(asm.R2, 1),
		asm.StoreXAdd(asm.R1, asm.R2, asm.Word),
	)
}
