package engine_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/rules"
)

// holdBench is a bench whose worker may hold packets.
type holdBench struct {
	*bench
	*registry
	answers []string // of held packets: destination port and verdict, in their order
	woken   int
}

func newHoldBench(t *testing.T, pending process.Facts, hash bool, room ...int) *holdBench {
	if room == nil {
		room = []int{1024}
	}
	r := &registry{owner: program(1, ""), pending: pending}
	h := &holdBench{registry: r, bench: ownedBench(t, r, &byExe{t: t, exe: "/curl", hash: hash})}
	h.worker.Begin(func(m *packet.Meta, v packet.Verdict) {
		h.answers = append(h.answers, fmt.Sprintf("%d %v", m.ID, v.Action))
	}, func() { h.woken++ }, room[0])
	return h
}

// begin sends the first packet of a flow, or a later one, and returns what became
// of it.
func (h *holdBench) begin(id uint32, src string) packet.Action {
	h.t.Helper()
	action, _ := h.sendMeta(packet.Meta{Hook: packet.Output, ID: id}, udp(src, server))
	return action
}

// learns makes o what the looker finds out.
func (h *holdBench) learns(o *process.Owner) {
	h.owner, h.pending = o, 0
	h.learned++
	h.wake()
}

func (h *holdBench) wantAnswers(want ...string) {
	h.t.Helper()
	if !slices.Equal(h.answers, want) {
		h.t.Errorf("answers: got %q, want %q", h.answers, want)
	}
	h.answers = nil
}

// A packet that hangs on a fact which is being looked up waits for it, and those
// behind it in its flow stay behind it.
func TestHeldUntilKnown(t *testing.T) {
	h := newHoldBench(t, process.FactPath, false)
	for id := range uint32(3) {
		if got := h.begin(id, client); got != packet.Hold {
			t.Fatalf("packet %d: got %v, want it held", id, got)
		}
	}
	if next := h.worker.Settle(h.now, false); next == 0 || len(h.answers) != 0 {
		t.Errorf("nothing known: answered %q, next look at %d", h.answers, next)
	}
	if h.hurries == 0 {
		t.Error("nobody was told that a packet waits")
	}
	h.learns(program(2, "/curl"))
	if h.woken != 1 {
		t.Errorf("woken %d times, want once", h.woken)
	}
	if next := h.worker.Settle(h.now, false); next != 0 {
		t.Errorf("next look at %d, want none", next)
	}
	h.wantAnswers("0 accept", "1 accept", "2 accept")
	if got := h.begin(3, client); got != packet.Accept {
		t.Errorf("the next packet of the flow: got %v", got)
	}
	h.worker.Tick(h.now + int64(time.Second)) // publishes the counts
	if s := h.engine.Stats(); s.Held != 3 || s.Packets != 4 {
		t.Errorf("got %d held of %d packets, want 3 of 4", s.Held, s.Packets)
	}
}

// At the end of its time a packet is judged with what is known.
func TestHeldAtMost(t *testing.T) {
	for _, tt := range []struct {
		name    string
		pending process.Facts
		hash    bool
		wait    time.Duration
	}{
		{"exe", process.FactPath, false, engine.DefaultHoldFacts},
		{"hash", process.FactHash, true, engine.DefaultHoldHash},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHoldBench(t, tt.pending, tt.hash)
			if got := h.begin(1, client); got != packet.Hold {
				t.Fatalf("got %v, want it held", got)
			}
			end := h.now + int64(tt.wait)
			if next := h.worker.Settle(h.now, false); next != end {
				t.Errorf("next look in %v, want %v", time.Duration(next-h.now), tt.wait)
			}
			h.worker.Settle(end-1, false)
			h.wantAnswers()
			h.worker.Settle(end, false)
			h.wantAnswers("1 drop")
		})
	}
}

// What is held at a stop, or before another process takes over, is judged.
func TestHeldAtTheEnd(t *testing.T) {
	h := newHoldBench(t, process.FactPath, false)
	h.begin(1, client)
	h.begin(2, "10.0.0.9:40000")
	if next := h.worker.Settle(h.now, true); next != 0 {
		t.Errorf("next look at %d, want that nothing is held", next)
	}
	h.wantAnswers("1 drop", "2 drop")
}

// One process cannot take the places of others, nor one user those of others:
// beyond its share a packet is judged with what is known, which here drops it. A short
// queue has room for less.
func TestHeldShares(t *testing.T) {
	for _, tt := range []struct{ room, process, user, all int }{{1024, 16, 64, 256}, {64, 4, 16, 64}, {4, 1, 1, 4}, {0, 0, 0, 0}} {
		t.Run(fmt.Sprint(tt.room), func(t *testing.T) { holdAll(t, tt.room, tt.process, tt.user, tt.all) })
	}
}

func holdAll(t *testing.T, room, ofProcess, ofUser, all int) {
	h := newHoldBench(t, process.FactPath, false, room)
	count := func(n int, owner func(i int) *process.Owner) (held int) {
		for i := range n {
			h.owner = owner(i)
			h.changes++
			if h.begin(uint32(i), fmt.Sprintf("10.%d.%d.1:40000", h.changes>>8, h.changes&0xff)) == packet.Hold {
				held++
			}
		}
		return held
	}
	user := func(uid, id, pid uint32) *process.Owner {
		o := program(id, "")
		o.Process.PID, o.UID, o.HasUID = pid, uid, true
		return o
	}
	id := uint32(100)
	next := func() uint32 { id++; return id }
	if got := count(40, func(int) *process.Owner { return user(1, 7, 7) }); got != ofProcess {
		t.Errorf("one process: got %d held, want %d", got, ofProcess)
	}
	if got := count(100, func(int) *process.Owner { return user(1, next(), id) }); got != ofUser-ofProcess {
		t.Errorf("one user, many processes: got %d more held, want %d", got, ofUser-ofProcess)
	}
	if got := count(400, func(i int) *process.Owner { return user(2+uint32(i)%10, next(), id) }); got != all-ofUser {
		t.Errorf("many users: got %d more held, want %d", got, all-ofUser)
	}
}

// A program that was written as it was started has no hash, and is not accepted by
// that; one that can have none for good is as the policy says.
func TestWithoutAHash(t *testing.T) {
	for why, want := range map[string]packet.Action{
		process.NoHashFresh: packet.Drop, process.NoHashTooLarge: packet.Accept, process.NoHashFileSystem: packet.Accept,
	} {
		h := newHoldBench(t, 0, true)
		h.owner = program(9, "/curl")
		h.owner.Process.Exe.NoSHA256 = why
		h.load(deciding(t, rules.Decision{Action: packet.Accept}, rules.HashPath))
		if got := h.begin(1, client); got != want {
			t.Errorf("%s: got %v, want %v", why, got, want)
		}
	}
}

// A policy that would accept because it does not know a hash yet does not.
func TestUnhashedIsNotAccepted(t *testing.T) {
	h := newHoldBench(t, process.FactHash, true)
	h.load(deciding(t, rules.Decision{Action: packet.Accept}, rules.HashPath)) // "unless it has that hash"
	if got := h.begin(1, client); got != packet.Hold {
		t.Fatalf("got %v, want it held", got)
	}
	h.worker.Settle(h.now+int64(engine.DefaultHoldHash), false)
	h.wantAnswers("1 drop")
	if got := h.worker.Outcome().Decision.Rule; got != engine.RuleUnhashed {
		t.Errorf("rule %q, want %q", got, engine.RuleUnhashed)
	}
	known := program(2, "/curl")
	known.Process.Exe.SHA256 = "good"
	h.learns(known)
	if got := h.begin(2, client); got != packet.Accept {
		t.Errorf("with the hash: got %v, want accept", got)
	}
}
