package logsink

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/packet"
)

// udpPacket is 10.0.0.1:1000 -> 10.0.0.2:53 with two bytes of data.
var udpPacket = []byte{
	0x45, 0, 0, 30, 0, 7, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
	3, 232, 0, 53, 0, 10, 0, 0, 'h', 'i',
}

// nflogMessage builds what the kernel sends for one packet.
func nflogMessage(group uint16, build func(w *nfnl.Writer)) *nfnl.Message {
	var w nfnl.Writer
	h := nfnl.Header{Type: nfnl.Type(unix.NFNL_SUBSYS_ULOG, nfulnlMsgPacket)}
	w.Begin(h, unix.AF_INET, group)
	build(&w)
	w.End()
	return &nfnl.Message{Header: h, Family: unix.AF_INET, ResID: group, Attrs: w.Bytes()[20:]}
}

func fullMessage(group uint16, seq uint32) *nfnl.Message {
	return nflogMessage(group, func(w *nfnl.Writer) {
		w.Attr(nfulaPacketHdr, 8, 0, byte(packet.Forward), 0)
		w.Attr(nfulaPrefix, append([]byte("to the moon: "), 0)...)
		w.Uint32(nfulaIfindexInDev, 2)
		w.Uint32(nfulaIfindexOutDev, 3)
		w.Uint32(nfulaMark, 77)
		w.Attr(nfulaTimestamp, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, 1700000000), 123456)...)
		w.Uint32(nfulaUID, 1000)
		w.Uint32(nfulaGID, 100)
		w.Uint32(nfulaSeq, seq)
		w.Attr(nfulaPayload, udpPacket...)
	})
}

// newReader returns a reader without a socket.
func newReader(t testing.TB, groups ...uint16) *NFLogReader {
	t.Helper()
	l, err := New(Config{RingEvents: 64})
	if err != nil {
		t.Fatal(err)
	}
	cfg := NFLogConfig{Groups: groups, InterfaceName: func(i uint32) string { return "eth" + string(rune('0'+i)) }}
	if err := cfg.check(); err != nil {
		t.Fatal(err)
	}
	return newNFLog(cfg, l)
}

func drained(r *Ring) []Event {
	var all []Event
	r.Drain(func(e *Event) { all = append(all, *e) })
	return all
}

func TestNFLogHandle(t *testing.T) {
	udp := Event{
		Kind: NFLog, Time: 1700000000123456000, Queue: 5, Hook: packet.Forward, In: "eth2", Out: "eth3",
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Protocol: 17, Status: packet.OK,
		HasPorts: true, SrcPort: 1000, DstPort: 53, Mark: 77, HasUID: true, UID: 1000, HasGID: true, GID: 100,
		Length: 30, TTL: 64, IPID: 7, UDPLength: 10, NFLogLabel: "to the moon: ",
	}
	const now = 42
	tests := []struct {
		name string
		m    *nfnl.Message
		want []Event
	}{
		{"everything", fullMessage(5, 0), []Event{udp}},
		{"nothing but the packet", nflogMessage(5, func(w *nfnl.Writer) { w.Attr(nfulaPayload, udpPacket...) }),
			[]Event{with(udp, func(e *Event) {
				e.Time, e.Hook, e.In, e.Out, e.Mark, e.NFLogLabel = now, packet.Prerouting, "", "", 0, ""
				e.HasUID, e.HasGID, e.UID, e.GID = false, false, 0, 0
			})}},
		{"no payload", nflogMessage(5, func(w *nfnl.Writer) { w.Attr(nfulaPrefix, 'x') }),
			[]Event{{Kind: NFLog, Time: now, Queue: 5, NFLogLabel: "x", Text: "empty packet"}}},
		{"short mark", nflogMessage(5, func(w *nfnl.Writer) { w.Attr(nfulaMark, 1, 2) }), nil},
		{"answer to a request", &nfnl.Message{IsError: true, ResID: 5}, nil},
		{"other subsystem", &nfnl.Message{Header: nfnl.Header{Type: nfnl.Type(unix.NFNL_SUBSYS_QUEUE, 0)}, ResID: 5}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newReader(t, 5)
			n.handle(tt.m, now)
			if diff := cmp.Diff(tt.want, drained(n.ring), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestNFLogSequence: gaps count per group, over the wrap of the number too,
// and an event that cannot be read counts as lost.
func TestNFLogSequence(t *testing.T) {
	n := newReader(t, 1, 2)
	var log strings.Builder
	l, err := New(Config{Outputs: []Output{{Path: "b", Writer: &log, Pretty: true}}})
	if err != nil {
		t.Fatal(err)
	}
	n.log = l
	for _, seq := range []uint32{0, 1, 5} {
		n.handle(fullMessage(1, seq), 0)
	}
	cut := fullMessage(1, 6)
	cut.Truncated = true
	n.handle(cut, 0)
	n.groups[1].next = 1<<32 - 2
	for _, seq := range []uint32{1<<32 - 2, 1} {
		n.handle(fullMessage(2, seq), 0)
	}
	if n.groups[0].lost != 4 || n.groups[1].lost != 2 || n.lost.Load() != 6 || n.malformed.Load() != 1 || n.events.Load() != 5 {
		t.Errorf("got %+v, %d lost, %d malformed, %d events", n.groups, n.lost.Load(), n.malformed.Load(), n.events.Load())
	}
	n.recordLosses(l.started)
	n.recordLosses(l.started) // nothing new
	if err := start(t, l)(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`4 lost total=4 origin="nflog group 1"`, `2 lost total=2 origin="nflog group 2"`} {
		if strings.Count(log.String(), want) != 1 {
			t.Errorf("got %s, want once %s", log.String(), want)
		}
	}
}

func TestWireLength(t *testing.T) {
	v6 := make([]byte, 64)
	v6[0], v6[4], v6[5] = 0x60, 1, 0
	tests := []struct {
		name string
		b    []byte
		cut  uint32
		want uint32
	}{
		{"whole", udpPacket, 256, 30},
		{"cut ipv4", udpPacket[:24], 24, 30},
		{"cut ipv6", v6, 64, 296},
		{"claims to be shorter", udpPacket, 30, 30},
		{"not cut, claims more", udpPacket[:24], 256, 24},
		{"tiny", udpPacket[:4], 4, 4},
	}
	for _, tt := range tests {
		if got := wireLength(tt.b, tt.cut); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestNFLogConfigErrors(t *testing.T) {
	tests := []struct {
		name string
		cfg  NFLogConfig
		want string
	}{
		{"no group", NFLogConfig{}, "no group given"},
		{"twice", NFLogConfig{Groups: []uint16{1, 2, 1}}, "group 1 is given twice"},
		{"buffer", NFLogConfig{Groups: []uint16{1}, BufferSize: 131073}, "limit of 131072"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := OpenNFLog(tt.cfg, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestNFLogInternIsBounded(t *testing.T) {
	n := newReader(t, 1)
	for i := range 3 * maxPrefixes {
		want := string(rune(i))
		if got := n.intern([]byte(want)); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	if len(n.prefixes) > maxPrefixes {
		t.Errorf("got %d prefixes, want at most %d", len(n.prefixes), maxPrefixes)
	}
}

func TestNFLogAllocatesNothing(t *testing.T) {
	n := newReader(t, 5)
	n.cfg.InterfaceName = func(uint32) string { return "eth0" }
	m := fullMessage(5, 0)
	drain := func(*Event) {}
	if got := testing.AllocsPerRun(100, func() { n.handle(m, 1); n.ring.Drain(drain) }); got != 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
}

// FuzzNFLog feeds attributes as they may come: nothing panics, and each
// message gives at most one event, which encodes.
func FuzzNFLog(f *testing.F) {
	f.Add(fullMessage(5, 0).Attrs, uint8(unix.AF_INET), false)
	f.Add(fullMessage(5, 9).Attrs[:30], uint8(unix.AF_INET6), true)
	f.Add([]byte{5, 0, 1, 0, 8}, uint8(unix.AF_BRIDGE), false)
	f.Fuzz(func(t *testing.T, attrs []byte, family uint8, cut bool) {
		n := newReader(t, 5)
		m := &nfnl.Message{
			Header: nfnl.Header{Type: nfnl.Type(unix.NFNL_SUBSYS_ULOG, nfulnlMsgPacket)},
			Family: family, ResID: 5, Attrs: attrs, Truncated: cut,
		}
		n.handle(m, 1)
		events := drained(n.ring)
		if uint64(len(events)) != n.events.Load() || n.events.Load()+n.malformed.Load() != 1 {
			t.Fatalf("got %d events, %d counted, %d malformed", len(events), n.events.Load(), n.malformed.Load())
		}
		for i := range events {
			checkRoundTrip(t, NewEncoder(EncoderConfig{Host: events[i].In}).Append(nil, &events[i]), &events[i])
		}
	})
}
