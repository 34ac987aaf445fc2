package nfnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Flags of a request. Request adds Acknowledge by itself.
const (
	FlagRequest     = unix.NLM_F_REQUEST
	FlagAcknowledge = unix.NLM_F_ACK
)

// Refusal is the kernel's refusal of a request.
type Refusal struct {
	Errno syscall.Errno
	Text  string // the kernel's explanation, empty if it gave none
}

// Error returns the kernel's reason.
func (r *Refusal) Error() string {
	if r.Text == "" {
		return r.Errno.Error()
	}
	return fmt.Sprintf("%v: %s", r.Errno, r.Text)
}

// Unwrap returns the errno, for errors.Is(err, syscall.EPERM).
func (r *Refusal) Unwrap() error { return r.Errno }

// ErrNoReply says that the kernel did not acknowledge a request in time.
var ErrNoReply = errors.New("the kernel did not answer")

// Request sends msg, one message, as a request and waits up to timeout until
// the kernel acknowledges it. It sets msg's flags and sequence number. Other
// messages that come meanwhile are kept for Next, in order. The read deadline
// is cleared.
//
// Errors: *Refusal, ErrNoReply, or those of sendto(2) and Recv.
func (c *Conn) Request(msg []byte, timeout time.Duration) error {
	c.seq++
	binary.NativeEndian.PutUint16(msg[6:], FlagRequest|FlagAcknowledge)
	binary.NativeEndian.PutUint32(msg[8:], c.seq)
	want := decodeHeader(msg)
	c.keepAll()
	if err := c.sendBlocking(msg); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	err := c.await(want)
	return errors.Join(err, c.SetReadDeadline(time.Time{}))
}

// sendBlocking sends a request that the kernel may sleep over (a lock, a
// module to be loaded): an ordinary system call, which frees the processor
// for other goroutines.
func (c *Conn) sendBlocking(msg []byte) error {
	var err error
	ctlErr := c.raw.Control(func(fd uintptr) {
		err = unix.Sendto(int(fd), msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	if ctlErr != nil {
		return c.ioError(ctlErr)
	}
	return os.NewSyscallError("sendto", err)
}

// await reads until the answer to want is there, keeping all other datagrams.
func (c *Conn) await(want Header) error {
	for {
		err := c.raw.Read(c.read)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return ErrNoReply
		}
		if err == nil {
			err = c.received()
		}
		if err != nil {
			return c.ioError(err)
		}
		if found, err := c.sift(want); found {
			return err
		}
	}
}

// sift looks for the answer to want in the batch. What comes before it is
// kept aside, what comes after stays in the batch.
func (c *Conn) sift(want Header) (found bool, err error) {
	var m Message
	for c.next < c.n {
		d := c.take()
		if _, ok := m.decode(d.b, d.cut); !ok || !m.IsError || m.Request != want {
			c.keep(d)
			continue
		}
		if m.Errno == 0 {
			return true, nil
		}
		return true, &Refusal{Errno: m.Errno, Text: m.text()}
	}
	return false, nil
}

// keepAll keeps what Next has not yet returned, so that the buffers are free.
func (c *Conn) keepAll() {
	if len(c.cur.b) > 0 {
		d := datagram{slices.Clone(c.cur.b), c.cur.cut}
		c.early = slices.Insert(c.early, 0, d)
		c.cur = datagram{}
	}
	for c.next < c.n {
		c.keep(c.take())
	}
}

// keep copies a datagram. The kernel acknowledges before sendto(2) returns,
// so what comes before the acknowledgement is bounded by the receive buffer.
func (c *Conn) keep(d datagram) {
	c.early = append(c.early, datagram{slices.Clone(d.b), d.cut})
}
