package sockdiag

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Protocols that are asked about.
const (
	ProtoTCP     = unix.IPPROTO_TCP
	ProtoUDP     = unix.IPPROTO_UDP
	ProtoUDPLite = unix.IPPROTO_UDPLITE
	ProtoRaw     = unix.IPPROTO_RAW
)

// Socket is what the kernel tells about a socket. It has no pointers: it can be
// copied and kept.
type Socket struct {
	// Family is 4 or 6: that of the socket, not of the packet. A socket of
	// family 6 with IPv4 traffic has addresses such as ::ffff:10.0.0.1.
	Family   uint8
	Protocol uint8 // ProtoTCP, ProtoUDP, ProtoUDPLite or ProtoRaw

	// Local and Remote are the ends as the socket sees them: 0.0.0.0 or :: and
	// port 0 where it does not say. A raw socket's protocol is in Local's port.
	Local, Remote netip.AddrPort

	State State
	UID   uint32 // of the socket's creator, as the asker's user namespace numbers it

	// Inode is that of the socket's file, as in /proc/PID/fd: 0 if it has none,
	// not yet (not accepted) or no longer (closed); UID then says nothing.
	Inode uint32

	Cookie    uint64 // never 0, but for TCP in TIME-WAIT on older kernels
	CgroupID  uint64 // inode of the cgroup v2 directory; valid iff HasCgroup
	HasCgroup bool
	Mark      uint32 // SO_MARK; valid iff HasMark
	HasMark   bool   // the asker has CAP_NET_ADMIN
	Interface uint32 // index of the interface the socket is bound to, 0: none
	V6Only    bool   // IPV6_V6ONLY; valid iff Family is 6
}

// State is a socket's state. UDP and raw sockets are in Established (connected)
// or Close.
//
// Source: enum in include/net/tcp_states.h.
type State uint8

// States.
const (
	Established State = 1 + iota
	SynSent
	SynRecv
	FinWait1
	FinWait2
	TimeWait
	Close
	CloseWait
	LastAck
	Listen
	Closing
	newSynRecv // TCP_NEW_SYN_RECV: the kernel says SynRecv
	BoundInactive
)

// String returns the state as ss writes it.
func (s State) String() string {
	names := [...]string{
		Established: "ESTAB", SynSent: "SYN-SENT", SynRecv: "SYN-RECV", FinWait1: "FIN-WAIT-1", FinWait2: "FIN-WAIT-2",
		TimeWait: "TIME-WAIT", Close: "UNCONN", CloseWait: "CLOSE-WAIT", LastAck: "LAST-ACK", Listen: "LISTEN",
		Closing: "CLOSING", newSynRecv: "SYN-RECV", BoundInactive: "BOUND-INACTIVE",
	}
	if s == 0 || int(s) >= len(names) {
		return fmt.Sprintf("state(%d)", uint8(s))
	}
	return names[s]
}

// struct inet_diag_msg: family, state, timer, retransmits, 8 bits each; the
// identity (see idSize); expires, two queues, uid, inode, 32 bits each in host
// order.
const (
	msgSize  = 4 + idSize + 5*4
	uidAt    = 4 + idSize + 12
	inodeAt  = 4 + idSize + 16
	attrHead = 4 // struct nlattr: length with header and type, 16 bits each
)

// struct inet_diag_sockid: two ports, two addresses of 16 bytes, interface (32
// bits), cookie (two words, the low one first). Ports and addresses are in
// network order, the rest in host order. IPv4 takes the first four bytes of an
// address.
const (
	idSize   = 48
	idSport  = 0
	idDport  = 2
	idSrc    = 4
	idDst    = 20
	idIf     = 36
	idCookie = 40
)

// Attributes, include/uapi/linux/inet_diag.h.
const (
	attrProtocol = 10 // INET_DIAG_PROTOCOL, of raw sockets
	attrV6Only   = 11 // INET_DIAG_SKV6ONLY
	attrMark     = 15 // INET_DIAG_MARK
	attrCgroup   = 21 // INET_DIAG_CGROUP_ID
)

// parse reads struct inet_diag_msg and the attributes behind it into s, but for
// the protocol, which only the asker knows. It says whether the message is one:
// what is too short or of another family is not. Attributes that are cut short
// or of an unexpected length are passed over.
func (s *Socket) parse(b []byte) bool {
	if len(b) < msgSize {
		return false
	}
	id := b[4 : 4+idSize]
	*s = Socket{
		State:     State(b[1]),
		UID:       binary.NativeEndian.Uint32(b[uidAt:]),
		Inode:     binary.NativeEndian.Uint32(b[inodeAt:]),
		Interface: binary.NativeEndian.Uint32(id[idIf:]),
		Cookie: uint64(binary.NativeEndian.Uint32(id[idCookie:])) |
			uint64(binary.NativeEndian.Uint32(id[idCookie+4:]))<<32,
	}
	sport, dport := binary.BigEndian.Uint16(id[idSport:]), binary.BigEndian.Uint16(id[idDport:])
	switch b[0] {
	case unix.AF_INET:
		s.Family = 4
		s.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte(id[idSrc:])), sport)
		s.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte(id[idDst:])), dport)
	case unix.AF_INET6:
		s.Family = 6
		s.Local = netip.AddrPortFrom(netip.AddrFrom16([16]byte(id[idSrc:])), sport)
		s.Remote = netip.AddrPortFrom(netip.AddrFrom16([16]byte(id[idDst:])), dport)
	default:
		return false
	}
	s.attributes(b[msgSize:])
	return true
}

func (s *Socket) attributes(b []byte) {
	for len(b) >= attrHead {
		size := int(binary.NativeEndian.Uint16(b))
		if size < attrHead || size > len(b) {
			return
		}
		data := b[attrHead:size]
		switch kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER); {
		case kind == attrV6Only && len(data) == 1:
			s.V6Only = data[0] != 0
		case kind == attrMark && len(data) == 4:
			s.Mark, s.HasMark = binary.NativeEndian.Uint32(data), true
		case kind == attrCgroup && len(data) == 8:
			s.CgroupID, s.HasCgroup = binary.NativeEndian.Uint64(data), true
		}
		b = b[min(align4(size), len(b)):]
	}
}

func align4(n int) int { return (n + 3) &^ 3 }
