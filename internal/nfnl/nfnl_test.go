package nfnl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// batchConn returns a Conn without a socket that has received the datagrams.
// A datagram longer than size is cut as the kernel cuts it.
func batchConn(size int, datagrams ...[]byte) *Conn {
	c := &Conn{}
	c.makeBuffers(max(len(datagrams), 1), size)
	fill(c, datagrams...)
	return c
}

func fill(c *Conn, datagrams ...[]byte) {
	c.next, c.n = 0, len(datagrams)
	for i, d := range datagrams {
		n := copy(c.slab[i*c.size:][:c.size], d)
		c.hdrs[i].n = uint32(n)
		c.hdrs[i].hdr.Flags = 0
		if n < len(d) {
			c.hdrs[i].hdr.Flags = unix.MSG_TRUNC
		}
	}
}

// message returns one message with a mark attribute.
func message(typ uint16, queue uint16, mark uint32) []byte {
	var w Writer
	w.Begin(Header{Type: typ}, unix.AF_INET6, queue)
	w.Uint32(3, mark)
	w.End()
	return w.Bytes()
}

// reply returns the kernel's answer to the request whose header is req.
func reply(errno syscall.Errno, flags uint16, req, tail []byte) []byte {
	b := make([]byte, 0, 64)
	b = binary.NativeEndian.AppendUint32(b, uint32(headerLen+4+headerLen+len(tail)))
	b = binary.NativeEndian.AppendUint16(b, typeErr)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = append(b, req[8:16]...)
	b = binary.NativeEndian.AppendUint32(b, uint32(-int32(errno)))
	b = append(b, req[:headerLen]...)
	return append(b, tail...)
}

func marks(c *Conn) (got []uint32) {
	var m Message
	for c.Next(&m) {
		for a := NewAttrs(m.Attrs); a.Next(); {
			got = append(got, a.Uint32())
		}
	}
	return got
}

func TestNext(t *testing.T) {
	const typ = 3 << 8
	long := message(typ, 1, 9)
	tests := []struct {
		name      string
		datagrams [][]byte
		want      []uint32
		stats     Stats
	}{
		{"nothing", nil, nil, Stats{}},
		{"one each", [][]byte{message(typ, 1, 1), message(typ, 1, 2)}, []uint32{1, 2}, Stats{}},
		{"many in one", [][]byte{append(message(typ, 1, 1), message(typ, 1, 2)...), message(typ, 1, 3)}, []uint32{1, 2, 3}, Stats{}},
		{"done is skipped", [][]byte{append(message(typ, 1, 1), message(unix.NLMSG_DONE, 1, 2)...)}, []uint32{1}, Stats{}},
		{"overrun is counted", [][]byte{message(unix.NLMSG_OVERRUN, 0, 0), message(typ, 1, 1)}, []uint32{1}, Stats{Overruns: 1}},
		{"empty datagram", [][]byte{{}, message(typ, 1, 1)}, []uint32{1}, Stats{Malformed: 1}},
		{"header cut", [][]byte{long[:15], message(typ, 1, 1)}, []uint32{1}, Stats{Malformed: 1}},
		{"body cut", [][]byte{long[:24], message(typ, 1, 1)}, []uint32{1}, Stats{Malformed: 1}},
		{"length too small", [][]byte{{15, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, message(typ, 1, 1)}, []uint32{1}, Stats{Malformed: 1}},
		{"no nfgenmsg", [][]byte{{18, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2}}, nil, Stats{Malformed: 1}},
		{"rest after whole message", [][]byte{append(message(typ, 1, 1), 1, 2, 3)}, []uint32{1}, Stats{Malformed: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := batchConn(128, tt.datagrams...)
			if diff := cmp.Diff(tt.want, marks(c)); diff != "" {
				t.Errorf("marks (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.stats, c.Stats()); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNextTruncated(t *testing.T) {
	var w Writer
	w.Begin(Header{Type: 3 << 8}, unix.AF_INET, 7)
	w.Uint32(3, 5)
	w.Attr(10, make([]byte, 200)...)
	w.End()
	c := batchConn(64, w.Bytes(), message(3<<8, 1, 1))
	var m Message
	if !c.Next(&m) || !m.Truncated || m.ResID != 7 {
		t.Fatalf("got %+v, want the truncated message", m)
	}
	a := NewAttrs(m.Attrs)
	if !a.Next() || a.Uint32() != 5 {
		t.Errorf("first attribute of the truncated message is lost")
	}
	if a.Next() || a.Err() != ErrAttribute {
		t.Errorf("Next = true or Err = %v on a cut attribute", a.Err())
	}
	if !c.Next(&m) || m.Truncated {
		t.Errorf("message after the truncated one is lost")
	}
	if got := c.Stats(); got != (Stats{Truncated: 1}) {
		t.Errorf("got %+v, want Truncated: 1", got)
	}
}

func TestErrorMessage(t *testing.T) {
	req := message(3<<8|1, 1, 1)
	binary.NativeEndian.PutUint32(req[8:], 77)
	var text Writer
	text.Attr(errAttrMsg, []byte("no such queue\x00")...)
	wantReq := Header{Type: 3<<8 | 1, Seq: 77}
	tests := []struct {
		name  string
		b     []byte
		errno syscall.Errno
		text  string
	}{
		{"acknowledgement", reply(0, unix.NLM_F_CAPPED, req, nil), 0, ""},
		{"capped", reply(unix.ENOENT, unix.NLM_F_CAPPED, req, nil), unix.ENOENT, ""},
		{"with payload", reply(unix.ENOENT, 0, req, req[headerLen:]), unix.ENOENT, ""},
		{"capped with text", reply(unix.EPERM, unix.NLM_F_CAPPED|unix.NLM_F_ACK_TLVS, req, text.Bytes()), unix.EPERM, "no such queue"},
		{"payload and text", reply(unix.EPERM, unix.NLM_F_ACK_TLVS, req, append(bytes.Clone(req[headerLen:]), text.Bytes()...)), unix.EPERM, "no such queue"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := batchConn(256, tt.b)
			var m Message
			if !c.Next(&m) || !m.IsError {
				t.Fatalf("got %+v, want an error message", m)
			}
			if m.Errno != tt.errno || m.Request != wantReq || m.text() != tt.text {
				t.Errorf("got %v %+v %q, want %v %+v %q", m.Errno, m.Request, m.text(), tt.errno, wantReq, tt.text)
			}
		})
	}
	c := batchConn(256, reply(unix.EPERM, 0, req, nil)[:30])
	if m := (Message{}); c.Next(&m) {
		t.Errorf("got %+v from a cut error message", m)
	}
}

// Packets that come before the acknowledgement must neither be taken for it
// nor be lost.
func TestSift(t *testing.T) {
	const packet = 3 << 8
	req := message(3<<8|2, 1, 0)
	binary.NativeEndian.PutUint32(req[8:], 1)
	other := message(3<<8|1, 1, 0) // a verdict with the same sequence number
	binary.NativeEndian.PutUint32(other[8:], 1)

	c := batchConn(128, append(message(packet, 1, 1), message(packet, 1, 2)...), message(packet, 1, 3), message(packet, 1, 4), message(packet, 1, 5), message(packet, 1, 6))
	var m Message
	c.Next(&m) // leaves the rest of the first datagram
	c.keepAll()
	fill(c, message(packet, 1, 7), reply(unix.ENOENT, unix.NLM_F_CAPPED, other, nil), reply(unix.EBUSY, unix.NLM_F_CAPPED, req, nil), message(packet, 1, 8))
	found, err := c.sift(decodeHeader(req))
	if !found || !errors.Is(err, unix.EBUSY) {
		t.Errorf("got %v, %v, want EBUSY", found, err)
	}
	if !c.unread() {
		t.Errorf("Recv would overwrite what is kept")
	}
	if diff := cmp.Diff([]uint32{2, 3, 4, 5, 6, 7, 8}, marks(c)); diff != "" {
		t.Errorf("marks (-want +got):\n%s", diff)
	}
	if c.unread() {
		t.Errorf("something is left")
	}
}

func TestWriterMatchesNetlink(t *testing.T) {
	w := NewWriter(256)
	w.Begin(Header{Type: Type(3, 2), Flags: FlagRequest, Seq: 5, PortID: 6}, unix.AF_INET, 0x1234)
	w.Uint32(3, 0x01020304)
	w.Uint32s(2, 1, 0x0a0b0c0d)
	w.Attr(9, 1, 2, 3, 4, 5)
	w.End()

	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: 3, Data: []byte{1, 2, 3, 4}},
		{Type: 2, Data: []byte{0, 0, 0, 1, 10, 11, 12, 13}},
		{Type: 9, Data: []byte{1, 2, 3, 4, 5}},
	})
	if err != nil {
		t.Fatal(err)
	}
	msg := netlink.Message{
		Header: netlink.Header{Type: 0x302, Flags: netlink.Request, Sequence: 5, PID: 6},
		Data:   append([]byte{unix.AF_INET, 0, 0x12, 0x34}, attrs...),
	}
	msg.Header.Length = uint32(headerLen + len(msg.Data))
	want, err := msg.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, w.Bytes()); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
	if w.Len() != 1 {
		t.Errorf("Len = %d, want 1", w.Len())
	}
}

func TestAttrGetters(t *testing.T) {
	var w Writer
	w.Attr(1, 1)
	w.Attr(2, 1, 2)
	w.Uint32(3|unix.NLA_F_NET_BYTEORDER, 3)
	w.Uint32s(4, 1, 2)
	a := NewAttrs(w.Bytes())
	a.Next()
	if got := a.Uint8(); got != 1 {
		t.Errorf("Uint8 = %d", got)
	}
	a.Next()
	if got := a.Uint16(); got != 0x0102 {
		t.Errorf("Uint16 = %#x", got)
	}
	a.Next()
	if a.Type() != 3 || a.Uint32() != 3 {
		t.Errorf("Type %d Uint32 %d, want 3 and 3", a.Type(), a.Uint32())
	}
	a.Next()
	if got := a.Uint64(); got != 1<<32|2 {
		t.Errorf("Uint64 = %#x", got)
	}
	if a.Next() || a.Err() != nil {
		t.Errorf("walk ended with %v", a.Err())
	}
	b := NewAttrs(w.Bytes())
	if b.Next(); b.Uint32() != 0 || b.Err() == nil {
		t.Errorf("Uint32 of one byte gave no error")
	}
}

func TestNoAllocs(t *testing.T) {
	packet, w := message(3<<8, 1, 1), NewWriter(64)
	c := batchConn(128, packet)
	var m Message
	got := testing.AllocsPerRun(100, func() {
		fill(c, packet)
		for c.Next(&m) {
			for a := NewAttrs(m.Attrs); a.Next(); {
				w.Reset()
				w.Begin(Header{Type: 3<<8 | 1, Seq: a.Uint32()}, 0, m.ResID)
				w.Uint32(3, a.Uint32())
				w.End()
			}
		}
	})
	if got != 0 || w.Len() != 1 {
		t.Errorf("got %v allocations and %d messages, want 0 and 1", got, w.Len())
	}
}

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
