package nfnl

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Socket is an open, non-blocking NETLINK_NETFILTER socket: a netlink.Conn,
// or the os.File of a descriptor that was handed over.
type Socket interface {
	syscall.Conn
	SetReadDeadline(t time.Time) error
	Close() error
}

// Config says how a Conn receives. The zero value is usable.
type Config struct {
	Batch       int // datagrams read by one system call; 0 means 64
	MessageSize int // bytes of one datagram; what is longer is truncated; 0 means 8192
	RecvBuffer  int // bytes the kernel may hold for us; 0 leaves the system's default
}

// Stats counts what a Conn lost or could not read, since it was made.
type Stats struct {
	Overruns    uint64 // ENOBUFS: the kernel lost messages, it does not say how many
	Truncated   uint64 // datagrams longer than Config.MessageSize
	Malformed   uint64 // datagrams whose rest is not a netlink message
	SendRetries uint64 // sends repeated because the kernel was short of memory
}

// Conn is a nfnetlink socket. It is for one goroutine; only Stats, Drops,
// SetReadDeadline, SyscallConn and Close may be called from others.
type Conn struct {
	sock  Socket
	raw   syscall.RawConn
	rcv   int // receive buffer in force
	seq   uint32
	size  int
	slab  []byte // one buffer of size bytes per datagram
	hdrs  []mmsghdr
	iovs  []unix.Iovec
	n     int           // datagrams in the batch
	next  int           // first datagram not yet opened
	cur   datagram      // what Next has not yet returned of the opened datagram
	early []datagram    // datagrams that came while Request waited
	errno syscall.Errno // of the last system call
	out   []byte        // what write sends

	// The system calls as RawConn wants them, made once: a method value made
	// per call would allocate.
	read  func(fd uintptr) bool
	poll  func(fd uintptr)
	write func(fd uintptr) bool

	closed                                  atomic.Bool
	overruns, truncated, malformed, retries atomic.Uint64
}

// datagram is what one recv(2) gives: one or more messages.
type datagram struct {
	b   []byte
	cut bool // it was longer than its buffer
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// New takes over s: its receive buffer is set, ENOBUFS reports are switched
// off, and no one else may read from it. Close closes s. After an error s is
// still the caller's.
func New(s Socket, cfg Config) (*Conn, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if cfg.Batch == 0 {
		cfg.Batch = 64
	}
	if cfg.MessageSize == 0 {
		cfg.MessageSize = 8192
	}
	c := &Conn{sock: s, raw: raw}
	if err := c.setOptions(cfg.RecvBuffer); err != nil {
		return nil, err
	}
	c.makeBuffers(cfg.Batch, cfg.MessageSize)
	c.read = c.recvmmsg
	c.poll = func(fd uintptr) { c.recvmmsg(fd) }
	c.write = c.sendto
	return c, nil
}

// makeBuffers allocates what recvmmsg fills. The Go heap does not move.
func (c *Conn) makeBuffers(batch, size int) {
	c.size = (size + 63) &^ 63
	c.slab = make([]byte, batch*c.size)
	c.hdrs = make([]mmsghdr, batch)
	c.iovs = make([]unix.Iovec, batch)
	for i := range c.hdrs {
		c.iovs[i].Base = &c.slab[i*c.size]
		c.iovs[i].SetLen(c.size)
		c.hdrs[i].hdr.Iov = &c.iovs[i]
		c.hdrs[i].hdr.SetIovlen(1)
	}
}

// setOptions sizes the receive buffer, beyond net.core.rmem_max where we may,
// and sets the netlink options. An older kernel's lack of short or extended
// acknowledgements is no error: both forms are understood.
func (c *Conn) setOptions(rcv int) error {
	var err error
	ctlErr := c.raw.Control(func(p uintptr) {
		fd := int(p)
		if rcv > 0 && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rcv) != nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, rcv)
		}
		if err != nil {
			return
		}
		if c.rcv, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF); err != nil {
			return
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1)
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return fmt.Errorf("configure netlink socket: %w", err)
	}
	return nil
}

// Recv reads one batch, of at least one datagram, for Next to walk. It waits
// for one to come. While Next has messages left, Recv does nothing.
//
// Errors: os.ErrDeadlineExceeded, os.ErrClosed, or an unexpected error of
// recvmmsg(2). ENOBUFS is not an error: the kernel lost messages, counted in
// Stats.Overruns, and the batch may be empty.
func (c *Conn) Recv() error {
	if c.Pending() {
		return nil
	}
	if err := c.raw.Read(c.read); err != nil {
		return c.ioError(err)
	}
	return c.received()
}

// TryRecv is Recv without waiting and without regard to the deadline: the
// batch is empty if nothing is there.
func (c *Conn) TryRecv() error {
	if c.Pending() {
		return nil
	}
	if err := c.raw.Control(c.poll); err != nil {
		return c.ioError(err)
	}
	return c.received()
}

// Pending says whether Next has messages left: whether TryRecv found any.
func (c *Conn) Pending() bool { return len(c.early) > 0 || len(c.cur.b) > 0 || c.next < c.n }

// recvmmsg reads a batch. It returns false if there is nothing to read yet.
//
// A raw system call is right here because this one cannot block.
func (c *Conn) recvmmsg(fd uintptr) bool {
	c.next, c.n = 0, 0
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&c.hdrs[0])),
			uintptr(len(c.hdrs)), unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if c.errno = errno; errno == 0 {
			c.n = int(n)
		}
		return errno != unix.EAGAIN
	}
}

func (c *Conn) received() error {
	switch c.errno {
	case 0, unix.EAGAIN:
		return nil
	case unix.ENOBUFS:
		c.overruns.Add(1)
		return nil
	}
	return os.NewSyscallError("recvmmsg", c.errno)
}

// Next decodes the next message of the batch into m; false means that the
// batch is done. Control messages of netlink itself are skipped. What cannot
// be decoded is counted and skipped.
func (c *Conn) Next(m *Message) bool {
	for {
		if len(c.cur.b) == 0 && !c.open() {
			return false
		}
		rest, ok := m.decode(c.cur.b, c.cur.cut)
		c.cur.b = rest
		switch {
		case !ok:
			c.malformed.Add(1)
			c.cur.b = nil
		case m.Type == typeOver:
			c.overruns.Add(1)
		case m.IsError || m.Type >= minType:
			return true
		}
	}
}

// open makes the next datagram the one that Next walks. Those that came while
// Request waited come first. false means that there is none.
func (c *Conn) open() bool {
	switch {
	case len(c.early) > 0:
		c.cur, c.early = c.early[0], c.early[1:]
	case c.next < c.n:
		c.cur = c.take()
	default:
		return false
	}
	return true
}

// take takes the next datagram out of the batch.
func (c *Conn) take() datagram {
	h := &c.hdrs[c.next]
	start := c.next * c.size
	c.next++
	d := datagram{b: c.slab[start : start+int(h.n)], cut: h.hdr.Flags&unix.MSG_TRUNC != 0}
	if d.cut {
		c.truncated.Add(1)
	}
	return d
}

// sendRetries bounds how often Send repeats: with the pauses, about 10 ms.
const sendRetries = 100

// Send sends b, one or more whole messages, as one datagram, which must be
// smaller than the socket's send buffer (at least 4 KiB). The kernel carries
// out the messages before Send returns; refusals come as messages with
// IsError. If the kernel is short of memory Send waits and repeats.
//
// An error means that none of the messages was carried out.
func (c *Conn) Send(b []byte) error {
	c.out = b
	defer func() { c.out = nil }()
	for try := 0; ; try++ {
		if err := c.raw.Write(c.write); err != nil {
			return c.ioError(err)
		}
		switch {
		case c.errno == 0:
			return nil
		case try == sendRetries, c.errno != unix.ENOBUFS && c.errno != unix.ENOMEM:
			return os.NewSyscallError("sendto", c.errno)
		}
		c.retries.Add(1)
		time.Sleep(100 * time.Microsecond)
	}
}

// sendto sends c.out to the kernel. It returns false if the socket is not
// ready. Sending to the kernel does not wait for a receiver, so a raw system
// call is right here too; see Request for messages that may sleep.
func (c *Conn) sendto(fd uintptr) bool {
	to := unix.RawSockaddrNetlink{Family: unix.AF_NETLINK}
	for {
		_, _, c.errno = unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&c.out[0])),
			uintptr(len(c.out)), unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(&to)), unix.SizeofSockaddrNetlink)
		if c.errno != unix.EINTR {
			return c.errno != unix.EAGAIN
		}
	}
}

// RecvBuffer returns the size of the kernel's receive buffer in bytes, as
// getsockopt(2) reports it: twice what was asked for, if all of it was given.
func (c *Conn) RecvBuffer() int { return c.rcv }

// Stats returns the counters.
func (c *Conn) Stats() Stats {
	return Stats{
		Overruns:    c.overruns.Load(),
		Truncated:   c.truncated.Load(),
		Malformed:   c.malformed.Load(),
		SendRetries: c.retries.Load(),
	}
}

// Drops returns how many datagrams the kernel could not put into the receive
// buffer since the socket was opened, modulo 2^32 (SO_MEMINFO).
func (c *Conn) Drops() (uint32, error) {
	var info [unix.SK_MEMINFO_VARS]uint32
	size := uint32(unsafe.Sizeof(info))
	var errno syscall.Errno
	err := c.raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err == nil && errno != 0 {
		err = os.NewSyscallError("getsockopt", errno)
	}
	return info[unix.SK_MEMINFO_DROPS], err
}

// SetReadDeadline sets when Recv gives up with os.ErrDeadlineExceeded; the
// zero time means never. A time in the past wakes a Recv that waits.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.ioError(c.sock.SetReadDeadline(t))
}

// SyscallConn gives access to the descriptor, for handing it over. Nothing
// may be read through it.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }

// Close closes the socket. A waiting Recv returns os.ErrClosed.
func (c *Conn) Close() error {
	c.closed.Store(true)
	return c.sock.Close()
}

// ioError gives an error that is due to Close the name that the os package
// gives it elsewhere.
func (c *Conn) ioError(err error) error {
	if err != nil && c.closed.Load() {
		return os.ErrClosed
	}
	return err
}
