package replay

import (
	"bytes"
	"encoding/binary"

	"github.com/verdictd/verdictd/packet"
)

// Attributes of NFLOG. Their values are in network byte order.
//
// Source: enum nfulnl_attr_type, include/uapi/linux/netfilter/nfnetlink_log.h.
const (
	nflogPacketHeader = 1
	nflogMark         = 2
	nflogInDev        = 4
	nflogOutDev       = 5
	nflogPhysInDev    = 6
	nflogPhysOutDev   = 7
	nflogPayload      = 9
	nflogPrefix       = 10
	nflogUID          = 11
	nflogGID          = 14
)

const familyBridge = 7 // NFPROTO_BRIDGE

// nflog takes off the attributes around a packet that the kernel logged. The
// capture's timestamp is kept: an attribute with another one is rare.
//
// Source: https://www.tcpdump.org/linktypes/LINKTYPE_NFLOG.html.
func (l *link) nflog(order binary.ByteOrder, b []byte) {
	if len(b) < 4 {
		l.broken = "NFLOG header cut short"
		return
	}
	family := b[0]
	l.EtherType = etherTypeOfFamily(uint32(family))
	l.placed = true
	for b = b[4:]; len(b) > 0; {
		if len(b) < 4 {
			l.broken = "NFLOG attribute cut short"
			return
		}
		n, kind := int(order.Uint16(b)), order.Uint16(b[2:])&0x7fff
		if n < 4 {
			l.broken = "NFLOG attribute shorter than its header"
			return
		}
		value := b[4:min(n, len(b))]
		if kind == nflogPayload {
			l.setPayload(value, n-4)
		} else if len(value) == n-4 {
			l.setAttribute(kind, value, family)
		}
		b = b[min(pad4(n), len(b)):]
	}
	if l.rest == nil {
		l.broken = "NFLOG record without a packet"
	}
}

// setPayload takes the packet. NFLOG may have copied only the first bytes
// of it; the kernel has checked its header, so its length is the true one.
func (l *link) setPayload(b []byte, length int) {
	l.rest = b
	l.wire = uint32(length)
	switch {
	case l.EtherType == packet.EtherTypeIPv4 && len(b) >= 20:
		l.wire = max(l.wire, uint32(binary.BigEndian.Uint16(b[2:])))
	case l.EtherType == packet.EtherTypeIPv6 && len(b) >= 40:
		l.wire = max(l.wire, 40+uint32(binary.BigEndian.Uint16(b[4:])))
	}
}

func (l *link) setAttribute(kind uint16, value []byte, family byte) {
	if kind == nflogPrefix {
		l.prefix = bytes.TrimRight(value, "\x00")
		return
	}
	if len(value) != 4 {
		return
	}
	n := binary.BigEndian.Uint32(value)
	switch kind {
	case nflogPacketHeader:
		if family == familyBridge {
			l.EtherType = binary.BigEndian.Uint16(value)
		}
		l.Hook, l.hasHook = packet.Hook(value[2]), value[2] <= uint8(packet.Postrouting)
	case nflogMark:
		l.Mark = n
	case nflogInDev:
		l.In = n
	case nflogOutDev:
		l.Out = n
	case nflogPhysInDev:
		l.PhysIn = n
	case nflogPhysOutDev:
		l.PhysOut = n
	case nflogUID:
		l.UID, l.HasUID = n, true
	case nflogGID:
		l.GID, l.HasGID = n, true
	}
}
