package logsink

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/packet"
)

// Attributes of a packet (enum nfulnl_attr_type), include/uapi/linux/netfilter/nfnetlink_log.h.
const (
	nfulnlMsgPacket       = 0
	nfulaPacketHdr        = 1
	nfulaMark             = 2
	nfulaTimestamp        = 3
	nfulaIfindexInDev     = 4
	nfulaIfindexOutDev    = 5
	nfulaIfindexPhysInDev = 6
	nfulaIfindexPhysOut   = 7
	nfulaPayload          = 9
	nfulaPrefix           = 10
	nfulaUID              = 11
	nfulaSeq              = 12
	nfulaGID              = 14
)

// logged is a packet that the kernel reported. The slices are lent.
type logged struct {
	meta    packet.Meta
	payload []byte
	prefix  []byte
	seq     uint32
	hasSeq  bool
}

// parse reads the attributes of m, overwriting all of l. now stands for the
// time where the kernel gives none: in OUTPUT and POSTROUTING. It returns
// whether m could be read.
func (l *logged) parse(m *nfnl.Message, now int64) bool {
	*l = logged{meta: packet.Meta{Time: now, Queue: m.ResID, EtherType: etherType(m.Family)}}
	a := nfnl.NewAttrs(m.Attrs)
	for a.Next() {
		switch a.Type() {
		case nfulaPacketHdr:
			l.header(a.Bytes())
		case nfulaTimestamp:
			l.timestamp(a.Bytes())
		case nfulaMark:
			l.meta.Mark = a.Uint32()
		case nfulaIfindexInDev:
			l.meta.In = a.Uint32()
		case nfulaIfindexOutDev:
			l.meta.Out = a.Uint32()
		case nfulaIfindexPhysInDev:
			l.meta.PhysIn = a.Uint32()
		case nfulaIfindexPhysOut:
			l.meta.PhysOut = a.Uint32()
		case nfulaPayload:
			l.payload = a.Bytes()
		case nfulaPrefix:
			l.prefix = untilNUL(a.Bytes())
		case nfulaUID:
			l.meta.UID, l.meta.HasUID = a.Uint32(), true
		case nfulaGID:
			l.meta.GID, l.meta.HasGID = a.Uint32(), true
		case nfulaSeq:
			l.seq, l.hasSeq = a.Uint32(), true
		}
	}
	return a.Err() == nil && !m.Truncated
}

// header reads struct nfulnl_msg_packet_hdr: EtherType and hook.
func (l *logged) header(b []byte) {
	if len(b) < 3 {
		return
	}
	if proto := binary.BigEndian.Uint16(b); proto != 0 {
		l.meta.EtherType = proto
	}
	l.meta.Hook = packet.Hook(b[2])
}

// timestamp reads struct nfulnl_msg_packet_timestamp: seconds and
// microseconds.
func (l *logged) timestamp(b []byte) {
	if len(b) < 16 {
		return
	}
	l.meta.Time = int64(binary.BigEndian.Uint64(b))*1e9 + int64(binary.BigEndian.Uint64(b[8:]))*1e3
}

// etherType returns what the family of a message says about its packet.
func etherType(family uint8) uint16 {
	switch family {
	case unix.AF_INET:
		return packet.EtherTypeIPv4
	case unix.AF_INET6:
		return packet.EtherTypeIPv6
	}
	return 0
}

// wireLength returns how long the packet was before the kernel cut it to
// copyRange bytes. The kernel does not say, so a packet of just that length is
// as long as its IP header says.
func wireLength(b []byte, copyRange uint32) uint32 {
	n := uint32(len(b))
	if n < copyRange || n < 20 {
		return n
	}
	if b[0]>>4 == 6 {
		return max(n, 40+uint32(binary.BigEndian.Uint16(b[4:])))
	}
	return max(n, uint32(binary.BigEndian.Uint16(b[2:])))
}

// handle puts the packet of one message into the ring.
func (n *NFLogReader) handle(m *nfnl.Message, now int64) {
	if m.IsError || m.Type != nfnl.Type(unix.NFNL_SUBSYS_ULOG, nfulnlMsgPacket) {
		return
	}
	ok := n.in.parse(m, now)
	if g := n.group(m.ResID); g != nil && n.in.hasSeq {
		n.count(g, ok)
	}
	if !ok {
		n.malformed.Add(1)
		return
	}
	n.events.Add(1)
	n.in.meta.Length = wireLength(n.in.payload, n.cfg.CopyRange)
	n.decoder.Decode(&n.in.meta, n.in.payload, &n.packet)
	e := n.ring.Next()
	if e == nil {
		return
	}
	*e = Event{Kind: NFLog, NFLogLabel: n.intern(n.in.prefix), In: n.name(n.in.meta.In), Out: n.name(n.in.meta.Out)}
	e.SetPacket(&n.in.meta, &n.packet)
	if e.Length == 0 {
		e.Length = n.in.meta.Length
	}
	n.ring.Commit()
}

// count counts the events between the last one of the group and this one,
// which itself counts as lost unless it could be read.
func (n *NFLogReader) count(g *nflogGroup, ok bool) {
	lost := uint64(n.in.seq - g.next)
	if g.unsure {
		g.unsure, lost = false, 0
	}
	if !ok {
		lost++
	}
	g.next = n.in.seq + 1
	g.lost += lost
	n.lost.Add(lost)
}

func (n *NFLogReader) group(number uint16) *nflogGroup {
	for i := range n.groups {
		if n.groups[i].number == number {
			return &n.groups[i]
		}
	}
	return nil
}

func (n *NFLogReader) name(index uint32) string {
	if index == 0 {
		return ""
	}
	return n.cfg.InterfaceName(index)
}

// intern returns b as a string. Prefixes come from rules, so there are few of
// them: each is copied once.
func (n *NFLogReader) intern(b []byte) string {
	if s, ok := n.prefixes[string(b)]; ok {
		return s
	}
	if len(n.prefixes) == maxPrefixes {
		clear(n.prefixes)
	}
	s := string(b)
	n.prefixes[s] = s
	return s
}

func untilNUL(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}
