package nfnl

import (
	"encoding/binary"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	headerLen  = unix.SizeofNlMsghdr    // struct nlmsghdr
	genLen     = 4                      // struct nfgenmsg
	errorLen   = unix.SizeofNlMsgerr    // struct nlmsgerr: errno and the request's header
	attrLen    = unix.SizeofNlAttr      // struct nlattr
	attrMask   = 0x3fff                 // NLA_TYPE_MASK: strips NLA_F_NESTED and NLA_F_NET_BYTEORDER
	minType    = unix.NLMSG_MIN_TYPE    // types below it are netlink's own
	typeErr    = unix.NLMSG_ERROR       // error or acknowledgement
	typeOver   = unix.NLMSG_OVERRUN     // the kernel lost messages
	errAttrMsg = unix.NLMSGERR_ATTR_MSG // text of an extended acknowledgement
)

// Type returns the message type of message msg of a nfnetlink subsystem.
func Type(subsystem, msg uint8) uint16 { return uint16(subsystem)<<8 | uint16(msg) }

// Header is a netlink message header (struct nlmsghdr) without its length.
type Header struct {
	Type   uint16
	Flags  uint16 // NLM_F_*
	Seq    uint32
	PortID uint32
}

// Message is one received message. Its owner reuses it.
//
// Attrs is lent: valid until the Conn's next Recv or TryRecv.
type Message struct {
	Header
	Family uint8  // nfgenmsg: AF_INET, AF_INET6, AF_BRIDGE ...; not for errors
	ResID  uint16 // nfgenmsg: queue or group number
	Attrs  []byte // attributes, to be walked with Attrs

	// Truncated says that the message did not fit into its buffer: Attrs ends
	// in the middle.
	Truncated bool

	// IsError says that the message answers a request of ours: Request is its
	// header as we sent it, Errno why the kernel refused it, or 0 if it is an
	// acknowledgement. Attrs then holds the extended acknowledgement, if any.
	IsError bool
	Errno   syscall.Errno
	Request Header
}

// decode decodes the first message of b into m, overwriting all of it, and
// returns what follows. cut says that the datagram was longer than b. ok is
// false if b does not start with a whole message; then nothing that follows
// can be found either.
func (m *Message) decode(b []byte, cut bool) (rest []byte, ok bool) {
	*m = Message{}
	if len(b) < headerLen {
		return nil, false
	}
	n := uint64(binary.NativeEndian.Uint32(b))
	if n < headerLen || n > uint64(len(b)) && !cut {
		return nil, false
	}
	m.Truncated = n > uint64(len(b))
	n = min(n, uint64(len(b)))
	m.Header = decodeHeader(b)
	rest = b[min(align(int(n)), len(b)):]
	return rest, m.decodeBody(b[headerLen:n])
}

func decodeHeader(b []byte) Header {
	return Header{
		Type:   binary.NativeEndian.Uint16(b[4:]),
		Flags:  binary.NativeEndian.Uint16(b[6:]),
		Seq:    binary.NativeEndian.Uint32(b[8:]),
		PortID: binary.NativeEndian.Uint32(b[12:]),
	}
}

func (m *Message) decodeBody(b []byte) bool {
	switch {
	case m.Type == typeErr:
		return m.decodeError(b)
	case m.Type < minType:
		return true
	case len(b) < genLen:
		return false
	}
	m.Family, m.ResID = b[0], binary.BigEndian.Uint16(b[2:])
	m.Attrs = b[genLen:]
	return true
}

// decodeError decodes a struct nlmsgerr. The kernel repeats the request's
// payload before the attributes unless the message is flagged as capped.
func (m *Message) decodeError(b []byte) bool {
	if len(b) < errorLen {
		return false
	}
	m.IsError = true
	m.Errno = syscall.Errno(-int32(binary.NativeEndian.Uint32(b)))
	m.Request = decodeHeader(b[4:])
	skip := uint64(errorLen)
	if m.Flags&unix.NLM_F_CAPPED == 0 {
		skip = 4 + uint64(align32(binary.NativeEndian.Uint32(b[4:])))
	}
	if m.Flags&unix.NLM_F_ACK_TLVS != 0 && skip < uint64(len(b)) {
		m.Attrs = b[skip:]
	}
	return true
}

// text returns the kernel's explanation in an extended acknowledgement, or "".
func (m *Message) text() string {
	for a := NewAttrs(m.Attrs); a.Next(); {
		if a.Type() == errAttrMsg {
			return a.String()
		}
	}
	return ""
}

func align(n int) int { return (n + 3) &^ 3 }

func align32(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
