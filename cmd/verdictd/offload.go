package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/hook"
)

// offload keeps the engine, the ruleset and the marks of connections in step: a
// mark counts for the generation of decisions that it was given by, and for no
// other.
//
// With a ruleset of our own, each generation has a number of its own. A new one
// comes into use in this order: it is made sure that no connection carries its
// number from earlier; the engine judges by the new policy and gives the new
// number; the rules take the new number for the old one. Whatever is still under
// way with the old number meets no rule for it, comes to the queue and is judged
// anew.
//
// The user's own rules know one number, which has to be taken back: the engine
// stops giving it, its last verdicts reach the kernel, the connections lose it,
// and only then it is given again.
type offload struct {
	wanted bool
	netns  int
	log    *slog.Logger
	engine *engine.Engine

	mu      sync.Mutex // held while a generation comes into use
	marks   hook.Marks // in use; Accept 0: suspended
	latest  hook.Marks // that were in use last, or are
	ruleset *hook.Ruleset
}

// newOffload returns an offload that gives no marks yet.
func (d *daemon) newOffload() (*offload, error) {
	o := &offload{wanted: d.offloads, netns: d.netns, log: d.log, engine: d.engine}
	if d.mask == 0 {
		return o, nil
	}
	var err error
	o.latest, err = d.chooseMarks()
	return o, err
}

// begin takes the first generation into use.
func (o *offload) begin() {
	if o.latest.Mask != 0 {
		o.marks = o.free(o.latest)
	}
}

// succeed takes into use what follows the marks of another process. If flows
// are judged as before, connections keep their marks; if not, they have to lose
// them, or the rules of our own get the next number.
func (o *offload) succeed(past marksLegacy, same, ownRules bool) {
	switch {
	case past.Latest.Mask != o.latest.Mask, past.Latest.Related != o.latest.Related, past.Latest.Last != o.latest.Last:
		o.begin() // other bits, or other numbers
	case same && o.wanted && past.InUse.Accept != 0:
		o.latest, o.marks = past.Latest, past.InUse
	default:
		o.latest = past.Latest
		if ownRules && o.latest.Mask != 0 {
			o.latest = o.latest.Next()
		}
		o.begin()
	}
}

// end takes the marks of this run from all connections, after the rules are gone.
func (o *offload) end() {
	if o.latest.Mask == 0 || !o.wanted {
		return
	}
	if _, err := hook.ClearRun(o.netns, o.latest); err != nil {
		o.log.Warn("connection marks stay behind; the next start takes those that it uses again", "error", err)
	}
}

// legacy returns what a successor must know.
func (o *offload) legacy() marksLegacy {
	o.mu.Lock()
	defer o.mu.Unlock()
	return marksLegacy{Latest: o.latest, InUse: o.marks}
}

// free returns the marks with a number that no connection carries, or without
// one where that cannot be had: then the offload is suspended.
func (o *offload) free(m hook.Marks) hook.Marks {
	if !o.wanted {
		m.Accept = 0
		return m
	}
	n, err := hook.ClearMarks(o.netns, m.Mask, m.Accept)
	if err != nil {
		o.log.Warn("offload suspended: all packets go to the queue", "error", err)
		m.Accept = 0
	} else if n > 0 {
		o.log.Info("cleared connection marks of an earlier run or generation", "connections", n)
	}
	return m
}

// engineMarks returns what workers know of marks.
func engineMarks(m hook.Marks) engine.Marks {
	return engine.Marks{Mask: m.Mask, Reject: m.Reject, Reply: m.Reply, Related: m.Related, Accept: m.Accept}
}

// install puts the rules in, with the marks in use.
func (o *offload) install(c hook.Config) (*hook.Ruleset, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c.Mask, c.Offload = o.marks.Mask, o.marks.Accept != 0
	if first, err := hook.NewMarks(c.Mask); err == nil && o.marks != first {
		c.Offload = false // until the number is right
	}
	r, err := hook.Install(c)
	if err != nil {
		return nil, err
	}
	o.ruleset = r
	if o.marks != r.Marks() { // the policy has changed since newOffload
		err = r.SetMarks(o.marks)
	}
	if !r.Rejects() {
		o.log.Warn("packets that the policy rejects are dropped and their senders not told", "remedy", "modprobe nft_reject_inet, and see --offload-mask")
	}
	return r, err
}

// publish makes s what packets are judged by. When it returns, no decision of
// an earlier snapshot counts any more, in the engine or in the kernel. It fails
// only when ctx is done.
func (o *offload) publish(ctx context.Context, s engine.Snapshot) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	give := func(m hook.Marks) {
		o.marks = m
		s.Marks = engineMarks(m)
		o.engine.Publish(s)
	}
	_, running := o.engine.Snapshot()
	switch {
	case !running || !o.wanted:
		give(o.marks)
		return nil
	case o.ruleset == nil:
		return o.takeBack(ctx, give)
	}
	// No worker gives older numbers than the one in use.
	if err := o.engine.Await(ctx); err != nil {
		return err
	}
	o.latest = o.latest.Next()
	give(o.free(o.latest))
	return o.retry(ctx, func() error { return o.ruleset.SetMarks(o.marks) })
}

// takeBack publishes where the rules know one number only.
func (o *offload) takeBack(ctx context.Context, give func(hook.Marks)) error {
	given, none := o.latest, o.latest
	none.Accept = 0
	give(none)
	if err := o.engine.Await(ctx); err != nil {
		return err
	}
	err := o.retry(ctx, func() error {
		_, err := hook.ClearMarks(o.netns, given.Mask, given.Accept)
		return err
	})
	if err == nil {
		give(given)
	}
	return err
}

// retryEvery is the pause between two tries to take back what the kernel knows.
const retryEvery = time.Second

// retry calls revoke until it succeeds: until then flows that an earlier policy
// accepted may pass.
func (o *offload) retry(ctx context.Context, revoke func() error) error {
	for {
		err := revoke()
		if err == nil {
			return nil
		}
		o.log.Error("flows that the former policy accepted still pass by the queue; trying again", "error", err)
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(retryEvery):
		}
	}
}

// checkOffload reads the settings about marks.
func (s *settings) checkOffload() error {
	mask, err := parseMask(s.OffloadMask)
	if err != nil {
		return settingErrorf("offload-mask", "%w", err)
	}
	on, err := s.wantsOffload(mask)
	if err != nil {
		return settingErrorf("offload", "%w", err)
	}
	s.offloads = on
	if on || s.ruleset != nil {
		s.mask = mask
	}
	if s.ruleset != nil {
		s.ruleset.Mask, s.ruleset.Offload = mask, on
	}
	if s.ResetDenied && (s.ruleset == nil || mask == 0) {
		return settingErrorf("reset-denied", "goes with --hook only (it needs rules that reject)")
	}
	return nil
}

func (s *settings) wantsOffload(mask uint32) (bool, error) {
	var possible error
	if s.ruleset != nil {
		possible = s.ruleset.CanOffload()
	}
	if mask == 0 {
		possible = errors.New("offload-mask is 0")
	}
	switch s.Offload {
	case "":
		return s.ruleset != nil && possible == nil, nil
	case "on":
		return true, possible
	case "off":
		return false, nil
	}
	return false, fmt.Errorf("want on or off, got %q", s.Offload)
}

// parseMask reads the mask; "" stands for the default.
func parseMask(text string) (uint32, error) {
	if text == "" {
		return hook.DefaultMask, nil
	}
	n, err := strconv.ParseUint(text, 0, 32)
	if err != nil {
		return 0, fmt.Errorf("want a number of 32 bits, such as %#x, got %q", uint32(hook.DefaultMask), text)
	}
	if n == 0 {
		return 0, nil
	}
	_, err = hook.NewMarks(uint32(n))
	return uint32(n), err
}
