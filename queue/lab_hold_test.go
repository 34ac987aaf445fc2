package queue

import (
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
)

// holder holds as much as it may, and drops everything else.
type holder struct {
	answer func(m *packet.Meta, v packet.Verdict)
	room   int
	held   []packet.Meta
}

func (h *holder) Begin(answer func(m *packet.Meta, v packet.Verdict), _ func(), room int) {
	h.answer, h.room = answer, room
}

func (h *holder) Handle(m *packet.Meta, _ []byte) packet.Verdict {
	if len(h.held) == h.room {
		return packet.Verdict{Action: packet.Drop}
	}
	h.held = append(h.held, *m)
	return packet.Verdict{Action: packet.Hold}
}

func (h *holder) Settle(_ int64, all bool) (next int64) {
	for i := range h.held {
		if all {
			h.answer(&h.held[i], packet.Verdict{Action: packet.Drop})
		}
	}
	if all {
		h.held = nil
	}
	return 0
}

// TestLabHeldLeavesRoom: what is held does not fill the queue, which under FailOpen
// would let all else pass.
func TestLabHeldLeavesRoom(t *testing.T) {
	const count, rate, length = 60, 200, 16
	ns := namespace(t)
	labtest.BothTables(t, ns, "-A", "INPUT", "-j", "NFQUEUE", "--queue-num", "5")
	got := sink(t, ns, lo4)
	h := &holder{}
	stop := run(t, open(t, ns, Config{Num: 5, MaxLen: length, FailOpen: true}), h)
	flood(t, ns, lab.Flood{To: lo4, Count: count, Rate: rate})
	s := stop()
	if h.room != length/heldShare || s.Dropped != count || got.Received().Distinct != 0 {
		t.Errorf("room for %d, %d dropped, %d passed; want room for %d and all %d dropped", h.room, s.Dropped, got.Received().Distinct, length/heldShare, count)
	}
}

// TestLabPulse: whoever watches sees whether Run waits for packets, works or has
// ended.
func TestLabPulse(t *testing.T) {
	ns := namespace(t)
	labtest.BothTables(t, ns, "-A", "INPUT", "-j", "NFQUEUE", "--queue-num", "6")
	q := open(t, ns, Config{Num: 6})
	if p := q.Pulse(); p != (Pulse{}) {
		t.Errorf("before Run: got %+v", p)
	}
	release := make(chan struct{})
	stop := run(t, q, judge(func(*packet.Meta, []byte) packet.Verdict {
		<-release
		return packet.Verdict{Action: packet.Accept}
	}))
	if !lab.Poll(5*time.Second, func() bool { p := q.Pulse(); return p.Running && !p.Busy }) {
		t.Errorf("without packets: got %+v", q.Pulse())
	}
	flood(t, ns, lab.Flood{To: lo4, Count: 1})
	if !lab.Poll(5*time.Second, func() bool { return q.Pulse().Busy }) {
		t.Errorf("at a packet: got %+v", q.Pulse())
	}
	at := q.Pulse()
	time.Sleep(50 * time.Millisecond)
	if p := q.Pulse(); p != at {
		t.Errorf("got %+v after %+v, though nothing moved", p, at)
	}
	close(release)
	if !lab.Poll(5*time.Second, func() bool { p := q.Pulse(); return !p.Busy && p.Beat != at.Beat }) {
		t.Errorf("after the packet: got %+v", q.Pulse())
	}
	stop()
	if q.Pulse().Running {
		t.Error("Run has returned, and is said to run")
	}
}
