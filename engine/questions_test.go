package engine_test

import (
	"testing"
	"time"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// answers accepts what goes out to SSDP and mDNS, and what answers it.
type answers struct{ reads rules.FieldSet }

func (p *answers) Evaluate(f *rules.Facts, d *rules.Decision) error {
	*d = rules.Decision{Rule: "default", Log: true, Reads: p.reads}
	out := f.Meta.Hook.Direction() == "out" && (f.Packet.DstPort == 1900 || f.Packet.DstPort == 5353)
	if out || f.AnswersMulticast {
		d.Action, d.Rule = packet.Accept, "asked"
	}
	return nil
}

func TestAnswersToMulticast(t *testing.T) {
	const asker, group = "192.0.2.1:40000", "239.255.255.250:1900"
	tests := []struct {
		name          string
		question, ans pkt
		in            uint32 // interface of the answer; the question leaves by 3
		after         time.Duration
		want          packet.Action
	}{
		{"unicast", udp(asker, group), udp("192.0.2.9:53111", asker), 3, 2 * time.Second, packet.Accept},
		{"IPv6", udp("[fe80::1]:40000", "[ff02::c]:1900"), udp("[fe80::9]:1900", "[fe80::1]:40000"), 3, time.Second, packet.Accept},
		{"broadcast", udp("192.0.2.1:1900", "255.255.255.255:1900"), udp("192.0.2.9:1900", "192.0.2.1:1900"), 3, 0, packet.Accept},
		{"to the group", udp("192.0.2.1:5353", "224.0.0.251:5353"), udp("192.0.2.9:5353", "224.0.0.251:5353"), 3, 0, packet.Accept},
		{"too late", udp(asker, group), udp("192.0.2.9:1900", asker), 3, 3 * time.Second, packet.Drop},
		{"another interface", udp(asker, group), udp("198.51.100.9:1900", asker), 4, 0, packet.Drop},
		{"another port", udp(asker, group), udp("192.0.2.9:1900", "192.0.2.1:40001"), 3, 0, packet.Drop},
		{"another address", udp(asker, group), udp("192.0.2.9:1900", "192.0.2.2:40000"), 3, 0, packet.Drop},
		{"another group", udp("192.0.2.1:5353", "224.0.0.251:5353"), udp("192.0.2.9:5353", "224.0.0.252:5353"), 3, 0, packet.Drop},
		{"of a question that was dropped", udp(asker, "239.255.255.250:9"), udp("192.0.2.9:1900", asker), 3, 0, packet.Drop},
		{"of unicast", udp(asker, "192.0.2.8:1900"), udp("192.0.2.9:1900", asker), 3, 0, packet.Drop},
		{"TCP", udp(asker, group), tcp("192.0.2.9:1900", asker, "S"), 3, 0, packet.Drop},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, engine.Config{Workers: 2}, &answers{reading(t, "dst_port", "hook", "answers_multicast")})
			if got, _ := b.sendMeta(packet.Meta{Hook: packet.Input, In: tt.in}, tt.ans); got != packet.Drop {
				t.Fatalf("%v before the question", got)
			}
			b.sendMeta(packet.Meta{Hook: packet.Output, Out: 3}, tt.question)
			b.worker = b.engine.NewWorker(b.ring) // the answer comes to another queue
			b.now += int64(tt.after)
			if got, _ := b.sendMeta(packet.Meta{Hook: packet.Input, In: tt.in}, tt.ans); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			b.now += int64(3 * time.Second)
			if got, _ := b.sendMeta(packet.Meta{Hook: packet.Input, In: tt.in}, tt.ans); got != packet.Drop {
				t.Errorf("got %v 3 s later, want drop", got)
			}
		})
	}
}

// Each question comes up: one that passes in the kernel would have no answers.
func TestQuestionsAreNotOffloaded(t *testing.T) {
	b := newBench(t, engine.Config{}, &answers{reading(t, "dst_port", "hook")})
	b.engine.Publish(engine.Snapshot{Policy: &answers{reading(t, "dst_port", "hook")}, Generation: 2, Marks: engine.Marks{Mask: 0xff000000, Accept: 0x1000000}})
	for dst, want := range map[string]bool{"239.255.255.250:1900": false, "255.255.255.255:1900": false, "192.0.2.8:1900": true} {
		data := udp("192.0.2.1:40000", dst).bytes(t)
		m := packet.Meta{Hook: packet.Output, Time: b.now, Length: uint32(len(data))}
		if v := b.worker.Handle(&m, data); v.Action != packet.Accept || v.Repeat != want {
			t.Errorf("%s: got %+v, want offloaded: %v", dst, v, want)
		}
	}
}
