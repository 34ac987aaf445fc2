package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/bench/measure"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := benchmark(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "connect benchmark:", err)
		os.Exit(1)
	}
}

// options say how much is measured.
type options struct {
	Rounds    int           `json:"rounds"`
	Time      time.Duration `json:"time_ns"` // of one measurement of one peer
	Only      []string      `json:"only"`
	Peers     []string      `json:"peers"`
	Offload   bool          `json:"offload"`    // else all packets are queued
	ClientCPU int           `json:"client_cpu"` // -1: not pinned
	PeerCPU   int           `json:"peer_cpu"`
	Verdictd  string        `json:"-"` // the daemon; "": built from the tree
}

func defaults() *options {
	return &options{
		Rounds: 5, Time: 2 * time.Second, Only: shapeNames(), Peers: allPeers(), Offload: true, ClientCPU: -1, PeerCPU: -1,
	}
}

// shorten makes o a smoke test.
func (o *options) shorten() { o.Rounds, o.Time = 1, 200*time.Millisecond }

func parse(args []string, stderr io.Writer) (o *options, asJSON bool, err error) {
	o = defaults()
	fs := flag.NewFlagSet("connect", flag.ContinueOnError)
	fs.SetOutput(stderr)
	if slices.Contains(args, "--quick") || slices.Contains(args, "-quick") {
		o.shorten() // first, so that other flags count
	}
	fs.Bool("quick", false, "measure little: a test of the benchmark, not of the peers")
	fs.BoolVar(&asJSON, "json", false, "print every single figure as JSON")
	fs.IntVar(&o.Rounds, "rounds", o.Rounds, "how often each peer is measured")
	fs.DurationVar(&o.Time, "time", o.Time, "how long connections are opened under each peer")
	fs.BoolVar(&o.Offload, "offload", o.Offload, "let the rest of each connection pass by the queue; else all its packets are queued")
	fs.IntVar(&o.ClientCPU, "client-cpu", o.ClientCPU, "CPU that client and server run on; -1: any")
	fs.IntVar(&o.PeerCPU, "peer-cpu", o.PeerCPU, "CPU that the peers run on; -1: any")
	fs.StringVar(&o.Verdictd, "verdictd", "", "the daemon to measure (default: built from the tree)")
	list(fs, &o.Only, "only", "shapes of the client")
	list(fs, &o.Peers, "peers", "peers")
	if err := fs.Parse(args); err != nil {
		return nil, false, err
	}
	if fs.NArg() > 0 {
		return nil, false, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return o, asJSON, o.check()
}

// list defines a flag that takes some of the names that *to holds.
func list(fs *flag.FlagSet, to *[]string, name, what string) {
	known := slices.Clone(*to)
	fs.Func(name, what+", separated by commas: "+strings.Join(known, ","), func(text string) error {
		*to = strings.Split(text, ",")
		for _, s := range *to {
			if !slices.Contains(known, s) {
				return fmt.Errorf("%q is none of %s", s, strings.Join(known, ", "))
			}
		}
		return nil
	})
}

func (o *options) check() error {
	last := runtime.NumCPU() - 1
	for _, n := range []struct {
		flag             string
		value, low, high int
	}{
		{"rounds", o.Rounds, 1, 1000},
		{"client-cpu", o.ClientCPU, -1, last},
		{"peer-cpu", o.PeerCPU, -1, last},
	} {
		if n.value < n.low || n.value > n.high {
			return fmt.Errorf("--%s %d: want %d to %d", n.flag, n.value, n.low, n.high)
		}
	}
	if o.Time < time.Millisecond || o.Time > time.Minute {
		return fmt.Errorf("--time %s: want 1ms to 1m", o.Time)
	}
	return nil
}

// benchmark is the command: flags, measurements, results.
func benchmark(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, asJSON, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("network namespaces and queues need root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF)")
	}
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	mach := measure.DescribeMachine(b.compiler)
	samples, err := b.measure(ctx, func(text string) { fmt.Fprintln(stderr, text) })
	if err != nil {
		return err
	}
	if !asJSON {
		return writeTables(stdout, &mach, o, samples)
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		Machine measure.Machine `json:"machine"`
		Options *options        `json:"options"`
		Samples []sample        `json:"samples"`
	}{mach, o, samples})
}
