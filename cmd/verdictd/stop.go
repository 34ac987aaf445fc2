package main

import (
	"errors"
	"os"

	"github.com/verdictd/verdictd/hook"
)

// sweepEnv makes a process leave what --on-stop says and end, without having
// judged: the keeper sets it when it was told to stop and its worker had died.
const sweepEnv = "VERDICTD_SWEEP"

// openRemedy is how rules that were left behind are taken out.
const openRemedy = "verdictd hook remove"

// checkOnStop reads what a stop leaves behind.
func (s *settings) checkOnStop() error {
	switch s.OnStop {
	case "":
		s.stopClosed = !s.failOpen
	case "closed", "open":
		s.stopClosed = s.OnStop == "closed"
	default:
		return settingErrorf("on-stop", "want open or closed, got %q", s.OnStop)
	}
	if s.OnStop != "" && s.Hook == "" {
		return settingErrorf("on-stop", "goes with --hook only (with rules of your own a stop leaves them as they are)")
	}
	return nil
}

// leaveRules takes the rules out of use: nothing more comes to the queues. Told
// to stop, it does what --on-stop says; if a part has failed, what --fail says.
func (d *daemon) leaveRules(told bool) error {
	d.observer.enter(stateStopping)
	switch {
	case told && d.stopClosed:
		d.left = true
		if d.ruleset.Verify() != nil { // somebody's flush must not have the last word
			if err := d.ruleset.Restore(); err != nil {
				return err
			}
		}
		if err := d.ruleset.Block(); err != nil {
			return err
		}
		d.tellClosed()
		return nil
	case !told && !d.failOpen:
		d.left = true
		d.log.Error("a part of verdictd failed: its rules stay, and drop what they queue", "to_open", openRemedy)
		return nil
	}
	return d.ruleset.Stop()
}

func (d *daemon) tellClosed() {
	d.log.Warn("the rules stay and drop what verdictd would judge, until it runs again", "on-stop", "closed", "to_open", openRemedy)
}

// sweep leaves what --on-stop says where another process of this daemon has died
// and this one was told to stop before it judged.
func (d *daemon) sweep() error {
	var err error
	if d.settings.ruleset != nil {
		after := hook.Remove
		if d.stopClosed {
			after = hook.Block
		}
		switch err = after(*d.settings.ruleset); {
		case errors.Is(err, hook.ErrNotInstalled):
			err = nil
		case err == nil && d.stopClosed:
			d.tellClosed()
		}
	}
	// The dead process's sockets go as those of a living one do.
	err = errors.Join(err, d.listen())
	d.closeObserver()
	if l, lerr := listenForUpgrades(upgradeDir); lerr == nil {
		l.Close()
		_ = os.Remove(upgradeDir) // unless another daemon's socket is in it
	}
	d.leave()
	d.log.Info("stopped in the place of a process that died")
	return err
}
