package engine_test

import (
	"testing"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// told are Links whose changes are seen at the next Update.
type told struct {
	next, now map[uint32]string
	ids       map[string]uint32
	updates   int
}

func (l *told) Update(int64) {
	l.updates++
	l.now = map[uint32]string{}
	for i, name := range l.next {
		if l.now[i] = name; l.ids[name] == 0 {
			l.ids[name] = uint32(len(l.ids) + 1)
		}
	}
}

func (l *told) Name(index uint32) (string, uint32) { return l.now[index], l.ids[l.now[index]] }

// A packet is judged by the names that hold when its batch is read, and a change of
// a name makes only those flows be judged anew that asked for it.
func TestInterfaceNames(t *testing.T) {
	l := &told{next: map[uint32]string{1: "lan", 2: "wan", 7: "port7", 8: "port8"}, ids: map[string]uint32{}}
	asked, ports := map[uint16]int{}, [2]string{}
	b := newBench(t, engine.Config{Links: func() engine.Links { return l }}, policyFunc(func(f *rules.Facts, d *rules.Decision) error {
		asked[f.Packet.DstPort]++
		if f.Packet.DstPort == 23 {
			ports = [2]string{f.InPort, f.OutPort}
		}
		*d = rules.Decision{Action: packet.Accept, Rule: "any", Log: true, Reads: reading(t, "dst_port")}
		if f.Packet.DstPort == 443 {
			d.Reads = reading(t, "interface.out")
			if f.OutInterface != "lan" {
				d.Action, d.Rule = packet.Drop, "not lan"
			}
		}
		return nil
	}))
	send := func(index uint32, want packet.Action) {
		t.Helper()
		if got, _ := b.sendMeta(packet.Meta{Hook: packet.Output, Out: index}, udp(client, server)); got != want {
			t.Errorf("by interface %d: got %v, want %v", index, got, want)
		}
		b.sendMeta(packet.Meta{Hook: packet.Output, Out: index}, udp(client, telnet))
	}
	b.sendMeta(packet.Meta{Hook: packet.Forward, In: 1, Out: 1, PhysIn: 7, PhysOut: 8}, udp(client, telnet))
	if ports != [2]string{"port7", "port8"} {
		t.Errorf("got the ports of a bridge %q, want port7, port8", ports)
	}
	send(1, packet.Accept)
	if ports != [2]string{} {
		t.Errorf("got the ports of a bridge %q of a packet that went by none", ports)
	}
	send(1, packet.Accept)
	l.next = map[uint32]string{1: "lan", 2: "wan", 3: "veth0"} // of no interest
	send(1, packet.Accept)
	if asked[443] != 1 {
		t.Errorf("asked %d times, want once", asked[443])
	}
	send(2, packet.Drop)
	send(3, packet.Drop)
	l.next = map[uint32]string{1: "old", 2: "lan", 3: "veth0"}
	send(1, packet.Drop)
	send(2, packet.Accept)
	send(9, packet.Drop) // unknown
	if asked[23] != 2 {
		t.Errorf("a decision that did not ask for names was made %d times, want once at each hook", asked[23])
	}
	var out []string
	b.ring.Drain(func(ev *logsink.Event) {
		if ev.DstPort == 443 {
			out = append(out, ev.Out)
		}
	})
	if len(out) < 2 || out[0] != "lan" || out[1] != "wan" {
		t.Errorf("the log names %v, want lan and wan first", out)
	}
	// One batch has one time: its packets cost one Update.
	data := udp(client, server).bytes(t)
	before := l.updates
	for range 5 {
		b.worker.Handle(&packet.Meta{Hook: packet.Output, Out: 1, Time: b.now + 1, Length: uint32(len(data))}, data)
	}
	if n := l.updates - before; n != 1 {
		t.Errorf("%d updates for a batch, want 1", n)
	}
}
