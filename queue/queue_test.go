package queue

import (
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/packet"
)

// judge is a Handler made of a function.
type judge func(m *packet.Meta, data []byte) packet.Verdict

func (j judge) Handle(m *packet.Meta, data []byte) packet.Verdict { return j(m, data) }

func accept(*packet.Meta, []byte) packet.Verdict { return packet.Verdict{Action: packet.Accept} }

// bareQueue returns a Queue without a socket.
func bareQueue(num uint16) *Queue {
	return &Queue{cfg: Config{Num: num}, out: nfnl.NewWriter(batch * verdictLen), nextID: 1}
}

// header returns the value of a packet header attribute.
func header(id uint32, etherType uint16, hook packet.Hook) []byte {
	return []byte{byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id), byte(etherType >> 8), byte(etherType), byte(hook)}
}

// packetMessage returns a packet message of queue 3 with the attributes in w.
func packetMessage(w *nfnl.Writer) nfnl.Message {
	return nfnl.Message{Header: nfnl.Header{Type: 0x300}, Family: syscall.AF_INET6, ResID: 3, Attrs: w.Bytes()}
}

func TestDecodePacket(t *testing.T) {
	tests := []struct {
		name    string
		attrs   func(w *nfnl.Writer)
		want    packet.Meta
		payload string
		ok      bool
		whole   bool
	}{
		{
			name:  "nothing",
			attrs: func(*nfnl.Writer) {},
			want:  packet.Meta{Queue: 3, EtherType: packet.EtherTypeIPv6}, whole: true,
		},
		{
			name: "everything",
			attrs: func(w *nfnl.Writer) {
				w.Attr(attrPacketHdr, header(0x01020304, 0x0800, packet.Output)...)
				w.Uint32(attrIn, 1)
				w.Uint32(attrOut, 2)
				w.Uint32(attrPhysIn, 3)
				w.Uint32(attrPhysOut, 4)
				w.Uint32(attrMark, 0xffffffff)
				w.Attr(9, 0, 6, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0) // NFQA_HWADDR, not used
				w.Uint32(attrUID, 0)
				w.Uint32(attrGID, 1000)
				w.Uint32(attrCapLen, 1500)
				w.Uint32(attrSkbInfo, skbGSO|skbChecksumNotReady)
				w.Uint32(attrPriority, 6)
				w.Attr(attrPayload, []byte("payload")...)
			},
			want: packet.Meta{
				ID: 0x01020304, Queue: 3, Hook: packet.Output, Length: 1500, EtherType: packet.EtherTypeIPv4,
				In: 1, Out: 2, PhysIn: 3, PhysOut: 4, Mark: 0xffffffff, Priority: 6,
				UID: 0, GID: 1000, HasUID: true, HasGID: true, GSO: true, ChecksumPending: true,
			},
			payload: "payload", ok: true, whole: true,
		},
		{
			name: "checksum not verified is not pending",
			attrs: func(w *nfnl.Writer) {
				w.Attr(attrPacketHdr, header(1, 0x86dd, packet.Input)...)
				w.Uint32(attrSkbInfo, 4)
				w.Attr(attrPayload, []byte("12345")...)
			},
			want:    packet.Meta{ID: 1, Queue: 3, Hook: packet.Input, Length: 5, EtherType: packet.EtherTypeIPv6},
			payload: "12345", ok: true, whole: true,
		},
		{
			name:  "header too short",
			attrs: func(w *nfnl.Writer) { w.Attr(attrPacketHdr, 0, 0, 0, 1, 8, 0) },
			want:  packet.Meta{Queue: 3, EtherType: packet.EtherTypeIPv6}, whole: true,
		},
		{
			name: "mark too short",
			attrs: func(w *nfnl.Writer) {
				w.Attr(attrPacketHdr, header(1, 0x0800, packet.Input)...)
				w.Attr(attrMark, 1, 2, 3)
			},
			want: packet.Meta{ID: 1, Queue: 3, Hook: packet.Input, EtherType: packet.EtherTypeIPv4}, ok: true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var w nfnl.Writer
			tt.attrs(&w)
			m := packetMessage(&w)
			got := packet.Meta{ID: 99, Mark: 99, HasUID: true} // must be overwritten
			payload, ok, whole := decodePacket(&m, &got)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("meta (-want +got):\n%s", diff)
			}
			if string(payload) != tt.payload || ok != tt.ok || whole != tt.whole {
				t.Errorf("got %q, %v, %v, want %q, %v, %v", payload, ok, whole, tt.payload, tt.ok, tt.whole)
			}
		})
	}
}

// A packet whose message was cut gets a verdict all the same: without one it
// would stay in the kernel's queue for good.
func TestCutPacketIsAnswered(t *testing.T) {
	var w nfnl.Writer
	w.Attr(attrPacketHdr, header(1, 0x0800, packet.Input)...)
	w.Attr(attrPayload, make([]byte, 100)...)
	q := bareQueue(3)
	q.msg = packetMessage(&w)
	q.msg.Attrs, q.msg.Truncated = q.msg.Attrs[:50], true
	var seen int
	q.message(judge(func(_ *packet.Meta, data []byte) packet.Verdict {
		seen = len(data)
		return packet.Verdict{}
	}), 1)
	if seen != 0 || q.out.Len() != 1 || q.count.malformed.Load() != 1 {
		t.Errorf("handler saw %d bytes, %d verdicts, %d malformed, want 0, 1, 1", seen, q.out.Len(), q.count.malformed.Load())
	}
}

func TestVerdict(t *testing.T) {
	tests := []struct {
		name string
		v    packet.Verdict
		want string // hexadecimal, of the message on a little endian machine
	}{
		{"drop", packet.Verdict{}, "20000000010301000200000000000000" + "00000003" + "0c000200" + "00000000" + "00000002"},
		{"accept", packet.Verdict{Action: packet.Accept}, "20000000010301000200000001000000" + "00000003" + "0c000200" + "00000001" + "00000002"},
		{"reject", packet.Verdict{Action: packet.Reject}, "20000000010301000200000002000000" + "00000003" + "0c000200" + "00000000" + "00000002"},
		{"accept with mark", packet.Verdict{Action: packet.Accept, SetMark: true, Mark: 0x0a0b0c0d}, "28000000010301000200000001000000" + "00000003" + "0c000200" + "00000001" + "00000002" + "08000300" + "0a0b0c0d"},
		{"mark of zero", packet.Verdict{Action: packet.Accept, SetMark: true}, "28000000010301000200000001000000" + "00000003" + "0c000200" + "00000001" + "00000002" + "08000300" + "00000000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var w nfnl.Writer
			appendVerdict(&w, 3, &packet.Meta{ID: 2}, tt.v)
			if got := hexOf(w.Bytes()); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

func TestMessageCounts(t *testing.T) {
	refused := func(errno syscall.Errno, typ uint16, a packet.Action) nfnl.Message {
		return nfnl.Message{IsError: true, Errno: errno, Request: nfnl.Header{Type: typ, PortID: uint32(a)}}
	}
	verdict := nfnl.Type(subsystem, msgVerdict)
	pkt := func(id uint32, queue uint16) nfnl.Message {
		var w nfnl.Writer
		w.Attr(attrPacketHdr, header(id, 0x0800, packet.Input)...)
		m := packetMessage(&w)
		m.ResID = queue
		return m
	}
	messages := []nfnl.Message{
		pkt(1, 3), pkt(2, 3), pkt(5, 3), pkt(0xffffffff, 3), pkt(0, 3), // lost: 3, 4 and 6 to 0xfffffffe
		pkt(6, 4), // not our queue
		{Header: nfnl.Header{Type: 0x301}, ResID: 3},
		{Header: nfnl.Header{Type: 0x300}, ResID: 3}, // without id
		refused(syscall.ENOENT, verdict, packet.Accept),
		refused(syscall.ENOENT, verdict, packet.Accept),
		refused(syscall.ENOENT, verdict, packet.Drop),
		refused(syscall.ENOENT, verdict, packet.Reject),
		refused(syscall.EPERM, verdict, packet.Accept),
		refused(syscall.ENODEV, verdict, packet.Accept),
		refused(syscall.ENOENT, 0x302, packet.Accept),
	}
	q := bareQueue(3)
	for i := range messages {
		q.msg = messages[i]
		q.message(judge(accept), 1)
	}
	c := &q.count
	got := []uint64{uint64(q.out.Len()), c.gaps.Load(), c.unknown.Load(), c.malformed.Load(), c.hookFlush.Load(), c.lateDrop.Load(), c.notPermitted.Load(), c.refused.Load()}
	want := []uint64{5, 2 + 0xfffffffe - 5, 3, 1, 2, 2, 1, 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("verdicts, gaps, unknown, malformed, hook flush, late drop, not permitted, refused (-want +got):\n%s", diff)
	}
}

// The worst a handler can return must not let the packet pass.
func TestUnknownActionDrops(t *testing.T) {
	var w, want nfnl.Writer
	w.Attr(attrPacketHdr, header(1, 0x0800, packet.Input)...)
	q := bareQueue(3)
	q.msg = packetMessage(&w)
	q.message(judge(func(*packet.Meta, []byte) packet.Verdict { return packet.Verdict{Action: 77} }), 1)
	appendVerdict(&want, 3, &packet.Meta{ID: 1}, packet.Verdict{Action: packet.Drop})
	if diff := cmp.Diff(want.Bytes(), q.out.Bytes()); diff != "" {
		t.Errorf("verdict (-want +got):\n%s", diff)
	}
}

func TestConfig(t *testing.T) {
	tests := []struct {
		name string
		cfg  Config
		err  string
	}{
		{"too long", Config{Num: 7, MaxLen: 65537}, "queue 7: length of 65537 packets is more than the kernel's 65536"},
		{"copy too large", Config{Num: 7, CopyRange: 65532}, "queue 7: copy range of 65532 bytes is more than the kernel's 65531"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Open(tt.cfg); err == nil || err.Error() != tt.err {
				t.Errorf("got %v, want %s", err, tt.err)
			}
		})
	}
	got, err := Config{}.withDefaults()
	want := Config{MaxLen: 8192, CopyRange: 256, RecvBuffer: 8192 * 1280 / 2, Drain: 100e6}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("defaults: %v (-want +got):\n%s", err, diff)
	}
}

func TestParseKernel(t *testing.T) {
	const text = "    0   4711     3 2   256     1     2        9  1\n65535 4294963251 65536 2 65531 4294967295     7       12  1\n"
	got, err := parseKernel(text)
	want := []Kernel{
		{Num: 0, PortID: 4711, Depth: 3, CopyRange: 256, QueueDropped: 1, UserDropped: 2, LastID: 9},
		{Num: 65535, PortID: 4294963251, Depth: 65536, CopyRange: 65531, QueueDropped: 4294967295, UserDropped: 7, LastID: 12},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, bad := range []string{"1 2 3\n", "0 1 2 3 4 5 6 x 1\n", "0 1 2 3 4 5 6 -1 1\n"} {
		if _, err := parseKernel(bad); err == nil || !strings.Contains(err.Error(), "nfnetlink_queue:1:") {
			t.Errorf("%q: got %v, want an error with its line", bad, err)
		}
	}
	if got, err := parseKernel(""); len(got) != 0 || err != nil {
		t.Errorf("empty file: %v, %v", got, err)
	}
}

// typical is a packet message as the kernel sends it for a locally sent TCP
// packet: 60 bytes of it, five attributes beside.
func typical(w *nfnl.Writer) nfnl.Message {
	w.Attr(attrPacketHdr, header(1, 0x0800, packet.Output)...)
	w.Uint32(attrOut, 2)
	w.Uint32(attrUID, 1000)
	w.Uint32(attrGID, 1000)
	w.Uint32(attrSkbInfo, skbChecksumNotReady)
	w.Attr(attrPayload, make([]byte, 60)...)
	return packetMessage(w)
}

func TestNoAllocs(t *testing.T) {
	var w nfnl.Writer
	q, h := bareQueue(3), judge(accept)
	q.msg = typical(&w)
	got := testing.AllocsPerRun(1000, func() {
		q.message(h, 1)
		if q.out.Len() == batch {
			q.out.Reset()
		}
	})
	if got != 0 {
		t.Errorf("got %v allocations per packet, want 0", got)
	}
}

func BenchmarkMessage(b *testing.B) {
	var w nfnl.Writer
	q, h := bareQueue(3), judge(accept)
	q.msg = typical(&w)
	b.ReportAllocs()
	for b.Loop() {
		q.message(h, 1)
		if q.out.Len() == batch {
			q.out.Reset()
		}
	}
}

// FuzzMessage holds the handling of a packet message to this: whatever the
// attributes are, a packet with an id gets exactly one verdict, and the bytes
// that are judged are a part of the message.
func FuzzMessage(f *testing.F) {
	var w nfnl.Writer
	m := typical(&w)
	f.Add(m.Attrs, uint8(m.Family))
	f.Add(m.Attrs[:30], uint8(syscall.AF_BRIDGE))
	f.Fuzz(func(t *testing.T, attrs []byte, family uint8) {
		q := bareQueue(3)
		q.msg = nfnl.Message{Header: nfnl.Header{Type: 0x300}, Family: family, ResID: 3, Attrs: attrs}
		judged := 0
		q.message(judge(func(m *packet.Meta, data []byte) packet.Verdict {
			judged++
			if len(data)+4 > len(attrs) && len(data) > 0 {
				t.Errorf("%d bytes out of a message of %d", len(data), len(attrs))
			}
			return packet.Verdict{Action: packet.Accept}
		}), 1)
		if q.out.Len() != judged || judged == 0 && q.count.malformed.Load() == 0 {
			t.Errorf("%d verdicts, %d judged, %d malformed", q.out.Len(), judged, q.count.malformed.Load())
		}
	})
}
