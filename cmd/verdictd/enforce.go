package main

import (
	"time"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/internal/feed"
)

// enforceEvery is how often it is looked whether anything feeds the queues.
const enforceEvery = 10 * time.Second

// enforcement says whether the policy is enforced on anything.
type enforcement struct {
	State  string `json:"state"`            // yes, no, unknown, or monitor: by that mode
	Reason string `json:"reason,omitempty"` // for no and unknown
}

const (
	enforceYes     = "yes"
	enforceNo      = "no"
	enforceUnknown = "unknown"
	enforceMonitor = "monitor"
)

// enforces finds out whether the policy is enforced on anything: in mode enforce,
// with a policy, by a rule that sends packets to the queues.
func (d *daemon) enforces() enforcement {
	switch {
	case d.mode != engine.Enforce:
		return enforcement{State: enforceMonitor}
	case d.Policy == "":
		return enforcement{enforceNo, "there is no policy, so everything is accepted (give one with --policy)"}
	}
	return d.fed()
}

// fed finds out whether a rule sends packets to the queues.
func (d *daemon) fed() enforcement {
	if d.settings.ruleset != nil { // keepRules sees to it
		return enforcement{State: enforceYes}
	}
	rules, err := feed.Find(d.netns, d.Queues)
	switch {
	case len(rules) > 0:
		return enforcement{State: enforceYes}
	case err != nil:
		return enforcement{enforceUnknown, "whether a rule sends packets to queue " + d.Queues.String() + " cannot be told: " + err.Error()}
	}
	return enforcement{enforceNo, "no rule sends packets to queue " + d.Queues.String() +
		", so none is judged (--hook installs rules, verdictd hook print-iptables shows some)"}
}

// requireRules refuses to start, if that is wanted, where nothing would be judged
// or what is judged would be accepted anyway.
func (d *daemon) requireRules() error {
	if !d.RequireRules {
		return nil
	}
	if d.mode == engine.Enforce && d.Policy == "" {
		return badInput(settingErrorf("require-rules", "%s", d.enforces().Reason))
	}
	if f := d.fed(); f.State != enforceYes {
		return settingErrorf("require-rules", "%s", f.Reason)
	}
	return nil
}

// lookEnforced looks again whether the policy is enforced on anything, and tells
// when that has changed.
func (d *daemon) lookEnforced() {
	now := d.enforces()
	before := d.observer.enforce(now)
	if before.State == now.State {
		return
	}
	switch now.State {
	case enforceNo:
		d.log.Warn("nothing is enforced", "reason", now.Reason)
		d.audit.Admin("enforces_nothing", now.Reason)
	case enforceUnknown:
		d.log.Warn("whether anything is enforced is not known", "reason", now.Reason)
	case enforceYes:
		if before.State != "" {
			d.log.Info("packets come to the queue: the policy is enforced")
			d.audit.Admin("enforces", "rules send packets to queue "+d.Queues.String())
		}
	}
}

// enforce notes whether the policy is enforced, and returns what was noted before.
func (o *observer) enforce(now enforcement) (before enforcement) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before, o.enforced = o.enforced, now
	return before
}

// number is 1 if the policy is known to be enforced.
func (e *enforcement) number() uint64 {
	if e.State == enforceYes {
		return 1
	}
	return 0
}

// text says it to people, empty where there is nothing to say.
func (e *enforcement) text() string {
	switch e.State {
	case enforceNo:
		return "nothing is enforced: " + e.Reason
	case enforceUnknown:
		return "not known to be enforced: " + e.Reason
	}
	return ""
}
