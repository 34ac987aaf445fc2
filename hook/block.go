package hook

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

// blockedComment is the comment of the rule that stands in the place of the
// queue after Block.
const blockedComment = "verdictd is stopped: what it would judge is dropped"

// Block puts a drop in the place of the rules that fill the queue, in one
// transaction: packets already queued stay and can still be judged, all others
// that would have been queued are dropped from then on. Flows that were accepted
// for good go on, and what never came to the queue passes as before. The next
// Install takes the table over without a moment in which packets pass. It is no
// error if the table is gone.
func (r *Ruleset) Block() error {
	return r.refill("block", func(p *plan) { p.blocked = true })
}

// Block is Ruleset.Block for the table that a process left behind that has died,
// at the hooks where that table is. It returns ErrNotInstalled if there is none.
func Block(cfg Config) error { return block(cfg, dial) }

func block(cfg Config, dial dialer) error {
	c, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	r := &Ruleset{dial: dial, plan: plan{Config: c, marks: c.marks(), blocked: true}}
	what := r.what("block")
	k, err := dial(c.NetNS)
	if err != nil {
		return explain(what, err)
	}
	chains, err := k.chains(c)
	if err != nil {
		return explain(what, err)
	}
	r.plan.Hooks = nil
	for _, ch := range chains {
		h, ok := parseHook(ch.Name)
		if ok && ch.Hooknum != nil {
			r.plan.Hooks = append(r.plan.Hooks, h)
		}
	}
	slices.Sort(r.plan.Hooks)
	return r.install()
}

// refill fills the base chains of the table anew, after change has changed the
// plan. Chains are not deleted, and the rule of the offload chain stays: with it
// conntrack's hooks would go.
func (r *Ruleset) refill(verb string, change func(*plan)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	what := r.what(verb)
	k, err := r.dial(r.plan.NetNS)
	if err != nil {
		return explain(what, err)
	}
	chains, err := k.chains(r.plan.Config)
	if errors.Is(err, ErrNotInstalled) {
		return nil
	}
	if err != nil {
		return explain(what, err)
	}
	change(&r.plan)
	planned := r.plan.build().chains
	for _, c := range chains {
		if c.Hooknum == nil {
			continue
		}
		k.conn.FlushChain(c)
		i := slices.IndexFunc(planned, func(b branch) bool { return b.chain.Name == c.Name && b.base() })
		if i < 0 {
			continue
		}
		k.conn.AddChain(planned[i].chain) // sets the policy
		for _, rule := range planned[i].rules {
			k.conn.AddRule(rule)
		}
	}
	return explain(what, k.conn.Flush())
}

// State is what verdictd's table does with packets.
type State struct {
	Installed bool // the table is there
	Queues    bool // packets go to a queue
	Bypass    bool // and pass if nobody has bound it
	Blocked   bool // packets are dropped, as after Block

	QueueFirst, QueueLast uint16 // the queues, if Queues
}

// String says it in a few words.
func (s State) String() string {
	switch {
	case !s.Installed:
		return "no rules of verdictd are in the kernel: every packet passes unjudged"
	case s.Blocked:
		return "the rules of a stopped verdictd drop every packet that it would judge"
	case s.Queues && s.Bypass:
		return "the rules of verdictd let every packet pass unjudged while nobody has bound the queue"
	case s.Queues:
		return "the rules of verdictd drop every packet that they queue while nobody has bound the queue"
	}
	return "the table of verdictd is in the kernel, and sends nothing to a queue: every packet passes unjudged"
}

// Inspect returns the state of the table. Only Family, Table and NetNS of cfg
// matter.
func Inspect(cfg Config) (State, error) { return inspect(cfg, dial) }

func inspect(c Config, dial dialer) (s State, err error) {
	if err := c.defaultPlace(); err != nil {
		return s, err
	}
	what := fmt.Sprintf("read table %s %s", c.Family, c.Table)
	k, err := dial(c.NetNS)
	if err != nil {
		return s, explain(what, err)
	}
	t, err := k.read(c)
	if errors.Is(err, ErrNotInstalled) {
		return s, nil
	}
	if err != nil {
		return s, explain(what, err)
	}
	s.Installed = true
	for _, b := range t.chains {
		for _, r := range b.rules {
			s.note(r)
		}
	}
	return s, nil
}

func (s *State) note(r *nftables.Rule) {
	s.Blocked = s.Blocked || comment(r.UserData) == blockedComment
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Queue:
			s.Queues, s.Bypass = true, e.Flag&expr.QueueFlagBypass != 0
			s.QueueFirst, s.QueueLast = e.Num, e.Num+max(e.Total, 1)-1
		case *expr.Target:
			if info, ok := e.Info.(*xt.Unknown); ok && len(*info) >= 6 {
				s.Queues, s.Bypass = true, binary.NativeEndian.Uint16((*info)[4:])&xtBypass != 0
				s.QueueFirst = binary.NativeEndian.Uint16(*info)
				s.QueueLast = s.QueueFirst + max(binary.NativeEndian.Uint16((*info)[2:]), 1) - 1
			}
		}
	}
}
