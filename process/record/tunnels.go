package record

import (
	"fmt"
	"io"

	"github.com/cilium/ebpf/asm"
)

// tunnelsPart is the name of the program that marks the sockets by which tunnels
// receive, and udpSockets the iterator it is of.
const (
	tunnelsPart = "tunnels"
	udpSockets  = "udp"
)

// Offset in struct bpf_iter__udp, net/ipv4/udp.c. It is the kernel's interface.
const iterUDP = 8

// encapsulations are what sockets are for that the kernel opens on behalf of whoever
// configures it: VXLAN, Geneve, WireGuard, FOU and the like have the first; then L2TP
// and GTP. What a program asks for by a socket of its own (RxRPC) has another.
//
// Source: UDP_ENCAP_..., include/uapi/linux/udp.h; struct udp_tunnel_sock_cfg.
var encapsulations = [...]int32{1, 3, 4, 5}

// tunnels notes of each UDP socket that the kernel has made whether a tunnel receives
// by it.
func (p *programs) tunnels() asm.Instructions {
	o, c := p.offsets, &code{}
	c.add(asm.LoadMem(asm.R7, asm.R1, iterUDP, asm.DWord), asm.JEq.Imm(asm.R7, 0, "out"))
	c.zero(slotBottom, -int(slotBottom))
	c.probe(slotTemp, 1, asm.R7, o.kernSock)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, slotTemp, asm.Byte),
		asm.And.Imm(asm.R1, int32(o.kernMask)), asm.JEq.Imm(asm.R1, 0, "out"),
		asm.Mov.Reg(asm.R1, asm.R7), asm.FnGetSocketCookie.Call(),
		asm.StoreMem(asm.R10, slotCookie, asm.R0, asm.DWord),
	)
	c.probe(slotTemp, 1, asm.R7, o.udpEncap)
	c.add(asm.LoadMem(asm.R1, asm.R10, slotTemp, asm.Byte))
	for _, kind := range encapsulations {
		c.add(asm.JEq.Imm(asm.R1, kind, "tunnel"))
	}
	p.unclear(c)
	c.add(asm.Ja.Label("out"))
	c.label("tunnel")
	p.ofKernel(c, ownerTunnel)
	c.stack(asm.R3, slotOwner)
	c.update(p.maps.owners.FD(), slotCookie, updateNew)
	c.label("out")
	c.end(0)
	return c.ins
}

// FindTunnels notes by which UDP sockets of the calling thread's network namespace the
// kernel receives for itself (VXLAN, WireGuard): those have Owner.Tunnel from then on,
// and others that the kernel has made have Owner.Unclear. Where the kernel cannot list
// sockets (before Linux 5.12) it does nothing.
//
// It takes about as long as a dump of all UDP sockets: it is not for the packet path.
func (r *Recorder) FindTunnels() error {
	if r.tunnels == nil {
		return nil
	}
	list, err := r.tunnels.Open()
	if err != nil {
		return fmt.Errorf("list UDP sockets of the kernel: open iterator: %w", err)
	}
	defer list.Close()
	if _, err := io.Copy(io.Discard, list); err != nil {
		return fmt.Errorf("list UDP sockets of the kernel: %w", err)
	}
	return nil
}
