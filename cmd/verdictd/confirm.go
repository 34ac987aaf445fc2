package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/confirm"
	"github.com/verdictd/verdictd/internal/control"
	"github.com/verdictd/verdictd/policy"
)

// errUnconfirmed ends a daemon whose start nobody confirmed.
var errUnconfirmed = errors.New("the start was not confirmed in time (verdictd confirm): back to what was before")

// confirmDir is where the daemon at DefaultPath keeps what is to be confirmed.
const confirmDir = "/var/lib/verdictd/confirm"

// trials are what has to be confirmed: the start of the daemon, or a policy. A
// trial ends by a confirmation or by going back, whoever the daemon is by then.
type trials struct {
	dir  confirm.Dir
	wake chan struct{} // of capacity 1: the trial is another one

	shown atomic.Pointer[trialStatus] // of trial, for who must not wait

	mu     sync.Mutex     // held while a policy comes into use or a trial ends
	trial  *confirm.Trial // nil: there is none; set by set alone
	before *policy.Policy // to go back to
	last   *policy.Policy // in use before the one in use now; nil: none
	failed atomic.Bool    // the start was not confirmed
}

// trialStatus is what status tells of a trial.
type trialStatus struct {
	Until  time.Time `json:"until"`
	Start  bool      `json:"start"`            // the daemon's start is on trial, not a policy
	Policy string    `json:"policy,omitempty"` // SHA-256 of the policy on trial
	Before string    `json:"before,omitempty"` // of the one to go back to
	Undone bool      `json:"undone"`           // the trial is over: Before is in use, though the files hold Policy
}

// trialDir returns where trials are kept for a daemon with that control socket.
// Without one nobody could confirm.
func trialDir(socket string) confirm.Dir {
	switch socket {
	case noControl:
		return ""
	case "", control.DefaultPath:
		return confirmDir
	}
	return confirm.Dir(socket + ".confirm")
}

// loadPolicy loads the policy that is to be used: that of the files, unless it is
// on trial and its time is over, or it is broken and there is one to go back to.
func (d *daemon) loadPolicy(ctx context.Context) (*policy.Policy, error) {
	d.trials.dir, d.trials.wake = trialDir(d.Control), make(chan struct{}, 1)
	p, err := policy.Load(ctx, d.source())
	t, terr := d.trials.dir.Load()
	if terr != nil {
		d.log.Error("whether the policy was to be confirmed is not known; it is used", "error", terr)
	}
	if t == nil || t.Start {
		return p, policyError(err)
	}
	changed := err == nil && p.Hash() != t.Policy
	if changed && (t.Undone || p.Hash() == t.Before) {
		return p, d.trials.dir.Clear() // who was locked out has mended the files
	}
	before, serr := policy.LoadSaved(ctx, d.trials.dir.PolicyFile(), d.source())
	if serr != nil {
		d.log.Error("no policy to go back to", "error", serr)
		return p, errors.Join(policyError(err), d.trials.dir.Clear())
	}
	d.trials.before = before
	if err == nil && !t.Over(time.Now()) {
		t.Policy = p.Hash()
		return p, d.trials.set(t)
	}
	d.log.Error("policy not confirmed, the one before is used", "sha256", before.Hash()[:12], "files", d.source().String(), "error", err)
	t.Undone = true
	return before, d.trials.set(t)
}

// set makes trial the one under way and notes it. The caller holds mu, or is alone.
func (t *trials) set(trial *confirm.Trial) error {
	if err := t.dir.Save(trial); err != nil {
		return err
	}
	t.trial = trial
	t.shown.Store(&trialStatus{Until: trial.Until, Start: trial.Start, Policy: trial.Policy, Before: trial.Before, Undone: trial.Undone})
	t.changed()
	return nil
}

// seen returns the hash of what the policy's files hold, if that is not what is
// in use, else "".
func (t *trials) seen() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.trial == nil || !t.trial.Undone {
		return ""
	}
	return t.trial.Policy
}

// beginStart puts the daemon's start on trial, if that was asked for. A process
// that takes another one's place goes on with its trial.
func (d *daemon) beginStart() error {
	t := &d.trials
	if d.confirm == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	past, err := t.dir.Load()
	if d.resumes() {
		if past == nil || !past.Start {
			return err
		}
		if past.Over(time.Now()) {
			return errors.Join(errUnconfirmed, d.undoStart(past), t.dir.Clear())
		}
		d.settings.ruleset.Until = opensAt(past)
		return t.set(past)
	}
	_, err = hook.Show(*d.settings.ruleset)
	trial := &confirm.Trial{Until: time.Now().Add(d.confirm), Start: true, Left: err == nil}
	d.settings.ruleset.Until = opensAt(trial)
	return t.set(trial)
}

// undoStart takes out the rules of a dead daemon whose start nobody confirmed.
func (d *daemon) undoStart(past *confirm.Trial) error {
	if past.Left || d.line.elder != nil {
		return nil
	}
	if err := hook.Remove(*d.settings.ruleset); !errors.Is(err, hook.ErrNotInstalled) {
		return err
	}
	return nil
}

// resumes returns whether the daemon goes on where another process ended.
func (d *daemon) resumes() bool { return d.resumed }

// opensAt is when the kernel lets packets pass, should the daemon be dead by then.
// Rules that were there before the daemon stay closed without it, as they were.
func opensAt(t *confirm.Trial) time.Time {
	if t.Left {
		return time.Time{}
	}
	return t.Until
}

// tryPolicy puts p on trial before it comes into use. The caller holds mu.
func (d *daemon) tryPolicy(p, current *policy.Policy, limit time.Duration) error {
	t := &d.trials
	if t.dir == "" {
		return errors.New("nothing can be confirmed without a control socket (--control none)")
	}
	if t.trial != nil && t.trial.Start {
		return errors.New("the start of verdictd waits for a confirmation: verdictd confirm comes first")
	}
	before := t.before
	switch {
	case t.trial != nil && !t.trial.Undone: // goes on, with a new end
	case t.trial != nil, p.Hash() != current.Hash():
		before = current
	default: // the files were changed, and so loaded, before the reload was asked for
		before = t.last
	}
	if before == nil {
		return fmt.Errorf("there is no policy to go back to: %s is what verdictd began with", p.Hash()[:12])
	}
	if err := before.Save(t.dir.PolicyFile()); err != nil {
		return err
	}
	t.before = before
	return t.set(&confirm.Trial{Until: time.Now().Add(limit), Policy: p.Hash(), Before: before.Hash()})
}

// replaced notes that p comes into use for current without a trial of its own.
// The caller holds mu. A trial under way goes on with what is new, unless that is
// what was before.
func (t *trials) replaced(p, current *policy.Policy) error {
	if p.Hash() != current.Hash() {
		t.last = current
	}
	switch {
	case t.trial == nil || t.trial.Start:
		return nil
	case t.trial.Undone || p.Hash() == t.trial.Before:
		return t.end()
	}
	trial := *t.trial
	trial.Policy = p.Hash()
	return t.set(&trial)
}

// end forgets the trial. The caller holds mu.
func (t *trials) end() error {
	t.trial, t.before = nil, nil
	t.shown.Store(nil)
	t.changed()
	return t.dir.Clear()
}

// changed wakes who keeps the time.
func (t *trials) changed() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// left returns how long the trial under way lasts.
func (t *trials) remaining() (left time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.trial == nil || t.trial.Undone {
		return 0, false
	}
	return max(0, time.Until(t.trial.Until)), true
}

// awaitConfirmation goes back at the end of a trial.
func (d *daemon) awaitConfirmation(ctx context.Context) error {
	for {
		left, ok := d.trials.remaining()
		timer := time.NewTimer(left)
		end := timer.C
		if !ok {
			end = nil
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-d.trials.wake:
			timer.Stop()
		case <-end:
			if err := d.goBack(ctx); err != nil {
				return err
			}
		}
	}
}

// forgetStart ends the trial of a daemon that has ended by itself or never began:
// who starts it again begins another.
func (d *daemon) forgetStart() {
	t := &d.trials
	t.mu.Lock()
	defer t.mu.Unlock()
	if d.heir != nil || t.trial == nil || !t.trial.Start {
		return
	}
	if err := t.end(); err != nil {
		d.log.Error("trial of the start not forgotten", "error", err)
	}
}

// goBack undoes what nobody confirmed: the error ends the daemon if that was its
// start.
func (d *daemon) goBack(ctx context.Context) error {
	t := &d.trials
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.trial == nil || !t.trial.Over(time.Now()) || t.trial.Undone {
		return nil
	}
	if t.trial.Start {
		t.failed.Store(true)
		d.audit.Admin("start_unconfirmed", errUnconfirmed.Error())
		return errors.Join(errUnconfirmed, t.end())
	}
	before := t.before
	if err := d.publish(ctx, before); err != nil {
		return fmt.Errorf("go back to the policy before: %w", err)
	}
	undone := *t.trial
	undone.Undone = true
	if err := t.set(&undone); err != nil {
		d.log.Error("a restart would use the policy that was not confirmed", "error", err)
	}
	d.log.Error("policy not confirmed in time, back to the one before", "generation", d.generation, "sha256", before.Hash()[:12])
	d.audit.Admin("policy_unconfirmed", fmt.Sprintf("%s was not confirmed in time; generation %d, %s", t.trial.Policy[:12], d.generation, describe(before)))
	return nil
}

// confirmed is the answer to verdictd confirm.
type confirmed struct {
	Start  bool   `json:"start"`
	SHA256 string `json:"sha256,omitempty"` // of the policy that was on trial
}

// confirmTrial ends the trial for good.
func (d *daemon) confirmTrial() (*confirmed, error) {
	t := &d.trials
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.trial == nil:
		return nil, errors.New("nothing waits for a confirmation")
	case t.trial.Over(time.Now()):
		return nil, fmt.Errorf("too late: the trial ended at %s (verdictd reload --confirm begins another)", t.trial.Until.Format(time.TimeOnly))
	}
	done := &confirmed{Start: t.trial.Start, SHA256: t.trial.Policy}
	if t.trial.Start && d.ruleset != nil {
		if err := d.ruleset.Keep(); err != nil {
			return nil, err
		}
	}
	d.log.Info("confirmed", "start", done.Start)
	d.audit.Admin("confirmed", trialName(done))
	return done, t.end()
}

func trialName(c *confirmed) string {
	if c.Start {
		return "the start"
	}
	return "policy " + c.SHA256
}

// underWay returns the trial that waits for a confirmation, nil if none does.
func (t *trials) underWay() *trialStatus {
	if s := t.shown.Load(); s != nil && !s.Undone {
		return s
	}
	return nil
}

// waits returns 1 if something waits for a confirmation.
func (t *trialStatus) waits() uint64 {
	if t == nil || t.Undone {
		return 0
	}
	return 1
}

// text tells people what is on trial.
func (t *trialStatus) text(now time.Time) string {
	left := t.Until.Sub(now).Round(time.Second)
	switch {
	case t.Undone:
		return fmt.Sprintf("policy %s was not confirmed by %s: the one before is in use (change the files, or: verdictd reload --confirm 60s)", t.Policy[:12], t.Until.Format(time.DateTime))
	case t.Start:
		return fmt.Sprintf("the start waits for verdictd confirm: in %s verdictd ends and takes its rules out", left)
	}
	return fmt.Sprintf("policy %s waits for verdictd confirm: in %s back to %s", t.Policy[:12], left, t.Before[:12])
}

// parseConfirm reads the time of a trial; "" is none.
func parseConfirm(name, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	limit, err := time.ParseDuration(text)
	if err != nil {
		return 0, settingErrorf(name, "want a time such as 60s, got %q", text)
	}
	if err := confirm.CheckLimit(limit); err != nil {
		return 0, settingErrorf(name, "%w", err)
	}
	return limit, nil
}

// checkConfirm reads how long trials last.
func (s *settings) checkConfirm() (err error) {
	if s.confirm, err = parseConfirm("confirm", s.Confirm); err != nil {
		return err
	}
	if s.confirmPolicy, err = parseConfirm("confirm-policy", s.ConfirmPolicy); err != nil {
		return err
	}
	const needsControl = "does not go with --control none: nobody could confirm"
	switch {
	case s.confirm > 0 && s.Hook == "":
		return settingErrorf("confirm", "goes with --hook only (rules of your own are not taken out)")
	case s.confirm > 0 && s.Control == noControl:
		return settingErrorf("confirm", needsControl)
	case s.confirmPolicy > 0 && s.Control == noControl:
		return settingErrorf("confirm-policy", needsControl)
	}
	return nil
}

func newConfirmCommand(e env) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "confirm",
		Short: "Keep what run --confirm or reload --confirm has put on trial",
		Long: `confirm keeps what is on trial. After verdictd run --confirm 60s, or verdictd
reload --confirm 60s, look whether you can still do your work, best in a new
connection; then say verdictd confirm. If you do not, because you are locked out,
verdictd goes back to what was before by itself: to the policy before, or it ends
and takes its rules out. It does so too if it was killed or upgraded meanwhile.

The exit code is 1 if nothing is on trial, or it is too late.

Needs root, or the user that verdictd runs as.`,
		Example: "  sudo verdictd reload --confirm 60s && ssh -o ControlPath=none server true && sudo verdictd confirm",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var c confirmed
			if err := ask(cmd.Context(), path, commandConfirm, statusPatience, &c); err != nil {
				return err
			}
			_, err := fmt.Fprintf(e.stdout, "confirmed: %s\n", trialName(&c))
			return err
		},
	}
	cmd.Flags().StringVar(&path, "control", "", controlUsage)
	return cmd
}
