package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/config"
	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/internal/terminal"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/replay"
	"github.com/verdictd/verdictd/rules"
)

type replayFlags struct {
	policy, mode, fail, malformed string
	bundle                        config.Bundle
	hook, iface                   string
	local                         []string
	json, absolute                bool
	quiet                         bool
	flows                         int
}

func newReplayCommand(e env) *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use:   "replay CAPTURE...",
		Short: "Judge the packets of captures by a policy, as if they came in now",
		Long: `replay reads packet captures (pcap or pcapng, also .gz or .zst, "-" for standard
input) and judges each packet the way verdictd run would: same decoding, same
flow table, same policy, the capture's clock. It prints a line per packet, with
--json a JSON object, and a summary on standard error, with how far it is if it
takes long. It needs no rights, and two runs print the same bytes.

A packet's hook is that of --hook, or else follows from --local: packets from a
local address are output, packets to one input, others forward. Without either,
a capture that says which packets were outgoing is believed; else forward, and the
summary says of how many packets that was assumed.

Exit codes: 0 every packet was judged; 1 the report could not be written;
2 the policy or a capture is at fault. A capture that is cut short is judged up
to the cut.`,
		Example: "  verdictd replay traffic.pcap --policy policy.rego.example\n" +
			"  verdictd replay --json --local 192.0.2.7/32 traffic.pcapng.zst --policy policy/ | jq .verdict",
		Args: someArgs("no capture to replay: name a pcap or pcapng file, or - for standard input"),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, e, args) },
	}
	flags := cmd.Flags()
	flags.Var(&policyFlag{path: &f.policy}, "policy", "Rego or rules `FILE`, directory, OPA bundle (.tar.gz) or its URL; default: accept everything")
	bindBundleFlags(flags, &f.bundle)
	flags.StringVar(&f.mode, "mode", "enforce", "enforce, or monitor: accept everything and say what would be dropped")
	flags.StringVar(&f.fail, "fail", "", "open or closed: what happens to packets whose policy fails (default closed; open in monitor mode)")
	flags.StringVar(&f.malformed, "malformed", "", "drop or accept: packets that cannot be decoded (default drop)")
	flags.StringVar(&f.hook, "hook", "", "judge every packet at this `HOOK`: prerouting, input, forward, output, postrouting")
	flags.StringArrayVar(&f.local, "local", nil, "`CIDR` of the host that judges; may be repeated")
	flags.StringVar(&f.iface, "interface", "", "`NAME` of the interface of captures that name none")
	flags.BoolVar(&f.json, "json", false, "print one JSON object per packet")
	flags.BoolVar(&f.absolute, "absolute", false, "print times of day (UTC) and not those since the first packet")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print no packets, only the summary")
	flags.IntVar(&f.flows, "flows", 0, "how many flows to remember (default 65536)")
	return cmd
}

func (f *replayFlags) run(cmd *cobra.Command, e env, captures []string) error {
	snapshot, options, err := f.parse(cmd)
	if err != nil {
		return badInput(err)
	}
	bundle, err := newBundle(&f.bundle, f.policy)
	if err != nil {
		return badInput(err)
	}
	loaded, err := policy.Load(cmd.Context(), policy.Source{Path: f.policy, Bundle: bundle})
	if err != nil {
		return policyError(err)
	}
	snapshot.Policy, snapshot.Hash, snapshot.Generation = loaded, loaded.Hash(), 1

	names := map[uint32]string{}
	eng := engine.New(engine.Config{Flows: f.flows, Links: func() engine.Links {
		return engine.FixedLinks(func(i uint32) string { return names[i] })
	}})
	eng.Publish(snapshot)
	options.Stdin = e.stdin
	options.Color = e.colour()
	options.NewInterface = func(i uint32, name string) { names[i] = name }
	options.Warn = func(err error) { fmt.Fprintf(e.stderr, "verdictd: warning: %v\n", err) }
	options.Progress = progress(e, time.Now)

	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a capture that waits for its writer ends at the second signal
	report := &reportWriter{to: e.stdout}
	if f.quiet {
		report.to = io.Discard
	}
	summary, err := replay.Run(ctx, options, captures, &judge{worker: eng.NewWorker(nil)}, report)
	if e.stderrTerminal {
		fmt.Fprint(e.progress, "\r\x1b[K")
	}
	if summary.Captures > 0 {
		fmt.Fprint(e.stderr, summary.String())
	}
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted")
	case report.failed:
		return err
	}
	return badInput(err) // a capture is at fault
}

// reportWriter remembers whether writing failed.
type reportWriter struct {
	to     io.Writer
	failed bool
}

func (w *reportWriter) Write(b []byte) (int, error) {
	n, err := w.to.Write(b)
	w.failed = w.failed || err != nil
	return n, err
}

// parse turns flags into settings.
func (f *replayFlags) parse(cmd *cobra.Command) (s engine.Snapshot, o replay.Options, err error) {
	if s.Mode, err = parseMode(f.mode); err != nil {
		return s, o, err
	}
	if s.PassMalformed, err = parseMalformed(f.malformed); err != nil {
		return s, o, err
	}
	if s.FailOpen, err = parseFail(f.fail, s.Mode); err != nil {
		return s, o, err
	}
	if err := checkRange("flows", f.flows, minFlows, maxFlows); err != nil {
		return s, o, err
	}
	if f.hook != "" {
		h, ok := packet.ParseHook(f.hook)
		if !ok {
			return s, o, settingErrorf("hook", "want prerouting, input, forward, output or postrouting, got %q", f.hook)
		}
		o.FixHook, o.Hook = true, h
	}
	for _, text := range f.local {
		p, err := netip.ParsePrefix(text)
		if a, addrErr := netip.ParseAddr(text); addrErr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return s, o, settingErrorf("local", "want an address or a network such as 192.0.2.0/24, got %q", text)
		}
		o.Local = append(o.Local, p.Masked())
	}
	if f.json {
		o.Format = replay.JSON
	}
	o.Absolute, o.Interface = f.absolute, f.iface
	return s, o, nil
}

func parseMode(text string) (engine.Mode, error) {
	for _, m := range []engine.Mode{engine.Enforce, engine.Monitor} {
		if text == m.String() {
			return m, nil
		}
	}
	return 0, settingErrorf("mode", "want enforce or monitor, got %q", text)
}

// parseMalformed returns whether packets that cannot be decoded pass.
func parseMalformed(text string) (pass bool, err error) {
	switch text {
	case "", "drop":
		return false, nil
	case "accept":
		return true, nil
	}
	return false, settingErrorf("malformed", "want drop or accept, got %q", text)
}

// parseFail returns whether to fail open; the default follows the mode.
func parseFail(text string, mode engine.Mode) (open bool, err error) {
	switch text {
	case "":
		return mode == engine.Monitor, nil
	case "open":
		return true, nil
	case "closed":
		return false, nil
	}
	return false, settingErrorf("fail", "want open or closed, got %q", text)
}

// progress says how far a replay is that takes longer than a second: on a terminal
// in one line, elsewhere every five seconds in a line of its own.
func progress(e env, clock func() time.Time) func(replay.Progress) {
	next, every := clock().Add(time.Second), 5*time.Second
	line, to := "verdictd: %s: %d packets, %d MB so far\n", e.stderr
	if e.stderrTerminal {
		every, line, to = time.Second/4, "\r\x1b[K%s: %d packets, %d MB", e.progress
	}
	return func(p replay.Progress) {
		if now := clock(); now.After(next) {
			next = now.Add(every)
			fmt.Fprintf(to, line, terminal.Word(p.Capture), p.Packets, p.Offset>>20)
		}
	}
}

// judge lets an engine's worker judge the packets of a replay.
type judge struct {
	worker *engine.Worker
	ticked int64
}

// Judge implements replay.Judge.
func (j *judge) Judge(m *packet.Meta, data []byte) replay.Outcome {
	const second = int64(time.Second)
	if m.Time-j.ticked >= second || m.Time < j.ticked {
		j.ticked = m.Time
		j.worker.Tick(m.Time)
	}
	v := j.worker.Handle(m, data)
	o := j.worker.Outcome()
	r := replay.Outcome{Packet: o.Packet, Verdict: v, Flow: o.Flow, Reason: o.Reason}
	if p := o.Packet; p.Status == packet.OK || p.Status == packet.Fragment {
		r.Proto = rules.ProtocolName(p.Protocol)
	}
	switch {
	case o.Error != nil:
		r.Detail = o.Error.Error()
	case o.Packet.Status == packet.Malformed:
		r.Detail = o.Packet.Reason
	case o.Decision != nil:
		r.Rule, r.Detail = o.Decision.Rule, o.Decision.Reason
	}
	if o.Monitor {
		r.Detail = wouldHave(o, r.Detail)
	}
	return r
}

// wouldHave says what monitor mode did not do, and why it would have.
func wouldHave(o *engine.Outcome, why string) string {
	action := packet.Drop
	if o.Decision != nil {
		action = o.Decision.Action
	}
	if why == "" {
		return "would " + action.String()
	}
	return "would " + action.String() + ": " + why
}
