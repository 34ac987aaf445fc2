package engine_test

import (
	"slices"
	"testing"
	"time"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/rules"
)

// registry is an Attributor that a test tells what to answer.
type registry struct {
	owner   *process.Owner
	pending process.Facts
	wake    func()
	changes uint32
	learned uint32 // lookups that have ended
	asked   int
	keys    []packet.Key
	hurries int
	hashes  []uint32 // pids that were asked for
}

func (r *registry) Owner(*packet.Meta, *packet.Packet) (*process.Owner, process.Facts) {
	r.asked++
	return r.owner, r.pending
}

func (r *registry) Revision() uint32 { return r.changes + r.learned }

func (r *registry) Notify(wake func()) { r.wake = wake }

func (r *registry) Changes(k *packet.Key) uint32 {
	r.keys = append(r.keys[:0], *k)
	return r.changes
}

func (r *registry) Hurry() { r.hurries++ }

func (r *registry) WantHash(o *process.Owner, _ process.Facts) bool {
	r.hashes = append(r.hashes, o.Process.PID)
	return true
}

func (r *registry) attributor() engine.Attributor { return r }

// becomes makes o the answer from now on.
func (r *registry) becomes(o *process.Owner) {
	r.owner = o
	r.changes++
}

func program(id uint32, exe string) *process.Owner {
	return &process.Owner{ID: id, Source: process.BPFFlow, Process: &process.Process{PID: id, Exe: process.Exe{Path: exe}}}
}

// byExe accepts one program.
type byExe struct {
	t     testing.TB
	exe   string
	hash  bool // look at the hash too
	asked int
}

func (p *byExe) Evaluate(f *rules.Facts, d *rules.Decision) error {
	p.asked++
	d.Rule, d.Log, d.Reads = "exe", true, reading(p.t, "process.exe")
	if p.hash {
		d.Reads.Union(reading(p.t, rules.HashPath))
	}
	if o := f.Owner; o != nil && o.Process != nil && o.Process.Exe.Path == p.exe && (!p.hash || o.Process.Exe.SHA256 == "good") {
		d.Action = packet.Accept
	}
	return nil
}

// ownedBench returns a bench whose packets belong to what r says.
func ownedBench(t testing.TB, r *registry, p engine.Evaluator) *bench {
	r.changes = max(r.changes, 1)
	return newBench(t, engine.Config{Attributor: r.attributor}, p)
}

// ownersLogged returns the owners of the events since the last call.
func (b *bench) ownersLogged() (list []*process.Owner) {
	b.ring.Drain(func(ev *logsink.Event) { list = append(list, ev.Owner) })
	return list
}

// A flow is attributed once, whichever way its packets go, until something may
// have changed.
func TestAttributedOnce(t *testing.T) {
	r := &registry{owner: program(1, "/curl")}
	policy := &byExe{t: t, exe: "/curl"}
	b := ownedBench(t, r, policy)
	for range 3 {
		b.want(packet.Output, udp(client, server), packet.Accept, engine.ReasonPolicy)
		b.want(packet.Input, udp(server, client), packet.Accept, engine.ReasonEstablished)
	}
	if r.asked != 1 || policy.asked != 1 {
		t.Errorf("asked for the owner %d times and the policy %d times, want once", r.asked, policy.asked)
	}
	if k := r.keys[0]; k.DstPort != 443 {
		t.Errorf("key of an incoming packet: got %+v, want it as the local socket sends", k)
	}
	r.changes++ // somebody else's doing
	b.want(packet.Output, udp(client, server), packet.Accept, engine.ReasonPolicy)
	if r.asked != 2 || policy.asked != 1 {
		t.Errorf("asked for the owner %d times and the policy %d times, want 2 and 1", r.asked, policy.asked)
	}
	if got := b.ownersLogged(); !slices.Equal(got, []*process.Owner{r.owner}) {
		t.Errorf("owners in the log: got %v, want one, that of the flow", got)
	}
}

// Whoever takes over the ports of a flow is judged for himself.
func TestOtherOwnerIsJudged(t *testing.T) {
	curl, evil := program(1, "/curl"), program(2, "/evil")
	r := &registry{owner: curl}
	b := ownedBench(t, r, &byExe{t: t, exe: "/curl"})
	b.want(packet.Output, udp(client, server), packet.Accept, engine.ReasonPolicy)
	b.events()
	r.becomes(evil)
	b.want(packet.Output, udp(client, server), packet.Drop, engine.ReasonPolicy)
	if got := b.ownersLogged(); !slices.Equal(got, []*process.Owner{evil}) {
		t.Errorf("owners in the log: got %v, want the new one", got)
	}
	r.becomes(&process.Owner{ID: 3}) // nobody could tell: not the one before
	b.want(packet.Output, udp(client, server), packet.Drop, engine.ReasonPolicy)
	r.becomes(curl)
	b.want(packet.Output, udp(client, server), packet.Accept, engine.ReasonPolicy)

	b.want(packet.Output, tcp(client, server, "S"), packet.Accept, engine.ReasonPolicy)
	r.becomes(&process.Owner{ID: 4, Source: process.Kernel})
	b.want(packet.Output, tcp(client, server, "FA"), packet.Accept, engine.ReasonPolicy) // the rest of a closed socket
	b.want(packet.Output, tcp(client, server, "S"), packet.Drop, engine.ReasonPolicy)    // another connection
	r.becomes(evil)
	b.want(packet.Output, tcp(client, server, "S"), packet.Drop, engine.ReasonPolicy)
}

// onlyExe accepts what one program sends to port 443 or receives there, and what
// it says for others it says without asking whose they are.
func onlyExe(t testing.TB, hook packet.Hook, exe string) policyFunc {
	return func(f *rules.Facts, d *rules.Decision) error {
		*d = rules.Decision{Rule: "none", Log: true}
		if f.Meta.Hook != hook || f.Packet.DstPort != 443 {
			return nil
		}
		d.Reads = reading(t, "process.exe")
		if o := f.Owner; o != nil && o.Process != nil && o.Process.Exe.Path == exe {
			d.Action, d.Rule = packet.Accept, "exe"
		}
		return nil
	}
}

// Answers ride a flow only for the owner it was accepted for, whichever way.
func TestAnswersAreForTheOwner(t *testing.T) {
	served, thief, unknown := program(1, "/served"), program(2, "/thief"), &process.Owner{ID: 3}
	for _, there := range []packet.Hook{packet.Input, packet.Output} {
		back := packet.Input + packet.Output - there
		r := &registry{owner: served}
		b := ownedBench(t, r, onlyExe(t, there, "/served"))
		b.want(there, udp(client, server), packet.Accept, engine.ReasonPolicy)
		b.want(back, udp(server, client), packet.Accept, engine.ReasonEstablished)
		b.events()
		for _, other := range []*process.Owner{thief, unknown} {
			r.becomes(other)
			b.want(back, udp(server, client), packet.Drop, engine.ReasonPolicy)
			b.want(back, udp(server, client), packet.Drop, engine.ReasonPolicy)
			r.becomes(served)
			b.want(there, udp(client, server), packet.Accept, engine.ReasonPolicy)
			b.want(back, udp(server, client), packet.Accept, engine.ReasonEstablished)
		}
		var changes [][2]*process.Owner
		b.ring.Drain(func(ev *logsink.Event) { changes = append(changes, [2]*process.Owner{ev.OtherOwner, ev.Owner}) })
		if len(changes) == 0 || changes[0] != [2]*process.Owner{served, thief} {
			t.Errorf("the log names %v, want first that the thief took the place of served", changes)
		}
	}
}

// A decision that says the same for the new owner is logged once more: the log
// names both. The flow's end names who was judged and who it was at the end.
func TestLogNamesTheChange(t *testing.T) {
	first, second, third := program(1, "/a"), program(2, "/b"), program(3, "/c")
	r := &registry{owner: first}
	b := ownedBench(t, r, &anyExe{byExe{t: t}})
	b.send(packet.Output, udp(client, server))
	for range 20 { // they take turns: the first change is told, and no more for a while
		r.becomes(second)
		b.send(packet.Output, udp(client, server))
		r.becomes(first)
		b.send(packet.Output, udp(client, server))
	}
	b.now += int64(11e9)
	r.becomes(second)
	b.send(packet.Output, udp(client, server))
	b.load(policyFunc(func(_ *rules.Facts, d *rules.Decision) error { // asks nobody's name
		*d = rules.Decision{Action: packet.Accept, Rule: "exe", Log: true}
		return nil
	}))
	r.becomes(third)
	b.send(packet.Output, udp(client, server))
	b.worker.Close()
	type line struct{ owner, other *process.Owner }
	var got []line
	b.ring.Drain(func(ev *logsink.Event) { got = append(got, line{ev.Owner, ev.OtherOwner}) })
	if want := []line{{first, nil}, {second, first}, {second, first}, {second, third}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if n := b.worker.OwnersKept(); n != 0 {
		t.Errorf("%d owners are kept for no flow", n)
	}
}

// An answer finds the socket's process in a weaker way than what the socket sends:
// that is no other owner.
func TestWeakerSourceIsNoChange(t *testing.T) {
	curl, same, hashed := program(1, "/curl"), program(1, "/curl"), program(1, "/curl")
	same.ID, same.Source = 2, process.BPFCookie
	hashed.ID, hashed.Source, hashed.Process.Exe.SHA256 = 3, process.BPFCookie, "good"
	r := &registry{owner: curl}
	policy := &byExe{t: t, exe: "/curl"}
	b := ownedBench(t, r, policy)
	b.want(packet.Output, udp(client, server), packet.Accept, engine.ReasonPolicy)
	r.becomes(same)
	b.want(packet.Input, udp(server, client), packet.Accept, engine.ReasonEstablished)
	if policy.asked != 1 {
		t.Errorf("asked %d times, want once", policy.asked)
	}
	r.becomes(hashed)
	b.want(packet.Input, udp(server, client), packet.Accept, engine.ReasonEstablished)
	if policy.asked != 2 {
		t.Errorf("asked %d times, want once more, as the hash is known", policy.asked)
	}
}

// Another user's socket is another owner where nobody can tell more.
func TestAnswersAreForTheUser(t *testing.T) {
	b := newBench(t, engine.Config{}, policyFunc(func(f *rules.Facts, d *rules.Decision) error {
		*d = rules.Decision{Rule: "user", Reads: reading(t, "uid")}
		if f.Meta.Hook == packet.Output && f.Meta.HasUID && f.Meta.UID == 1000 {
			d.Action = packet.Accept
		}
		return nil
	}))
	b.sendMeta(packet.Meta{Hook: packet.Output, HasUID: true, UID: 1000}, udp(client, server))
	b.want(packet.Input, udp(server, client), packet.Accept, engine.ReasonEstablished)
	for _, uid := range []uint32{65534, 1000} {
		want := packet.Accept
		if uid != 1000 {
			want = packet.Drop
		}
		if got, _ := b.sendMeta(packet.Meta{Hook: packet.Input, HasUID: true, UID: uid}, udp(server, client)); got != want {
			t.Errorf("answer to user %d: got %v, want %v", uid, got, want)
		}
		b.sendMeta(packet.Meta{Hook: packet.Output, HasUID: true, UID: 1000}, udp(client, server))
	}
}

// A forwarded flow is its sender's in both directions: an answer finds nobody.
func TestForwardedAnswersKeepTheOwner(t *testing.T) {
	r := &registry{owner: program(1, "/curl")}
	b := ownedBench(t, r, &byExe{t: t, exe: "/curl"})
	b.want(packet.Forward, udp(client, server), packet.Accept, engine.ReasonPolicy)
	r.becomes(&process.Owner{ID: 2})
	b.want(packet.Forward, udp(server, client), packet.Accept, engine.ReasonEstablished)
	b.want(packet.Forward, udp(client, server), packet.Drop, engine.ReasonPolicy)
}

// A change of hands is counted as it begins: the owner is looked for until it must
// be done.
func TestOwnerSettles(t *testing.T) {
	served, thief := program(1, "/served"), program(2, "/thief")
	r := &registry{owner: served}
	b := ownedBench(t, r, onlyExe(t, packet.Input, "/served"))
	b.want(packet.Input, udp(client, server), packet.Accept, engine.ReasonPolicy)
	r.changes++
	b.want(packet.Input, udp(client, server), packet.Accept, engine.ReasonPolicy)
	r.owner = thief // not counted once more
	b.want(packet.Input, udp(client, server), packet.Drop, engine.ReasonPolicy)
	b.now += int64(1e9)
	asked := r.asked
	b.want(packet.Input, udp(client, server), packet.Drop, engine.ReasonPolicy)
	if r.asked != asked {
		t.Error("the owner is still looked for a second later")
	}
}

// A hash that is computed later lets through what waited for it.
func TestHashComesLater(t *testing.T) {
	r := &registry{owner: program(1, "/curl"), pending: process.FactHash}
	policy := &byExe{t: t, exe: "/curl", hash: true}
	b := ownedBench(t, r, policy)
	b.want(packet.Output, tcp(client, server, "S"), packet.Drop, engine.ReasonPolicy)
	b.want(packet.Output, tcp(client, server, "S"), packet.Drop, engine.ReasonPolicy)
	if !slices.Equal(r.hashes, []uint32{1}) || policy.asked != 1 {
		t.Errorf("hashes asked for: %v, policy asked %d times, want once each", r.hashes, policy.asked)
	}
	known := program(2, "/curl")
	known.Process.Exe.SHA256 = "good"
	r.owner, r.pending = known, 0
	r.learned++
	b.want(packet.Output, tcp(client, server, "S"), packet.Accept, engine.ReasonPolicy)
}

// A lookup that has ended is no business of a flow whose decision read nothing that
// was pending, and of any other it is, in either direction.
func TestLookupsOfOthers(t *testing.T) {
	for name, tt := range map[string]struct {
		hash    bool
		pending process.Facts
		asks    bool
	}{
		"nothing pending":   {false, 0, false},
		"not read":          {false, process.FactHash, false},
		"read":              {true, process.FactHash, true},
		"read, not askable": {false, process.FactRefused, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := &registry{owner: program(1, "/curl"), pending: tt.pending}
			b := ownedBench(t, r, &byExe{t: t, exe: "/curl", hash: tt.hash})
			action := packet.Accept
			if tt.hash {
				action = packet.Drop
			}
			b.want(packet.Output, udp(client, server), action, engine.ReasonPolicy)
			for range 3 {
				asked := r.asked
				r.learned++
				b.want(packet.Output, udp(client, server), action, engine.ReasonPolicy)
				if got := r.asked > asked; got != tt.asks {
					t.Fatalf("asked for the owner after a lookup: got %v, want %v", got, tt.asks)
				}
				asked = r.asked
				b.want(packet.Output, udp(client, server), action, engine.ReasonPolicy)
				if r.asked != asked {
					t.Fatal("asked for the owner though nothing was looked up")
				}
			}
		})
	}
}

// An owner of whom more is being looked up is asked for again when the flow is used
// after that, if what he was before had been decided already.
func TestHolderBecomesKnown(t *testing.T) {
	r := &registry{owner: program(1, "/curl")}
	b := ownedBench(t, r, &byExe{t: t, exe: "/curl"})
	b.want(packet.Output, udp(client, server), packet.Accept, engine.ReasonPolicy)
	r.pending = process.FactOwner // as before, and it is being looked at
	r.changes++
	b.want(packet.Output, udp(client, server), packet.Accept, engine.ReasonPolicy)
	b.now += int64(time.Second)
	r.owner, r.pending = program(2, "/thief"), 0
	r.learned++
	b.want(packet.Output, udp(client, server), packet.Drop, engine.ReasonPolicy)
}

// A decision about a program is final for TCP, when all it read is known, and
// never for UDP.
func TestFinalOwners(t *testing.T) {
	known := program(1, "/curl")
	known.Process.Exe.SHA256 = "good"
	marks := engine.Marks{Mask: 0xff00, Reject: 0x100, Reply: 0x200, Accept: 0x300}
	for name, tt := range map[string]struct {
		owner *process.Owner
		hash  bool
		p     pkt
		final bool

		pending process.Facts
		action  packet.Action
	}{
		"tcp":               {program(1, "/curl"), false, tcp(client, server, "S"), true, process.FactHash, packet.Accept},
		"tcp, path missing": {program(1, "/curl"), false, tcp(client, server, "S"), false, process.FactPath, packet.Accept},
		"udp":               {program(1, "/curl"), false, udp(client, server), false, 0, packet.Accept},
		"tcp, hash known":   {known, true, tcp(client, server, "S"), true, 0, packet.Accept},
		"tcp, hash missing": {program(1, "/curl"), true, tcp(client, server, "S"), false, process.FactHash, packet.Drop},
		"tcp, no hash":      {program(1, "/curl"), true, tcp(client, server, "S"), true, 0, packet.Accept},
		"unknown":           {&process.Owner{ID: 1}, false, tcp(client, server, "S"), false, 0, packet.Accept},
	} {
		t.Run(name, func(t *testing.T) {
			b := ownedBench(t, &registry{owner: tt.owner, pending: tt.pending}, &anyExe{byExe{t: t, hash: tt.hash}})
			b.engine.Publish(engine.Snapshot{Policy: &anyExe{byExe{t: t, hash: tt.hash}}, Generation: 2, Marks: marks})
			v := b.verdict(packet.Meta{Hook: packet.Output}, tt.p)
			if v.Action != tt.action || v.Repeat != tt.final {
				t.Errorf("got %+v, want %v, final %v", v, tt.action, tt.final)
			}
		})
	}
}

// anyExe reads what byExe reads and accepts.
type anyExe struct{ byExe }

func (p *anyExe) Evaluate(f *rules.Facts, d *rules.Decision) error {
	err := p.byExe.Evaluate(f, d)
	d.Action = packet.Accept
	return err
}

// Flows of another process are attributed anew: its owners' numbers mean nothing
// here.
func TestSucceedOwners(t *testing.T) {
	r := &registry{owner: program(7, "/curl")}
	b := ownedBench(t, r, &byExe{t: t, exe: "/curl"})
	b.want(packet.Output, udp(client, server), packet.Accept, engine.ReasonPolicy)
	b.events()
	evil := &registry{owner: program(7, "/evil"), changes: 1}
	next, same := b.succeed(engine.Config{Attributor: evil.attributor}, engine.Snapshot{Policy: &byExe{t: t, exe: "/curl"}, Hash: "h"})
	if !same {
		t.Fatal("not the same policy")
	}
	next.want(packet.Output, udp(client, server), packet.Drop, engine.ReasonPolicy)
	if evil.asked != 1 {
		t.Errorf("asked for the owner %d times, want once", evil.asked)
	}
}

// Owners that no flow refers to are forgotten.
func TestOwnersAreForgotten(t *testing.T) {
	r := &registry{}
	b := ownedBench(t, r, &byExe{t: t})
	for i := range uint32(100_000) {
		r.becomes(program(i+1, "/x"))
		b.send(packet.Output, udp(client, server))
	}
	if n := b.worker.OwnersKept(); n != 1 {
		t.Errorf("%d owners are kept for one flow", n)
	}
	b.worker.Close()
	if n := b.worker.OwnersKept(); n != 0 {
		t.Errorf("%d owners are kept for no flow", n)
	}
}

func TestKnownOwnerAllocatesNothing(t *testing.T) {
	r := &registry{owner: program(1, "/curl"), keys: make([]packet.Key, 0, 1)}
	b := ownedBench(t, r, &byExe{t: t, exe: "/curl"})
	data := udp(client, server).bytes(t)
	m := packet.Meta{Hook: packet.Output, Length: uint32(len(data)), Time: b.now}
	b.worker.Handle(&m, data)
	if n := testing.AllocsPerRun(1000, func() { b.worker.Handle(&m, data) }); n != 0 {
		t.Errorf("%v allocations per packet of a known flow", n)
	}
}
