package engine

import "github.com/verdictd/verdictd/packet"

// Bits of entry.tcp. Those named for direction 0 stand one place lower than
// those for direction 1.
const (
	seenFIN0 = 1 << iota
	seenFIN1
	seenRST
	seenACK0 // an ACK of a connection whose handshake was not seen
	seenACK1
	answered0 // a SYN/ACK that acknowledges the other direction's SYN
	answered1
	connected // both ends have shown that they read what the other sent
)

// inFlight bounds how far behind what is acknowledged a FIN or RST may lie: what
// may be under way. Who does not see the connection has to guess the rest.
const inFlight = 1 << 22

// track follows a TCP connection, of which p is a packet of direction dir that
// is counted already.
//
// Half a handshake is no connection: everybody can send a SYN in another's name,
// and it is answered. As in the kernel's connection tracking the sender of the
// SYN must acknowledge the number in the answer, which only reaches who really
// has that address. Connections that were there before are taken for such when
// both directions have sent an ACK: a host answers an ACK of no connection with
// RST. A SYN, FIN or RST that does not belong to the connection changes nothing.
//
// Source: tcp_conntracks, net/netfilter/nf_conntrack_proto_tcp.c; RFC 5961.
func (e *entry) track(p *packet.Packet, dir int) {
	flags := p.TCPFlags & (packet.SYN | packet.ACK | packet.FIN | packet.RST)
	known := e.tcp&connected != 0
	if known && flags == packet.ACK { // nearly all
		if p.AckNum-e.next[1-dir] < inFlight {
			e.next[1-dir] = p.AckNum
		}
		return
	}
	switch {
	case flags&packet.RST != 0:
		if e.belongs(p, dir) {
			e.tcp |= seenRST
		}
		return
	case flags&packet.SYN == 0 && !known:
		e.acknowledge(p, dir)
	case flags&packet.SYN != 0 && !known:
		e.handshake(p, dir)
	}
	if flags&packet.FIN != 0 && e.belongs(p, dir) {
		e.tcp |= seenFIN0 << dir
	}
}

// handshake takes note of a SYN or SYN/ACK.
func (e *entry) handshake(p *packet.Packet, dir int) {
	if e.next[dir] != p.Seq+1 { // not sent again, but another one
		e.next[dir] = p.Seq + 1
		e.tcp &^= seenACK0 | seenACK1 | answered0<<(1-dir)
	}
	if p.TCPFlags&packet.ACK == 0 || !e.reads(p, dir) {
		return
	}
	e.tcp |= answered0 << dir
	if e.tcp&answered0 != 0 && e.tcp&answered1 != 0 { // both began at once
		e.tcp |= connected
	}
}

// acknowledge takes note of a packet without SYN before the connection is known.
func (e *entry) acknowledge(p *packet.Packet, dir int) {
	switch {
	case p.TCPFlags&packet.ACK == 0:
	case e.tcp&(answered0<<(1-dir)) != 0:
		if e.reads(p, dir) {
			e.tcp |= connected
		}
	default:
		e.next[1-dir] = p.AckNum
		if e.tcp |= seenACK0 << dir; e.tcp&seenACK0 != 0 && e.tcp&seenACK1 != 0 || e.talks(p, dir) {
			e.tcp |= connected
		}
	}
}

// talks returns whether the packet shows a connection to a worker that sees what
// this host sends only: it sends data once the other end has acknowledged its SYN.
func (e *entry) talks(p *packet.Packet, dir int) bool {
	return e.slot[1-dir].peer && e.key.place == placeLocalLo+uint8(dir) && len(p.Payload) > 0
}

// reads returns whether the packet acknowledges what the other direction sent:
// its SYN and no more data than was counted.
func (e *entry) reads(p *packet.Packet, dir int) bool {
	return uint64(p.AckNum-e.next[1-dir]) <= e.bytes[1-dir]
}

// belongs returns whether a FIN or RST is of this connection, as far as it is
// known: its number is where the other end waits for more, or it refuses a SYN.
func (e *entry) belongs(p *packet.Packet, dir int) bool {
	switch {
	case e.next == [2]uint32{}:
		return true
	case e.tcp&connected == 0 && p.TCPFlags&packet.ACK != 0 && e.reads(p, dir):
		return true
	}
	return p.Seq-e.next[dir] < inFlight
}

func (e *entry) closed() bool {
	return e.tcp&seenRST != 0 || e.tcp&(seenFIN0|seenFIN1) == seenFIN0|seenFIN1
}

// noteCall notes whether all that was sent of flow e is what asks for its
// connection. The packet at hand is of direction dir.
func (w *Worker) noteCall(e *entry, dir int) {
	answers := w.pkt.TCPFlags&(packet.SYN|packet.ACK) == packet.SYN|packet.ACK
	switch {
	case w.pkt.Begins:
		if dir == int(e.initiator) {
			e.known |= calling
		}
		return
	case e.known&calling != 0:
		e.known &^= calling
		answers, dir = true, 1-int(e.initiator)
	}
	if answers && w.engine.peers != nil {
		w.engine.peers.answer(&e.key, 1-dir)
	}
}

// starts returns whether the packet at hand, of direction dir, begins a connection
// of its own, whatever was accepted in the other direction: a policy says who may
// start a flow. It does not if both ends ask for the same connection at once, which
// takes that the other end's request was not answered yet (RFC 9293 §3.5). The
// answers to an offloaded one are not seen: of that the ruleset tells.
func (w *Worker) starts(e *entry, dir int) bool {
	if !w.pkt.Begins || w.isReply() {
		return false
	}
	if e.known&calling == 0 || dir == int(e.initiator) || e.offloaded {
		return true
	}
	p := w.engine.peers
	if p == nil {
		return false
	}
	told, ok := p.accepted(&e.key, 1-dir, w.now.epoch, false)
	return !ok || told.answered
}
