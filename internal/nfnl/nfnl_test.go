package nfnl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"syscall"
	"testing"

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
	if !c.Pending() {
		t.Errorf("Recv would overwrite what is kept")
	}
	if diff := cmp.Diff([]uint32{2, 3, 4, 5, 6, 7, 8}, marks(c)); diff != "" {
		t.Errorf("marks (-want +got):\n%s", diff)
	}
	if c.Pending() {
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

// rawConn is a RawConn that is always ready.
type rawConn struct{}

func (rawConn) Control(f func(fd uintptr)) error    { f(0); return nil }
func (rawConn) Read(f func(fd uintptr) bool) error  { f(0); return nil }
func (rawConn) Write(f func(fd uintptr) bool) error { f(0); return nil }

// ENOBUFS must not end the stream.
func TestRecvErrors(t *testing.T) {
	tests := []struct {
		errno    syscall.Errno
		want     error
		overruns uint64
	}{
		{0, nil, 0},
		{unix.EAGAIN, nil, 0},
		{unix.ENOBUFS, nil, 1},
		{unix.ENOTCONN, unix.ENOTCONN, 0},
	}
	for _, tt := range tests {
		c := batchConn(64)
		c.raw = rawConn{}
		c.read = func(uintptr) bool { c.errno = tt.errno; return true }
		if err := c.Recv(); !errors.Is(err, tt.want) {
			t.Errorf("%v: Recv = %v, want %v", tt.errno, err, tt.want)
		}
		if m := (Message{}); c.Next(&m) || c.Stats().Overruns != tt.overruns {
			t.Errorf("%v: got %+v, want %d overruns", tt.errno, c.Stats(), tt.overruns)
		}
	}
}

// A kernel short of memory is asked again, but not for ever, and other errors
// are not repeated.
func TestSendRetries(t *testing.T) {
	tests := []struct {
		name   string
		errnos []syscall.Errno // of one call after the other; the last one stays
		want   error
		calls  int
	}{
		{"sent", []syscall.Errno{0}, nil, 1},
		{"short of memory", []syscall.Errno{unix.ENOBUFS, unix.ENOMEM, 0}, nil, 3},
		{"refused", []syscall.Errno{unix.EPERM, 0}, unix.EPERM, 1},
		{"short of memory for good", []syscall.Errno{unix.ENOBUFS}, unix.ENOBUFS, sendRetries + 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, calls := batchConn(64), 0
			c.raw = rawConn{}
			c.write = func(uintptr) bool {
				c.errno = tt.errnos[min(calls, len(tt.errnos)-1)]
				calls++
				return true
			}
			if err := c.Send([]byte{0}); !errors.Is(err, tt.want) || calls != tt.calls {
				t.Errorf("Send = %v after %d calls, want %v after %d", err, calls, tt.want, tt.calls)
			}
			if got := c.Stats().SendRetries; got != uint64(tt.calls-1) {
				t.Errorf("%d retries counted, want %d", got, tt.calls-1)
			}
		})
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
