package policy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// DefaultShadowEvery is how many decisions of compiled policies there are to
// one that is compared, unless NewShadow says otherwise.
const DefaultShadowEvery = 1000

// Shadow lets OPA's evaluator make a sample of the decisions of compiled
// policies once more, away from the packets, and compares. A policy with a
// decision that differs is evaluated by OPA from then on.
//
// One Shadow serves all policies that a daemon loads, one after the other. Its
// methods may be called from several goroutines.
type Shadow struct {
	every   uint64
	samples chan *sample

	mu         sync.Mutex
	distrusted map[string]bool // hashes of policies that were found wrong

	decisions, compared, skipped, mismatches atomic.Uint64
}

// ShadowStats count decisions.
type ShadowStats struct {
	Compared   uint64 // made by OPA too
	Skipped    uint64 // of the sample, not compared for want of time
	Mismatches uint64
}

// Mismatch is a decision that OPA makes in another way.
type Mismatch struct {
	Facts        rules.Facts // a copy
	Compiled     rules.Decision
	Reference    rules.Decision // valid iff ReferenceErr is nil
	ReferenceErr error
}

// sample is a decision to compare. Its facts are copies.
type sample struct {
	policy   *compiled
	meta     packet.Meta
	packet   packet.Packet
	facts    rules.Facts
	decision rules.Decision
}

// NewShadow returns a Shadow that compares one in every decisions; 0 is
// DefaultShadowEvery.
func NewShadow(every int) *Shadow {
	if every <= 0 {
		every = DefaultShadowEvery
	}
	return &Shadow{every: uint64(every), samples: make(chan *sample, 64), distrusted: map[string]bool{}}
}

// offer takes a decision into the sample if it is its turn. It does not wait:
// if Run is behind, the decision is skipped and counted. A nil Shadow takes
// none.
func (s *Shadow) offer(c *compiled, f *rules.Facts, d *rules.Decision) {
	if s == nil || (s.decisions.Add(1)-1)%s.every != 0 {
		return
	}
	x := &sample{policy: c, meta: *f.Meta, packet: *f.Packet, facts: *f, decision: *d}
	x.facts.Meta, x.facts.Packet, x.packet.Payload = &x.meta, &x.packet, nil
	select {
	case s.samples <- x:
	default:
		s.skipped.Add(1)
	}
}

// Run compares until ctx is done. It calls report for each policy that it finds
// wrong, once, after OPA's evaluator has taken over. What was decided before
// may still be in force elsewhere: the policy has to be published again. A
// policy of the same content is not compiled again.
func (s *Shadow) Run(ctx context.Context, report func(*Mismatch)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case x := <-s.samples:
			if m := s.compare(x); m != nil {
				report(m)
			}
		}
	}
}

// distrusts returns whether a policy of that hash was found wrong. A nil
// Shadow has found none.
func (s *Shadow) distrusts(hash string) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.distrusted[hash]
}

func (s *Shadow) distrust(hash string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.distrusted[hash] = true
}

// compare returns the mismatch if it is the policy's first.
func (s *Shadow) compare(x *sample) *Mismatch {
	c := x.policy
	if c.distrusted.Load() {
		return nil
	}
	want := rules.Decision{Reads: c.reads}
	err := c.reference.evaluate(&x.facts, &want)
	if _, slow := errors.AsType[*BudgetError](err); slow {
		s.skipped.Add(1) // a clock's word against steps: nothing to compare
		return nil
	}
	s.compared.Add(1)
	if err == nil && sameDecision(&want, &x.decision) {
		return nil
	}
	s.mismatches.Add(1)
	s.distrust(c.hash)
	c.distrusted.Store(true)
	return &Mismatch{Facts: x.facts, Compiled: x.decision, Reference: want, ReferenceErr: err}
}

// sameDecision returns whether two decisions say the same, for whatever they
// read.
func sameDecision(a, b *rules.Decision) bool {
	x, y := *a, *b
	x.Reads, y.Reads = rules.FieldSet{}, rules.FieldSet{}
	return x == y
}

// Stats returns what was compared so far.
func (s *Shadow) Stats() ShadowStats {
	return ShadowStats{Compared: s.compared.Load(), Skipped: s.skipped.Load(), Mismatches: s.mismatches.Load()}
}

// Error says what differs, for logs.
func (m *Mismatch) Error() string {
	reference := fmt.Sprintf("%s by rule %q", m.Reference.Action, m.Reference.Rule)
	if m.ReferenceErr != nil {
		reference = m.ReferenceErr.Error()
	}
	p := m.Facts.Packet
	return fmt.Sprintf("compiled policy decided %s by rule %q, OPA %s, about protocol %s from %s port %d to %s port %d at %s (please report this with the policy; OPA decides from now on)",
		m.Compiled.Action, m.Compiled.Rule, reference,
		rules.ProtocolName(p.Protocol), p.Src, p.SrcPort, p.Dst, p.DstPort, m.Facts.Meta.Hook)
}
