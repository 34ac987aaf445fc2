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
	fs, quick := measure.Flags("connect", args, stderr, &asJSON)
	if quick {
		o.shorten() // first, so that other flags count
	}
	fs.IntVar(&o.Rounds, "rounds", o.Rounds, "how often each peer is measured")
	fs.DurationVar(&o.Time, "time", o.Time, "how long connections are opened under each peer")
	fs.BoolVar(&o.Offload, "offload", o.Offload, "let the rest of each connection pass by the queue; else all its packets are queued")
	fs.IntVar(&o.ClientCPU, "client-cpu", o.ClientCPU, "CPU that client and server run on; -1: any")
	fs.IntVar(&o.PeerCPU, "peer-cpu", o.PeerCPU, "CPU that the peers run on; -1: any")
	fs.StringVar(&o.Verdictd, "verdictd", "", "the daemon to measure (default: built from the tree)")
	measure.List(fs, &o.Only, "only", "shapes of the client")
	measure.List(fs, &o.Peers, "peers", "peers")
	if err := measure.Parse(fs, args); err != nil {
		return nil, false, err
	}
	return o, asJSON, o.check()
}

func (o *options) check() error {
	last := runtime.NumCPU() - 1
	err := errors.Join(
		measure.Within("rounds", o.Rounds, 1, 1000),
		measure.Within("client-cpu", o.ClientCPU, -1, last),
		measure.Within("peer-cpu", o.PeerCPU, -1, last),
	)
	if err != nil {
		return err
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
