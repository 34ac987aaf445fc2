package engine_test

import (
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// icmpError returns an ICMP message of that type that quotes a packet.
func icmpError(t testing.TB, src, dst string, typ uint8, quoted pkt, more int) pkt {
	return pkt{src: src, dst: dst, l4: &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 1)},
		payload: append(quoted.bytes(t), make([]byte, more)...)}
}

func icmp6Error(t testing.TB, src, dst string, typ uint8, quoted pkt, more int) pkt {
	return pkt{src: src, dst: dst, l4: &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, 0)},
		payload: append(append(make([]byte, 4), quoted.bytes(t)...), make([]byte, more)...)}
}

// TestICMPErrors says which errors ride an accepted flow. The flow is one that
// this host began and that was not answered.
func TestICMPErrors(t *testing.T) {
	const router, router6, me, me6 = "192.0.2.1", "2001:db8::1", "10.0.0.1", "fd00::1"
	there, there6 := udp(client, server), udp(client6, server6)
	for name, tt := range map[string]struct {
		p     pkt
		rides bool
	}{
		"unreachable":          {icmpError(t, router, me, 3, there, 0), true},
		"time exceeded":        {icmpError(t, router, me, 11, there, 0), true},
		"parameter problem":    {icmpError(t, router, me, 12, there, 0), true},
		"by the other end":     {icmpError(t, "10.0.0.2", me, 3, there, 0), true},
		"of 576 bytes":         {icmpError(t, router, me, 3, there, 576-20-8-28), true},
		"too long":             {icmpError(t, router, me, 3, there, 576-20-8-28+1), false},
		"to another":           {icmpError(t, router, "10.0.0.9", 3, there, 0), false},
		"about an answer":      {icmpError(t, router, "10.0.0.2", 3, udp(server, client), 0), false},
		"to the other end":     {icmpError(t, router, "10.0.0.2", 3, there, 0), false},
		"about another flow":   {icmpError(t, router, me, 3, udp(client, "10.0.0.2:444"), 0), false},
		"redirect":             {icmpError(t, router, me, 5, there, 0), false},
		"source quench":        {icmpError(t, router, me, 4, there, 0), false},
		"v6 unreachable":       {icmp6Error(t, router6, me6, 1, there6, 0), true},
		"v6 packet too big":    {icmp6Error(t, router6, me6, 2, there6, 0), true},
		"v6 time exceeded":     {icmp6Error(t, router6, me6, 3, there6, 0), true},
		"v6 parameter problem": {icmp6Error(t, router6, me6, 4, there6, 0), true},
		"v6 of 1280 bytes":     {icmp6Error(t, router6, me6, 2, there6, 1280-40-8-48), true},
		"v6 too long":          {icmp6Error(t, router6, me6, 2, there6, 1280-40-8-48+1), false},
		"v6 to another":        {icmp6Error(t, router6, "fd00::9", 1, there6, 0), false},
		"v6 redirect":          {icmp6Error(t, router6, me6, 137, there6, 0), false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, engine.Config{}, https())
			b.want(packet.Input, tt.p, packet.Drop, engine.ReasonPolicy) // about nothing
			b.want(packet.Output, there, packet.Accept, engine.ReasonPolicy)
			b.want(packet.Output, there6, packet.Accept, engine.ReasonPolicy)
			if tt.rides {
				b.want(packet.Input, tt.p, packet.Accept, engine.ReasonRelated)
			} else {
				b.want(packet.Input, tt.p, packet.Drop, engine.ReasonPolicy)
			}
			b.load(&counted{})
			b.want(packet.Input, tt.p, packet.Drop, engine.ReasonPolicy)
		})
	}
}

// Errors are counted to the flow, and the first one is logged. They do not make
// a flow answered.
func TestICMPErrorsAreCounted(t *testing.T) {
	b := newBench(t, engine.Config{}, https())
	b.send(packet.Output, udp(client, server))
	unreachable := icmpError(t, "192.0.2.1", "10.0.0.1", 3, udp(client, server), 100)
	for range 3 {
		b.want(packet.Input, unreachable, packet.Accept, engine.ReasonRelated)
	}
	b.want(packet.Input, icmpError(t, "192.0.2.1", "10.0.0.2", 3, udp(server, client), 0), packet.Drop, engine.ReasonPolicy)
	b.worker.Close()
	var related int
	b.ring.Drain(func(ev *logsink.Event) {
		if ev.Kind == logsink.FlowDecision && ev.Reason == engine.ReasonRelated {
			related++
			if ev.Flow != 1 || ev.ICMPType != 3 {
				t.Errorf("got an error of type %d, flow %d", ev.ICMPType, ev.Flow)
			}
		}
		if ev.Kind == logsink.FlowEnd && (ev.Packets != [2]uint64{1, 3} || ev.Bytes != [2]uint64{28, 3 * 156}) {
			t.Errorf("end of the flow: got %v packets, %v bytes, want 1 and 3, 28 and 468", ev.Packets, ev.Bytes)
		}
	})
	if related != 1 {
		t.Errorf("%d errors are logged, want the first", related)
	}
}

// A policy that asks whether a message is such an error decides about it.
func TestPolicyDecidesAboutErrors(t *testing.T) {
	for _, says := range []packet.Action{packet.Drop, packet.Accept} {
		ask := policyFunc(func(f *rules.Facts, d *rules.Decision) error {
			*d = rules.Decision{Rule: "errors", Log: true}
			switch {
			case f.Packet.HasPorts && f.Packet.DstPort == 443:
				d.Action = packet.Accept
			case f.Packet.IsICMP():
				d.Reads = reading(t, "icmp.related")
				if f.Related {
					d.Action = says
				}
			}
			return nil
		})
		b := newBench(t, engine.Config{}, ask)
		b.want(packet.Input, icmpError(t, "192.0.2.1", "10.0.0.1", 3, udp(client, server), 0), packet.Drop, engine.ReasonPolicy)
		b.send(packet.Output, udp(client, server))
		b.want(packet.Input, icmpError(t, "192.0.2.1", "10.0.0.1", 3, udp(client, server), 0), says, engine.ReasonPolicy)
		b.want(packet.Input, icmpError(t, "192.0.2.1", "10.0.0.9", 3, udp(client, server), 0), packet.Drop, engine.ReasonPolicy)
	}
}

// Of a flow that passes by the queue the kernel says which errors are about it,
// even if the flow is forgotten here.
func TestErrorsOfOffloadedFlows(t *testing.T) {
	told := engine.Marks{Mask: 0xff00, Reject: 0x100, Reply: 0x200, Related: 0x300, Accept: 0x400}
	b := newBench(t, engine.Config{}, https())
	b.engine.Publish(engine.Snapshot{Policy: https(), Generation: 2, Marks: told})
	meta := packet.Meta{Hook: packet.Input, Mark: told.Related | 7}
	for name, tt := range map[string]struct {
		p    pkt
		want packet.Action
	}{
		"error":      {icmpError(t, "192.0.2.1", "10.0.0.1", 3, tcp(client, server, "A"), 0), packet.Accept},
		"too long":   {icmpError(t, "192.0.2.1", "10.0.0.1", 3, tcp(client, server, "A"), 600), packet.Drop},
		"to another": {icmpError(t, "192.0.2.1", "10.0.0.9", 3, tcp(client, server, "A"), 0), packet.Drop},
		"redirect":   {icmpError(t, "192.0.2.1", "10.0.0.1", 5, tcp(client, server, "A"), 0), packet.Drop},
		"no error":   {udp(server, client), packet.Drop},
	} {
		if got := b.verdict(meta, tt.p); got.Action != tt.want || got.Repeat || !got.SetMark || got.Mark != 7 {
			t.Errorf("%s: got %+v, want %v with the mark 7", name, got, tt.want)
		}
	}
	// The answers of an offloaded flow are not seen here, so errors about them may be.
	b.want(packet.Input, tcp("10.0.0.7:1", server, "S"), packet.Accept, engine.ReasonPolicy)
	b.want(packet.Output, icmpError(t, "10.0.0.7", "10.0.0.2", 3, tcp(server, "10.0.0.7:1", "A"), 0), packet.Drop, engine.ReasonPolicy)
	b.want(packet.Input, icmpError(t, "192.0.2.1", "10.0.0.2", 3, tcp(server, "10.0.0.7:1", "A"), 0), packet.Accept, engine.ReasonRelated)
}

// An echo request is never an answer: who was pinged may not ping with the same
// id.
func TestEchoRequestIsNoAnswer(t *testing.T) {
	out := policyFunc(func(f *rules.Facts, d *rules.Decision) error {
		*d = rules.Decision{Rule: "none"}
		if f.Meta.Hook == packet.Output && isEcho(f.Packet) {
			d.Action, d.Rule = packet.Accept, "ping"
		}
		return nil
	})
	for _, tt := range []struct {
		a, b           string
		request, reply uint8
	}{{"10.0.0.1", "10.0.0.2", 8, 0}, {"10.0.0.2", "10.0.0.1", 8, 0}, {"fd00::1", "fd00::2", 128, 129}} {
		b := newBench(t, engine.Config{}, out)
		b.want(packet.Output, echo(tt.a, tt.b, tt.request), packet.Accept, engine.ReasonPolicy)
		b.want(packet.Input, echo(tt.b, tt.a, tt.request), packet.Drop, engine.ReasonPolicy)
		b.want(packet.Output, echo(tt.a, tt.b, tt.reply), packet.Drop, engine.ReasonPolicy) // to that
		b.want(packet.Input, echo(tt.b, tt.a, tt.reply), packet.Accept, engine.ReasonEstablished)
		b.want(packet.Input, echo(tt.b, tt.a, tt.request), packet.Drop, engine.ReasonPolicy)
	}
}
