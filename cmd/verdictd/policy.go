package main

import (
	"context"
	"fmt"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/policy"
)

// followPolicy loads the policy again when its files change and when it is asked
// to.
func (d *daemon) followPolicy(ctx context.Context) error {
	strict := func() bool { return d.live.Load().Strict || d.observer.reload.current().strict }
	return policy.Watch(ctx, policy.WatchConfig{
		Source: d.source(), Strict: strict, Current: d.observer.current(), Hash: d.trials.seen(), Reload: d.observer.reload.ask,
		OnChange: func(p *policy.Policy, err error) { d.changePolicy(ctx, p, err) },
		OnServer: d.bundleServer,
	})
}

// changePolicy takes a new policy into use, or says why it was refused.
func (d *daemon) changePolicy(ctx context.Context, p *policy.Policy, err error) {
	d.trials.mu.Lock()
	defer d.trials.mu.Unlock()
	var cut *cutReport
	if err == nil {
		cut, err = d.prepareChange(ctx, p)
	}
	if err != nil {
		d.log.Error("policy refused, the old one stays", "error", err, "generation", d.generation)
		d.audit.Admin("policy_refused", err.Error())
		d.observer.refuse(err)
		d.reloaded(policyErrors(err), nil)
		return
	}
	if err := d.publish(ctx, p); err != nil {
		d.log.Error("policy loaded, but flows that the former one accepted may still pass", "error", err)
		d.reloaded(policyErrors(err), nil)
		return
	}
	line := d.log.With("generation", d.generation, "sha256", p.Hash()[:12])
	if r := p.Origin().Revision; r != "" {
		line = line.With("revision", r)
	}
	line.Info("policy loaded")
	d.audit.Admin("policy_loaded", fmt.Sprintf("generation %d, %s", d.generation, describe(p)))
	d.tellOrigin(p)
	d.reloaded(nil, cut)
}

// compareDecisions lets OPA's evaluator check compiled decisions.
func (d *daemon) compareDecisions(ctx context.Context) error {
	return d.shadow.Run(ctx, func(m *policy.Mismatch) { d.distrustPolicy(ctx, m) })
}

// distrustPolicy takes back what the compiled policy decided: the policy is
// loaded again, to run on OPA's evaluator, and every flow judged anew.
func (d *daemon) distrustPolicy(ctx context.Context, m *policy.Mismatch) {
	d.log.Error("policy runs on OPA's own evaluator from now on", "reason", m)
	d.audit.Admin("policy_mismatch", m.Error())
	if r, err := d.observer.reload.run(ctx, order{}); err == nil && !r.Accepted {
		d.engine.Refresh() // the files have changed for the worse: judge anew by what is in use
	}
}

// publish makes p what packets are judged by. When it returns, no decision by an
// earlier policy counts any more.
func (d *daemon) publish(ctx context.Context, p *policy.Policy) error {
	d.generation++
	d.observer.inUse(p)
	err := d.marks.publish(ctx, d.snapshot(p))
	d.writeNote()
	return err
}

// snapshot returns what packets are judged by under the policy, but for the
// marks.
func (d *daemon) snapshot(p *policy.Policy) engine.Snapshot {
	return engine.Snapshot{
		Policy: p, Generation: d.generation, Hash: p.Hash(), Mode: d.mode, FailOpen: d.failOpen, PassMalformed: d.passMalformed, ResetDenied: d.ResetDenied,
	}
}
