package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/verdictd/verdictd/internal/control"
	"github.com/verdictd/verdictd/internal/terminal"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/attribution"
	"github.com/verdictd/verdictd/process/sockdiag"
)

// socketLine is a socket as verdictd sockets shows it.
type socketLine struct {
	Protocol string         `json:"protocol"` // tcp, udp, udplite
	State    string         `json:"state"`    // as ss names it
	Local    netip.AddrPort `json:"local"`
	Remote   netip.AddrPort `json:"remote"` // unspecified if it has no peer
	// Direction is out if the socket began the connection, in if it accepted it
	// or waits for others.
	Direction string         `json:"direction"`
	Owner     *process.Owner `json:"owner"`

	Verdict *socketVerdict `json:"verdict,omitempty"` // of the running daemon's policy; nil if none runs
	WhatIf  *socketVerdict `json:"what_if,omitempty"` // of the policy that was asked for

	inode uint32 // of the socket; 0: none
	loops bool   // both ends are on this host
}

// socketsAnswer is what a daemon says about the sockets of its namespace.
type socketsAnswer struct {
	Policy  string       `json:"policy,omitempty"` // SHA-256; empty: no daemon runs
	WhatIf  string       `json:"what_if,omitempty"`
	Sockets []socketLine `json:"sockets"`
}

const socketsPatience = time.Minute

func newSocketsCommand(e env) *cobra.Command {
	var path string
	var whatIf policyFlags
	var asJSON, changed bool
	cmd := &cobra.Command{
		Use:   "sockets",
		Short: "List sockets with their processes, and the verdict that each gets",
		Long: `sockets lists the TCP and UDP sockets of the host, as ss does, each with the
process that owns it, its systemd unit or container, and what the running
verdictd's policy says about it: about the first packet of the connection where
there is one, and about a packet that comes in where the socket waits for
others. A verdict that hangs on what a socket does not tell, such as who will
connect, is marked with a question mark and names the fields it depends on.

--policy asks another policy what it would say, and marks what would change. If
no verdictd runs, the processes are looked for in /proc, and only --policy gives
verdicts.

Needs root, or the user that verdictd runs as.`,
		Example: "  sudo verdictd sockets\n" +
			"  sudo verdictd sockets --policy new.rego --changed\n" +
			"  sudo verdictd sockets --json | jq '.sockets[] | select(.verdict.verdict == \"drop\")'",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if changed && whatIf.path == "" {
				return usageError(cmd, errors.New("--changed goes with --policy: it compares that policy with the running one"))
			}
			answer, err := askSockets(cmd.Context(), path)
			if err != nil {
				return err
			}
			if err := answer.ask(cmd.Context(), &whatIf); err != nil {
				return err
			}
			if changed {
				answer.keepChanged()
			}
			if asJSON {
				return printJSON(e.stdout, answer)
			}
			return answer.write(e.stdout)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&path, "control", "", controlUsage+"; none: ask no daemon")
	whatIf.bind(cmd)
	flags.BoolVar(&changed, "changed", false, "with --policy: only sockets that would get another verdict")
	flags.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// askSockets asks the daemon at path, or the only one. If none runs, or none is to be
// asked, it looks itself.
func askSockets(ctx context.Context, path string) (*socketsAnswer, error) {
	var answer socketsAnswer
	if path != noControl {
		err := ask(ctx, path, commandSockets, socketsPatience, &answer)
		if err == nil || path != "" || !errors.Is(err, control.ErrNobody) {
			return &answer, err
		}
	}
	r, err := attribution.Open(attribution.Config{Mode: attribution.Proc})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	answer.Sockets, err = listSockets(ctx, r.Sockets)
	return &answer, err
}

// sockets answers who asks the daemon.
func (d *daemon) sockets(ctx context.Context) (*socketsAnswer, error) {
	if d.owners == nil {
		return nil, errors.New("owners of sockets are not looked for (--attribution off)")
	}
	s, ok := d.engine.Snapshot()
	if !ok {
		return nil, errors.New("no policy is in use yet")
	}
	lines, err := listSockets(ctx, d.owners.Sockets)
	for i := range lines {
		lines[i].Verdict = lines[i].judge(s.Policy)
	}
	return &socketsAnswer{Policy: s.Hash, Sockets: lines}, err
}

// listSockets lists the sockets that each hands on.
func listSockets(ctx context.Context, each func(context.Context, func(*sockdiag.Socket, *process.Owner) error) error) (lines []socketLine, err error) {
	listening := map[uint16]bool{} // TCP ports
	err = each(ctx, func(s *sockdiag.Socket, o *process.Owner) error {
		l := socketLine{
			Protocol: protocolOf(s.Protocol), State: s.State.String(), Owner: o, inode: s.Inode,
			Local:  netip.AddrPortFrom(s.Local.Addr().Unmap(), s.Local.Port()),
			Remote: netip.AddrPortFrom(s.Remote.Addr().Unmap(), s.Remote.Port()),
		}
		if s.State == sockdiag.Listen {
			listening[s.Local.Port()] = true
		}
		lines = append(lines, l)
		return nil
	})
	for i := range lines {
		l := &lines[i]
		l.Direction = "out"
		if !l.hasPeer() || l.Protocol == "tcp" && listening[l.Local.Port()] {
			l.Direction = "in"
		}
	}
	return lines, err
}

func protocolOf(proto uint8) string {
	switch proto {
	case sockdiag.ProtoTCP:
		return "tcp"
	case sockdiag.ProtoUDP:
		return "udp"
	}
	return "udplite"
}

// hasPeer returns whether the socket is connected.
func (l *socketLine) hasPeer() bool { return l.Remote.Port() != 0 }

// ask asks another policy about the sockets, if one is named.
func (a *socketsAnswer) ask(ctx context.Context, from *policyFlags) error {
	if from.path == "" {
		return nil
	}
	bundle, err := newBundle(&from.bundle, from.path)
	if err != nil {
		return badInput(err)
	}
	p, err := policy.Load(ctx, policy.Source{Path: from.path, Bundle: bundle})
	if err != nil {
		return policyError(err)
	}
	a.WhatIf = p.Hash()
	for i := range a.Sockets {
		a.Sockets[i].WhatIf = a.Sockets[i].judge(p)
	}
	return nil
}

func (l *socketLine) changes() bool {
	return l.Verdict != nil && l.WhatIf != nil && l.Verdict.Verdict != l.WhatIf.Verdict
}

func (a *socketsAnswer) keepChanged() {
	kept := a.Sockets[:0]
	for _, l := range a.Sockets {
		if l.changes() {
			kept = append(kept, l)
		}
	}
	a.Sockets = kept
}

// write prints the list for people.
func (a *socketsAnswer) write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := []string{"PROTO", "STATE", "LOCAL", "REMOTE", "PROCESS", "PID", "UNIT"}
	if a.Policy != "" {
		head = append(head, "VERDICT", "RULE")
	}
	if a.WhatIf != "" {
		head = append(head, "WHAT IF", "RULE")
	}
	fmt.Fprintln(t, strings.Join(head, "\t"))
	for i := range a.Sockets {
		fmt.Fprintln(t, strings.Join(a.Sockets[i].columns(a), "\t"))
	}
	return t.Flush()
}

func (l *socketLine) columns(a *socketsAnswer) []string {
	remote := "*"
	if l.hasPeer() {
		remote = l.Remote.String()
	}
	name, pid, unit := describeOwner(l.Owner)
	columns := []string{l.Protocol, l.State, l.Local.String(), remote, name, pid, unit}
	for _, v := range []struct {
		asked string
		v     *socketVerdict
		mark  bool
	}{{a.Policy, l.Verdict, false}, {a.WhatIf, l.WhatIf, l.changes()}} {
		if v.asked == "" {
			continue
		}
		text, rule := v.v.text()
		if v.mark {
			text += " *"
		}
		columns = append(columns, text, rule)
	}
	return columns
}

// describeOwner returns the words for a socket's owner; "-" for what is not known.
func describeOwner(o *process.Owner) (name, pid, unit string) {
	name, pid, unit = "-", "-", "-"
	if o == nil {
		return
	}
	for _, where := range []string{o.Cgroup.Unit, o.Cgroup.ContainerID, o.Cgroup.Path} {
		if where != "" {
			unit = terminal.Word(where)
			break
		}
	}
	if o.Process == nil {
		if o.HasUID {
			name = fmt.Sprintf("user %d", o.UID)
		}
		return
	}
	switch p := o.Process; {
	case p.Exe.Path != "":
		name = terminal.Word(p.Exe.Path)
	case p.Exe.Inside != "": // which proves nothing
		name = "inside " + terminal.Word(p.Exe.Inside)
	case p.Comm != "":
		name = "called " + terminal.Word(p.Comm)
	}
	if o.Process.PID == 0 {
		return name, "several", unit
	}
	return name, fmt.Sprint(o.Process.PID), unit
}
