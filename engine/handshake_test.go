package engine_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// numbered returns a TCP packet with these numbers.
func numbered(src, dst, flags string, seq, ack uint32) pkt {
	p := tcp(src, dst, flags)
	p.l4.(*layers.TCP).Seq, p.l4.(*layers.TCP).Ack = seq, ack
	return p
}

// openTo accepts what comes in to port 443 and what this host asks of port 53.
var openTo = policyFunc(func(f *rules.Facts, d *rules.Decision) error {
	*d = rules.Decision{Rule: "none"}
	in := f.Meta.Hook.Direction() == "in"
	if in && f.Packet.DstPort == 443 || !in && f.Packet.DstPort == 53 {
		*d = rules.Decision{Action: packet.Accept, Rule: "open", Log: true}
	}
	return nil
})

// TestConnections says after which packets a connection counts as one: it is
// still known an hour later.
func TestConnections(t *testing.T) {
	const in, out = packet.Input, packet.Output
	type step struct {
		hook     packet.Hook
		flags    string
		seq, ack uint32
	}
	syn, answer := step{in, "S", 100, 0}, step{out, "SA", 700, 101}
	done := []step{syn, answer, {in, "A", 101, 701}}
	for name, tt := range map[string]struct {
		steps []step
		kept  bool
	}{
		"handshake":                    {done, true},
		"sent again":                   {[]step{syn, answer, syn, answer, {in, "A", 101, 701}}, true},
		"data with the ACK":            {[]step{syn, answer, {in, "PA", 101, 701}}, true},
		"both begin":                   {[]step{syn, {out, "S", 700, 0}, {in, "SA", 100, 701}, {out, "SA", 700, 101}}, true},
		"begun before":                 {[]step{{in, "A", 900, 800}, {out, "A", 800, 901}}, true},
		"SYN":                          {[]step{syn}, false},
		"half":                         {[]step{syn, answer, answer, syn}, false},
		"guessed ACK":                  {[]step{syn, answer, {in, "A", 101, 9999}, {out, "R", 9999, 0}}, false},
		"guessed ACK, challenged":      {[]step{syn, answer, {in, "", 5000, 0}, {out, "A", 701, 101}, {in, "A", 101, 9999}}, false},
		"answer to another SYN":        {[]step{syn, {out, "SA", 700, 901}, {in, "A", 101, 701}}, false},
		"ACK of nothing":               {[]step{{in, "A", 900, 800}, {out, "R", 800, 0}}, false},
		"refused":                      {[]step{syn, {out, "RA", 0, 101}}, false},
		"reset":                        {append(done[:3:3], step{in, "R", 101, 0}), false},
		"false reset":                  {append(done[:3:3], step{in, "R", 1 << 30, 0}), true},
		"false ACK, then reset by it":  {append(done[:3:3], step{out, "A", 701, 1 << 30}, step{in, "R", 1 << 30, 0}), true},
		"false SYN":                    {append(done[:3:3], syn, answer), true},
		"closed":                       {append(done[:3:3], step{in, "FA", 101, 701}, step{out, "FA", 701, 102}), false},
		"half closed":                  {append(done[:3:3], step{in, "FA", 101, 701}), false},
		"false FIN":                    {append(done[:3:3], step{in, "FA", 1 << 30, 701}), true},
		"reset after much that passed": {append(done[:3:3], step{out, "A", 701, 1 << 20}, step{in, "R", 1 << 20, 0}), false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, engine.Config{}, openTo)
			const remote, local = "192.0.2.7:5000", "10.0.0.1:443"
			for _, s := range tt.steps {
				if s.hook == in {
					b.send(in, numbered(remote, local, s.flags, s.seq, s.ack))
				} else {
					b.send(out, numbered(local, remote, s.flags, s.seq, s.ack))
				}
			}
			b.now += int64(time.Hour)
			want := packet.Drop
			if tt.kept {
				want = packet.Accept
			}
			if got, why := b.send(out, numbered(local, remote, "A", 701, 101)); got != want {
				t.Errorf("after an hour: got %v (%s), want %v", got, why, want)
			}
		})
	}
}

// falseSender returns an address that nobody has.
func falseSender(i int) string {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 5000).String()
}

// TestStrangersHoldNoPlace floods an open port from false addresses, answered as
// a server does, and asks meanwhile: all answers must pass. So must those of
// connections that were there before.
func TestStrangersHoldNoPlace(t *testing.T) {
	for name, flood := range map[string]func(b *bench, from string){
		"syn": func(b *bench, from string) {
			b.send(packet.Input, numbered(from, "10.0.0.1:443", "S", 100, 0))
			b.send(packet.Output, numbered("10.0.0.1:443", from, "SA", 700, 101))
		},
		"syn and ack": func(b *bench, from string) {
			b.send(packet.Input, numbered(from, "10.0.0.1:443", "S", 100, 0))
			b.send(packet.Output, numbered("10.0.0.1:443", from, "SA", 700, 101))
			b.send(packet.Input, numbered(from, "10.0.0.1:443", "A", 101, 12345))
		},
		"udp": func(b *bench, from string) {
			b.send(packet.Input, udp(from, "10.0.0.1:443"))
			b.send(packet.Output, udp("10.0.0.1:443", from))
		},
		"denied": func(b *bench, from string) { b.send(packet.Input, udp(from, "10.0.0.1:9")) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, engine.Config{Flows: 4096}, openTo) // so that chance fills no set with what is to be kept
			const clients = 50
			for i := range clients {
				from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 5000).String()
				b.send(packet.Input, numbered(from, "10.0.0.1:443", "S", 100, 0))
				b.send(packet.Output, numbered("10.0.0.1:443", from, "SA", 700, 101))
				b.send(packet.Input, numbered(from, "10.0.0.1:443", "A", 101, 701))
			}
			for i := range 10_000 {
				flood(b, falseSender(i))
				if i%100 != 0 {
					continue
				}
				me := netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(20000+i)).String()
				b.want(packet.Output, udp(me, "10.0.0.53:53"), packet.Accept, engine.ReasonPolicy)
				for j := range 50 { // while the answer is under way
					flood(b, falseSender(1_000_000+i*50+j))
				}
				b.want(packet.Input, udp("10.0.0.53:53", me), packet.Accept, engine.ReasonEstablished)
			}
			for i := range clients {
				to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 5000).String()
				b.want(packet.Output, numbered("10.0.0.1:443", to, "A", 701, 101), packet.Accept, engine.ReasonEstablished)
			}
		})
	}
}

// TestStrangersDisplaceNoPeer floods an open port as TestStrangersHoldNoPlace, with
// the directions of a flow in two queues: the answers that this host waits for and
// the connections that it has accepted are still known to the other worker.
func TestStrangersDisplaceNoPeer(t *testing.T) {
	b := newBench(t, engine.Config{Workers: 2, Flows: 4096}, openTo)
	out := &bench{t: t, engine: b.engine, worker: b.engine.NewWorker(nil), now: b.now}
	const remote, local = "192.0.2.7:5000", "10.0.0.1:443"
	b.want(packet.Input, numbered(remote, local, "S", 100, 0), packet.Accept, engine.ReasonPolicy)
	out.want(packet.Output, numbered(local, remote, "SA", 700, 101), packet.Accept, engine.ReasonEstablished)
	data := numbered(local, remote, "A", 701, 101)
	data.payload = []byte("220 ready")
	out.want(packet.Output, data, packet.Accept, engine.ReasonEstablished)

	const questions = 200
	me := func(i int) string {
		return netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(20000+i)).String()
	}
	for i := range questions {
		out.want(packet.Output, udp(me(i), "10.0.0.53:53"), packet.Accept, engine.ReasonPolicy)
	}
	for i := range 300_000 { // several times what there is room for
		b.send(packet.Input, numbered(falseSender(i), local, "S", 100, 0))
		if i%20 == 0 {
			out.send(packet.Output, numbered(local, falseSender(i), "SA", 700, 101))
		}
		b.now -= int64(time.Millisecond) // the flood is fast: the time does not tell who is gone
	}
	for i := range questions {
		b.want(packet.Input, udp("10.0.0.53:53", me(i)), packet.Accept, engine.ReasonEstablished)
	}
	out.want(packet.Output, numbered(local, remote, "A", 710, 101), packet.Accept, engine.ReasonEstablished)
	b.want(packet.Input, numbered("203.0.113.1:5000", local, "S", 100, 0), packet.Accept, engine.ReasonPolicy)
	out.want(packet.Output, numbered(local, "203.0.113.1:5000", "SA", 700, 101), packet.Accept, engine.ReasonEstablished)
}

// outward accepts what this host sends, and logs.
var outward = policyFunc(func(f *rules.Facts, d *rules.Decision) error {
	*d = rules.Decision{Rule: "none", Log: true}
	if f.Meta.Hook == packet.Output || f.Meta.Hook == packet.Forward && f.Packet.Src.Is4() && f.Packet.Src.As4()[0] == 10 {
		d.Action, d.Rule = packet.Accept, "out"
	}
	return nil
})

// TestSYNIsNoAnswer: who was connected to may not connect back by the same ports,
// whatever has become of the connection. What belongs to it goes on.
func TestSYNIsNoAnswer(t *testing.T) {
	const local, remote = "10.0.0.1:5000", "192.0.2.7:443"
	out := func(flags string, seq, ack uint32) pkt { return numbered(local, remote, flags, seq, ack) }
	in := func(flags string, seq, ack uint32) pkt { return numbered(remote, local, flags, seq, ack) }
	type step struct {
		out bool
		p   pkt
	}
	open := []step{{true, out("S", 100, 0)}, {false, in("SA", 700, 101)}, {true, out("A", 101, 701)}}
	then := func(more ...step) []step { return append(open[:3:3], more...) }
	for name, steps := range map[string][]step{
		"open":             open,
		"half":             open[:2],
		"reset by them":    then(step{false, in("R", 701, 0)}),
		"reset by us":      then(step{true, out("R", 101, 0)}),
		"closed":           then(step{false, in("FA", 701, 101)}, step{true, out("FA", 101, 702)}, step{false, in("A", 702, 102)}),
		"refused":          {open[0], {false, in("RA", 0, 101)}},
		"begun before":     {open[2]},
		"begun before, in": {{true, out("A", 101, 701)}, {false, in("A", 701, 101)}},
		"SYN again":        append([]step{open[0]}, open...),
	} {
		for _, hooks := range [][2]packet.Hook{{packet.Input, packet.Output}, {packet.Forward, packet.Forward}} {
			for _, workers := range []int{1, 2} {
				b := newBench(t, engine.Config{Workers: workers}, outward)
				other := b
				if workers == 2 {
					other = &bench{t: t, engine: b.engine, worker: b.engine.NewWorker(nil), now: b.now}
				}
				for _, s := range steps {
					if s.out {
						b.want(hooks[1], s.p, packet.Accept, engine.ReasonPolicy)
					} else {
						other.want(hooks[0], s.p, packet.Accept, engine.ReasonEstablished)
					}
				}
				if t.Failed() {
					t.Fatalf("%s: does not begin", name)
				}
				for _, w := range []*bench{other, b} {
					if workers == 2 && w == b && name == "begun before" {
						continue // its ACK is all that this worker knows of
					}
					for i := range 3 {
						if got, why := w.send(hooks[0], in("S", uint32(5000+i/2), 0)); got != packet.Drop || why != engine.ReasonPolicy {
							t.Errorf("%s, hook %v, %d workers: SYN %d of the other end: got %v (%s), want it dropped", name, hooks[0], workers, i, got, why)
						}
					}
				}
				if name == "open" {
					other.want(hooks[0], in("A", 701, 101), packet.Accept, engine.ReasonEstablished)
					b.want(hooks[1], out("A", 101, 701), packet.Accept, engine.ReasonPolicy)
				}
			}
		}
	}
}

// TestSimultaneousOpen: both ends ask for the same connection at once.
func TestSimultaneousOpen(t *testing.T) {
	const local, remote = "10.0.0.1:5000", "192.0.2.7:443"
	for _, workers := range []int{1, 2} {
		for _, early := range []bool{false, true} {
			b := newBench(t, engine.Config{Workers: workers}, outward)
			other := b
			if workers == 2 {
				other = &bench{t: t, engine: b.engine, worker: b.engine.NewWorker(nil), now: b.now}
			}
			if early { // nobody has asked yet
				b.want(packet.Input, numbered(remote, local, "S", 700, 0), packet.Drop, engine.ReasonPolicy)
			}
			b.want(packet.Output, numbered(local, remote, "S", 100, 0), packet.Accept, engine.ReasonPolicy)
			other.want(packet.Input, numbered(remote, local, "S", 700, 0), packet.Accept, engine.ReasonEstablished)
			other.want(packet.Input, numbered(remote, local, "S", 700, 0), packet.Accept, engine.ReasonEstablished)
			b.want(packet.Output, numbered(local, remote, "SA", 100, 701), packet.Accept, engine.ReasonPolicy)
			other.want(packet.Input, numbered(remote, local, "SA", 700, 101), packet.Accept, engine.ReasonEstablished)
			for _, w := range []*bench{b, other} {
				w.want(packet.Input, numbered(remote, local, "S", 900, 0), packet.Drop, engine.ReasonPolicy)
			}
			other.want(packet.Input, numbered(remote, local, "A", 701, 101), packet.Accept, engine.ReasonEstablished)
		}
	}
}

// TestSYNAfterOffload: answers to an offloaded connection are not seen, so of
// a SYN by the other end the ruleset says whether it belongs to it.
func TestSYNAfterOffload(t *testing.T) {
	told := engine.Marks{Mask: 0xff00, Reject: 0x100, Reply: 0x200, Related: 0x300, Accept: 0x400}
	const local, remote = "10.0.0.1:5000", "192.0.2.7:443"
	for _, mark := range []uint32{0, told.Reply} {
		b := newBench(t, engine.Config{}, outward)
		b.engine.Publish(engine.Snapshot{Policy: outward, Generation: 2, Marks: told})
		if v := b.verdict(packet.Meta{Hook: packet.Output}, numbered(local, remote, "S", 100, 0)); v.Mark != told.Accept {
			t.Fatalf("the SYN is not offloaded: %+v", v)
		}
		want := packet.Drop
		if mark != 0 {
			want = packet.Accept
		}
		if v := b.verdict(packet.Meta{Hook: packet.Input, Mark: mark}, numbered(remote, local, "S", 700, 0)); v.Action != want {
			t.Errorf("mark %#x: got %+v, want %v", mark, v, want)
		}
	}
}

// TestNewAssociationIsNoAnswer: the same for SCTP and DCCP, which are not offloaded.
func TestNewAssociationIsNoAnswer(t *testing.T) {
	told := engine.Marks{Mask: 0xff00, Reject: 0x100, Reply: 0x200, Related: 0x300, Accept: 0x400}
	ip := func(proto byte, out bool, l4 ...byte) []byte {
		p := []byte{0x45, 0, 0, byte(20 + len(l4)), 0, 0, 0, 0, 64, proto, 0, 0, 10, 0, 0, 1, 192, 0, 2, 7}
		if !out {
			copy(p[12:], []byte{192, 0, 2, 7, 10, 0, 0, 1})
			l4[0], l4[1], l4[2], l4[3] = l4[2], l4[3], l4[0], l4[1]
		}
		return append(p, l4...)
	}
	sctp := func(out bool, chunk byte) []byte {
		return ip(packet.ProtoSCTP, out, 1, 1, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, chunk, 0, 0, 4)
	}
	dccp := func(out bool, typ byte) []byte {
		return ip(packet.ProtoDCCP, out, 1, 1, 2, 2, 4, 0, 0, 0, 1|typ<<1, 0, 0, 0, 0, 0, 0, 1)
	}
	for name, tt := range map[string]struct {
		of            func(out bool, typ byte) []byte
		begin, answer byte
	}{"sctp": {sctp, 1, 2}, "dccp": {dccp, 0, 1}} {
		b := newBench(t, engine.Config{}, outward)
		b.engine.Publish(engine.Snapshot{Policy: outward, Generation: 2, Marks: told})
		for i, s := range []struct {
			out  bool
			typ  byte
			want packet.Action
		}{
			{false, tt.begin, packet.Drop}, {true, tt.begin, packet.Accept}, {false, tt.begin, packet.Accept}, // at once
			{false, tt.answer, packet.Accept}, {false, tt.begin, packet.Drop}, {false, 3, packet.Accept}, {false, tt.begin, packet.Drop},
		} {
			m := packet.Meta{Hook: packet.Input, Time: b.now}
			if s.out {
				m.Hook = packet.Output
			}
			if v := b.worker.Handle(&m, tt.of(s.out, s.typ)); v.Action != s.want || v.SetMark {
				t.Errorf("%s, packet %d: got %+v, want %v without a mark", name, i, v, s.want)
			}
		}
	}
}
