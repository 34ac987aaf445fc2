package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/verdictd/verdictd/hook"
)

// rulesEvery is how often the rules are looked at even if the kernel tells of no
// change.
const rulesEvery = 2 * time.Second

// keepRules looks whether the rules are still as they were put in, when the kernel
// tells of a change and now and then, and puts them in again if not: a "flush
// ruleset" by somebody else lets everything pass unseen. When ctx is done it takes
// the rules out of use; if told is not done, a part has failed. When serve is done
// they are another process's.
func (d *daemon) keepRules(told, ctx, serve context.Context) error {
	if d.ruleset == nil {
		select {
		case <-ctx.Done():
		case <-serve.Done():
		}
		return nil
	}
	ticker := time.NewTicker(rulesEvery)
	defer ticker.Stop()
	changes := make(chan rulesChange)
	watching, endWatch := context.WithCancel(serve)
	var watcher sync.WaitGroup
	watcher.Go(func() { d.watchRules(watching, changes) })
	defer watcher.Wait()
	defer endWatch()
	for {
		change := rulesChange{}
		select {
		case <-ctx.Done():
			if d.trials.failed.Load() {
				return d.rulesAsBefore()
			}
			return d.leaveRules(told.Err() != nil)
		case <-serve.Done():
			return nil
		case <-ticker.C:
		case change = <-changes:
		}
		if err := d.ruleset.Verify(); err != nil {
			d.repairRules(err, change)
		}
	}
}

// rulesAsBefore is the end of a start that nobody confirmed.
func (d *daemon) rulesAsBefore() error {
	if d.settings.ruleset.Until.IsZero() { // rules of an earlier run were there
		d.left = true
		return d.ruleset.Block()
	}
	return d.ruleset.Stop()
}

// rulesChange is a change of our table that the kernel told of.
type rulesChange struct {
	by   string    // who made it, "" if that is not known
	told time.Time // zero: nobody told, it was found
}

// watchRules sends each change of our table, until ctx is done.
func (d *daemon) watchRules(ctx context.Context, changes chan<- rulesChange) {
	w, err := hook.Watch(*d.settings.ruleset)
	if err == nil {
		defer w.Close()
	}
	for err == nil {
		var c rulesChange
		if c.by, err = w.Next(ctx); err != nil {
			break
		}
		c.told = time.Now()
		select {
		case changes <- c:
		case <-ctx.Done():
			return
		}
	}
	if ctx.Err() == nil {
		d.log.Warn("changes of the rules are found late", "every", rulesEvery, "error", err)
	}
}

// repairRules puts the rules in again, and tells for how long they were not as
// they should be.
func (d *daemon) repairRules(reason error, c rulesChange) {
	if err := d.restoreRules(); err != nil {
		d.log.Error("rules changed, and not put in again", "reason", reason, "by", c.by, "error", err) // and tried again
		d.audit.Admin("rules_changed", fmt.Sprintf("%v, by %s; not put in again: %v", reason, c.by, err))
		return
	}
	gap := fmt.Sprintf("up to %v", rulesEvery)
	if !c.told.IsZero() {
		gap = time.Since(c.told).Round(time.Microsecond).String()
	}
	by := cmp.Or(c.by, "somebody")
	d.log.Error("rules changed, put in again", "reason", reason, "by", by, "gap", gap)
	d.audit.Admin("rules_changed", fmt.Sprintf("%v, by %s; put in again, gap %s: packets may have passed unjudged", reason, by, gap))
}

// restoreRules puts the rules in again.
func (d *daemon) restoreRules() error {
	if d.ruleset == nil {
		return nil
	}
	if err := d.ruleset.Restore(); err != nil {
		return err
	}
	d.observer.book.SetRules(d.queued) // their counters begin again
	return nil
}

// removeLegacy takes out the rules of the daemon before, for one without hooks.
func (d *daemon) removeLegacy() {
	d.log.Warn("the rules of the daemon before are taken out: the settings name no hook any more", "hook", d.line.legacy.Hook)
	if err := hook.Remove(hook.Config{NetNS: d.netns}); err != nil && !errors.Is(err, hook.ErrNotInstalled) {
		d.log.Error("rules of the daemon before not removed", "error", err, "remedy", "verdictd hook remove")
	}
}

func (d *daemon) hookText() string {
	if d.Hook == "" {
		return "own rules of the user"
	}
	return d.Hook
}

// drain bounds how long queues are emptied at the end. Our own rules are out
// by then, so that the queue ends; the user's may go on filling it.
func (d *daemon) drain() time.Duration {
	if d.settings.ruleset != nil {
		return 2 * time.Second
	}
	return 0 // the queue's default
}
