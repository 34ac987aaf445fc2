package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/conntrack"
	"github.com/verdictd/verdictd/internal/terminal"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/sockdiag"
)

// cutReport says which established connections a policy would cut.
type cutReport struct {
	Connections int       `json:"connections"`        // that it does not accept
	Perhaps     int       `json:"perhaps"`            // where it depends on what a connection does not tell, such as a mark
	Yours       []cutLine `json:"yours,omitempty"`    // of those, that of who asked
	Examples    []cutLine `json:"examples,omitempty"` // of others, a few
	Incomplete  string    `json:"incomplete,omitempty"`
}

// cutLine is one of them.
type cutLine struct {
	Protocol  string         `json:"protocol"`
	Direction string         `json:"direction"` // out, in or forward
	From      netip.AddrPort `json:"from"`      // who began it
	To        netip.AddrPort `json:"to"`
	Process   string         `json:"process,omitempty"`
	Verdict   string         `json:"verdict"`
	Rule      string         `json:"rule,omitempty"`
	Perhaps   bool           `json:"perhaps,omitempty"`
}

func (c *cutLine) String() string {
	text := fmt.Sprintf("%s %s -> %s (%s)", c.Protocol, c.From, c.To, cmp.Or(terminal.Line(c.Process), c.Direction))
	if c.Rule != "" {
		text += fmt.Sprintf(", %s by rule %q", c.Verdict, c.Rule)
	}
	if c.Perhaps {
		text += ", perhaps"
	}
	return text
}

const (
	cutExamples = 5
	cutPatience = 3 * time.Second // a load waits for the report no longer
)

// lines tells people of the report, nothing if no connection is cut.
func (r *cutReport) lines() []string {
	if r == nil || r.Connections+r.Perhaps == 0 && r.Incomplete == "" {
		return nil
	}
	var lines []string
	for i := range r.Yours {
		lines = append(lines, "cuts YOUR OWN connection: "+r.Yours[i].String())
	}
	if r.Connections+r.Perhaps > 0 {
		lines = append(lines, r.summary())
	}
	for i := range r.Examples {
		lines = append(lines, "  "+r.Examples[i].String())
	}
	if rest := r.Connections + r.Perhaps - len(r.Yours) - len(r.Examples); rest > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more (verdictd sockets lists them)", rest))
	}
	if r.Incomplete != "" {
		lines = append(lines, "not all connections could be looked at: "+r.Incomplete)
	}
	return lines
}

func (r *cutReport) summary() string {
	text := fmt.Sprintf("cuts %d established connections", r.Connections)
	if r.Perhaps > 0 {
		text += fmt.Sprintf(", and perhaps %d more", r.Perhaps)
	}
	return text
}

// wouldCut finds out which established connections the policy next would cut
// that old accepts; old is nil if nothing is judged yet. own are the sockets of
// who asked, by inode. Nothing is cut in monitor mode.
func (d *daemon) wouldCut(ctx context.Context, next, old engine.Evaluator, own []uint32) *cutReport {
	if d.mode == engine.Monitor {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, cutPatience)
	defer cancel()
	lines, incomplete := d.connections(ctx)
	report := &cutReport{Incomplete: incomplete}
	for i := range lines {
		if ctx.Err() != nil {
			report.Incomplete = fmt.Sprintf("stopped after %s", cutPatience)
			break
		}
		if l := &lines[i]; d.judges(l) {
			report.add(l, next, old, l.inode != 0 && slices.Contains(own, l.inode))
		}
	}
	return report
}

func (r *cutReport) add(l *socketLine, next, old engine.Evaluator, yours bool) {
	v := l.judgeEstablished(next)
	accepted := packet.Accept.String()
	if v.Verdict == accepted && len(v.DependsOn) == 0 {
		return
	}
	if old != nil {
		if before := l.judgeEstablished(old); before.Verdict != accepted && len(before.DependsOn) == 0 {
			return // it is cut already
		}
	}
	name, _, _ := describeOwner(l.Owner)
	line := cutLine{
		Protocol: l.Protocol, Direction: l.Direction, From: l.Local, To: l.Remote, Process: strings.TrimPrefix(name, "-"),
		Verdict: v.Verdict, Rule: v.Rule, Perhaps: v.Verdict == accepted || len(v.DependsOn) > 0,
	}
	if l.Direction == "in" {
		line.From, line.To = line.To, line.From
	}
	if line.Perhaps {
		r.Perhaps++
	} else {
		r.Connections++
	}
	switch {
	case yours:
		r.Yours = append(r.Yours, line)
	case len(r.Examples) < cutExamples:
		r.Examples = append(r.Examples, line)
	}
}

// judges returns whether packets of the connection come to the queue.
func (d *daemon) judges(l *socketLine) bool {
	if !l.hasPeer() || !l.established() {
		return false
	}
	c := d.settings.ruleset
	if c == nil {
		return !l.loops // rules of the user's own: loopback is mostly not for them
	}
	if l.loops && !c.Loopback {
		return false
	}
	on := func(hooks ...hook.Hook) bool {
		return slices.ContainsFunc(c.Hooks, func(h hook.Hook) bool { return slices.Contains(hooks, h) })
	}
	switch l.Direction {
	case "out":
		return on(hook.Output, hook.Postrouting)
	case "in":
		return on(hook.Input, hook.Prerouting)
	}
	return on(hook.Forward, hook.Prerouting, hook.Postrouting)
}

// connections lists the sockets with a peer, and what is forwarded if that is
// judged.
func (d *daemon) connections(ctx context.Context) (lines []socketLine, incomplete string) {
	var err error
	each := d.unowned
	if d.owners != nil {
		each = d.owners.Sockets
	}
	lines, err = listSockets(ctx, each)
	if err != nil {
		incomplete = err.Error()
	}
	ends := map[[2]netip.AddrPort]bool{}
	for i := range lines {
		if l := &lines[i]; l.hasPeer() {
			ends[[2]netip.AddrPort{l.Local, l.Remote}] = true
		}
	}
	for i := range lines {
		l := &lines[i]
		l.loops = l.Remote.Addr().IsLoopback() || ends[[2]netip.AddrPort{l.Remote, l.Local}]
	}
	if c := d.settings.ruleset; c != nil && !slices.Contains(c.Hooks, hook.Forward) {
		return lines, incomplete
	}
	forwarded, err := conntrack.Established(d.netns)
	if err != nil {
		return lines, err.Error()
	}
	return append(lines, forwardedLines(forwarded, lines, ends)...), incomplete
}

// unowned hands on all sockets, where nobody looks for their owners.
func (d *daemon) unowned(ctx context.Context, yield func(*sockdiag.Socket, *process.Owner) error) error {
	diag, err := sockdiag.Open(d.netns)
	if err != nil {
		return err
	}
	defer diag.Close()
	return diag.Dump(ctx, func(s *sockdiag.Socket) error { return yield(s, nil) })
}

// forwardedLines are the tracked connections that no local socket is an end of.
func forwardedLines(tracked []conntrack.Connection, local []socketLine, ends map[[2]netip.AddrPort]bool) (lines []socketLine) {
	bound := map[uint16]bool{} // ports of UDP sockets without a peer
	for i := range local {
		if l := &local[i]; !l.hasPeer() && l.Protocol != "tcp" {
			bound[l.Local.Port()] = true
		}
	}
	for _, c := range tracked {
		protocol := map[uint8]string{packet.ProtoTCP: "tcp", packet.ProtoUDP: "udp"}[c.Protocol]
		served := protocol == "udp" && (bound[c.Src.Port()] || bound[c.Dst.Port()])
		if protocol == "" || served || ends[[2]netip.AddrPort{c.Src, c.Dst}] || ends[[2]netip.AddrPort{c.Dst, c.Src}] {
			continue
		}
		lines = append(lines, socketLine{
			Protocol: protocol, State: sockdiag.Established.String(), Local: c.Src, Remote: c.Dst, Direction: "forward",
		})
	}
	return lines
}

// ownSockets returns the inodes of the sockets that a process or one of its
// ancestors holds: among them is the connection by which its user came, such as
// that of an SSH server. What cannot be read is left out.
func ownSockets(pid int) (inodes []uint32) {
	for range maxAncestors {
		if pid <= 1 {
			break
		}
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		links, _ := os.ReadDir(filepath.Join(dir, "fd"))
		for _, l := range links {
			to, err := os.Readlink(filepath.Join(dir, "fd", l.Name()))
			number, found := strings.CutPrefix(to, "socket:[")
			if err != nil || !found {
				continue
			}
			if n, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32); err == nil {
				inodes = append(inodes, uint32(n))
			}
		}
		pid = parentOf(dir)
	}
	slices.Sort(inodes)
	return slices.Compact(inodes)
}

const maxAncestors = 32

// parentOf returns the parent of the process with that directory, 0 if it cannot
// be told.
//
// Source: proc(5), /proc/PID/stat: the name may hold anything, also ") ".
func parentOf(dir string) int {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	pid, _ := strconv.Atoi(fields[1])
	return pid
}

// prepareChange says which connections p cuts and puts it on trial if it is to be
// confirmed. The caller holds the lock of the trials.
func (d *daemon) prepareChange(ctx context.Context, p *policy.Policy) (*cutReport, error) {
	o, current := d.observer.reload.current(), d.observer.current()
	before := current
	if last := d.trials.last; last != nil && p.Hash() == current.Hash() {
		before = last // the files were changed, and so loaded, before the reload was asked for
	}
	cut := d.wouldCut(ctx, p, before, o.own)
	limit := o.confirm
	if limit == 0 && p.Hash() != current.Hash() && d.trials.trial == nil {
		limit = d.live.Load().confirmPolicy
	}
	var err error
	if limit > 0 {
		err = d.tryPolicy(p, current, limit)
	} else {
		err = d.trials.replaced(p, current)
	}
	if err != nil {
		return nil, err
	}
	d.tellCut(cut, "policy")
	return cut, nil
}

// warnOfCut says which connections the rules will cut that are about to go in.
func (d *daemon) warnOfCut() {
	if d.resumed {
		return // judged before
	}
	d.tellCut(d.wouldCut(context.Background(), d.policy, nil, ownSockets(os.Getppid())), "start")
}

// tellCut tells the log and the audit log which connections are cut.
func (d *daemon) tellCut(r *cutReport, by string) {
	lines := r.lines()
	if len(lines) == 0 {
		return
	}
	remedy := "verdictd reload --confirm 60s goes back unless you confirm"
	if by == "start" {
		remedy = "verdictd run --confirm 60s goes back unless you confirm"
	}
	d.log.Warn("established connections are cut", "by", by, "connections", r.Connections, "perhaps", r.Perhaps, "yours", len(r.Yours), "remedy", remedy)
	for _, l := range append(slices.Clone(r.Yours), r.Examples...) {
		d.log.Warn("cut", "connection", l.String())
	}
	d.audit.Admin("connections_cut", strings.Join(lines, "; "))
}
