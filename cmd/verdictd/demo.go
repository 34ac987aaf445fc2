package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd"
	"github.com/verdictd/verdictd/config"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/logsink"
)

func newDemoCommand(e env) *cobra.Command {
	var policyPath string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show verdictd at work in two throw-away network namespaces",
		Long: `demo makes two network namespaces joined by a cable (veth), runs verdictd in one
of them under the example policy, and sends real packets through the kernel's
queue: allowed and denied, IPv4 and IPv6. It prints what was decided, why, and
what the sender saw of it. Nothing outside the two namespaces is touched, and
nothing is left behind.

The policy is policy.rego.example, which is built in. With --policy another one
judges the same traffic.

Needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN).`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			return runDemo(ctx, e, policyPath)
		},
	}
	cmd.Flags().Var(&policyFlag{path: &policyPath}, "policy", "Rego or rules `FILE`, or directory to judge by instead")
	return cmd
}

// demoProbes are what the demo sends. The client is 10.99.0.1 and fd99::1 and
// runs verdictd; the server is .2.
type demoProbe struct {
	what    string
	inbound bool // from the server to the client
	proto   lab.Proto
	to      string // "10.99.0.2:443"; the port of an ICMP probe is 0
}

func demoProbes() []demoProbe {
	return []demoProbe{
		{"web", false, lab.TCP, "10.99.0.2:443"},
		{"web, IPv6", false, lab.TCP, "[fd99::2]:443"},
		{"name lookup", false, lab.UDP, "10.99.0.2:53"},
		{"clock", false, lab.UDP, "[fd99::2]:123"},
		{"ping", false, lab.ICMP, "10.99.0.2:0"},
		{"ping, IPv6", false, lab.ICMP, "[fd99::2]:0"},
		{"telnet", false, lab.TCP, "10.99.0.2:23"},
		{"some other port", false, lab.TCP, "10.99.0.2:8081"},
		{"the same, IPv6", false, lab.TCP, "[fd99::2]:8081"},
		{"some other datagram", false, lab.UDP, "10.99.0.2:9999"},
		{"ssh comes in", true, lab.TCP, "10.99.0.1:22"},
		{"database comes in", true, lab.TCP, "10.99.0.1:5432"},
	}
}

// demoRecord is what the demo reads back from the audit log.
type demoRecord struct {
	Type     string `json:"event_type"`
	DestIP   string `json:"dest_ip"`
	DestPort uint16 `json:"dest_port"`
	Proto    string `json:"proto"`
	Verdict  struct {
		Action string   `json:"action"`
		Reject []string `json:"reject"`
	} `json:"verdict"`
	Verdictd struct {
		Hook    string `json:"hook"`
		Rule    string `json:"rule"`
		Message string `json:"message"`
		Reason  string `json:"reason"`
	} `json:"verdictd"`
}

func runDemo(ctx context.Context, e env, policyPath string) error {
	network, err := lab.Pair()
	if err != nil {
		return fmt.Errorf("make the demo's network namespaces: %w", err)
	}
	defer network.Close()
	if policyPath == "" {
		dir, err := os.MkdirTemp("", "verdictd-demo-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		policyPath = filepath.Join(dir, "policy.rego")
		if err := os.WriteFile(policyPath, verdictd.ExamplePolicy(), 0o600); err != nil {
			return err
		}
	}
	closeServers, err := demoServers(ctx, network)
	defer closeServers()
	if err != nil {
		return err
	}

	log := &demoLog{records: make(chan demoRecord, 256)}
	s, err := newSettings(config.Config{Policy: policyPath, Hook: "output,input", OnStop: "open", Control: noControl})
	if err != nil {
		return badInput(err)
	}
	s.netns, s.quiet = network.Client.FD(), true
	s.ruleset.NetNS = s.netns
	up := make(chan struct{})
	d := newDaemon(e, s)
	d.outputs = []logsink.Output{{Path: "demo", Writer: log}}
	d.ready = func() { close(up) }

	daemonCtx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { done <- d.run(daemonCtx) })
	defer wg.Wait()
	defer stop()
	select {
	case <-up:
	case err := <-done:
		return err
	}
	if err := demoTable(ctx, e, network, log); err != nil {
		return err
	}
	stop()
	if err := <-done; err != nil {
		return err
	}
	st := d.engine.Stats()
	fmt.Fprintf(e.stdout, "\n%d packets judged: %d accepted, %d dropped or rejected; the policy was asked %d times.\n"+
		"The namespaces are gone. Next: verdictd check policy.rego.example\n", st.Packets, st.Accepted, st.Dropped+st.Rejected, st.Evaluated)
	return nil
}

// demoServers starts what answers the probes.
func demoServers(ctx context.Context, n *lab.Network) (closeAll func(), err error) {
	var servers []*lab.EchoServer
	closeAll = func() {
		for _, s := range servers {
			s.Close()
		}
	}
	for _, p := range demoProbes() {
		if p.proto == lab.ICMP {
			continue // the kernel answers
		}
		ns := n.Server
		if p.inbound {
			ns = n.Client
		}
		s, err := ns.Echo(ctx, netip.MustParseAddrPort(p.to))
		if err != nil {
			return closeAll, err
		}
		servers = append(servers, s)
	}
	return closeAll, nil
}

// demoTable sends the probes one by one and prints a line for each as soon as
// its verdict is known.
func demoTable(ctx context.Context, e env, n *lab.Network, log *demoLog) error {
	fmt.Fprintf(e.stdout, "client 10.99.0.1, fd99::1 (runs verdictd)  ──veth──  server 10.99.0.2, fd99::2\n\n")
	fmt.Fprintf(e.stdout, "%-20s %-6s  %-4s  %-16s  %-7s  %-11s  %-10s  %s\n",
		"what", "hook", "", "to", "verdict", "rule", "sender saw", "reason")
	for _, p := range demoProbes() {
		to := netip.MustParseAddrPort(p.to)
		from, hook := n.Client, "output"
		if p.inbound {
			from, hook = n.Server, "input"
		}
		saw, err := from.Probe(lab.Probe{Proto: p.proto, To: to, Timeout: 300 * time.Millisecond})
		if err != nil {
			return err
		}
		r, ok := log.find(ctx, hook, to)
		if !ok {
			return errors.Join(fmt.Errorf("no verdict for %q within two seconds", p.what), ctx.Err())
		}
		where := to.String()
		if p.proto == lab.ICMP {
			where = to.Addr().String()
		}
		verdict, reason := r.Verdict.Action, r.Verdictd.Message
		if len(r.Verdict.Reject) > 0 {
			verdict = "reject"
		}
		if r.Verdictd.Rule == "default" {
			reason = "no rule accepts it"
		}
		fmt.Fprintf(e.stdout, "%-20s %-6s  %-4s  %-16s  %s  %-11s  %-10s  %s\n",
			p.what, hook, p.proto, where, demoVerdict(e, verdict), r.Verdictd.Rule, saw, reason)
	}
	return nil
}

// demoVerdict pads a verdict to its column and colours it on a terminal.
func demoVerdict(e env, action string) string {
	text := fmt.Sprintf("%-7s", action)
	switch {
	case !e.colour():
		return text
	case action == "accept":
		return "\x1b[32m" + text + "\x1b[0m"
	}
	return "\x1b[31m" + text + "\x1b[0m"
}

// demoLog is the audit log's output: it hands the records of decisions over.
type demoLog struct {
	rest    []byte
	records chan demoRecord
}

// Write takes lines of JSON, in whatever pieces they come.
func (l *demoLog) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(b), nil
		}
		l.rest = rest
		var r demoRecord
		if json.Unmarshal(line, &r) == nil && (r.Type == "verdict" || r.Type == "drop") {
			select {
			case l.records <- r:
			default: // nobody waits for that many
			}
		}
	}
}

// find waits for the record of the first decision about packets to an address
// and port at a hook.
func (l *demoLog) find(ctx context.Context, hook string, to netip.AddrPort) (demoRecord, bool) {
	timeout := time.NewTimer(2 * time.Second)
	defer timeout.Stop()
	for {
		select {
		case r := <-l.records:
			if r.Verdictd.Hook == hook && r.DestIP == to.Addr().String() && r.DestPort == to.Port() {
				return r, true
			}
		case <-timeout.C:
			return demoRecord{}, false
		case <-ctx.Done():
			return demoRecord{}, false
		}
	}
}
