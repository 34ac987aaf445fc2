package connector

import (
	"encoding/binary"
	"testing"
	"time"
)

// event builds a message by the kernel headers, apart from the parser.
func rawEvent(seq, ack uint32, kind Kind, cpu uint32, ns uint64, data ...uint32) []byte {
	b := binary.NativeEndian.AppendUint32(nil, 76)
	b = append(b, make([]byte, 12)...)
	for _, w := range []uint32{1, 1, seq, ack, 40} {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	b = binary.NativeEndian.AppendUint32(b, uint32(kind))
	b = binary.NativeEndian.AppendUint32(b, cpu)
	b = binary.NativeEndian.AppendUint64(b, ns)
	for _, w := range data {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return append(b, make([]byte, 76-len(b))...)
}

func TestParse(t *testing.T) {
	name := [commSize]byte{'a', 'b', 'c'}
	abc := binary.NativeEndian.Uint32(name[:])
	tests := []struct {
		name string
		data []byte
		want Event
	}{
		{"fork", rawEvent(1, 0, Fork, 3, 9, 10, 11, 12, 13), Event{Kind: Fork, ParentTID: 10, ParentPID: 11, TID: 12, PID: 13}},
		{"exec", rawEvent(1, 0, Exec, 3, 9, 10, 11), Event{Kind: Exec, TID: 10, PID: 11}},
		{"uid", rawEvent(1, 0, UID, 3, 9, 10, 11, 1000, 0), Event{Kind: UID, TID: 10, PID: 11, Real: 1000}},
		{"gid", rawEvent(1, 0, GID, 3, 9, 10, 11, 5, 6), Event{Kind: GID, TID: 10, PID: 11, Real: 5, Effective: 6}},
		{"comm", rawEvent(1, 0, Comm, 3, 9, 10, 11, abc), Event{Kind: Comm, TID: 10, PID: 11, comm: name}},
		{"exit", rawEvent(1, 0, Exit, 3, 9, 10, 11, 256, 17, 20, 21), Event{Kind: Exit, TID: 10, PID: 11, ExitCode: 256, ExitSignal: 17, ParentTID: 20, ParentPID: 21}},
	}
	for _, tt := range tests {
		var m message
		tt.want.CPU, tt.want.Time = 3, 9
		if !m.parse(tt.data) || m.event != tt.want || m.seq != 1 {
			t.Errorf("%s: got %+v, want %+v", tt.name, m.event, tt.want)
		}
		for n := range tt.data {
			if m.parse(tt.data[:n]) && n < 60 {
				t.Errorf("%s: %d bytes of it are taken", tt.name, n)
			}
		}
	}
	var m message
	m.parse(tests[4].data)
	if got := m.event.Comm(); got != "abc" {
		t.Errorf("got name %q", got)
	}
	if !m.parse(rawEvent(1, 5, 0, 3, 9, 1)) || m.errno != 1 || m.ack != 5 {
		t.Errorf("answer: got %+v", m)
	}
	other := rawEvent(1, 0, Fork, 0, 0)
	other[nlHead] = 2 // CN_IDX_CIFS
	if m.parse(other) {
		t.Error("a message of another user of the connector is taken")
	}
	if !m.parse(rawEvent(1, 0, 0x100, 0, 0)) { // ptrace: numbered, but not handed on
		t.Error("an event of another kind is not taken")
	}
}

// TestLost counts gaps of each CPU on its own, over the end of the numbers, and
// not before the first event.
func TestLost(t *testing.T) {
	tests := []struct {
		name     string
		filtered bool
		messages [][2]uint32 // CPU and number
		want     uint64
	}{
		{"none", false, [][2]uint32{{0, 7}, {1, 100}, {0, 8}, {1, 101}}, 0},
		{"two CPUs", false, [][2]uint32{{0, 7}, {1, 100}, {0, 10}, {1, 105}}, 2 + 4},
		{"numbers begin again", false, [][2]uint32{{0, 0xfffffffe}, {0, 1}}, 2},
		{"going back", false, [][2]uint32{{0, 100}, {0, 50}, {0, 51}}, 0},
		{"filtered", true, [][2]uint32{{0, 7}, {0, 10}}, 0},
	}
	for _, tt := range tests {
		c := &Conn{kinds: Exec, filtered: tt.filtered, last: map[uint32]uint32{}}
		handed := 0
		for i, m := range tt.messages {
			kind := Exec
			if i == 1 {
				kind = 0x80 // sid: numbered, not handed on
			}
			c.take(rawEvent(m[1], 0, kind, m[0], 0, 1, 2), func(Event) { handed++ })
		}
		if got := c.Stats(); got.Lost != tt.want || got.Events != uint64(handed) || handed != len(tt.messages)-1 {
			t.Errorf("%s: got %+v and %d events handed on, want %d lost", tt.name, got, handed, tt.want)
		}
	}
}

func TestKind(t *testing.T) {
	for k, want := range map[Kind]string{0: "kind(0x0)", Fork: "fork", Exec | Exit: "exec|exit", All: "fork|exec|uid|gid|comm|exit", Comm | 0x80: "comm|kind(0x80)"} {
		if got := k.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// FuzzParse reads arbitrary messages: nothing panics, nothing is read beyond.
func FuzzParse(f *testing.F) {
	f.Add(rawEvent(1, 0, Fork, 3, 9, 10, 11, 12, 13))
	f.Add(rawEvent(1, 0, Exit, 3, 9, 10, 11, 256, 17, 20, 21))
	f.Fuzz(func(t *testing.T, data []byte) {
		b := make([]byte, len(data))
		copy(b, data)
		var m message
		if m.parse(b) && m.what == Comm && len(m.event.Comm()) > commSize {
			t.Errorf("name %q", m.event.Comm())
		}
		if m.event.Time < 0 {
			_ = m.event.Time.Round(time.Second)
		}
	})
}
