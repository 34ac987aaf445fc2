package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/packet"
)

// ErrUnsupported says that the kernel lacks what was asked for.
var ErrUnsupported = errors.New("not supported by the kernel")

// errNoAnswer says that the kernel did not answer a request.
var errNoAnswer = errors.New("no answer from the kernel")

const (
	headSize    = unix.SizeofNlMsghdr
	requestSize = headSize + 8 + idSize // struct inet_diag_req_v2
	bufferSize  = 64 << 10              // the kernel fills at most 32 KiB of a dump
	answerTime  = time.Second           // the kernel answers within the request's send

	byFamily = 20 // SOCK_DIAG_BY_FAMILY, include/uapi/linux/sock_diag.h
	destroy  = 21 // SOCK_DESTROY

	allStates = 1<<(BoundInactive+1) - 1
)

// Conn asks about the sockets of one network namespace. It is for one goroutine.
type Conn struct {
	fd  int
	seq uint32
	has [256]bool // by protocol: the kernel can be asked about it
	req [requestSize]byte
	buf []byte
}

// Open returns a Conn for the network namespace that the file descriptor netns
// refers to, or that of the calling thread if it is 0. The descriptor is not
// kept. Close frees the socket.
//
// A kernel without diag support for TCP or UDP is an error that wraps
// ErrUnsupported; UDP-Lite and raw sockets may be missing.
func Open(netns int) (*Conn, error) {
	fd := -1
	err := inNamespace(netns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
		return err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("open sock_diag socket: %w: it needs CONFIG_INET_DIAG", ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("open sock_diag socket: %w", err)
	}
	c := newConn(fd)
	// Connected to the kernel, plain read and write do.
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		c.Close()
		return nil, fmt.Errorf("connect sock_diag socket: %w", err)
	}
	if err := c.probe(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// newConn makes a Conn of a connected, non-blocking datagram socket.
func newConn(fd int) *Conn { return &Conn{fd: fd, buf: make([]byte, bufferSize)} }

// Close frees the socket.
func (c *Conn) Close() error {
	if c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return unix.Close(fd)
}

// probe finds out which protocols the kernel knows, and makes it load what it
// has as modules: to a lookup it would say "no such socket" otherwise.
func (c *Conn) probe() error {
	for _, proto := range []uint8{ProtoTCP, ProtoUDP, ProtoUDPLite, ProtoRaw} {
		c.request(byFamily, unix.NLM_F_DUMP, unix.AF_INET, proto)
		c.setStates(0) // of no socket
		err := c.dump(func(*Socket) error { return nil })
		if err != nil && !isMissing(err) {
			return fmt.Errorf("ask for sockets of protocol %d: %w", proto, err)
		}
		c.has[proto] = err == nil
	}
	for proto, module := range map[uint8]string{ProtoTCP: "tcp_diag", ProtoUDP: "udp_diag"} {
		if !c.has[proto] {
			return fmt.Errorf("ask for sockets: %w: load it with: modprobe %s", ErrUnsupported, module)
		}
	}
	return nil
}

// isMissing says whether the error is that of a kernel without the handler of a
// protocol, or without any.
func isMissing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// Find is FindOn for sockets that are bound to no interface.
func (c *Conn) Find(k *packet.Key, incoming bool, s *Socket) (found bool, err error) {
	return c.FindOn(k, 0, incoming, s)
}

// FindOn looks up the local socket of a TCP, UDP or UDP-Lite packet: the one
// that receives it if it is incoming, else the one that sends it. iface is the
// index of the interface that the packet comes from or goes to: sockets bound to
// another, and with 0 those bound to any, are not found.
//
// Where TCP has no connection of these ends, the listener is found. So it is for
// a connection that is not yet established, as the kernel's own record of it has
// no owner. Ping and raw sockets are not found here: see ReadRaw.
//
// It writes s only if a socket is found. It sends one message and receives one
// (for such a connection two), waits for nobody and does not allocate.
func (c *Conn) FindOn(k *packet.Key, iface uint32, incoming bool, s *Socket) (found bool, err error) {
	if !c.has[k.Protocol] || k.Protocol == ProtoRaw {
		return false, nil
	}
	c.lookup(k, iface, incoming, true)
	found, err = c.one(s)
	if found && k.Protocol == ProtoTCP && s.State == SynRecv && s.Inode == 0 {
		pending := *s
		c.lookup(k, iface, incoming, false)
		if found, err = c.one(s); err == nil && !found {
			*s, found = pending, true
		}
	}
	if found {
		s.Protocol = k.Protocol
	}
	return found, err
}

// lookup fills the request. Without remote it asks for the listener.
func (c *Conn) lookup(k *packet.Key, iface uint32, incoming, remote bool) {
	family := uint8(unix.AF_INET)
	if k.Version == 6 {
		family = unix.AF_INET6
	}
	c.request(byFamily, 0, family, k.Protocol)
	local, peer, localPort, peerPort := &k.Src, &k.Dst, k.SrcPort, k.DstPort
	if incoming {
		local, peer, localPort, peerPort = peer, local, peerPort, localPort
	}
	id := c.id()
	// TCP wants the local end as source; UDP, for historical reasons as the
	// kernel says (udp_dump_one), as destination.
	src, dst, sport, dport := id[idSrc:], id[idDst:], id[idSport:], id[idDport:]
	if k.Protocol != ProtoTCP {
		src, dst, sport, dport = dst, src, dport, sport
	}
	putAddr(src, local, k.Version)
	binary.BigEndian.PutUint16(sport, localPort)
	if remote {
		putAddr(dst, peer, k.Version)
		binary.BigEndian.PutUint16(dport, peerPort)
	}
	binary.NativeEndian.PutUint32(id[idIf:], iface)
}

// putAddr writes the 16 bytes of an address; IPv4 comes in the last four, and
// goes to the first four.
func putAddr(to []byte, a *[16]byte, version uint8) {
	if version == 6 {
		copy(to, a[:])
		return
	}
	copy(to[:4], a[12:])
}

// Destroy closes a socket that Find or Dump has returned, if it is still the
// same: a connection is reset, and its owner gets ECONNABORTED; a UDP socket is
// disconnected. Needs CAP_NET_ADMIN.
//
// Errors: ErrUnsupported if the kernel lacks CONFIG_INET_DIAG_DESTROY or the
// protocol; an error that wraps ENOENT or ESTALE if the socket is gone.
func (c *Conn) Destroy(s *Socket) error {
	family := uint8(unix.AF_INET)
	if s.Family == 6 {
		family = unix.AF_INET6
	}
	c.request(destroy, unix.NLM_F_ACK, family, s.Protocol)
	// Here all protocols want the local end as source.
	id := c.id()
	binary.BigEndian.PutUint16(id[idSport:], s.Local.Port())
	binary.BigEndian.PutUint16(id[idDport:], s.Remote.Port())
	putIP(id[idSrc:idDst], s.Local.Addr())
	putIP(id[idDst:idIf], s.Remote.Addr())
	binary.NativeEndian.PutUint32(id[idIf:], s.Interface)
	binary.NativeEndian.PutUint32(id[idCookie:], uint32(s.Cookie))
	binary.NativeEndian.PutUint32(id[idCookie+4:], uint32(s.Cookie>>32))
	var none Socket
	switch found, err := c.one(&none); {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("destroy socket: %w (needs CAP_NET_ADMIN)", err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL) && !c.has[s.Protocol]:
		return fmt.Errorf("destroy socket: %w: it needs CONFIG_INET_DIAG_DESTROY", ErrUnsupported)
	case err != nil:
		return fmt.Errorf("destroy socket: %w", err)
	case !found:
		return fmt.Errorf("destroy socket: it is gone: %w", unix.ENOENT)
	}
	return nil
}

func putIP(to []byte, a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		copy(to, b[:])
		return
	}
	b := a.As16()
	copy(to, b[:])
}
