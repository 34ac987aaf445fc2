package main_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
)

// The traffic of these tests shares two CPUs with what it tests. So it is made
// and counted a batch per system call, by threads that block in the kernel.

const (
	burst     = 64 // datagrams of one system call, at most
	loadPause = time.Millisecond
	loadWait  = 3 * wait // for a connection; TCP repeats after 1, 3, 7 and 15 s
)

// mmsghdr is struct mmsghdr of sendmmsg(2) and recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	_   uint32 // bytes received
}

// volley is the buffers of a burst.
type volley struct {
	msgs [burst]mmsghdr
	iovs [burst]unix.Iovec
	bufs [burst][4]byte // each holds its number
}

func newVolley() *volley {
	d := new(volley)
	for i := range d.msgs {
		d.iovs[i].Base = &d.bufs[i][0]
		d.iovs[i].SetLen(len(d.bufs[i]))
		d.msgs[i].hdr.Iov = &d.iovs[i]
		d.msgs[i].hdr.SetIovlen(1)
	}
	return d
}

// call is sendmmsg(2) or recvmmsg(2) of the first n. It returns how many were
// sent or received; 0 if it was interrupted or nothing came in time.
func (d *volley) call(number uintptr, fd, n, flags int) (int, error) {
	done, _, errno := unix.Syscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&d.msgs)), uintptr(n), uintptr(flags), 0, 0)
	switch errno {
	case 0:
		return int(done), nil
	case unix.EINTR, unix.EAGAIN:
		return 0, nil
	}
	return 0, errno
}

// blocking opens a blocking socket in the namespace; waiting ends after a while.
func blocking(t *testing.T, ns *lab.Namespace, typ int, then func(fd int) error) int {
	t.Helper()
	var fd int
	err := ns.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}), then(fd))
	})
	if err != nil {
		t.Fatalf("open socket: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func inet(addr string, port uint16) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: int(port), Addr: netip.MustParseAddr(addr).As4()}
}

// tally counts numbered datagrams. It is a lab.Sink for many of them.
type tally struct {
	fd              int
	total, distinct atomic.Int64
	seen            []uint64 // bitmap by number
}

// tallyAt counts at the server's sinkPort until the end of the test.
func tallyAt(t *testing.T, ns *lab.Namespace) *tally {
	t.Helper()
	s := &tally{seen: make([]uint64, (1<<24)/64)}
	s.fd = blocking(t, ns, unix.SOCK_DGRAM, func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20), unix.Bind(fd, inet("0.0.0.0", sinkPort)))
	})
	ctx, cancel := context.WithCancel(context.Background())
	var task sync.WaitGroup
	task.Go(func() {
		for d := newVolley(); ctx.Err() == nil; {
			n, err := d.call(unix.SYS_RECVMMSG, s.fd, burst, unix.MSG_WAITFORONE)
			if err != nil {
				t.Errorf("receive datagrams: %v", err)
				return
			}
			s.add(d, n)
		}
	})
	t.Cleanup(func() { cancel(); task.Wait() })
	return s
}

func (s *tally) add(d *volley, n int) {
	fresh := 0
	for i := range n {
		number := binary.BigEndian.Uint32(d.bufs[i][:]) % (1 << 24)
		if word, bit := &s.seen[number/64], uint64(1)<<(number%64); *word&bit == 0 {
			*word |= bit
			fresh++
		}
	}
	s.distinct.Add(int64(fresh))
	s.total.Add(int64(n))
}

// want checks that so many datagrams came, each once.
func (s *tally) want(t *testing.T, count int64) {
	t.Helper()
	lab.Poll(wait, func() bool { return s.distinct.Load() >= count })
	if s.distinct.Load() != count || s.total.Load() != count {
		t.Errorf("got %d datagrams, %d distinct, want %d", s.total.Load(), s.distinct.Load(), count)
	}
}

// load is the traffic between a client and a server.
type load struct {
	sent, connected, failed atomic.Int64
	why                     atomic.Pointer[string] // the last failure
}

// reason says why the last connection that failed did.
func (l *load) reason() string {
	if why := l.why.Load(); why != nil {
		return *why
	}
	return "none failed"
}

// runLoad sends rate datagrams per second to the server's sinkPort, and begins
// conns connections per second to it, each of which sends a payload and must get
// it back. stop waits for both. What a slow machine does not manage is not made
// up for by anything but haste.
func runLoad(t *testing.T, net *lab.Network, rate, conns int) (l *load, stop func()) {
	t.Helper()
	l = &load{}
	ctx, cancel := context.WithCancel(t.Context())
	var tasks, server sync.WaitGroup
	fd := blocking(t, net.Client, unix.SOCK_DGRAM, func(fd int) error { return unix.Connect(fd, inet("10.99.0.2", sinkPort)) })
	listener := blocking(t, net.Server, unix.SOCK_STREAM, func(fd int) error {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, int(loadWait.Seconds())),
			unix.Bind(fd, inet("0.0.0.0", sinkPort)), unix.Listen(fd, 4096))
	})
	serve, endServer := context.WithCancel(context.Background())
	for what, task := range map[string]func() error{
		"send datagrams": func() error { return l.send(ctx, fd, rate) },
		"connect":        func() error { return net.Client.Do(func() error { return l.connect(ctx, conns) }) },
	} {
		tasks.Go(func() {
			if err := task(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	server.Go(func() { sendBack(serve, listener) })
	return l, sync.OnceFunc(func() {
		cancel()
		tasks.Wait()
		endServer()
		server.Wait()
	})
}

// send sends numbered datagrams. Those that the kernel refuses, as its rules
// drop them, count as sent.
func (l *load) send(ctx context.Context, fd, rate int) error {
	d := newVolley()
	start := time.Now()
	for next := 0; ctx.Err() == nil; {
		due := int(time.Since(start).Seconds()*float64(rate)) - next
		if due <= 0 {
			time.Sleep(loadPause)
			continue
		}
		due = min(due, burst)
		for i := range due {
			binary.BigEndian.PutUint32(d.bufs[i][:], uint32(next+i))
		}
		n, err := d.call(unix.SYS_SENDMMSG, fd, due, 0)
		if errors.Is(err, unix.EPERM) {
			n, err = 1, nil
		}
		if err != nil {
			return err
		}
		next += n
		l.sent.Store(int64(next))
	}
	return nil
}

// sendBack takes connections that have sent something and sends it back.
func sendBack(ctx context.Context, listener int) {
	buf := make([]byte, 64)
	for ctx.Err() == nil {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			continue
		}
		if n, err := unix.Read(fd, buf); err == nil {
			_, _ = unix.Write(fd, buf[:n]) // if it fails, the client tells
		}
		unix.Close(fd)
	}
}

// dialer makes connections on one thread.
type dialer struct {
	*load
	epoll int
	open  map[int32]*dialed
}

// dialed is a connection under way.
type dialed struct {
	began time.Time
	asked bool
	got   string
}

const loadPayload = "is it still there?"

// connect begins rate connections per second until ctx is done, and waits for
// the last ones. It must be called in the client's namespace.
func (l *load) connect(ctx context.Context, rate int) error {
	d := dialer{load: l, open: map[int32]*dialed{}}
	var err error
	if d.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	defer unix.Close(d.epoll)
	start := time.Now()
	for begun := 0; ctx.Err() == nil || len(d.open) > 0; {
		for ; ctx.Err() == nil && begun < int(time.Since(start).Seconds()*float64(rate)); begun++ {
			if err := d.dial(); err != nil {
				return fmt.Errorf("connection %d: %w", begun, err)
			}
		}
		if err := d.follow(); err != nil {
			return err
		}
	}
	return nil
}

func (d *dialer) dial() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, inet("10.99.0.2", sinkPort)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return errors.Join(err, unix.Close(fd))
	}
	d.open[int32(fd)] = &dialed{began: time.Now()}
	return unix.EpollCtl(d.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{
		Fd: int32(fd), Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET,
	})
}

// follow takes the connections on which something happened a step further.
func (d *dialer) follow() error {
	var events [burst]unix.EpollEvent
	n, err := unix.EpollWait(d.epoll, events[:], int(loadPause.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return os.NewSyscallError("epoll_wait", err)
	}
	for i := range max(n, 0) {
		d.step(events[i].Fd)
	}
	if n == 0 {
		for fd, c := range d.open {
			if time.Since(c.began) > loadWait {
				d.fail(fd, fmt.Sprintf("no answer after %v; asked: %v", loadWait, c.asked))
			}
		}
	}
	return nil
}

func (d *dialer) step(fd int32) {
	c := d.open[fd]
	if !c.asked {
		if _, err := unix.Write(int(fd), []byte(loadPayload)); err != nil {
			d.fail(fd, fmt.Sprintf("send: %v", err))
			return
		}
		c.asked = true
	}
	var buf [64]byte
	n, err := unix.Read(int(fd), buf[:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return
	case n > 0:
		c.got += string(buf[:n])
	}
	switch {
	case c.got == loadPayload:
		d.end(fd, &d.connected)
	case n <= 0:
		d.fail(fd, fmt.Sprintf("receive: %v after %q", err, c.got))
	}
}

// fail ends a connection that did not work.
func (d *dialer) fail(fd int32, why string) {
	d.why.Store(&why)
	d.end(fd, &d.failed)
}

// end closes a connection and counts it.
func (d *dialer) end(fd int32, as *atomic.Int64) {
	delete(d.open, fd)
	unix.Close(int(fd))
	as.Add(1)
}
