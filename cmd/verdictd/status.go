package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/control"
	"github.com/verdictd/verdictd/internal/terminal"
	"github.com/verdictd/verdictd/ledger"
)

const (
	statusPatience = 10 * time.Second
	reloadPatience = 5 * time.Minute // a policy's own tests may take a while
)

func newStatusCommand(e env) *cobra.Command {
	var path string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what a running verdictd has done with the packets",
		Long: `status asks a running verdictd where every packet went that the kernel's rules
sent to its queues: accepted, dropped, rejected, still waiting, or lost, and by
what. The books close if nothing is missing.

lost are packets that were dropped by no decision:
  queue full       --queue-length packets were waiting already
  receive buffer   the socket had no room
  hook flush       somebody removed an nf_tables base chain, and the kernel
                   discarded what was queued
  interface down   an interface went down, and the kernel discarded what waited
                   for it
  not queued       the kernel did not queue what the rules sent: copies and errors
                   of packets whose connection it had not confirmed, or for want of
                   memory. Known with --hook only
  unsent           the kernel had no memory for the verdict
passed unjudged are packets that --fail open let pass for want of room. The
kernel does not count them: those of a full queue are known only with --hook,
from the counters of its rules.

watchdog says how often a worker, or the goroutine of a queue, did not come back from
its work in time, and how many processes were replaced for it.

The exit code is 0 only if the daemon judges packets and its rules are in; 3 while
it is starting or stopping. If no daemon answers, it is 1, and status says what the
rules do that one may have left in the kernel.

Needs root, or the user that verdictd runs as.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var raw json.RawMessage
			if err := ask(cmd.Context(), path, commandStatus, statusPatience, &raw); err != nil {
				return withLeftRules(err)
			}
			var st status
			if err := json.Unmarshal(raw, &st); err != nil {
				return fmt.Errorf("read status: %w", err)
			}
			if asJSON {
				_, err := e.stdout.Write(append(terminal.JSON(raw), '\n'))
				return errors.Join(err, st.ready())
			}
			return errors.Join(st.write(e.stdout, time.Now()), st.ready())
		},
	}
	cmd.Flags().StringVar(&path, "control", "", controlUsage)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// notReadyError says that a daemon runs and its rules are not in.
type notReadyError struct{ state string }

func (e notReadyError) Error() string {
	return "verdictd is " + e.state + ": its rules are not in"
}

// ready returns a notReadyError unless packets are judged.
func (st *status) ready() error {
	if st.State == stateReady.String() {
		return nil
	}
	return notReadyError{st.State}
}

// withLeftRules adds to the error that no daemon answers what the rules do that
// are in the kernel.
func withLeftRules(err error) error {
	if !errors.Is(err, control.ErrNobody) {
		return err
	}
	state, rulesErr := hook.Inspect(hook.Config{})
	switch {
	case errors.Is(rulesErr, fs.ErrPermission), rulesErr == nil && !state.Installed:
		return err
	case rulesErr != nil:
		return fmt.Errorf("%w\nwhat rules it may have left is not known: %w", err, rulesErr)
	}
	return fmt.Errorf("%w\n%v (verdictd run takes them over, %s takes them out)", err, state, openRemedy)
}

func newReloadCommand(e env) *cobra.Command {
	var path, limit string
	var strict bool
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Make a running verdictd load its policy again",
		Long: `reload makes a running verdictd load its policy again and reopen its log file, as
SIGHUP does, and says what came of it. A policy with an error, or whose own
tests fail, is refused: the old one stays, its errors are printed, and the exit
code is 2. With --strict so is one that verdictd check warns of; a file that you
have just changed is in use already, without that, unless verdictd run --strict
says otherwise.

The configuration file is read again too. If it is broken, that is the error, and
nothing is loaded; else the settings are named that differ from those in use. These
take effect at once: ` + atReload() + `.
All others take effect with verdictd upgrade.

It also says which established connections the new policy cuts, and names your
own, such as that of the SSH session in which you type. With --confirm 60s
verdictd goes back to the policy before after that time, unless verdictd confirm
comes: also if it was killed or upgraded meanwhile. That works for a file that
you have just changed and that is in use already, too.

Needs root, or the user that verdictd runs as.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var r reloadResult
			o := order{own: ownSockets(os.Getpid()), strict: strict}
			var err error
			if o.confirm, err = parseConfirm("confirm", limit); err != nil {
				return badInput(err)
			}
			if err := ask(cmd.Context(), path, commandReload+o.String(), reloadPatience, &r); err != nil {
				return err
			}
			if r.Config.Error != "" {
				return badInput(fmt.Errorf("configuration refused, nothing is loaded: %s", r.Config.Error))
			}
			if _, err := io.WriteString(e.stdout, r.Config.text()); err != nil {
				return err
			}
			if r.Accepted {
				return r.write(e.stdout, time.Now())
			}
			errs := []error{fmt.Errorf("policy refused, generation %d stays in use", r.Generation)}
			for _, err := range r.Errors {
				errs = append(errs, err)
			}
			return badInput(errors.Join(errs...))
		},
	}
	cmd.Flags().StringVar(&path, "control", "", controlUsage)
	cmd.Flags().BoolVar(&strict, "strict", false, "refuse a policy that verdictd check warns of")
	cmd.Flags().StringVar(&limit, "confirm", "", "go back after this `TIME`, such as 60s, unless verdictd confirm comes before")
	return cmd
}

const controlUsage = "control socket of the daemon to ask, `PATH` (default: the only one that runs)"

// ask sends a command to the daemon at path, or to the only one there is.
func ask(ctx context.Context, path, command string, patience time.Duration, result any) error {
	if path == noControl {
		return badInput(settingErrorf("control", "none is no daemon to ask (leave it out to ask the one that runs)"))
	}
	if path == "" {
		running := control.Running()
		if len(running) > 1 {
			return badInput(fmt.Errorf("several verdictd run: give --control with one of %s", strings.Join(running, ", ")))
		}
		path = control.DefaultPath
		if len(running) == 1 {
			path = running[0]
		}
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return control.Call(ctx, path, command, result)
}

// write writes the status for people.
func (st *status) write(w io.Writer, now time.Time) error {
	var b strings.Builder
	rules := "the user's rules"
	if st.Hook != "" {
		rules = "own rules at " + st.Hook
	}
	fmt.Fprintf(&b, "verdictd %s, pid %d, %s, up %s, mode %s, fail %s, %s\n",
		st.Version, st.PID, st.State, since(st.Started, now), st.Mode, st.Fail, rules)
	fmt.Fprintf(&b, "policy %s, generation %d, sha256 %.12s, %s, loaded %s ago\n\n",
		terminal.Line(st.Policy.Source), st.Policy.Generation, st.Policy.SHA256, st.Policy.Engine, since(st.Policy.Loaded, now))
	if text := st.Enforced.text(); text != "" {
		b.WriteString(terminal.Line(text) + "\n\n")
	}
	if r := st.Policy.Refused; r != nil {
		fmt.Fprintf(&b, "another policy was refused %s ago, and this one stays: %s\n\n", since(r.At, now), terminal.Line(r.first()))
	}
	if st.Trial != nil {
		fmt.Fprintf(&b, "ON TRIAL: %s\n\n", st.Trial.text(now))
	}
	b.Write(st.accounts())
	fmt.Fprintf(&b, "\n%s\n\n", st.verdict())
	fmt.Fprintf(&b, "flows      %d of %d remembered, %d new, %d evicted, %d found no room\n",
		st.Flows.Now, st.Flows.Limit, st.Flows.New, st.Flows.Evicted, st.Flows.NoRoom)
	fmt.Fprintf(&b, "offload    %d flows decided for good, %d of their packets passed by the queue\n",
		st.Flows.Offloaded, st.Flows.OffloadedPackets)
	if n := st.Flows.ErrorPackets; n > 0 {
		fmt.Fprintf(&b, "           %d errors of this host about packets that began no connection passed: the kernel does not queue them\n", n)
	}
	if n := st.Flows.Remarked; n > 0 {
		fmt.Fprintf(&b, "           %d packets came up though their flow is decided: somebody overwrites connection marks\n", n)
	}
	for _, line := range st.Flows.Marks.text() {
		fmt.Fprintf(&b, "           marks: %s\n", terminal.Line(line))
	}
	fmt.Fprintf(&b, "policy     %d evaluations, %d errors, %d of them over budget; %d compared with OPA, %d differed\n",
		st.Policy.Evaluations, st.Policy.Errors, st.Policy.Overruns, st.Policy.Compared, st.Policy.Mismatches)
	for _, place := range slices.Sorted(maps.Keys(st.Policy.ErrorsAt)) {
		fmt.Fprintf(&b, "           %d errors: %s\n", st.Policy.ErrorsAt[place], terminal.Line(place))
	}
	fmt.Fprintf(&b, "packets    %d known flow, %d reply, %d related, %d malformed, %d would have been dropped\n",
		st.Judged.Known, st.Judged.Established, st.Judged.Related, st.Judged.Malformed, st.Judged.WouldDrop)
	fmt.Fprintf(&b, "audit log  %d events, %d lost, %d unwritten, %d write errors\n",
		st.Audit.Events, st.Audit.Lost, st.Audit.Unwritten, st.Audit.WriteErrors)
	b.WriteString(st.Attribution.text())
	b.WriteString(st.Watchdog.text())
	_, err := io.WriteString(w, b.String())
	return err
}

func since(t, now time.Time) time.Duration { return max(now.Sub(t), 0).Round(time.Second) }

// verdict says in one line whether the books close.
func (st *status) verdict() string {
	p := &st.Packets
	switch {
	case !p.Settled:
		return "packets move while they are counted: those under way are shown as waiting"
	case p.Total.Unexplained != 0:
		return fmt.Sprintf("the books do not close: %d packets are unexplained", p.Total.Unexplained)
	case !p.Closes:
		return "the books do not close: see unexplained in --json"
	case st.Fail == "open" && !p.Rules:
		return "the books close from the queue on; what a full queue let pass nobody counts (use --hook)"
	}
	return "the books close: every packet is accounted for"
}

// rows are what is shown of an account.
type row struct {
	name  string
	open  bool // only under "fail open"
	value func(*ledger.Account) uint64
}

func rows() []row {
	return []row{
		{"queued", false, func(a *ledger.Account) uint64 { return a.Queued }},
		{"accepted", false, func(a *ledger.Account) uint64 { return a.Accepted }},
		{"dropped", false, func(a *ledger.Account) uint64 { return a.Dropped }},
		{"rejected", false, func(a *ledger.Account) uint64 { return a.Rejected }},
		{"lost, queue full", false, func(a *ledger.Account) uint64 { return a.Lost.QueueFull }},
		{"lost, receive buffer", false, func(a *ledger.Account) uint64 { return a.Lost.ReceiveBuffer }},
		{"lost, hook flush", false, func(a *ledger.Account) uint64 { return a.Lost.HookFlush }},
		{"lost, interface down", false, func(a *ledger.Account) uint64 { return a.Lost.InterfaceDown }},
		{"lost, not queued", false, func(a *ledger.Account) uint64 { return a.Lost.NotQueued }},
		{"lost, unsent", false, func(a *ledger.Account) uint64 { return a.Lost.Unsent }},
		{"passed unjudged, queue full", true, func(a *ledger.Account) uint64 { return a.Unjudged.QueueFull }},
		{"passed unjudged, receive buffer", true, func(a *ledger.Account) uint64 { return a.Unjudged.ReceiveBuffer }},
		{"waiting now", false, func(a *ledger.Account) uint64 { return a.Waiting }},
	}
}

// accounts returns a column for all queues and one for each, in blocks that
// fit a terminal.
func (st *status) accounts() []byte {
	const perBlock = 5
	accounts := []*ledger.Account{&st.Packets.Total}
	names := []string{"total"}
	for i := range st.Packets.Queues {
		q := &st.Packets.Queues[i]
		accounts, names = append(accounts, &q.Account), append(names, fmt.Sprintf("queue %d", q.Queue))
	}
	var b []byte
	for block := range slices.Chunk(accounts, perBlock) {
		b = fmt.Appendf(b, "%-32s", "packets")
		for i := range block {
			b = fmt.Appendf(b, "%12s", names[i])
		}
		names = names[len(block):]
		b = append(b, '\n')
		for _, r := range rows() {
			if r.open && st.Fail != "open" {
				continue
			}
			b = fmt.Appendf(b, "%-32s", r.name)
			for _, a := range block {
				b = fmt.Appendf(b, "%12d", r.value(a))
			}
			b = append(b, '\n')
		}
	}
	return b
}
