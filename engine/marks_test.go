package engine_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

var marks = engine.Marks{Mask: 0xff00, Reject: 0x100, Reply: 0x200, Accept: 0x300}

// markedBench is a bench whose ruleset knows marks.
func markedBench(t testing.TB, policy engine.Evaluator, change func(*engine.Snapshot)) *bench {
	b := newBench(t, engine.Config{}, policy)
	b.publish(policy, change)
	return b
}

func (b *bench) publish(policy engine.Evaluator, change func(*engine.Snapshot)) {
	b.gen++
	s := engine.Snapshot{Policy: policy, Generation: b.gen, Hash: "h", Marks: marks}
	if change != nil {
		change(&s)
	}
	b.engine.Publish(s)
}

// verdict returns the whole verdict for a packet.
func (b *bench) verdict(m packet.Meta, p pkt) packet.Verdict {
	b.t.Helper()
	data := p.bytes(b.t)
	b.now += int64(time.Millisecond)
	m.Time, m.Length = b.now, uint32(len(data))
	return b.worker.Handle(&m, data)
}

// deciding is a policy that always says d and reads fields.
func deciding(t testing.TB, d rules.Decision, reads ...string) engine.Evaluator {
	d.Rule, d.Log, d.Reads = "rule", true, reading(t, reads...)
	return policyFunc(func(_ *rules.Facts, out *rules.Decision) error { *out = d; return nil })
}

func TestMarks(t *testing.T) {
	accept := rules.Decision{Action: packet.Accept}
	reject := rules.Decision{Action: packet.Reject}
	owner := packet.Meta{Hook: packet.Output, Mark: 7, HasUID: true, UID: 1}
	plain := packet.Meta{Hook: packet.Output, Mark: 7}
	with := func(mark uint32) packet.Meta { return packet.Meta{Hook: packet.Output, Mark: mark} }
	in := func(mark uint32) packet.Meta { return packet.Meta{Hook: packet.Input, Mark: mark} }
	offload := packet.Verdict{Action: packet.Accept, Repeat: true, SetMark: true, Mark: 0x307}
	pass := packet.Verdict{Action: packet.Accept}
	cleared := packet.Verdict{Action: packet.Accept, SetMark: true, Mark: 7}
	out, syn := udp(client, server), tcp(client, server, "S")
	tests := []struct {
		name string
		d    rules.Decision
		read []string
		meta packet.Meta
		p    pkt
		want packet.Verdict
	}{
		{"nothing read", accept, nil, plain, out, offload},
		{"the flow's own fields", accept, []string{"ip.src", "dst_port", "hook"}, plain, out, offload},
		{"another protocol's fields", accept, []string{"tcp.flags.syn", "icmp.type"}, plain, out, offload},
		{"a field of each packet", accept, []string{"packet.length"}, plain, out, pass},
		{"the protocol's own flags", accept, []string{"tcp.flags.syn"}, plain, syn, pass},
		{"icmp type", accept, []string{"icmp.type"}, plain, echo("10.0.0.1", "10.0.0.2", 8), pass},
		{"owner of a tcp socket", accept, []string{"uid"}, owner, syn, offload},
		{"owner of a udp socket", accept, []string{"uid"}, owner, out, pass},
		{"owner not known", accept, []string{"uid"}, plain, syn, pass},
		{"mark to set", rules.Decision{Action: packet.Accept, SetMark: true, Mark: 0xfff5}, nil, plain, out, packet.Verdict{Action: packet.Accept, SetMark: true, Mark: 0xf5}},
		{"dropped", rules.Decision{}, nil, plain, out, packet.Verdict{}},
		{"rejected", reject, []string{"packet.length"}, plain, out, packet.Verdict{Action: packet.Reject, Repeat: true, SetMark: true, Mark: 0x107}},
		{"came back accepted", accept, nil, in(0x307), out, cleared},
		{"came back rejected", reject, nil, in(0x107), out, packet.Verdict{Action: packet.Reject, SetMark: true, Mark: 7}},
		{"brought a mark and is denied", rules.Decision{}, nil, in(0x307), out, packet.Verdict{SetMark: true, Mark: 7}},
		{"an answer", accept, nil, in(0x207), out, offload},
		{"an answer to what is not final", accept, []string{"mark"}, in(0x207), out, cleared},
		// At OUTPUT a mark that changes is a packet that is routed anew.
		{"an answer that is sent", accept, nil, with(0x207), out, pass},
		{"an answer that is sent is rejected", reject, nil, with(0x207), out, packet.Verdict{Action: packet.Reject, Repeat: true, SetMark: true, Mark: 0x107}},
		{"came back accepted, sent", accept, nil, with(0x307), out, pass},
		// What is nobody's of ours stays.
		{"somebody else's mark", accept, nil, in(0x407), out, pass},
		{"somebody else's mark, sent", accept, nil, with(0x6f07), out, pass},
		{"somebody else's mark is rejected", reject, nil, with(0x6f07), out, packet.Verdict{Action: packet.Reject, Repeat: true, SetMark: true, Mark: 0x107}},
		{"somebody else's mark, and one to set", rules.Decision{Action: packet.Accept, SetMark: true, Mark: 5}, nil, with(0x6f07), out, packet.Verdict{Action: packet.Accept, SetMark: true, Mark: 0x6f05}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := markedBench(t, deciding(t, tt.d, tt.read...), nil)
			for _, again := range []string{"first", "second"} {
				if got := b.verdict(tt.meta, tt.p); got != tt.want {
					t.Errorf("%s packet: got %+v, want %+v", again, got, tt.want)
				}
			}
		})
	}
}

func TestNoMarks(t *testing.T) {
	b := newBench(t, engine.Config{}, deciding(t, rules.Decision{Action: packet.Reject}))
	if got, want := b.verdict(packet.Meta{Mark: 0x300}, udp(client, server)), (packet.Verdict{Action: packet.Reject}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	b = markedBench(t, deciding(t, rules.Decision{Action: packet.Accept}), func(s *engine.Snapshot) { s.Marks.Accept = 0 })
	if got, want := b.verdict(packet.Meta{}, udp(client, server)), (packet.Verdict{Action: packet.Accept}); got != want {
		t.Errorf("offload suspended: got %+v, want %+v", got, want)
	}
}

// TestPolicySeesNoMarks hides the ruleset's bits from the policy.
func TestPolicySeesNoMarks(t *testing.T) {
	var seen []uint32
	b := markedBench(t, policyFunc(func(f *rules.Facts, d *rules.Decision) error {
		seen = append(seen, f.Meta.Mark)
		*d = rules.Decision{Rule: "r", Reads: reading(t, "mark")}
		return nil
	}), nil)
	b.verdict(packet.Meta{Hook: packet.Output, Mark: 0x0205_0203}, udp(client, server))
	for _, mark := range seen {
		if mark != 0x0205_0003 {
			t.Errorf("the policy saw mark %#x, want the ruleset's bits cleared", mark)
		}
	}
	if len(seen) == 0 {
		t.Error("the policy was not asked")
	}
}

// TestNoRoom: a connection for which the table has no room is judged packet by
// packet, and its answers by what they answer.
func TestNoRoom(t *testing.T) {
	b := newBench(t, engine.Config{Flows: 8}, &counted{ports: map[uint16]bool{443: true}, reads: reading(t, "dst_port")})
	b.engine.Publish(engine.Snapshot{
		Policy: &counted{ports: map[uint16]bool{443: true}, reads: reading(t, "dst_port")}, Generation: 2, Marks: engine.Marks{Mask: marks.Mask, Reply: marks.Reply},
	})
	meta := packet.Meta{Hook: packet.Input, Mark: marks.Reply}
	const flows, room = 12, 8
	for round := range 2 {
		for i := range flows {
			from := netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(40000+i)).String()
			b.want(packet.Output, tcp(from, server, "S"), packet.Accept, engine.ReasonPolicy)
			if action, reason := b.sendMeta(meta, tcp(server, from, "SA")); action != packet.Accept || reason != engine.ReasonEstablished {
				t.Errorf("round %d, flow %d: answer: got %v (%s), want accept", round, i, action, reason)
			}
			b.want(packet.Output, tcp(from, server, "A"), packet.Accept, engine.ReasonPolicy)
			if action, _ := b.sendMeta(meta, tcp("10.0.0.2:22", from, "SA")); action != packet.Drop {
				t.Errorf("round %d, flow %d: answer to what is denied: got %v, want drop", round, i, action)
			}
		}
	}
	b.worker.Tick(b.now)
	if got := b.engine.Stats(); got.Flows > room || got.FlowsNoRoom == 0 {
		t.Errorf("got %d flows, %d times no room, in a table of %d", got.Flows, got.FlowsNoRoom, room)
	}
}

// TestReplyOfUnknownFlow has the ruleset say that the first packet seen of a
// flow is an answer: it stands and falls with what it answers.
func TestReplyOfUnknownFlow(t *testing.T) {
	meta := packet.Meta{Hook: packet.Input, Mark: marks.Reply}
	for _, p := range []pkt{tcp(server, client, "A"), udp(server6, client6), echo("10.0.0.2", "10.0.0.1", 0)} {
		b := markedBench(t, https(), nil)
		if got := b.verdict(meta, p); got.Action != packet.Accept || b.worker.Outcome().Reason != engine.ReasonEstablished {
			t.Errorf("%s -> %s: got %+v (%s), want accept as established", p.src, p.dst, got, b.worker.Outcome().Reason)
		}
	}
	// The answer alone would be accepted.
	acceptIn := policyFunc(func(f *rules.Facts, d *rules.Decision) error {
		*d = rules.Decision{Rule: "in", Log: true}
		if f.Meta.Hook == packet.Input {
			d.Action = packet.Accept
		}
		return nil
	})
	b := markedBench(t, acceptIn, nil)
	for range 2 {
		if got := b.verdict(meta, udp(server, client)); got.Action != packet.Drop {
			t.Errorf("answer to a denied flow: got %+v, want drop", got)
		}
	}
}

// TestResetDenied rejects the packets of both directions of a TCP connection
// that had begun before it was denied, and drops those of any other flow.
func TestResetDenied(t *testing.T) {
	reset := func(s *engine.Snapshot) { s.ResetDenied = true }
	deny := deciding(t, rules.Decision{}, "uid")
	there := packet.Meta{Hook: packet.Output, HasUID: true}
	back := packet.Meta{Hook: packet.Input, Mark: marks.Reply}
	tests := []struct {
		name   string
		before []pkt // under a policy that accepts
		meta   packet.Meta
		p      pkt
		on     bool
		want   packet.Action
	}{
		{"sender", []pkt{tcp(client, server, "S")}, there, tcp(client, server, "A"), true, packet.Reject},
		{"far end", []pkt{tcp(client, server, "S")}, back, tcp(server, client, "A"), true, packet.Reject},
		{"far end, ruleset says nothing", []pkt{tcp(client, server, "S")}, packet.Meta{Hook: packet.Input}, tcp(server, client, "A"), true, packet.Reject},
		{"flow forgotten", nil, there, tcp(client, server, "A"), true, packet.Reject},
		{"flow forgotten, owner not known", nil, back, tcp(server, client, "A"), true, packet.Drop},
		{"new connection", nil, there, tcp(client, server, "S"), true, packet.Drop},
		{"new connection after the old", []pkt{tcp(client, server, "S")}, there, tcp(client, server, "S"), true, packet.Drop},
		{"udp", []pkt{udp(client, server)}, there, udp(client, server), true, packet.Drop},
		{"not asked for", []pkt{tcp(client, server, "S")}, there, tcp(client, server, "A"), false, packet.Drop},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := markedBench(t, https(), nil)
			for _, p := range tt.before {
				b.verdict(there, p)
			}
			change := reset
			if !tt.on {
				change = nil
			}
			b.publish(deny, change)
			for range 2 {
				if got := b.verdict(tt.meta, tt.p); got.Action != tt.want {
					t.Errorf("got %+v, want %v", got, tt.want)
				}
			}
		})
	}
}

func TestFlowEndSaysOffloaded(t *testing.T) {
	for _, accept := range []bool{false, true} {
		b := markedBench(t, deciding(t, rules.Decision{Action: packet.Accept}), func(s *engine.Snapshot) {
			if !accept {
				s.Marks.Accept = 0
			}
		})
		for range 3 { // the kernel need not track the flow, then all its packets come
			b.verdict(packet.Meta{Hook: packet.Output}, udp(client, server))
		}
		b.worker.Close()
		ends := 0
		b.ring.Drain(func(e *logsink.Event) {
			if e.Kind != logsink.FlowEnd {
				return
			}
			if ends++; e.Offloaded != accept {
				t.Errorf("got offloaded %v, want %v", e.Offloaded, accept)
			}
		})
		if ends != 1 {
			t.Errorf("got %d ends, want 1", ends)
		}
		if s := b.engine.Stats(); s.Offloaded == 1 != accept {
			t.Errorf("got %d flows that are offloaded, want one: %v", s.Offloaded, accept)
		}
	}
}

func TestAwait(t *testing.T) {
	b := markedBench(t, https(), nil)
	other := b.engine.NewWorker(nil)
	short := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		return b.engine.Await(ctx)
	}
	b.worker.Tick(b.now)
	if err := short(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one of two workers has seen it: got %v, want it to wait", err)
	}
	other.Tick(b.now)
	if err := b.engine.Await(t.Context()); err != nil {
		t.Error(err)
	}
	b.publish(https(), nil)
	other.Close()
	if err := short(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no worker has seen the second: got %v, want it to wait", err)
	}
	b.worker.Tick(b.now)
	if err := b.engine.Await(t.Context()); err != nil {
		t.Errorf("the other is closed: %v", err)
	}
}

func TestMarksAllocateNothing(t *testing.T) {
	b := markedBench(t, https(), nil)
	for _, m := range []packet.Meta{{Hook: packet.Output}, {Hook: packet.Output, Mark: marks.Accept}, {Hook: packet.Input, Mark: marks.Reply}} {
		p := tcp(client, server, "A")
		if m.Hook == packet.Input {
			p = tcp(server, client, "A")
		}
		data := p.bytes(t)
		b.now++
		mark := m.Mark
		m.Time, m.Length = b.now, uint32(len(data))
		if n := testing.AllocsPerRun(100, func() { m.Mark = mark; b.worker.Handle(&m, data) }); n != 0 {
			t.Errorf("mark %#x: %v allocations, want 0", mark, n)
		}
	}
}
