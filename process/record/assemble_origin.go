package record

import (
	"unsafe"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/packet"
)

// noMAC is the mac_header of a packet that no device has had in its hands.
//
// Source: skb_mac_header_was_set, include/linux/skbuff.h.
const noMAC = 0xffff

// origin reads the offsets by which a packet is told from one that is around it.
func (f *fields) origin(o *offsets) {
	o.skbInner = f.at("sk_buff", 2, "inner_network_header")
	o.skbMac = f.at("sk_buff", 2, "mac_header")
	o.skbRoute = f.at("sk_buff", 8, "_skb_refdst")
	o.sockProtocol = f.at("sock", 2, "sk_protocol")
	o.routeDev = f.at("dst_entry", 8, "dev")
	o.addrSock = f.at("bpf_sock_addr_kern", 8, "sk")
	o.udpEncap = f.at("udp_sock", 1, "encap_type")
	flags := f.find("net_device", "priv_flags")
	o.devFlags = int16(flags.offset / 8)
	if size, err := btf.Sizeof(flags.typ); err == nil && size == 8 && flags.width == 0 && nativeBig() {
		o.devFlags += 4
	}
	var bits *btf.Enum
	if f.err == nil && f.spec.TypeByName("netdev_priv_flags", &bits) == nil {
		for _, v := range bits.Values {
			if v.Name == "IFF_L3MDEV_SLAVE" {
				o.vrfPort = uint32(v.Value)
			}
		}
	}
}

// origin finds out whether the packet, of which R9 is the socket, was made by that
// socket. A tunnel puts a packet around another one, which carries the socket of the
// inner one on: it is the kernel's, whoever's packet is inside. It goes on if the
// packet is the socket's own; else the cookie is 0 and the record says whose it is,
// and it jumps to old.
//
// What a device has sent on, a tunnel or a VRF, has a MAC header; what a socket has
// made has none before it reaches the device. So a packet that does not fit its socket
// is a tunnel's if it has one, and if not it is nobody's (SCTP in UDP, segment routing)
// or was changed by NAT, which changes ports only.
//
// Registers: R7 is lost; R8 and R9 stay.
func (p *programs) origin(c *code) {
	o := p.offsets
	half := func(dst, src asm.Register, offset int16) {
		c.probe(flowAtTemp, 2, src, offset)
		c.add(asm.LoadMem(dst, asm.R10, flowAtTemp, asm.Half))
	}
	protocol := flowAtKey + int16(unsafe.Offsetof(flowKey{}.Protocol))
	half(asm.R1, asm.R6, o.skbInner)
	c.add(asm.JNE.Imm(asm.R1, 0, "outer"))
	half(asm.R7, asm.R6, o.skbMac)
	half(asm.R1, asm.R9, o.sockFamily)
	c.add(asm.JEq.Imm(asm.R1, unix.AF_INET, "internet"), asm.JNE.Imm(asm.R1, unix.AF_INET6, "doubt"))
	c.label("internet")
	c.probe(flowAtTemp, 1, asm.R9, o.sockState)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtTemp, asm.Byte),
		asm.Mov.Imm(asm.R2, packet.ProtoTCP),
		asm.JEq.Imm(asm.R1, tcpNewSynRecv, "protocol"), asm.JEq.Imm(asm.R1, tcpTimeWait, "protocol"),
	)
	half(asm.R1, asm.R9, o.sockType)
	c.add(asm.JEq.Imm(asm.R1, sockRaw, "raw"))
	half(asm.R2, asm.R9, o.sockProtocol)
	c.label("protocol")
	c.add(asm.LoadMem(asm.R1, asm.R10, protocol, asm.Byte), asm.JNE.Reg(asm.R1, asm.R2, "misfit"))
	for _, proto := range []int32{packet.ProtoICMP, packet.ProtoICMPv6} { // ping: an identifier
		c.add(asm.JEq.Imm(asm.R1, proto, "own"))
	}
	half(asm.R1, asm.R9, o.sockPort)
	c.add(
		asm.LoadMem(asm.R2, asm.R10, flowAtKey+int16(unsafe.Offsetof(flowKey{}.Ports)), asm.Half),
		asm.HostTo(asm.BE, asm.R2, asm.Half),
		asm.JNE.Reg(asm.R1, asm.R2, "port"),
	)
	p.sameNamespace(c)
	c.add(asm.Ja.Label("own"))
	c.label("port")
	c.add(asm.JEq.Imm(asm.R7, noMAC, "own")) // NAT
	p.inVRF(c)
	c.add(asm.Ja.Label("outer"))
	c.label("raw")
	p.rawPacket(c, protocol)
	c.label("misfit")
	c.add(asm.JEq.Imm(asm.R7, noMAC, "doubt"))
	c.label("outer")
	c.add(asm.Mov.Imm(asm.R1, flowOuter), asm.Ja.Label("other"))
	c.label("doubt")
	c.add(asm.Mov.Imm(asm.R1, flowDoubt))
	c.label("other")
	if p.arriving { // of nobody here: which kernel's it is, it does not say
		c.add(asm.Mov.Imm(asm.R1, 0))
	}
	c.add(
		asm.StoreMem(asm.R10, flowAtRecord+int16(unsafe.Offsetof(flowRecord{}.Flags)), asm.R1, asm.Word),
		asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.R10, flowAtCookie, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R9, 0),
		asm.Ja.Label("old"),
	)
	c.label("own")
}

// sameNamespace jumps to outer if the packet goes out in another network namespace than
// the socket's, to which nothing but a tunnel leads with the socket.
func (p *programs) sameNamespace(c *code) {
	const net = flowAtHeader
	if p.arriving {
		return
	}
	c.probe(net, 8, asm.R9, p.offsets.sockNet)
	p.route(c, "own")
	c.follow(asm.R1, asm.R1, p.offsets.devNet, flowAtTemp)
	c.add(asm.LoadMem(asm.R2, asm.R10, net, asm.DWord), asm.JNE.Reg(asm.R1, asm.R2, "outer"))
}

// route points R1 to the device by which the packet goes out, or jumps to none.
func (p *programs) route(c *code, none string) {
	const noReference = 1 // SKB_DST_NOREF, linux/skbuff.h
	c.follow(asm.R1, asm.R6, p.offsets.skbRoute, flowAtTemp)
	c.add(asm.And.Imm(asm.R1, ^noReference), asm.JEq.Imm(asm.R1, 0, none))
	c.follow(asm.R1, asm.R1, p.offsets.routeDev, flowAtTemp)
}

// inVRF jumps to doubt if the packet goes out by a device of a VRF: it passes the
// rules twice, the second time with a MAC header and perhaps with another port.
func (p *programs) inVRF(c *code) {
	o := p.offsets
	if p.arriving || o.vrfPort == 0 {
		return
	}
	p.route(c, "doubt")
	c.probe(flowAtTemp, 4, asm.R1, o.devFlags)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtTemp, asm.Word),
		asm.And.Imm(asm.R1, int32(o.vrfPort)), asm.JNE.Imm(asm.R1, 0, "doubt"),
	)
}

// rawPacket judges the packet of a raw socket, which may be of any protocol.
func (p *programs) rawPacket(c *code, protocol int16) {
	if !p.arriving {
		c.add(asm.JEq.Imm(asm.R7, noMAC, "own"), asm.Ja.Label("doubt"))
		return
	}
	c.probe(flowAtTemp, 2, asm.R9, p.offsets.sockProtocol)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtTemp, asm.Half),
		asm.LoadMem(asm.R2, asm.R10, protocol, asm.Byte),
		asm.JEq.Reg(asm.R1, asm.R2, "own"), asm.Ja.Label("doubt"),
	)
}

// namespace reads the cookie of the network namespace of the packet's socket to
// the stack and R1; 0 if it is of none.
func (p *programs) namespace(c *code) {
	o := p.offsets
	c.follow(asm.R3, asm.R6, o.skbSock, flowAtTemp)
	c.follow(asm.R3, asm.R3, o.sockNet, flowAtTemp)
	c.follow(asm.R1, asm.R3, o.netCookie, flowAtNetNS)
}

// sockRaw is SOCK_RAW of linux/net.h.
const sockRaw = 3

// kernelSocket marks packets of the sockets by which the kernel sends resets,
// ICMP and neighbour discovery: raw ones, made by itself.
func (p *programs) kernelSocket(c *code) {
	o, user := p.offsets, c.fresh()
	c.follow(asm.R9, asm.R6, o.skbSock, flowAtTemp)
	c.add(asm.JEq.Imm(asm.R9, 0, user))
	c.probe(flowAtTemp, 1, asm.R9, o.sockState)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtTemp, asm.Byte),
		asm.JEq.Imm(asm.R1, tcpNewSynRecv, user), asm.JEq.Imm(asm.R1, tcpTimeWait, user), // not whole sockets
	)
	c.probe(flowAtTemp, 2, asm.R9, o.sockType)
	c.add(asm.LoadMem(asm.R1, asm.R10, flowAtTemp, asm.Half), asm.JNE.Imm(asm.R1, sockRaw, user))
	c.probe(flowAtTemp, 1, asm.R9, o.kernSock)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtTemp, asm.Byte),
		asm.And.Imm(asm.R1, int32(o.kernMask)),
		asm.JEq.Imm(asm.R1, 0, user),
		asm.StoreImm(asm.R10, flowAtRecord+int16(unsafe.Offsetof(flowRecord{}.Flags)), flowKernel, asm.Word),
	)
	c.label(user)
}

// user puts into the key whom the kernel names with the packet when it queues it, just
// after this; nobody unless there are ports.
//
// Registers: R9 is lost. Source: nfqnl_put_sk_uidgid, net/netfilter/nfnetlink_queue.c.
func (p *programs) user(c *code) {
	var k flowKey
	o, none := p.offsets, c.fresh()
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtKey+int16(unsafe.Offsetof(k.Ports)), asm.Word),
		asm.JEq.Imm(asm.R1, 0, none),
	)
	c.follow(asm.R9, asm.R6, o.skbSock, flowAtTemp)
	c.add(asm.JEq.Imm(asm.R9, 0, none))
	c.probe(flowAtTemp, 1, asm.R9, o.sockState)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtTemp, asm.Byte),
		asm.JEq.Imm(asm.R1, tcpNewSynRecv, none), asm.JEq.Imm(asm.R1, tcpTimeWait, none), // not whole sockets
	)
	for _, next := range []int16{o.sockSocket, o.socketFile, o.fileCred} {
		c.follow(asm.R9, asm.R9, next, flowAtTemp)
		c.add(asm.JEq.Imm(asm.R9, 0, none))
	}
	c.probe(flowAtTemp, 4, asm.R9, o.credUser)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, flowAtTemp, asm.Word), asm.Add.Imm(asm.R1, 1), // as UserOf does
		asm.StoreMem(asm.R10, flowAtKey+int16(unsafe.Offsetof(k.User)), asm.R1, asm.Word),
	)
	c.label(none)
}
