package engine_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// policyFunc is a policy written in Go.
type policyFunc func(f *rules.Facts, d *rules.Decision) error

func (p policyFunc) Evaluate(f *rules.Facts, d *rules.Decision) error { return p(f, d) }

// counted counts evaluations of an accept-by-destination-port policy.
type counted struct {
	n     int
	ports map[uint16]bool
	reads rules.FieldSet
}

func (p *counted) Evaluate(f *rules.Facts, d *rules.Decision) error {
	p.n++
	*d = rules.Decision{Rule: "default", Log: true, Reads: p.reads}
	if f.Packet.HasPorts && p.ports[f.Packet.DstPort] || isEcho(f.Packet) {
		d.Action, d.Rule = packet.Accept, "port"
	}
	return nil
}

func isEcho(p *packet.Packet) bool { return p.Echo && (p.ICMPType == 8 || p.ICMPType == 128) }

// reading returns the set of the named fields.
func reading(t testing.TB, paths ...string) (s rules.FieldSet) {
	t.Helper()
	fields := rules.Fields()
	for _, path := range paths {
		found := false
		for i := range fields {
			if fields[i].Path == path {
				s.Add(i)
				found = true
			}
		}
		if !found {
			t.Fatalf("no field %q", path)
		}
	}
	return s
}

type pkt struct {
	src, dst string // "10.0.0.1:80" or an address
	l4       gopacket.SerializableLayer
	payload  []byte
}

func tcp(src, dst, flags string) pkt {
	l := &layers.TCP{Window: 1000}
	for _, f := range flags {
		switch f {
		case 'S':
			l.SYN = true
		case 'A':
			l.ACK = true
		case 'F':
			l.FIN = true
		case 'R':
			l.RST = true
		}
	}
	if !l.SYN { // both ends count from 0
		l.Seq = 1
	}
	if l.ACK {
		l.Ack = 1
	}
	return pkt{src: src, dst: dst, l4: l}
}

func udp(src, dst string) pkt { return pkt{src: src, dst: dst, l4: &layers.UDP{}} }

func echo(src, dst string, typ uint8) pkt {
	if netip.MustParseAddr(src).Is6() {
		return pkt{src: src, dst: dst, l4: &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, 0)}, payload: []byte{0, 7, 0, 1}}
	}
	return pkt{src: src, dst: dst, l4: &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 0), Id: 7, Seq: 1}}
}

// bytes serialises the packet.
func (p pkt) bytes(t testing.TB) []byte {
	t.Helper()
	addr := func(s string) (netip.Addr, uint16) {
		if ap, err := netip.ParseAddrPort(s); err == nil {
			return ap.Addr(), ap.Port()
		}
		return netip.MustParseAddr(s), 0
	}
	src, sport := addr(p.src)
	dst, dport := addr(p.dst)
	var proto layers.IPProtocol
	switch l := p.l4.(type) {
	case *layers.TCP:
		proto, l.SrcPort, l.DstPort = layers.IPProtocolTCP, layers.TCPPort(sport), layers.TCPPort(dport)
	case *layers.UDP:
		proto, l.SrcPort, l.DstPort = layers.IPProtocolUDP, layers.UDPPort(sport), layers.UDPPort(dport)
	case *layers.ICMPv4:
		proto = layers.IPProtocolICMPv4
	case *layers.ICMPv6:
		proto = layers.IPProtocolICMPv6
	}
	var ip gopacket.SerializableLayer
	if src.Is4() {
		ip = &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	} else {
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, ip, p.l4, gopacket.Payload(p.payload))
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// bench is an engine with one worker and a clock.
type bench struct {
	t      testing.TB
	engine *engine.Engine
	worker *engine.Worker
	ring   *logsink.Ring
	now    int64
	gen    uint64
}

func newBench(t testing.TB, cfg engine.Config, policy engine.Evaluator) *bench {
	b := &bench{t: t, engine: engine.New(cfg), ring: logsink.NewRing(1024), now: int64(1e18)}
	b.worker = b.engine.NewWorker(b.ring)
	b.load(policy)
	return b
}

func (b *bench) load(policy engine.Evaluator) {
	b.gen++
	b.engine.Publish(engine.Snapshot{Policy: policy, Generation: b.gen, Hash: "h"})
}

func (b *bench) send(hook packet.Hook, p pkt) (packet.Action, string) {
	return b.sendMeta(packet.Meta{Hook: hook}, p)
}

func (b *bench) sendMeta(m packet.Meta, p pkt) (packet.Action, string) {
	b.t.Helper()
	data := p.bytes(b.t)
	b.now += int64(time.Millisecond)
	m.Time, m.Length = b.now, uint32(len(data))
	v := b.worker.Handle(&m, data)
	return v.Action, b.worker.Outcome().Reason
}

func (b *bench) want(hook packet.Hook, p pkt, action packet.Action, reason string) {
	b.t.Helper()
	gotAction, gotReason := b.send(hook, p)
	if gotAction != action || gotReason != reason {
		b.t.Errorf("%v %s -> %s: got %v (%s), want %v (%s)", hook, p.src, p.dst, gotAction, gotReason, action, reason)
	}
}

func (b *bench) events() (kinds []string) {
	b.ring.Drain(func(e *logsink.Event) {
		names := map[logsink.EventKind]string{
			logsink.FlowDecision: "decision", logsink.FlowRepeat: "repeat", logsink.FlowEnd: "end",
		}
		s := names[e.Kind] + " " + e.Action.String()
		if e.EndReason != "" {
			s += " " + e.EndReason
		}
		kinds = append(kinds, s)
	})
	return kinds
}

const (
	client  = "10.0.0.1:40000"
	server  = "10.0.0.2:443"
	telnet  = "10.0.0.2:23"
	client6 = "[fd00::1]:40000"
	server6 = "[fd00::2]:443"
)

func https() *counted { return &counted{ports: map[uint16]bool{443: true}} }

func TestZeroPolicyDrops(t *testing.T) {
	w := engine.New(engine.Config{}).NewWorker(nil)
	data := udp(client, server).bytes(t)
	if got := w.Handle(&packet.Meta{}, data); got.Action != packet.Drop {
		t.Errorf("got %v before any policy, want drop", got.Action)
	}
}

func TestRepliesOfAcceptedFlows(t *testing.T) {
	tests := []struct {
		name           string
		there, back    packet.Hook
		request, reply pkt
	}{
		{"tcp out", packet.Output, packet.Input, tcp(client, server, "S"), tcp(server, client, "SA")},
		{"tcp in", packet.Input, packet.Output, tcp(client, server, "S"), tcp(server, client, "SA")},
		{"tcp forward", packet.Forward, packet.Forward, tcp(client, server, "S"), tcp(server, client, "SA")},
		{"tcp routing", packet.Prerouting, packet.Postrouting, tcp(client, server, "S"), tcp(server, client, "SA")},
		{"tcp6 out", packet.Output, packet.Input, tcp(client6, server6, "S"), tcp(server6, client6, "SA")},
		{"udp out", packet.Output, packet.Input, udp(client, server), udp(server, client)},
		{"higher end starts", packet.Output, packet.Input, udp("10.0.0.9:1", "10.0.0.2:443"), udp("10.0.0.2:443", "10.0.0.9:1")},
		{"echo", packet.Output, packet.Input, echo("10.0.0.1", "10.0.0.2", 8), echo("10.0.0.2", "10.0.0.1", 0)},
		{"echo6", packet.Output, packet.Input, echo("fd00::1", "fd00::2", 128), echo("fd00::2", "fd00::1", 129)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			policy := https()
			b := newBench(t, engine.Config{}, policy)
			b.want(tt.back, tt.reply, packet.Drop, engine.ReasonPolicy) // a reply nobody asked for
			b = newBench(t, engine.Config{}, policy)
			b.want(tt.there, tt.request, packet.Accept, engine.ReasonPolicy)
			policy.n = 0
			b.want(tt.back, tt.reply, packet.Accept, engine.ReasonEstablished)
			b.want(tt.there, tt.request, packet.Accept, engine.ReasonPolicy)
			if policy.n != 0 {
				t.Errorf("the policy was asked %d times about a decided flow", policy.n)
			}
		})
	}
}

func TestDroppedFlowOpensNothing(t *testing.T) {
	b := newBench(t, engine.Config{}, https())
	b.want(packet.Output, tcp(client, telnet, "S"), packet.Drop, engine.ReasonPolicy)
	b.want(packet.Input, tcp(telnet, client, "SA"), packet.Drop, engine.ReasonPolicy)
	b.want(packet.Output, tcp(client, telnet, "S"), packet.Drop, engine.ReasonPolicy)
}

// The far end sends first, as with NTP from port 123 to port 123: that it was
// dropped must not stay with the answers to what is asked later.
func TestReplyAfterADropPasses(t *testing.T) {
	b := newBench(t, engine.Config{}, https())
	b.want(packet.Input, udp(server, client), packet.Drop, engine.ReasonPolicy)
	b.want(packet.Input, udp(server, client), packet.Drop, engine.ReasonPolicy)
	b.want(packet.Output, udp(client, server), packet.Accept, engine.ReasonPolicy)
	b.want(packet.Input, udp(server, client), packet.Accept, engine.ReasonEstablished)
	b.load(&counted{})
	b.want(packet.Input, udp(server, client), packet.Drop, engine.ReasonPolicy)
}

// Over loopback a packet is judged as the sender's and as the receiver's.
func TestLoopbackIsTwoFlows(t *testing.T) {
	policy := policyFunc(func(f *rules.Facts, d *rules.Decision) error {
		*d = rules.Decision{Rule: "out"}
		if f.Meta.Hook == packet.Output {
			d.Action = packet.Accept
		}
		return nil
	})
	b := newBench(t, engine.Config{}, policy)
	b.want(packet.Output, udp("127.0.0.1:1", "127.0.0.1:2"), packet.Accept, engine.ReasonPolicy)
	b.want(packet.Input, udp("127.0.0.1:1", "127.0.0.1:2"), packet.Drop, engine.ReasonPolicy)
	b.want(packet.Input, udp("127.0.0.1:2", "127.0.0.1:1"), packet.Accept, engine.ReasonEstablished)
}

func TestUnsolicitedEchoReplyStartsNoFlow(t *testing.T) {
	all := policyFunc(func(_ *rules.Facts, d *rules.Decision) error {
		*d = rules.Decision{Action: packet.Accept, Rule: "all"}
		return nil
	})
	b := newBench(t, engine.Config{}, all)
	b.want(packet.Input, echo("10.0.0.2", "10.0.0.1", 0), packet.Accept, engine.ReasonPolicy)
	b.load(https())
	b.want(packet.Input, echo("10.0.0.2", "10.0.0.1", 0), packet.Drop, engine.ReasonPolicy)
}

// A decision holds as long as the fields it was read from keep their values.
func TestVolatileFields(t *testing.T) {
	policy := https()
	policy.reads = reading(t, "ip.dst", "ip.ttl", "mark", "interface.out", "uid")
	b := newBench(t, engine.Config{}, policy)
	base := packet.Meta{Hook: packet.Output, Mark: 7, Out: 3, HasUID: true, UID: 1000}
	steps := []struct {
		name   string
		change func(m *packet.Meta)
		asks   int
	}{
		{"first", func(*packet.Meta) {}, 1},
		{"same", func(*packet.Meta) {}, 0},
		{"field that is not read", func(m *packet.Meta) { m.In, m.GID, m.HasGID = 9, 5, true }, 0},
		{"no socket", func(m *packet.Meta) { m.HasUID = false }, 0},
		{"another user", func(m *packet.Meta) { m.UID = 1001 }, 1},
		{"first user again", func(*packet.Meta) {}, 1},
		{"another mark", func(m *packet.Meta) { m.Mark = 8 }, 1},
		{"another interface", func(m *packet.Meta) { m.Mark, m.Out = 8, 4 }, 1},
	}
	for _, step := range steps {
		m := base
		step.change(&m)
		policy.n = 0
		b.sendMeta(m, tcp(client, server, "A"))
		if policy.n != step.asks {
			t.Errorf("%s: the policy was asked %d times, want %d", step.name, policy.n, step.asks)
		}
	}
}

func TestTooManyVolatileBits(t *testing.T) {
	policy := https()
	policy.reads = reading(t, "tcp.seq", "tcp.ack", "time.unix", "packet.length", "mark", "uid", "gid")
	b := newBench(t, engine.Config{}, policy)
	for range 3 {
		b.want(packet.Output, tcp(client, server, "A"), packet.Accept, engine.ReasonPolicy)
	}
	if policy.n != 3 {
		t.Errorf("the policy was asked %d times, want 3: its decision cannot be remembered", policy.n)
	}
}

// A new policy counts from the next packet on, in both directions.
func TestReload(t *testing.T) {
	for _, tt := range []struct {
		name string
		hook packet.Hook
		next pkt
	}{
		{"initiator sends next", packet.Output, tcp(client, server, "A")},
		{"far end sends next", packet.Input, tcp(server, client, "A")},
		{"initiator sends next, v6", packet.Output, tcp(client6, server6, "A")},
		{"far end sends next, v6", packet.Input, tcp(server6, client6, "A")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, engine.Config{}, https())
			for _, ends := range [][2]string{{client, server}, {client6, server6}} {
				b.want(packet.Output, tcp(ends[0], ends[1], "S"), packet.Accept, engine.ReasonPolicy)
				b.want(packet.Input, tcp(ends[1], ends[0], "SA"), packet.Accept, engine.ReasonEstablished)
			}
			b.load(https()) // says the same: nothing is cut
			if got, _ := b.send(tt.hook, tt.next); got != packet.Accept {
				t.Errorf("got %v after a reload that changes nothing, want accept", got)
			}
			b.load(&counted{})
			b.want(tt.hook, tt.next, packet.Drop, engine.ReasonPolicy)
		})
	}
}

// What is remembered of the initiator, such as its user, still counts when a
// reply is the first packet after a reload.
func TestReloadKnowsTheUser(t *testing.T) {
	byUser := func(uid uint32) policyFunc {
		return func(f *rules.Facts, d *rules.Decision) error {
			*d = rules.Decision{Rule: "user", Reads: reading(t, "uid")}
			if f.Meta.HasUID && f.Meta.UID == uid {
				d.Action = packet.Accept
			}
			return nil
		}
	}
	b := newBench(t, engine.Config{}, byUser(1000))
	m := packet.Meta{Hook: packet.Output, HasUID: true, UID: 1000}
	if got, _ := b.sendMeta(m, tcp(client, server, "S")); got != packet.Accept {
		t.Fatalf("got %v, want accept", got)
	}
	b.load(byUser(1000))
	b.want(packet.Input, tcp(server, client, "A"), packet.Accept, engine.ReasonEstablished)
	b.load(byUser(1001))
	b.want(packet.Input, tcp(server, client, "A"), packet.Drop, engine.ReasonPolicy)
}

func TestPolicyError(t *testing.T) {
	n := 0
	broken := policyFunc(func(_ *rules.Facts, d *rules.Decision) error {
		n++
		d.Action = packet.Accept // must not count
		return errors.New("decision: conflict")
	})
	b := newBench(t, engine.Config{}, broken)
	for range 5 {
		b.want(packet.Output, udp(client, server), packet.Drop, engine.ReasonPolicyError)
	}
	if n != 1 {
		t.Errorf("a failing policy was asked %d times within a second, want 1", n)
	}
	b.now += int64(2 * time.Second)
	b.want(packet.Output, udp(client, server), packet.Drop, engine.ReasonPolicyError)
	if n != 2 {
		t.Errorf("a failing policy was asked %d times, want 2: an error holds for a second", n)
	}
	b.engine.Publish(engine.Snapshot{Policy: broken, FailOpen: true})
	b.want(packet.Output, udp(client, server), packet.Accept, engine.ReasonPolicyError)
}

func TestMalformed(t *testing.T) {
	b := newBench(t, engine.Config{}, https())
	m := packet.Meta{Hook: packet.Output, Length: 3}
	if got := b.worker.Handle(&m, []byte{0x45, 0, 0}); got.Action != packet.Drop || b.worker.Outcome().Reason != engine.ReasonMalformed {
		t.Errorf("got %v (%s), want drop (malformed)", got.Action, b.worker.Outcome().Reason)
	}
	b.engine.Publish(engine.Snapshot{Policy: https(), Mode: engine.Monitor})
	if got := b.worker.Handle(&m, []byte{0x45, 0, 0}); got.Action != packet.Accept || !b.worker.Outcome().Monitor {
		t.Errorf("got %v, monitor %v; want accept in monitor mode", got.Action, b.worker.Outcome().Monitor)
	}
}

func TestMonitorAcceptsAndSaysWhatItWouldDo(t *testing.T) {
	b := newBench(t, engine.Config{}, https())
	b.engine.Publish(engine.Snapshot{Policy: https(), Generation: 2, Mode: engine.Monitor})
	b.want(packet.Output, tcp(client, telnet, "S"), packet.Accept, engine.ReasonPolicy)
	out := b.worker.Outcome()
	if !out.Monitor || out.Decision.Action != packet.Drop {
		t.Errorf("got monitor %v, decision %v; want the drop that was not carried out", out.Monitor, out.Decision.Action)
	}
	b.worker.Tick(b.now)
	if got := b.engine.Stats(); got.WouldDrop != 1 || got.Accepted != 1 || got.Dropped != 0 {
		t.Errorf("got %+v, want one packet that would have been dropped", got)
	}
}

func TestMarkIsSet(t *testing.T) {
	b := newBench(t, engine.Config{}, policyFunc(func(_ *rules.Facts, d *rules.Decision) error {
		*d = rules.Decision{Action: packet.Accept, Rule: "mark", SetMark: true, Mark: 42}
		return nil
	}))
	data := udp(client, server).bytes(t)
	for _, which := range []string{"first", "second"} {
		got := b.worker.Handle(&packet.Meta{Hook: packet.Output, Length: uint32(len(data))}, data)
		if want := (packet.Verdict{Action: packet.Accept, SetMark: true, Mark: 42}); got != want {
			t.Errorf("%s packet: got %+v, want %+v", which, got, want)
		}
	}
}

func TestEvents(t *testing.T) {
	b := newBench(t, engine.Config{Flows: 64}, https())
	b.send(packet.Output, tcp(client, server, "S"))
	b.send(packet.Input, tcp(server, client, "SA"))
	b.send(packet.Output, tcp(client, telnet, "S"))
	b.send(packet.Output, tcp(client, telnet, "S"))
	b.now += int64(11 * time.Second)
	b.send(packet.Output, tcp(client, telnet, "S"))
	b.send(packet.Output, tcp(client, server, "FA"))
	b.send(packet.Input, tcp(server, client, "FA"))
	b.load(https())
	b.send(packet.Output, tcp(client, server, "A")) // judged anew, same answer: nothing to say
	b.worker.Tick(b.now)
	b.now += int64(3 * time.Minute)
	b.worker.Tick(b.now)
	b.worker.Close()
	want := []string{"decision accept", "decision drop", "repeat drop", "end drop timeout", "end accept closed"}
	got := b.events()
	if len(got) == len(want) && got[3] == want[4] {
		got[3], got[4] = got[4], got[3] // the sweep's order is by hash
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestPolicyCanKeepQuiet(t *testing.T) {
	b := newBench(t, engine.Config{}, policyFunc(func(_ *rules.Facts, d *rules.Decision) error {
		*d = rules.Decision{Action: packet.Accept, Rule: "quiet"}
		return nil
	}))
	b.send(packet.Output, udp(client, server))
	b.worker.Close()
	if got := b.events(); got != nil {
		t.Errorf("got events %v, want none", got)
	}
}

func TestNewConnectionInPlaceOfAnEndedOne(t *testing.T) {
	policy := https()
	b := newBench(t, engine.Config{}, policy)
	b.send(packet.Output, tcp(client, server, "S"))
	b.send(packet.Input, tcp(server, client, "R"))
	b.want(packet.Output, tcp(client, server, "S"), packet.Accept, engine.ReasonPolicy)
	if policy.n != 2 {
		t.Errorf("the policy was asked %d times, want 2: the second connection is another one", policy.n)
	}
}

// Two workers see one direction of a flow each.
func TestRepliesInAnotherQueue(t *testing.T) {
	b := newBench(t, engine.Config{Workers: 2}, https())
	other := &bench{t: t, engine: b.engine, worker: b.engine.NewWorker(nil), now: b.now}
	other.want(packet.Input, tcp(server, client, "SA"), packet.Drop, engine.ReasonPolicy)
	b.want(packet.Output, tcp("10.0.0.1:40001", server, "S"), packet.Accept, engine.ReasonPolicy)
	for range 2 {
		other.want(packet.Input, tcp(server, "10.0.0.1:40001", "SA"), packet.Accept, engine.ReasonEstablished)
	}
	b.want(packet.Output, echo("10.0.0.1", "10.0.0.2", 8), packet.Accept, engine.ReasonPolicy)
	other.want(packet.Input, echo("10.0.0.2", "10.0.0.1", 0), packet.Accept, engine.ReasonEstablished)
	b.load(&counted{})
	other.want(packet.Input, tcp(server, "10.0.0.1:40001", "A"), packet.Drop, engine.ReasonPolicy)
}

// The far end sends first, and again first after a reload, to another queue
// than the near end: the policy asks for the user, whom only that queue knows.
func TestReplyInAnotherQueueKnowsTheUser(t *testing.T) {
	mine := func() policyFunc {
		return func(f *rules.Facts, d *rules.Decision) error {
			*d = rules.Decision{Rule: "mine", Reads: reading(t, "uid")}
			if f.Meta.HasUID && f.Meta.UID == 1000 {
				d.Action = packet.Accept
			}
			return nil
		}
	}
	b := newBench(t, engine.Config{Workers: 2}, mine())
	other := &bench{t: t, engine: b.engine, worker: b.engine.NewWorker(nil), now: b.now}
	for range 2 {
		other.want(packet.Input, udp(server, client), packet.Drop, engine.ReasonPolicy)
	}
	m := packet.Meta{Hook: packet.Output, UID: 1000, HasUID: true}
	if got, _ := b.sendMeta(m, udp(client, server)); got != packet.Accept {
		t.Errorf("got %v for the user's packet, want accept", got)
	}
	for range 2 {
		other.want(packet.Input, udp(server, client), packet.Accept, engine.ReasonEstablished)
		b.load(mine())
	}
	b.load(&counted{})
	other.want(packet.Input, udp(server, client), packet.Drop, engine.ReasonPolicy)
}

// Each worker counts its direction of a flow, under an id of its own.
func TestFlowInTwoQueuesIsLoggedByBoth(t *testing.T) {
	b := newBench(t, engine.Config{Workers: 2}, https())
	other := &bench{t: t, engine: b.engine, ring: logsink.NewRing(16), now: b.now}
	other.worker = b.engine.NewWorker(other.ring)
	b.send(packet.Output, udp(client, server))
	for range 3 {
		other.send(packet.Input, udp(server, client))
	}
	ends := make(map[uint64][2]uint64)
	for _, x := range []*bench{b, other} {
		x.worker.Close()
		x.ring.Drain(func(e *logsink.Event) {
			if e.Kind != logsink.FlowEnd {
				return
			}
			ends[e.Flow] = e.Packets
			if got := e.Src.String(); got != "10.0.0.1" || e.Action != packet.Accept || e.Hook != packet.Output {
				t.Errorf("got the end of a flow from %s, %v, %v, want 10.0.0.1, accept, output", got, e.Action, e.Hook)
			}
		})
	}
	want := map[uint64][2]uint64{1: {1, 0}, 1<<40 + 1: {0, 3}}
	if diff := cmp.Diff(want, ends); diff != "" {
		t.Errorf("packets by flow (-want +got):\n%s", diff)
	}
}

// Random tuples fill the table; established flows stay, and so does its size.
func TestFloodCannotEvictEstablishedFlows(t *testing.T) {
	all := policyFunc(func(_ *rules.Facts, d *rules.Decision) error {
		*d = rules.Decision{Action: packet.Accept, Rule: "all"}
		return nil
	})
	b := newBench(t, engine.Config{Flows: 4096}, all)
	flow := func(i int) (a, z string) {
		a = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 40000).String()
		return a, server
	}
	const established = 500
	for i := range established {
		a, z := flow(i)
		b.send(packet.Output, tcp(a, z, "S"))
		b.send(packet.Input, tcp(z, a, "SA"))
		b.send(packet.Output, tcp(a, z, "A"))
	}
	for i := range 50_000 {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, byte(i >> 16), byte(i >> 8), byte(i)}), uint16(i)).String()
		b.send(packet.Input, tcp(src, "10.0.0.1:22", "S"))
	}
	b.worker.Tick(b.now)
	if got := b.engine.Stats(); got.Flows > 4096 || got.FlowsEvict == 0 {
		t.Errorf("got %d flows and %d evictions in a table of 4096", got.Flows, got.FlowsEvict)
	}
	b.load(&counted{}) // from here on only memory can tell who is established
	b.load(all)
	before := b.engine.Stats().FlowsNew
	for i := range established {
		a, z := flow(i)
		b.send(packet.Input, tcp(z, a, "A"))
	}
	b.worker.Tick(b.now)
	if got := b.engine.Stats().FlowsNew - before; got != 0 {
		t.Errorf("%d of %d established flows were forgotten", got, established)
	}
}

func TestHandleAllocatesNothing(t *testing.T) {
	policy := https()
	policy.reads = reading(t, "ip.dst", "dst_port", "mark", "uid", "interface.out", "tcp.flags.syn")
	b := newBench(t, engine.Config{}, policy)
	for _, tt := range []struct {
		name string
		hook packet.Hook
		p    pkt
	}{
		{"tcp", packet.Output, tcp(client, server, "A")},
		{"tcp reply", packet.Input, tcp(server, client, "A")},
		{"tcp6", packet.Output, tcp(client6, server6, "A")},
		{"udp", packet.Output, udp(client, server)},
		{"dropped", packet.Output, udp(client, telnet)},
		{"echo", packet.Output, echo("10.0.0.1", "10.0.0.2", 8)},
		{"echo reply", packet.Input, echo("10.0.0.2", "10.0.0.1", 0)},
	} {
		data := tt.p.bytes(t)
		m := packet.Meta{Hook: tt.hook, Length: uint32(len(data)), Time: b.now}
		b.worker.Handle(&m, data)
		if n := testing.AllocsPerRun(100, func() { b.worker.Handle(&m, data) }); n != 0 {
			t.Errorf("%s: %v allocations for a packet of a known flow, want 0", tt.name, n)
		}
	}
}

func BenchmarkHandleKnownFlow(b *testing.B) {
	for _, reads := range []struct {
		name  string
		paths []string
	}{{"flow fields", []string{"ip.dst", "dst_port"}}, {"volatile fields", []string{"mark", "uid", "interface.out", "tcp.flags.syn"}}} {
		b.Run(reads.name, func(b *testing.B) {
			policy := https()
			policy.reads = reading(b, reads.paths...)
			w := newBench(b, engine.Config{}, policy)
			data := tcp(client, server, "A").bytes(b)
			m := packet.Meta{Hook: packet.Output, Length: uint32(len(data)), Time: w.now}
			b.ReportAllocs()
			for b.Loop() {
				w.worker.Handle(&m, data)
			}
		})
	}
}

func BenchmarkHandleNewFlow(b *testing.B) {
	w := newBench(b, engine.Config{Flows: 1 << 20}, https())
	data := udp(client, server).bytes(b)
	m := packet.Meta{Hook: packet.Output, Length: uint32(len(data)), Time: w.now}
	b.ReportAllocs()
	i := uint32(0)
	for b.Loop() {
		i++
		data[16], data[17], data[18], data[19] = 10, byte(i>>16), byte(i>>8), byte(i)
		w.worker.Handle(&m, data)
		w.ring.Drain(func(*logsink.Event) {})
	}
	b.ReportMetric(float64(engine.BytesPerFlow), "B/flow")
}
