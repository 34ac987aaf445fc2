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
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/links"
	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/process/attribution"
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
	shadow     *policy.Shadow // compares compiled decisions with OPA's
	generation uint64
	links      *links.Table
	followers  []*links.Follower // by queue
	audit      *logsink.Log
	auditRun   string                // id that its records carry
	owners     *attribution.Resolver // nil: nobody looks for owners of sockets
	engine     *engine.Engine
	queues     []*queue.Queue
	workers    []*engine.Worker

	attributors []*attribution.Attributor

	nflog    *logsink.NFLogReader
	ruleset  *hook.Ruleset
	left     bool // the rules stay in the kernel: nothing is to pass
	marks    *offload
	observer observer

	memory   memory
	watchdog watchdog
	line     *succession       // never nil
	heir     *heir             // has taken or is taking our place
	upgrades *net.UnixListener // nil if there is none

	// configured reads the settings anew, and returns the file that they are in;
	// nil: they cannot change.
	configured func() (file string, s settings, err error)
	rereading  sync.Mutex               // held while live is replaced
	live       atomic.Pointer[settings] // what a reload can change is in use as it is there

	outputs []logsink.Output // in place of those that the settings name
	ready   func()           // called once packets are judged

	trials  trials
	resumed bool // the daemon goes on where another process ended

	announced bool
	attached  time.Time // when the queues were ours
	inherited int       // flows of another process
}

// run runs the daemon until ctx is done or a part of it fails.
func (d *daemon) run(ctx context.Context) error {
	d.resumed = d.line.elder != nil || d.line.afterCrash
	defer d.startWatch(ctx)()
	loaded, err := d.loadPolicy(ctx)
	if early, done := d.toldEarly(ctx); done {
		return early
	}
	if err != nil {
		return err
	}
	d.policy = loaded
	if err := d.requireRules(); err != nil {
		return err
	}
	// From here on, what was opened is closed again.
	defer d.close()
	if err := d.beginStart(); err != nil {
		return err
	}
	defer d.forgetStart()
	if err := d.open(ctx); err != nil {
		if early, done := d.toldEarly(ctx); done {
			return early
		}
		return err
	}
	d.openUpgrades()

	// The audit log outlives everything that writes to it.
	auditCtx, endAudit := context.WithCancel(context.WithoutCancel(ctx))
	var audit sync.WaitGroup
	var auditErr error
	audit.Go(func() {
		d.awaitLog(auditCtx)
		auditErr = d.audit.Run(auditCtx)
	})
	err = d.judge(ctx)
	if d.heir == nil {
		d.recordStats()
		d.audit.Admin("stop", "verdictd stopped")
	}
	endAudit()
	audit.Wait()
	if d.heir != nil {
		return errors.Join(err, d.release(ctx, auditErr))
	}
	d.report()
	return errors.Join(err, auditErr)
}

// toldEarly returns whether the daemon was told to stop before it judged, and
// how that went. A successor leaves everything to the one that it was to follow.
func (d *daemon) toldEarly(ctx context.Context) (err error, done bool) {
	switch {
	case ctx.Err() == nil || d.line.elder != nil:
		return nil, false
	case d.line.afterCrash:
		return d.sweep(), true
	}
	d.log.Info("told to stop before anything was judged")
	return nil, true
}

func (d *daemon) source() policy.Source {
	return policy.Source{Path: d.Policy, Strict: d.Strict, Budget: d.budget, Bundle: d.bundle, Engine: d.evaluator, Shadow: d.shadow}
}

// open opens everything that needs rights or can be in use by others, but for
// the rules.
func (d *daemon) open(ctx context.Context) error {
	var err error
	if d.links, err = links.Open(d.netns); err != nil {
		return err
	}
	if d.settings.ruleset != nil && d.line.elder == nil && !d.line.afterCrash {
		if err := tableFree(*d.settings.ruleset, d.Queues); err != nil {
			return err
		}
	}
	for range d.Queues {
		f, err := links.Follow(d.netns)
		if err != nil {
			return err
		}
		d.followers = append(d.followers, f)
	}
	if err := d.greetElder(); err != nil {
		return err
	}
	if err := d.openOwners(ctx); err != nil {
		return err
	}
	d.engine = engine.New(engine.Config{
		Flows: d.Flows, Workers: len(d.Queues), Links: d.nameLinks, Attributor: d.attributor(),
		HoldFacts: d.holdFacts, HoldHash: d.holdHash, AcceptUnhashed: d.AcceptUnhashed,
		Now: func() int64 { return time.Now().UnixNano() },
	})
	if err := d.openAudit(); err != nil {
		return err
	}
	for _, num := range d.Queues {
		d.workers = append(d.workers, d.engine.NewWorker(d.audit.Ring(fmt.Sprintf("queue %d", num))))
	}
	if d.marks, err = d.newOffload(); err != nil {
		return err
	}
	if err := d.takeOver(); err != nil {
		return err
	}
	for _, num := range d.Queues {
		q, err := d.openQueue(queue.Config{
			Num: num, MaxLen: uint32(d.QueueLength), CopyRange: uint32(d.CopyRange), FailOpen: d.failOpen, NetNS: d.netns,
			Drain: d.drain(), Spin: d.spin,
		})
		if err != nil {
			return err
		}
		d.queues = append(d.queues, q)
	}
	d.attached = time.Now()
	d.watchQueues()
	if d.line.elder == nil {
		d.marks.begin()
		d.continueCounts()
		if err := d.publish(ctx, d.policy); err != nil {
			return err
		}
	}
	if err := d.openObserver(); err != nil || len(d.NFLogGroups) == 0 {
		return err
	}
	d.nflog, err = d.openNFLog(logsink.NFLogConfig{
		Groups: d.NFLogGroups, NetNS: d.netns, InterfaceName: d.links.Name,
	})
	return err
}

// close frees what open opened and puts the rules out if they are still in.
func (d *daemon) close() {
	d.closeUpgrades()
	d.closeObserver()
	d.leave()
	if d.ruleset != nil && !d.left {
		if err := d.ruleset.Close(); err != nil {
			d.log.Error("rules not removed", "error", err)
		}
		d.marks.end()
	}
	for _, q := range d.queues {
		q.Close()
	}
	d.closeOwners()
	if d.nflog != nil {
		d.nflog.Close()
	}
	for _, f := range d.followers {
		f.Close()
	}
	if d.links != nil {
		d.links.Close()
	}
}

// judge judges packets until ctx is done, a part fails or another process has
// taken the daemon's place.
func (d *daemon) judge(ctx context.Context) error {
	for {
		err := d.judgeOn(ctx)
		if err != nil || d.heir == nil {
			d.endFlows(ctx)
			return err
		}
		err = d.handOver(ctx)
		if err == nil {
			for _, w := range d.workers {
				w.Leave()
			}
			return nil
		}
		if err := d.resume(err); err != nil {
			return err
		}
	}
}

// endFlows ends the flows, and gives the audit log time to take the records of
// their ends.
func (d *daemon) endFlows(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endFlowsLimit)
	defer cancel()
	for i, w := range d.workers {
		if d.watchdog.abandons(i) {
			continue
		}
		w.EndFlows(ctx)
		w.Close()
	}
}

// endFlowsLimit bounds how long a stop waits for an audit log that is slower than
// flows end. What it has not taken by then is counted as lost.
const endFlowsLimit = 10 * time.Second

// judgeOn runs everything that reads packets or changes how they are judged.
// The tasks end in two steps: first all that brings packets, then, when the
// queues are empty, the rest. Before another process takes over it is the
// other way round, so that nothing slow happens while nobody judges.
func (d *daemon) judgeOn(ctx context.Context) error {
	tasks, tasksCtx := errgroup.WithContext(ctx)
	serve, endServe := context.WithCancelCause(context.WithoutCancel(ctx))
	defer endServe(nil)
	side, endSide := context.WithCancel(serve)
	defer endSide()
	for i := range d.queues {
		tasks.Go(func() error { return d.runQueue(serve, i) })
	}
	if d.nflog != nil {
		tasks.Go(func() error { return d.nflog.Run(serve) })
	}
	var beside sync.WaitGroup
	for _, task := range []func(context.Context) error{
		d.followLinks, d.learnOwners, d.followPolicy, d.compareDecisions, d.followHangups, d.observe, d.serveUpgrades,
		d.awaitConfirmation,
	} {
		beside.Add(1)
		tasks.Go(func() error {
			defer beside.Done()
			return task(side)
		})
	}
	tasks.Go(func() error {
		defer endServe(nil)
		if err := d.announce(); err != nil {
			return err
		}
		tasks.Go(func() error {
			if d.heir = d.awaitHeir(serve); d.heir != nil {
				endSide()
				beside.Wait()
				endServe(nfnl.ErrHandOver)
			}
			return nil
		})
		return d.keepRules(ctx, tasksCtx, serve)
	})
	err := tasks.Wait()
	if d.heir != nil && (err != nil || !errors.Is(context.Cause(serve), nfnl.ErrHandOver)) {
		d.refuse(d.heir.request, d.heir.fail(errors.New("told to stop")))
		d.heir = nil
	}
	return err
}

// nameLinks gives the next worker what names interfaces for it.
func (d *daemon) nameLinks() engine.Links { return d.followers[len(d.workers)] }

// followLinks keeps the names of interfaces for everything but the packets, and
// lists them for the workers if one has lost track.
func (d *daemon) followLinks(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return d.links.Run(ctx, d.netns, func() {}) })
	for _, f := range d.followers {
		tasks.Go(func() error { return f.Run(ctx.Done()) })
	}
	return tasks.Wait()
}

// announce puts the rules in, which replace those of the daemon before without
// a gap, and says that packets are judged now.
func (d *daemon) announce() error {
	if d.announced { // a failed upgrade may have changed them
		return d.restoreRules()
	}
	var ruleset *hook.Ruleset
	if d.settings.ruleset != nil {
		d.warnOfCut()
		var err error
		if ruleset, err = d.marks.install(*d.settings.ruleset); err != nil {
			return err
		}
	}
	if err := d.commit(); err != nil {
		return err
	}
	d.ruleset, d.announced = ruleset, true
	if ruleset == nil && d.line.legacy.Hook != "" {
		d.removeLegacy()
	}
	d.ownControl()
	d.lookEnforced()
	d.observer.enter(stateReady)
	d.checkRecording()
	if ruleset != nil {
		d.observer.book.SetRules(d.queued)
		d.observer.follow(ruleset)
	}
	d.settle()
	d.tellDeath()
	source := d.source().String()
	d.audit.Admin("start", fmt.Sprintf("verdictd %s, queue %s, %s, mode %s, policy %s", version(), d.Queues.String(), d.hookText(), d.mode, source))
	d.log.Info("ready", "pid", os.Getpid(), "queue", d.Queues.String(), "mode", d.mode.String(), "policy", source, "sha256", d.policy.Hash()[:12], "hook", d.hookText())
	d.tellOrigin(d.policy)
	if d.ready != nil {
		d.ready()
	}
	return nil
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
			if r := d.reread(); r.Error == "" {
				d.observer.reload.request(ctx, order{})
			}
		}
	}
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
			"hook_flush", lost.HookFlush, "interface_down", lost.InterfaceDown, "not_queued", lost.NotQueued, "unsent", lost.Unsent)
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
