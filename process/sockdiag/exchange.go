package sockdiag

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// request begins a request: struct nlmsghdr and struct inet_diag_req_v2 (family,
// protocol, wanted extensions, padding, 8 bits each, states, 32 bits in host
// order, identity) for a socket of any state and cookie.
func (c *Conn) request(kind, flags uint16, family, protocol uint8) {
	c.seq++
	c.req = [requestSize]byte{}
	b := c.req[:]
	binary.NativeEndian.PutUint32(b[0:], requestSize)
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(b[8:], c.seq)
	b[headSize], b[headSize+1] = family, protocol
	c.setStates(allStates)
	binary.NativeEndian.PutUint64(c.id()[idCookie:], ^uint64(0)) // INET_DIAG_NOCOOKIE twice
}

func (c *Conn) setStates(states uint32) { binary.NativeEndian.PutUint32(c.req[headSize+4:], states) }

func (c *Conn) id() []byte { return c.req[headSize+8:] }

// send sends the request.
func (c *Conn) send() error {
	for {
		_, err := unix.Write(c.fd, c.req[:])
		if err != unix.EINTR {
			return err
		}
	}
}

// receive reads one datagram. The kernel answers before the send returns, so it
// waits only for one that does not.
func (c *Conn) receive() ([]byte, error) {
	for {
		n, err := unix.Read(c.fd, c.buf)
		switch {
		case err == nil:
			return c.buf[:n], nil
		case err == unix.EINTR:
			continue
		case err != unix.EAGAIN:
			return nil, err
		}
		if err := c.wait(); err != nil {
			return nil, err
		}
	}
}

// wait waits until there is something to read.
func (c *Conn) wait() error {
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(answerTime/time.Millisecond))
	if err == nil && n == 0 {
		return errNoAnswer
	}
	if err == unix.EINTR {
		return nil
	}
	return err
}

// message is one netlink message, without its header.
type message struct {
	kind, flags uint16
	seq         uint32
	data        []byte
}

// next cuts one message off b. It says whether there is one: what does not fit
// is none.
func next(b []byte) (m message, rest []byte, ok bool) {
	if len(b) < headSize {
		return m, nil, false
	}
	size := uint64(binary.NativeEndian.Uint32(b))
	if size < headSize || size > uint64(len(b)) {
		return m, nil, false
	}
	m = message{
		kind:  binary.NativeEndian.Uint16(b[4:]),
		flags: binary.NativeEndian.Uint16(b[6:]),
		seq:   binary.NativeEndian.Uint32(b[8:]),
		data:  b[headSize:size],
	}
	return m, b[min(align4(int(size)), len(b)):], true
}

// errno returns the error in NLMSG_ERROR, or in the NLMSG_DONE of a dump that
// failed. 0 is none.
func (m message) errno() unix.Errno {
	if len(m.data) < 4 {
		return 0
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(m.data)))
}

// one sends the request and reads its one answer: a socket, an acknowledgement
// or an error. ENOENT is none: there is no such socket. Answers to earlier
// requests are passed over.
func (c *Conn) one(s *Socket) (found bool, err error) {
	if err := c.send(); err != nil {
		return false, err
	}
	for {
		b, err := c.receive()
		if err != nil {
			return false, err
		}
		for m, rest, ok := next(b); ok; m, rest, ok = next(rest) {
			if m.seq != c.seq {
				continue
			}
			switch m.kind {
			case byFamily:
				if !s.parse(m.data) {
					return false, errMalformed(len(m.data))
				}
				return true, nil
			case unix.NLMSG_ERROR:
				errno := m.errno()
				if errno == unix.ENOENT {
					return false, nil
				}
				if errno != 0 {
					return false, errno
				}
				return true, nil
			}
		}
	}
}

func errMalformed(size int) error {
	return fmt.Errorf("malformed answer of %d bytes from the kernel", size)
}

// dump sends the request and hands the sockets of its many answers to yield, in
// memory that is used again. After an error of yield the other answers are read
// and dropped, so that the Conn can be used further.
func (c *Conn) dump(yield func(*Socket) error) error {
	if err := c.send(); err != nil {
		return err
	}
	var s Socket
	var failed error
	protocol := c.req[headSize+1]
	for {
		b, err := c.receive()
		if err != nil {
			return err
		}
		for m, rest, ok := next(b); ok; m, rest, ok = next(rest) {
			if m.seq != c.seq {
				continue
			}
			if m.flags&unix.NLM_F_DUMP_INTR != 0 && failed == nil {
				failed = errInterrupted
			}
			switch m.kind {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if errno := m.errno(); errno != 0 && failed == nil {
					return errno
				}
				return failed
			case byFamily:
				if failed != nil || !s.parse(m.data) {
					continue
				}
				s.Protocol = protocol
				failed = yield(&s)
			}
		}
	}
}

// errInterrupted says that sockets came or went while they were listed, so that
// some may be missing.
var errInterrupted = errors.New("interrupted dump")

// maxDumps bounds how often an interrupted dump is begun anew.
const maxDumps = 5

// Dump hands every TCP, UDP, UDP-Lite and raw socket of the namespace to yield,
// IPv4 and IPv6, listeners included; raw ones only if the kernel can show them
// (CONFIG_INET_RAW_DIAG), else see ReadRaw. It stops at yield's first error and
// returns it, and the context's error when that is done.
//
// The Socket is lent: valid until yield returns, which must not use the Conn. If
// the kernel says that a list is incomplete it is read anew, and yield sees
// some sockets twice: the cookie tells. Sockets that come or go meanwhile may
// be missing all the same.
func (c *Conn) Dump(ctx context.Context, yield func(*Socket) error) error {
	checked := func(s *Socket) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return yield(s)
	}
	for _, protocol := range []uint8{ProtoTCP, ProtoUDP, ProtoUDPLite, ProtoRaw} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			if err := ctx.Err(); err != nil {
				return err
			}
			if !c.has[protocol] {
				continue
			}
			if err := c.dumpWhole(family, protocol, checked); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Conn) dumpWhole(family, protocol uint8, yield func(*Socket) error) error {
	for range maxDumps {
		c.request(byFamily, unix.NLM_F_DUMP, family, protocol)
		err := c.dump(yield)
		if errors.Is(err, errInterrupted) {
			continue
		}
		if errno, ok := err.(unix.Errno); ok { //nolint:errorlint // yield's errors stay as they are
			return fmt.Errorf("list sockets of protocol %d: %w", protocol, errno)
		}
		return err
	}
	return fmt.Errorf("list sockets of protocol %d: %w, %d times", protocol, errInterrupted, maxDumps)
}
