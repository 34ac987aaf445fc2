package engine

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
)

// flowKey is the identity of a flow, the same for both directions: the two
// endpoints in a fixed order, and the place they are seen from.
//
// Addresses are words, and one is copied by words only: a load of 16 bytes that were
// just stored as two words waits for both.
type flowKey struct {
	lo, hi address
	flowKind
}

// address is an IPv6 or mapped IPv4 address as two numbers.
type address [2]uint64

func addressOf(b [16]byte) address {
	return address{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// bytes returns the address as it is on the wire.
func (a address) bytes() (b [16]byte) {
	binary.BigEndian.PutUint64(b[:8], a[0])
	binary.BigEndian.PutUint64(b[8:], a[1])
	return b
}

// above returns whether a is the greater one.
func (a address) above(b address) bool { return a[0] > b[0] || a[0] == b[0] && a[1] > b[1] }

// flowKind is the rest of a flowKey: one word.
type flowKind struct {
	loPort, hiPort uint16
	protocol       uint8
	version        uint8
	place          uint8
	asker          uint8 // ICMP echo: 1 if the lower endpoint sends the requests, 2 if the higher one does; else 0
}

// Places. A packet of a local socket is seen at OUTPUT and its reply at
// INPUT; over loopback one packet is seen at both, and these are two flows:
// that of the sender and that of the receiver.
const (
	placeForward uint8 = iota
	placeLocalLo       // the lower endpoint is this host
	placeLocalHi
	placeRouting // PREROUTING and POSTROUTING
)

// flowOf returns the flow of a packet with key k seen at hook, and its direction: 0
// if the lower endpoint sends.
func flowOf(k *packet.Key, hook packet.Hook) (f flowKey, dir int) {
	f.lo, f.hi = addressOf(k.Src), addressOf(k.Dst)
	f.flowKind = flowKind{loPort: k.SrcPort, hiPort: k.DstPort, protocol: k.Protocol, version: k.Version, asker: uint8(k.Echo)}
	return f, f.turn(hook)
}

// ofPacket makes f the flow of p. It is flowOf of its key, which is not made: it would
// be read before it is stored.
func (f *flowKey) ofPacket(p *packet.Packet, hook packet.Hook) (dir int) {
	f.lo, f.hi = addressOf(p.Src.As16()), addressOf(p.Dst.As16())
	f.flowKind = flowKind{protocol: p.Protocol, version: p.Version}
	if p.HasPorts {
		f.loPort, f.hiPort = p.SrcPort, p.DstPort
	} else if p.Echo {
		k := p.Key()
		f.loPort, f.hiPort, f.asker = k.SrcPort, k.DstPort, uint8(k.Echo)
	}
	return f.turn(hook)
}

// turn puts the endpoints of f, of which the first one sends, in order. It returns the
// direction.
func (f *flowKey) turn(hook packet.Hook) (dir int) {
	if f.lo.above(f.hi) || f.lo == f.hi && f.loPort > f.hiPort {
		f.lo, f.hi, f.loPort, f.hiPort = f.hi, f.lo, f.hiPort, f.loPort
		dir = 1
		if f.asker != 0 {
			f.asker = uint8(packet.EchoRequest+packet.EchoReply) - f.asker
		}
	}
	switch hook {
	case packet.Forward:
		f.place = placeForward
	case packet.Output:
		f.place = placeLocalLo + uint8(dir)
	case packet.Input:
		f.place = placeLocalHi - uint8(dir)
	default:
		f.place = placeRouting
	}
	return dir
}

// reverseHook is the hook at which the other direction of a flow is seen.
func reverseHook(h packet.Hook) packet.Hook {
	switch h {
	case packet.Output:
		return packet.Input
	case packet.Input:
		return packet.Output
	case packet.Prerouting:
		return packet.Postrouting
	case packet.Postrouting:
		return packet.Prerouting
	}
	return h
}

// slot is what one direction of a flow was told.
type slot struct {
	epoch    uint32 // of the snapshot that decided; 0: nothing decided
	decision uint32 // index in the worker's decisions of that epoch
	values   bitsOf // of the volatile fields that the decision depended on
	shape    uint16 // which fields these are; noReuse: the decision holds for one packet
	accept   bool   // the policy accepts: replies are established
	failed   bool   // the policy had no decision: ask again after errorHold
	peer     bool   // accepted by another worker
	logged   bool   // a FlowDecision event was written
	final    bool   // accepted, whatever the flow's later packets are like
	owned    bool   // the decision read who owns the socket: it holds for holder
}

// holder is the ID of the owner for whom the decision of an owned slot was made;
// 0 if nobody was asked, or if that is not known any more.
func (s *slot) holder() uint32 { return uint32(s.values[0]) }

// entry is a flow in the table. It holds no pointers, so that the garbage
// collector does not look at a table of millions.
type entry struct {
	key         flowKey
	id          uint64
	start, last int64 // Unix nanoseconds
	settles     int64 // Unix nanoseconds until which the owner is looked for at each packet
	packets     [2]uint64
	bytes       [2]uint64
	slot        [2]slot
	uid, gid    uint32    // of the initiator's socket
	next        [2]uint32 // TCP: by direction, the sequence number that the other end waits for, 0 if unknown
	owner       uint32    // of the local socket: its number in the worker's owners, 0 if none
	judged      uint32    // the one whom the policy saw last, likewise; 0 if it did not ask
	changes     uint32    // what Attributor.Changes said when the owner was looked for
	revision    uint32    // Attributor.Revision then
	sender      uint32    // and the user of the packet: see sender
	repeats     uint32    // dropped packets not yet reported
	reported    uint32    // Unix seconds of the last event about drops
	known       uint8     // hasUID ...
	initiator   uint8     // direction of the first packet
	tcp         uint8     // seenFIN0 ..., see track
	offloaded   bool      // the kernel was told to let the flow pass by
	reset       bool      // a connection that was let through, or had begun, before it was denied
	hook        packet.Hook
	pending     process.Facts // of the owner
	lacking     process.Facts // of them, what decisions about the flow read
	held        bool          // packets of the flow are held
}

// Bits of entry.known.
const (
	hasUID = 1 << iota
	hasGID
	hasPorts
	seen0 // a packet of direction 0 was seen
	seen1
	toldError // an ICMP error about the flow was logged
	toldOwner // a change of the owner was logged
	calling   // the initiator asked for a connection, and nothing else was sent since, see noteCall
)

// How long a flow is remembered after its last packet. The values for
// accepted flows are those of the kernel's connection tracking, so that a
// flow which the kernel still knows is not forgotten here.
//
// Source: tcp_timeouts, net/netfilter/nf_conntrack_proto_tcp.c.
const (
	holdTCPNew         = 2 * time.Minute // SYN_SENT
	holdTCPAnswered    = time.Minute     // SYN_RECV
	holdTCPEstablished = 5 * 24 * time.Hour
	holdTCPHalfClosed  = 2 * time.Minute // FIN_WAIT
	holdTCPClosed      = 30 * time.Second
	holdReplied        = 3 * time.Minute
	holdOneWay         = 30 * time.Second
	holdDropped        = 30 * time.Second
	errorHold          = time.Second
	repeatEvery        = 10 // seconds between two events about drops of one flow
)

// accepted returns whether some direction of the flow was accepted, by
// whatever snapshot.
func (e *entry) accepted() bool { return e.slot[0].accept || e.slot[1].accept }

// replied returns whether both directions have sent.
func (e *entry) replied() bool { return e.known&(seen0|seen1) == seen0|seen1 }

func (e *entry) hold() time.Duration {
	switch {
	case !e.accepted():
		return holdDropped
	case e.key.protocol == packet.ProtoTCP:
		return e.holdTCP()
	case e.replied():
		return holdReplied
	}
	return holdOneWay
}

func (e *entry) holdTCP() time.Duration {
	switch {
	case e.closed():
		return holdTCPClosed
	case e.tcp&connected != 0 && e.tcp&(seenFIN0|seenFIN1) != 0:
		return holdTCPHalfClosed
	case e.tcp&connected != 0:
		return holdTCPEstablished
	case e.tcp&(answered0|answered1) != 0:
		return holdTCPAnswered
	}
	return holdTCPNew
}

func (e *entry) expired(now int64) bool { return now-e.last > int64(e.hold()) }

// count notes a packet of direction dir.
func (e *entry) count(now int64, p *packet.Packet, dir int) {
	if now > e.last {
		e.last = now
	}
	e.known |= seen0 << dir
	e.packets[dir]++
	e.bytes[dir] += uint64(p.TotalLength)
	if p.Protocol == packet.ProtoTCP {
		e.track(p, dir)
	}
}

// endpoints returns the flow's addresses and ports as the initiator sends.
func (e *entry) endpoints() (src, dst netip.AddrPort) {
	addr := func(a address, port uint16) netip.AddrPort {
		ip := netip.AddrFrom16(a.bytes())
		if e.key.version == 4 {
			ip = ip.Unmap()
		}
		return netip.AddrPortFrom(ip, port)
	}
	src, dst = addr(e.key.lo, e.key.loPort), addr(e.key.hi, e.key.hiPort)
	if e.initiator == 1 {
		return dst, src
	}
	return src, dst
}
