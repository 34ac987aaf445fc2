package nfnl

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// dial opens a real socket. Any process may: the kernel refuses only requests.
func dial(t *testing.T) *Conn {
	t.Helper()
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(nl, Config{Batch: 8, MessageSize: 256, RecvBuffer: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A request to a subsystem that does not exist is refused: with EPERM without
// CAP_NET_ADMIN, with EINVAL else.
func TestRequestRefused(t *testing.T) {
	c := dial(t)
	before := openFiles(t)
	for range 20 {
		err := c.Request(message(Type(200, 0), 0, 0), time.Second)
		var r *Refusal
		if !errors.As(err, &r) || r.Errno != unix.EINVAL && r.Errno != unix.EPERM {
			t.Fatalf("got %v, want EINVAL or EPERM", err)
		}
	}
	if err := c.TryRecv(); err != nil {
		t.Error(err)
	}
	if m := (Message{}); c.Next(&m) {
		t.Errorf("got %+v after the answers were taken", m)
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d open files, %d before", after, before)
	}
}

// A request without acknowledgement that fails is answered in the stream.
func TestSendRefused(t *testing.T) {
	c := dial(t)
	w := NewWriter(64)
	for seq := range uint32(3) {
		w.Begin(Header{Type: Type(200, 0), Flags: FlagRequest, Seq: seq, PortID: 42}, 0, 0)
		w.End()
	}
	if err := c.Send(w.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := c.Recv(); err != nil {
		t.Fatal(err)
	}
	var m Message
	if !c.Next(&m) || !m.IsError || m.Errno == 0 {
		t.Fatalf("got %+v, want a refusal", m)
	}
	if want := (Header{Type: Type(200, 0), Flags: FlagRequest, PortID: 42}); m.Request != want {
		t.Errorf("got request %+v, want %+v", m.Request, want)
	}
	if n, err := c.Drops(); n != 0 || err != nil {
		t.Errorf("Drops = %d, %v", n, err)
	}
	if c.RecvBuffer() == 0 {
		t.Errorf("RecvBuffer = 0")
	}
}

func TestRecvDeadlineAndClose(t *testing.T) {
	c := dial(t)
	if err := c.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := c.Recv(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want %v", err, os.ErrDeadlineExceeded)
	}
	if err := c.TryRecv(); err != nil {
		t.Errorf("TryRecv after the deadline: %v", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- c.Recv() }()
	c.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want %v", err, os.ErrClosed)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
