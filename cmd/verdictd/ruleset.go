package main

import (
	"context"
	"errors"
	"time"

	"github.com/verdictd/verdictd/hook"
)

// rulesEvery is how often the rules are looked at.
const rulesEvery = 2 * time.Second

// keepRules looks now and then whether the rules are still as they were put
// in, and puts them in again if not: a "flush ruleset" by somebody else would
// let everything pass unseen. When ctx is done it takes the rules out of use; if
// told is not done, a part has failed. When serve is done they are another
// process's.
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
	for {
		select {
		case <-ctx.Done():
			if d.trials.failed.Load() {
				return d.rulesAsBefore()
			}
			return d.leaveRules(told.Err() != nil)
		case <-serve.Done():
			return nil
		case <-ticker.C:
		}
		err := d.ruleset.Verify()
		if err == nil {
			continue
		}
		d.log.Error("rules changed, putting them in again", "reason", err)
		d.audit.Admin("rules_changed", err.Error())
		if err := d.restoreRules(); err != nil {
			d.log.Error("rules not put in", "error", err) // and tried again
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
