package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/control"
)

func newDoctorCommand(e env) *cobra.Command {
	var path string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what works on this machine, what does not, and what to do about it",
		Long: `doctor looks at the machine and says what works here, what is missing, what
follows from that, and the remedy:

  queue         whether packets can be sent to userspace, by which rule, and
                whether decided flows can pass by the queue
  attribution   how the process that owns a socket is found. From best to worst:
                bpf-flow    the kernel records it before the packet is queued
                bpf-cookie  the same for sockets that receive, asked by sock_diag
                looked-up   the kernel records which process used the socket; what
                            that runs is looked up, as it is older than the recording
                diag        sock_diag and /proc are asked after the packet came up;
                            programs that have ended by then are not found
                uid-only    only the user, which comes with the packet
  rights        the capabilities that verdictd has a use for
  families      every netlink family of the kernel, and what it is for

It tries what it says: it loads the BPF programs, makes rules in a table that no
packet reaches, opens the sockets, and takes everything away again. The kernel
may load modules for that, as it does for verdictd run. If a verdictd runs it
says what that one uses, and how many owners it has found by which source.
Rules are tried in the network namespace that the command runs in.

  ok       works
  note     works; worth knowing
  limit    works in part, or less well than it could
  missing  does not work
  unknown  could not be found out, mostly for want of rights

Exit codes: 0 all that verdictd can use is there; 1 something is limited,
missing or unknown, and standard error names it; 2 the command line is at fault.
Without root much is unknown, but the rest is said.`,
		Example: "  sudo verdictd doctor\n" +
			"  sudo verdictd doctor --json | jq -r '.attribution[] | select(.state != \"ok\") | .name'",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			show := func(c *checkup, s section) error {
				_, err := e.stdout.Write(c.text(s, e.colour()))
				return err
			}
			if asJSON {
				show = func(*checkup, section) error { return nil }
			}
			c, err := examine(cmd.Context(), path, show)
			if err != nil {
				return err
			}
			if asJSON {
				if err := printJSON(e.stdout, c); err != nil {
					return err
				}
			}
			return c.err()
		},
	}
	cmd.Flags().StringVar(&path, "control", "", controlUsage+"; none: ask no daemon")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// State of a finding.
const (
	stateOK      = "ok"
	stateNote    = "note"    // works; worth knowing
	stateLimit   = "limit"   // works in part, or less well than it could
	stateMissing = "missing" // does not work
	stateUnknown = "unknown" // not found out
)

// finding is one thing that works or does not.
type finding struct {
	Name        string `json:"name"`
	State       string `json:"state"`
	Found       string `json:"found"`
	Consequence string `json:"consequence,omitempty"`
	Remedy      string `json:"remedy,omitempty"`
}

// family is a netlink family.
type family struct {
	Number int    `json:"number"`
	Name   string `json:"name"` // NETLINK_ before it is left out
	State  string `json:"state"`
	For    string `json:"for"` // what it is used for here, or that it is not
	// Without says what follows if it is absent; empty if nothing does.
	Without string `json:"without,omitempty"`
	role    role
}

// role is what verdictd has a family for.
type role uint8

const (
	roleNone role = iota
	roleUsed
	roleHelps // verdictd does well without
	roleGone  // from Linux itself; another one does its job
)

// States of a family.
const (
	familyPresent = "present"
	familyAbsent  = "absent"
)

// checkup is all that doctor says.
type checkup struct {
	Verdict string        `json:"verdict"` // complete, limited, unable or unknown
	Kernel  string        `json:"kernel"`  // release of Linux
	Daemon  *daemonReport `json:"daemon"`  // null: none was asked
	// Unprivileged: no daemon was asked, and what one could do is known in part
	// only, as this command may not try it.
	Unprivileged bool `json:"unprivileged"`
	// NotAsked says why a daemon that may run was not asked.
	NotAsked string `json:"not_asked,omitempty"`

	Queue       []finding `json:"queue"`
	Attribution []finding `json:"attribution"`
	Rights      []finding `json:"rights"`
	Families    []family  `json:"families"`

	// Owners is the state of attribution in full: that of the daemon, or of the
	// attempt.
	Owners attributionStatus `json:"owners"`

	marks markStatus // of the daemon
}

// daemonReport says which daemon was asked.
type daemonReport struct {
	PID     int    `json:"pid"`
	Version string `json:"version"`
	// Elsewhere: it judges the packets of another network namespace than the one
	// in which rules were tried.
	Elsewhere bool `json:"elsewhere"`
}

// The verdicts.
const (
	verdictComplete = "complete"
	verdictLimited  = "limited"
	verdictUnable   = "unable" // no packet can be judged
	verdictUnknown  = "unknown"
)

// examine looks at the machine. path is the control socket of the daemon to ask,
// empty for the only one, if there is one.
//
// Each section is shown as soon as it is there. What takes too long is given up, and
// its section says so.
//
// Errors: there are several daemons, or the one at path does not answer.
func examine(ctx context.Context, path string, show func(*checkup, section) error) (*checkup, error) {
	c := &checkup{Kernel: kernelRelease()}
	if err := c.ask(ctx, path); err != nil {
		return nil, err
	}
	set, setErr := capabilities(c.pid())
	c.Unprivileged = c.Daemon == nil && setErr == nil && set&(1<<unix.CAP_NET_ADMIN) == 0
	steps := [sections]func(){
		sectionHead:  func() {},
		sectionQueue: func() { c.fillQueue(ctx) },
		sectionAttribution: func() {
			c.Attribution = within(ctx, func() []finding { return c.attributionFindings(ctx) }, late)
		},
		sectionRights:     func() { c.Rights = rightFindings(set, setErr) },
		sectionFamilies:   func() { c.Families = probeFamilies() },
		sectionConclusion: c.judge,
	}
	for s, fill := range steps {
		fill()
		if err := show(c, section(s)); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// ask asks the daemon at path, the only one, or none.
func (c *checkup) ask(ctx context.Context, path string) error {
	var st *status
	err := fmt.Errorf("%w: not asked", control.ErrNobody)
	if path != noControl {
		err = ask(ctx, path, commandStatus, statusPatience, &st)
	}
	_, input := errors.AsType[inputError](err)
	switch {
	case path == noControl:
		c.NotAsked = "no verdictd was asked"
	case err == nil:
		c.Daemon = &daemonReport{PID: st.PID, Version: st.Version, Elsewhere: elsewhere(st.PID)}
		c.Owners, c.marks = st.Attribution, st.Flows.Marks
	case path != "" || input:
		return err
	case !errors.Is(err, control.ErrNobody):
		c.NotAsked = err.Error()
		if errors.Is(err, fs.ErrPermission) {
			c.NotAsked = "whether a verdictd runs is not known without root"
		}
	}
	return nil
}

// fillQueue tries how packets come up, and what can be recorded of who sends them.
func (c *checkup) fillQueue(ctx context.Context) {
	type tried struct {
		findings []finding
		owners   attributionStatus
	}
	got := within(ctx, func() tried {
		can, owners, err := c.try()
		return tried{append(queueFindings(can, err), c.findMarks(), savedFinding("")), owners}
	}, func() tried { return tried{late(), c.Owners} })
	c.Queue, c.Owners = got.findings, got.owners
}

// sectionPatience bounds how long a section may take; what the kernel does to answer,
// such as loading modules, takes a second or two.
const sectionPatience = 30 * time.Second

// within returns what f finds, or, if that takes too long, what late says in its
// place. Then f goes on until the command ends.
func within[T any](ctx context.Context, f, late func() T) T {
	found := make(chan T, 1)
	go func() { found <- f() }()
	select {
	case got := <-found:
		return got
	case <-time.After(sectionPatience):
	case <-ctx.Done():
	}
	return late()
}

// late is what is said of a section that took too long.
func late() []finding {
	return []finding{{Name: "all of it", State: stateUnknown, Found: fmt.Sprintf("the kernel did not answer within %v", sectionPatience)}}
}

// pid names the process whose rights count: the daemon, or 0 for this one.
func (c *checkup) pid() int {
	if c.Daemon == nil {
		return 0
	}
	return c.Daemon.PID
}

// judge sets the verdict.
func (c *checkup) judge() {
	worst := verdictComplete
	for _, f := range c.all() {
		switch {
		case f.State == stateLimit || f.State == stateMissing:
			worst = verdictLimited
		case f.State == stateUnknown && worst == verdictComplete:
			worst = verdictUnknown
		}
	}
	for _, f := range c.Queue {
		if f.State == stateMissing && f.Name == findQueue {
			worst = verdictUnable
		}
	}
	if c.Unprivileged {
		worst = verdictUnknown
	}
	c.Verdict = worst
}

// all returns all findings; families that are missing are among them.
func (c *checkup) all() []finding {
	all := slices.Concat(c.Queue, c.Attribution, c.Rights)
	for _, f := range c.Families {
		if f.role == roleUsed && f.State == familyAbsent {
			all = append(all, finding{Name: "NETLINK_" + f.Name, State: stateMissing})
		}
	}
	return all
}

// err returns nil if nothing is wanting, or an error that names what is.
func (c *checkup) err() error {
	var wanting, unknown []string
	for _, f := range c.all() {
		switch f.State {
		case stateLimit, stateMissing:
			wanting = append(wanting, f.Name)
		case stateUnknown:
			unknown = append(unknown, f.Name)
		}
	}
	if c.Unprivileged {
		return errors.New("much is not known without root (needs CAP_NET_ADMIN)")
	}
	text := map[string]string{
		verdictLimited: "works with limits: " + strings.Join(wanting, ", "),
		verdictUnable:  "no packet can be judged here; missing or limited: " + strings.Join(wanting, ", "),
		verdictUnknown: "not all is known",
	}[c.Verdict]
	if text == "" {
		return nil
	}
	if len(unknown) > 0 {
		text += "; not known: " + strings.Join(unknown, ", ") + " (run it as root)"
	}
	return errors.New(text)
}

// kernelRelease returns the release of Linux, such as 6.12.1.
func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Sprintf("unknown (%v)", err)
	}
	return unix.ByteSliceToString(u.Release[:])
}
