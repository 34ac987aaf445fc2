package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/bench/measure"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == childArg {
		exit(runChild(os.Args[2], os.Stdin, os.Stdout))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	exit(benchmark(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func exit(err error) {
	if err == nil || errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "queue benchmark:", err)
	os.Exit(1)
}

// benchmark is the command: flags, measurements, results.
func benchmark(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, asJSON, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("network namespaces and queues need root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW)")
	}
	b, compiler, left, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	mach := measure.DescribeMachine(compiler)
	ms := choose(measurements(), o.Only, b.Peers)
	samples, err := b.measure(ctx, ms, func(text string) { fmt.Fprintln(stderr, text) })
	if err != nil {
		return err
	}
	if !asJSON {
		return writeTables(stdout, &mach, &b.options, ms, samples, left)
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		Machine measure.Machine `json:"machine"`
		Options options         `json:"options"`
		LeftOut string          `json:"left_out,omitempty"`
		Samples []sample        `json:"samples"`
	}{mach, b.options, left, samples})
}

// newBench makes everything that is measured with. left says which peers are left
// out and why, if any are.
func newBench(ctx context.Context, o *options) (b *bench, compiler, left string, err error) {
	b = &bench{options: *o}
	if b.self, err = os.Executable(); err != nil {
		return nil, "", "", err
	}
	if b.dir, err = os.MkdirTemp("", "verdictd-bench-"); err != nil {
		return nil, "", "", err
	}
	b.cProgram, compiler, err = measure.CompilePeer(ctx, b.dir)
	if err != nil {
		left = b.leaveOut(isC, err)
	}
	if _, err := exec.LookPath("nft"); err != nil {
		missing := errors.New("nft is not on the path (install it: apt install nftables)")
		left += b.leaveOut(func(p string) bool { return p == conntrack }, missing)
	}
	if b.bed, err = newTestbed(o.SenderCPU, o.PeerCPU); err != nil {
		return nil, "", "", errors.Join(err, os.RemoveAll(b.dir))
	}
	return b, compiler, left, nil
}

// leaveOut takes peers out and returns a line that says so.
func (b *bench) leaveOut(which func(peer string) bool, err error) string {
	b.Peers = slices.DeleteFunc(slices.Clone(b.Peers), which)
	names := slices.DeleteFunc(allPeers(), func(p string) bool { return !which(p) })
	return fmt.Sprintf("left out: %s: %s\n", strings.Join(names, ", "), err)
}

func (b *bench) close() error { return errors.Join(b.bed.close(), os.RemoveAll(b.dir)) }

func defaults() *options {
	o := &options{
		Rounds: 5, Packets: 20000, Cycles: 3, Flood: 300000, RoundTrips: 5000, TCP: 3 * time.Second,
		SenderCPU: 0, PeerCPU: 1, CopyRange: 256, Policy: "policy.rego.example",
	}
	if runtime.NumCPU() < 2 {
		o.SenderCPU, o.PeerCPU = -1, -1
	}
	for _, m := range measurements() {
		o.Only = append(o.Only, m.name)
	}
	o.Peers = allPeers()
	return o
}

// shorten makes o a smoke test.
func (o *options) shorten() {
	o.Rounds, o.Packets, o.Cycles, o.Flood, o.RoundTrips, o.TCP = 1, 5000, 1, 50000, 500, time.Second/2
}

func parse(args []string, stderr io.Writer) (o *options, asJSON bool, err error) {
	o = defaults()
	fs, quick := measure.Flags("queue", args, stderr, &asJSON)
	if quick {
		o.shorten() // first, so that other flags count
	}
	fs.IntVar(&o.Rounds, "rounds", o.Rounds, "how often each peer is measured")
	fs.IntVar(&o.Packets, "packets", o.Packets, fmt.Sprintf("packets that fill a queue for drain, at most %d", drainLength))
	fs.IntVar(&o.Cycles, "cycles", o.Cycles, "how often a queue is filled in each drain")
	fs.IntVar(&o.Flood, "flood", o.Flood, "packets of a flood")
	fs.IntVar(&o.RoundTrips, "round-trips", o.RoundTrips, "round trips of latency")
	fs.DurationVar(&o.TCP, "tcp", o.TCP, "how long TCP sends")
	fs.IntVar(&o.SenderCPU, "sender-cpu", o.SenderCPU, "CPU that sends; -1: any")
	fs.IntVar(&o.PeerCPU, "peer-cpu", o.PeerCPU, "CPU that the peers run on; -1: any")
	fs.IntVar(&o.CopyRange, "copy-range", o.CopyRange, "bytes of each packet that peers get")
	fs.StringVar(&o.Policy, "policy", o.Policy, fmt.Sprintf("policy of verdictd; must accept UDP ports %d and %d and TCP port %d", sinkPort, echoPort, tcpPort))
	fs.StringVar(&o.Profile, "profile", "", "write a CPU profile of the last verdictd to this file")
	measure.List(fs, &o.Only, "only", "measurements")
	measure.List(fs, &o.Peers, "peers", "peers")
	if err := measure.Parse(fs, args); err != nil {
		return nil, false, err
	}
	return o, asJSON, o.check()
}

func (o *options) check() error {
	err := errors.Join(
		measure.Within("rounds", o.Rounds, 1, 1000),
		measure.Within("packets", o.Packets, 1, drainLength),
		measure.Within("cycles", o.Cycles, 1, 1000),
		measure.Within("flood", o.Flood, 1, 1<<30),
		measure.Within("round-trips", o.RoundTrips, 1, 1<<24),
		measure.Within("copy-range", o.CopyRange, 64, 65531),
		measure.Within("sender-cpu", o.SenderCPU, -1, runtime.NumCPU()-1),
		measure.Within("peer-cpu", o.PeerCPU, -1, runtime.NumCPU()-1),
	)
	if err != nil {
		return err
	}
	if _, err := os.Stat(o.Policy); err != nil {
		return fmt.Errorf("--policy: %w (run from the root of the repository)", err)
	}
	return nil
}
