package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/links"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/queue"
)

// daemon is what verdictd run runs. Its parts start in the order of start and
// stop in that of stop: rules go in last and out first, so that a packet is
// only ever queued for somebody who answers it.
type daemon struct {
	settings
	env env
	log *slog.Logger

	policy     *policy.Policy
	generation uint64
	links      *links.Table
	audit      *logsink.Log
	engine     *engine.Engine
	queues     []*queue.Queue
	workers    []*engine.Worker
	nflog      *logsink.NFLogReader
	ruleset    *hook.Ruleset
	marks      *offload
	observer   observer

	outputs []logsink.Output // in place of those that the settings name
	ready   func()           // called once packets are judged
}

// run runs the daemon until ctx is done or a part of it fails.
func (d *daemon) run(ctx context.Context) error {
	loaded, err := policy.Load(ctx, d.source())
	if err != nil {
		return policyError(err)
	}
	d.policy = loaded
	// From here on, what was opened is closed again.
	defer d.close()
	if err := d.open(ctx); err != nil {
		return err
	}

	// The audit log outlives everything that writes to it.
	auditCtx, endAudit := context.WithCancel(context.WithoutCancel(ctx))
	var audit sync.WaitGroup
	var auditErr error
	audit.Go(func() { auditErr = d.audit.Run(auditCtx) })
	err = d.judge(ctx)
	d.recordStats()
	d.audit.Admin("stop", "verdictd stopped")
	endAudit()
	audit.Wait()
	d.report()
	return errors.Join(err, auditErr)
}

func (d *daemon) source() policy.Source {
	return policy.Source{Path: d.Policy, Budget: d.budget, Bundle: d.bundle}
}

// open opens everything that needs rights or can be in use by others, but for
// the rules.
func (d *daemon) open(ctx context.Context) error {
	var err error
	if d.links, err = links.Open(d.netns); err != nil {
		return err
	}
	d.engine = engine.New(engine.Config{
		Flows: d.Flows, Workers: len(d.Queues), InterfaceName: d.links.Name,
		Now: func() int64 { return time.Now().UnixNano() },
	})
	for _, num := range d.Queues {
		q, err := queue.Open(queue.Config{
			Num: num, MaxLen: uint32(d.QueueLength), CopyRange: uint32(d.CopyRange), FailOpen: d.failOpen, NetNS: d.netns,
			Drain: d.drain(),
		})
		if err != nil {
			return err
		}
		d.queues = append(d.queues, q)
	}
	if d.marks, err = d.newOffload(); err != nil {
		return err
	}
	if err := d.publish(ctx, d.policy); err != nil {
		return err
	}
	if err := d.openAudit(); err != nil {
		return err
	}
	if err := d.openObserver(); err != nil || len(d.NFLogGroups) == 0 {
		return err
	}
	d.nflog, err = logsink.OpenNFLog(logsink.NFLogConfig{
		Groups: d.NFLogGroups, NetNS: d.netns, InterfaceName: d.links.Name,
	}, d.audit)
	return err
}

// drain bounds how long queues are emptied at the end. Our own rules are out
// by then, so that the queue ends; the user's may go on filling it.
func (d *daemon) drain() time.Duration {
	if d.settings.ruleset != nil {
		return 2 * time.Second
	}
	return 0 // the queue's default
}

func (d *daemon) openAudit() error {
	outputs := d.outputs
	if outputs == nil {
		outputs = []logsink.Output{{
			Path: d.Log.File, Pretty: d.Log.Pretty && d.Log.File == "-", Colour: d.env.colour(),
			MaxBytes: int64(d.Log.MaxSize), Keep: d.Log.Keep,
		}}
		if d.Log.Pretty && d.Log.File != "-" {
			outputs = append(outputs, logsink.Output{Path: "-", Pretty: true, Colour: d.env.colour()})
		}
	}
	host, _ := os.Hostname() // without it the record just lacks the key
	var err error
	d.audit, err = logsink.New(logsink.Config{
		Outputs: outputs, Encoder: logsink.EncoderConfig{Host: host}, Logger: d.log,
	})
	return err
}

// close frees what open opened and puts the rules out if they are still in.
func (d *daemon) close() {
	d.closeObserver()
	if d.ruleset != nil {
		if err := d.ruleset.Close(); err != nil {
			d.log.Error("rules not removed", "error", err)
		}
	}
	for _, q := range d.queues {
		q.Close()
	}
	if d.nflog != nil {
		d.nflog.Close()
	}
	if d.links != nil {
		d.links.Close()
	}
}

// judge runs everything that reads packets or changes how they are judged.
// The tasks end in two steps: first all that brings packets, then, when the
// queues are empty, the rest.
func (d *daemon) judge(ctx context.Context) error {
	tasks, tasksCtx := errgroup.WithContext(ctx)
	serve, endServe := context.WithCancel(context.WithoutCancel(ctx))
	defer endServe()
	for i, q := range d.queues {
		w := d.engine.NewWorker(d.audit.Ring(fmt.Sprintf("queue %d", d.Queues[i])))
		d.workers = append(d.workers, w)
		tasks.Go(func() error {
			defer w.Close()
			return q.Run(serve, w)
		})
	}
	if d.nflog != nil {
		tasks.Go(func() error { return d.nflog.Run(serve) })
	}
	tasks.Go(func() error { return d.links.Run(serve, d.netns, d.engine.Refresh) })
	tasks.Go(func() error {
		return policy.Watch(serve, policy.WatchConfig{
			Source: d.source(), Current: d.policy, Reload: d.observer.reload.ask,
			OnChange: func(p *policy.Policy, err error) { d.changePolicy(serve, p, err) },
			OnServer: d.bundleServer,
		})
	})
	tasks.Go(func() error { return d.followHangups(serve) })
	tasks.Go(func() error { return d.observe(serve) })
	tasks.Go(func() error {
		defer endServe()
		if err := d.announce(); err != nil {
			return err
		}
		return d.keepRules(tasksCtx)
	})
	return tasks.Wait()
}

// keepRules looks now and then whether the rules are still as they were put
// in, and puts them in again if not: a "flush ruleset" by somebody else would
// let everything pass unseen. When ctx is done it takes the rules out of use.
func (d *daemon) keepRules(ctx context.Context) error {
	if d.ruleset == nil {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(rulesEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return d.ruleset.Stop()
		case <-ticker.C:
		}
		err := d.ruleset.Verify()
		if err == nil {
			continue
		}
		d.log.Error("rules changed, putting them in again", "reason", err)
		d.audit.Admin("rules_changed", err.Error())
		if err := d.ruleset.Restore(); err != nil {
			d.log.Error("rules not put in", "error", err) // and tried again
			continue
		}
		d.observer.book.SetRules(d.queued) // their counters begin again
	}
}

// rulesEvery is how often the rules are looked at.
const rulesEvery = 2 * time.Second

// announce puts the rules in and says that packets are judged now.
func (d *daemon) announce() error {
	if d.settings.ruleset != nil {
		r, err := d.marks.install(*d.settings.ruleset)
		if err != nil {
			return err
		}
		d.ruleset = r
		d.observer.book.SetRules(d.queued)
		if d.offloads {
			d.observer.follow(r)
		}
	}
	source := d.source().String()
	d.audit.Admin("start", fmt.Sprintf("verdictd %s, queue %s, %s, mode %s, policy %s", version(), d.Queues.String(), d.hookText(), d.mode, source))
	d.log.Info("ready", "queue", d.Queues.String(), "mode", d.mode.String(), "policy", source, "sha256", d.policy.Hash()[:12], "hook", d.hookText())
	d.tellOrigin(d.policy)
	notifySystemd("READY=1")
	if d.ready != nil {
		d.ready()
	}
	return nil
}

func (d *daemon) hookText() string {
	if d.Hook == "" {
		return "own rules of the user"
	}
	return d.Hook
}

// followHangups reloads the policy and reopens the log files at each SIGHUP.
func (d *daemon) followHangups(ctx context.Context) error {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangups:
			d.audit.Reopen()
			d.observer.reload.request(ctx, nil)
		}
	}
}

// changePolicy takes a new policy into use, or says why it was refused.
func (d *daemon) changePolicy(ctx context.Context, p *policy.Policy, err error) {
	if err != nil {
		d.log.Error("policy refused, the old one stays", "error", err, "generation", d.generation)
		d.audit.Admin("policy_refused", err.Error())
		d.reloaded(policyErrors(err))
		return
	}
	if err := d.publish(ctx, p); err != nil {
		d.log.Error("policy loaded, but flows that the former one accepted may still pass", "error", err)
		d.reloaded(policyErrors(err))
		return
	}
	line := d.log.With("generation", d.generation, "sha256", p.Hash()[:12])
	if r := p.Origin().Revision; r != "" {
		line = line.With("revision", r)
	}
	line.Info("policy loaded")
	d.audit.Admin("policy_loaded", fmt.Sprintf("generation %d, %s", d.generation, describe(p)))
	d.tellOrigin(p)
	d.reloaded(nil)
}

// publish makes p what packets are judged by. When it returns, no decision by an
// earlier policy counts any more.
func (d *daemon) publish(ctx context.Context, p *policy.Policy) error {
	d.generation++
	d.observer.inUse(p)
	return d.marks.publish(ctx, engine.Snapshot{
		Policy: p, Generation: d.generation, Hash: p.Hash(), Mode: d.mode, FailOpen: d.failOpen, ResetDenied: d.ResetDenied,
	})
}

// report says at the end what was done. The queues must still be bound: only
// the kernel knows what they had no room for, and what is still in them. That is
// lost when they are closed.
func (d *daemon) report() {
	s := d.engine.Stats()
	l, err := d.observer.book.Read()
	if err != nil {
		d.log.Error("losses are not known", "error", err)
	}
	lost, unjudged := &l.Total.Lost, &l.Total.Unjudged
	line := d.log.With("packets", s.Packets, "accepted", s.Accepted, "dropped", s.Dropped+s.Rejected,
		"would_drop", s.WouldDrop, "malformed", s.Malformed, "policy_errors", s.PolicyErrors)
	if unjudged.Sum() > 0 {
		line = line.With("unjudged", unjudged.Sum())
	}
	total := lost.Sum() + l.Total.Waiting
	if total > 0 {
		line = line.With("queue_full", lost.QueueFull, "unread", l.Total.Waiting, "receive_buffer", lost.ReceiveBuffer,
			"hook_flush", lost.HookFlush, "unsent", lost.Unsent)
	}
	if s.Offloaded > 0 {
		line = line.With("offloaded_flows", s.Offloaded)
	}
	if s.Returned > 0 { // no rule knew their mark
		line = line.With("returned", s.Returned)
	}
	if l.Settled && l.Total.Unexplained != 0 {
		line = line.With("unexplained", l.Total.Unexplained)
	}
	line.Info("stopped", "lost", total)
}

// notifySystemd tells the service manager about the daemon's state if it was
// started by one; sd_notify(3).
func notifySystemd(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if conn, err := net.Dial("unixgram", path); err == nil {
		defer conn.Close()
		_, _ = conn.Write([]byte(state)) // nobody to tell if nobody listens
	}
}
