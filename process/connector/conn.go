package connector

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	idxProc = 1 // CN_IDX_PROC, include/uapi/linux/connector.h
	valProc = 1 // CN_VAL_PROC

	listen = 1 // PROC_CN_MCAST_LISTEN, include/uapi/linux/cn_proc.h
	ignore = 2 // PROC_CN_MCAST_IGNORE

	// bufferBytes is the size of the receive buffer: about 15 000 events, each
	// of which the kernel counts as 1 KiB and more.
	bufferBytes = 16 << 20

	// answerTime bounds the wait for the answer to a request. The kernel gives
	// it within the send, or not at all.
	answerTime = 200 * time.Millisecond
)

// Conn receives events. Run is for one goroutine; Stats and Close may be called
// from any.
type Conn struct {
	file     *os.File
	kinds    Kind
	filtered bool // the kernel sends only what was asked for

	events, lost, overruns atomic.Uint64

	last map[uint32]uint32 // last number by CPU; only Run uses it
	buf  [1024]byte
}

// Stats counts events since Open.
type Stats struct {
	Events uint64 // handed to Run's function

	// Lost are the events that the reader was too slow for, of any kind. If the
	// kernel filters the count would contain what was filtered, so it stays 0:
	// see Overruns.
	Lost uint64

	// Overruns is how often the receive buffer overflowed. Each lost some events.
	Overruns uint64
}

// Open begins to listen for events of the given kinds; 0 stands for All. Events
// wait in a buffer of 16 MiB until Run takes them. The kernel sends only the
// kinds asked for if it can (Linux 6.6), or else they are sorted out here.
//
// It works only in the initial network, pid and user namespace. Needs
// CAP_NET_ADMIN; Linux 6.6 needs it only for the large buffer.
func Open(kinds Kind) (*Conn, error) { return open(kinds, bufferBytes) }

func open(kinds Kind, buffer int) (*Conn, error) {
	if kinds == 0 {
		kinds = All
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_CONNECTOR)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("open process connector: %w: it needs CONFIG_CONNECTOR", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open process connector: %w", err)
	}
	c := &Conn{file: os.NewFile(uintptr(fd), "process connector"), kinds: kinds, last: make(map[uint32]uint32)}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer)
	if err != nil { // without the right, as much as the system allows
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (idxProc - 1)})
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err == nil {
		err = c.subscribe()
	}
	if err != nil {
		c.file.Close()
		return nil, explain("open process connector", err)
	}
	return c, nil
}

func explain(what string, err error) error {
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%s: %w: it is there in the initial network namespace only", what, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: %w (needs CAP_NET_ADMIN)", what, err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%s: no answer: it is there in the initial pid and user namespace only, and needs CONFIG_PROC_EVENTS", what)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// subscribe asks for the kinds wanted, and if the kernel does not know such a
// request for all. If all are wanted it asks for all at once, also for those
// that Run passes over: then gaps in the numbers are losses.
func (c *Conn) subscribe() error {
	if c.kinds == All {
		return c.ask(listen)
	}
	// The filter applies to answers too, and 0 stands for no filter: so ask with
	// that first, and then with the kinds.
	err := c.ask(listen, 0)
	if errors.Is(err, os.ErrDeadlineExceeded) { // passed over in silence
		return c.ask(listen)
	}
	if err != nil {
		return err
	}
	c.filtered = true
	_, err = c.file.Write(request(0, listen, uint32(c.kinds)))
	return err
}

// ask sends a request, and waits for the answer. Events meanwhile are dropped.
//
// Source: struct proc_input, include/uapi/linux/cn_proc.h.
func (c *Conn) ask(words ...uint32) error {
	// The answer goes to all listeners: the number tells whose it is.
	ack := uint32(time.Now().UnixNano()) &^ 1
	if _, err := c.file.Write(request(ack, words...)); err != nil {
		return err
	}
	if err := c.file.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	for {
		n, err := c.file.Read(c.buf[:])
		if errors.Is(err, unix.ENOBUFS) {
			continue
		}
		if err != nil {
			return err
		}
		var m message
		if !m.parse(c.buf[:n]) || m.what != 0 || m.ack != ack+1 {
			continue
		}
		if m.errno != 0 {
			return unix.Errno(m.errno)
		}
		return nil
	}
}

func request(ack uint32, words ...uint32) []byte {
	size := uint32(nlHead + cnHead + 4*len(words))
	b := binary.NativeEndian.AppendUint32(nil, size)
	b = binary.NativeEndian.AppendUint16(b, unix.NLMSG_DONE)
	b = append(b, make([]byte, nlHead-len(b))...)
	for _, w := range []uint32{idxProc, valProc, 0, ack} {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	b = binary.NativeEndian.AppendUint16(b, uint16(4*len(words)))
	b = binary.NativeEndian.AppendUint16(b, 0)
	for _, w := range words {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return b
}

// Filtered says whether the kernel sends only the kinds asked for.
func (c *Conn) Filtered() bool { return c.filtered }

// Stats returns the counts.
func (c *Conn) Stats() Stats {
	return Stats{Events: c.events.Load(), Lost: c.lost.Load(), Overruns: c.overruns.Load()}
}

// Run hands each event to fn, in the order of its CPU, until ctx is done or
// Close is called: then it returns nil. It may be called again. The events of
// different CPUs may come in another order than they happened, by microseconds:
// Time tells.
func (c *Conn) Run(ctx context.Context, fn func(Event)) error {
	_ = c.file.SetReadDeadline(time.Time{}) // it fails only if the file is closed: Read tells
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_ = c.file.SetReadDeadline(time.Unix(1, 0)) // a closed file needs no waking
	})
	defer func() {
		if !stop() {
			<-woken
		}
	}()
	for ctx.Err() == nil {
		n, err := c.file.Read(c.buf[:])
		switch {
		case errors.Is(err, unix.ENOBUFS):
			c.overruns.Add(1)
		case errors.Is(err, os.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("receive process events: %w", err)
		default:
			c.take(c.buf[:n], fn)
		}
	}
	return nil
}

// take counts one message and hands its event on.
func (c *Conn) take(b []byte, fn func(Event)) {
	var m message
	if !m.parse(b) {
		return
	}
	c.number(&m)
	if m.what&c.kinds != 0 {
		c.events.Add(1)
		fn(m.event)
	}
}

// number looks for a gap before the message. The answers to listeners are
// numbered like events.
func (c *Conn) number(m *message) {
	if c.filtered {
		return
	}
	last, known := c.last[m.event.CPU]
	c.last[m.event.CPU] = m.seq
	if gap := m.seq - last - 1; known && int32(gap) > 0 {
		c.lost.Add(uint64(gap))
	}
}

// Close ends Run and frees the socket.
func (c *Conn) Close() error {
	// Kernels before 6.6 go on making events for a listener that just closes.
	_, _ = c.file.Write(request(0, ignore)) // nothing is left to do if it fails
	return c.file.Close()
}
