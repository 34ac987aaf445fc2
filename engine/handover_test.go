package engine_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// succeed returns a bench whose engine goes on where b's stopped, with
// everything passed as bytes.
func (b *bench) succeed(cfg engine.Config, s engine.Snapshot) (next *bench, same bool) {
	b.t.Helper()
	next = &bench{t: b.t, engine: engine.New(cfg), ring: b.ring, now: b.now}
	next.worker = next.engine.NewWorker(next.ring)
	var past engine.Past
	var worker engine.WorkerPast
	through(b.t, b.engine.Past(), &past)
	through(b.t, b.worker.Past(), &worker)
	same = past.Continues(s)
	next.gen = next.engine.Succeed(past, s)
	next.worker.Inherit(worker, same)
	err := b.worker.EachFlows(func(block []byte) error {
		_, err := next.worker.AddFlows(slices.Clone(block))
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.worker.Leave()
	return next, same
}

func through(t testing.TB, from, to any) {
	t.Helper()
	text, err := json.Marshal(from)
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// With the same policy a successor answers from memory, in both directions,
// and writes neither decisions nor ends of flows again.
func TestSucceedSamePolicy(t *testing.T) {
	b := newBench(t, engine.Config{}, &counted{ports: map[uint16]bool{443: true}, reads: reading(t, "ip.ttl", "dst_port")})
	b.want(packet.Output, tcp(client, server, "S"), packet.Accept, engine.ReasonPolicy)
	b.want(packet.Input, tcp(server, client, "SA"), packet.Accept, engine.ReasonEstablished)
	b.want(packet.Output, tcp(client, telnet, "S"), packet.Drop, engine.ReasonPolicy)
	b.events()

	policy := &counted{reads: reading(t, "ip.ttl", "dst_port")} // would drop everything
	next, same := b.succeed(engine.Config{}, engine.Snapshot{Policy: policy, Hash: "h"})
	if !same || next.gen != 1 {
		t.Errorf("got generation %d, same %v, want 1 and true", next.gen, same)
	}
	next.want(packet.Input, tcp(server, client, "A"), packet.Accept, engine.ReasonEstablished)
	next.want(packet.Output, tcp(client, server, "A"), packet.Accept, engine.ReasonPolicy)
	next.want(packet.Output, tcp(client, telnet, "S"), packet.Drop, engine.ReasonPolicy)
	if policy.n != 0 {
		t.Errorf("the policy was asked %d times about decided flows", policy.n)
	}
	if got := next.events(); len(got) != 0 {
		t.Errorf("got events %v, want none", got)
	}
	first := next.worker.Outcome().Flow
	next.send(packet.Output, udp("10.0.0.1:9", server))
	if got := next.worker.Outcome().Flow; got <= first {
		t.Errorf("got flow %d after %d, want a new number", got, first)
	}
	next.worker.Close()
	want := []string{"decision drop", "end accept shutdown", "end drop shutdown", "end drop shutdown"}
	got := next.events()
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	s := next.engine.Stats()
	if s.Packets != 7 || s.Accepted != 4 || s.FlowsNew != 3 {
		t.Errorf("got %+v, want the sums of both", s)
	}
}

// With another policy, mode or failure setting, flows are judged anew, those
// of which only the far end sends included.
func TestSucceedOtherPolicy(t *testing.T) {
	tests := []struct {
		name string
		next engine.Snapshot
	}{
		{"hash", engine.Snapshot{Hash: "other"}},
		{"mode", engine.Snapshot{Hash: "h", Mode: engine.Monitor}},
		{"fail", engine.Snapshot{Hash: "h", FailOpen: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, engine.Config{}, https())
			b.want(packet.Output, tcp(client, server, "S"), packet.Accept, engine.ReasonPolicy)
			b.events()
			policy := https()
			tt.next.Policy = policy
			next, same := b.succeed(engine.Config{}, tt.next)
			if same || next.gen != 2 {
				t.Errorf("got generation %d, same %v, want 2 and false", next.gen, same)
			}
			next.want(packet.Input, tcp(server, client, "SA"), packet.Accept, engine.ReasonEstablished)
			if policy.n != 1 {
				t.Errorf("the policy was asked %d times, want once", policy.n)
			}
			if got := next.events(); len(got) != 0 {
				t.Errorf("got events %v about an unchanged decision, want none", got)
			}
			next, _ = b.succeed(engine.Config{}, engine.Snapshot{Policy: &counted{}, Hash: "closed"})
			next.want(packet.Input, tcp(server, client, "A"), packet.Drop, engine.ReasonPolicy)
		})
	}
}

// A volatile field that had another value makes the successor ask again.
func TestSucceedVolatile(t *testing.T) {
	reads := reading(t, "mark")
	ask := &counted{ports: map[uint16]bool{443: true}, reads: reads}
	b := newBench(t, engine.Config{}, ask)
	b.sendMeta(packet.Meta{Hook: packet.Output, Mark: 7}, udp(client, server))
	next, _ := b.succeed(engine.Config{}, engine.Snapshot{Policy: ask, Hash: "h"})
	ask.n = 0
	next.sendMeta(packet.Meta{Hook: packet.Output, Mark: 7}, udp(client, server))
	if ask.n != 0 {
		t.Errorf("asked %d times about the same mark", ask.n)
	}
	next.sendMeta(packet.Meta{Hook: packet.Output, Mark: 8}, udp(client, server))
	if ask.n != 1 {
		t.Errorf("asked %d times about another mark, want once", ask.n)
	}
}

// A flow that one worker accepted before the change is known to another
// worker after it.
func TestSucceedPeers(t *testing.T) {
	b := newBench(t, engine.Config{Workers: 2}, https())
	b.want(packet.Output, tcp(client, server, "S"), packet.Accept, engine.ReasonPolicy)
	next, _ := b.succeed(engine.Config{Workers: 2}, engine.Snapshot{Policy: https(), Hash: "h"})
	next.worker = next.engine.NewWorker(nil)
	next.want(packet.Input, tcp(server, client, "SA"), packet.Accept, engine.ReasonEstablished)
	// Should the first direction come here too, the policy is asked.
	next.want(packet.Output, tcp(client, server, "A"), packet.Accept, engine.ReasonPolicy)
}

// A smaller table takes what fits, a larger one everything.
func TestSucceedSizes(t *testing.T) {
	const flows = 2000
	for _, size := range []int{8, 64, 1 << 16} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			b := newBench(t, engine.Config{}, https())
			for i := range flows {
				from := fmt.Sprintf("10.0.1.%d:%d", i%250, 1000+i)
				b.send(packet.Output, tcp(from, server, "S"))
				b.send(packet.Input, tcp(server, from, "SA"))
				b.send(packet.Output, tcp(from, server, "A"))
			}
			next, _ := b.succeed(engine.Config{Flows: size}, engine.Snapshot{Policy: https(), Hash: "h"})
			next.worker.Leave()
			s := next.engine.Stats()
			if want := uint64(min(size, flows)); s.Flows != want && size != 64 || s.Flows+s.FlowsNoRoom != flows || s.FlowsEvict != 0 {
				t.Errorf("got %d flows, %d without room, %d evicted, want %d flows of %d", s.Flows, s.FlowsNoRoom, s.FlowsEvict, want, flows)
			}
		})
	}
}

// FuzzAddFlows gives a worker blocks of any content, and then packets.
func FuzzAddFlows(f *testing.F) {
	b := newBench(f, engine.Config{}, https())
	b.send(packet.Output, tcp(client, server, "S"))
	b.send(packet.Output, udp(client, telnet))
	if err := b.worker.EachFlows(func(block []byte) error { f.Add(block); return nil }); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{1, 0, 1, 0, 5})
	past := b.engine.Past()
	f.Fuzz(func(t *testing.T, block []byte) {
		e := engine.New(engine.Config{Flows: 64})
		w := e.NewWorker(nil)
		e.Succeed(past, engine.Snapshot{Policy: https(), Hash: "h"})
		w.Inherit(engine.WorkerPast{Known: engine.KnownDecisions{Epoch: past.Epoch, List: []rules.Decision{{}}, Shapes: make([]rules.FieldSet, 1)}}, true)
		if _, err := w.AddFlows(block); err != nil {
			return
		}
		for _, hook := range []packet.Hook{packet.Input, packet.Output} {
			for _, p := range []pkt{tcp(client, server, "S"), tcp(server, client, "SA"), udp(client, telnet), udp(telnet, client)} {
				data := p.bytes(t)
				w.Handle(&packet.Meta{Hook: hook, Time: b.now, Length: uint32(len(data))}, data)
			}
		}
		w.Close()
	})
}

func BenchmarkHandOver(b *testing.B) {
	const flows = 60_000
	from := newBench(b, engine.Config{}, https())
	for i := range flows {
		from.send(packet.Output, tcp(fmt.Sprintf("10.%d.%d.1:1000", i/250, i%250), server, "S"))
	}
	for b.Loop() {
		from.succeed(engine.Config{}, engine.Snapshot{Policy: https(), Hash: "h"})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/flows, "ns/flow")
}
