package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/verdictd/verdictd/bench/measure"
	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/queue"
)

// The peers, in the order of the tables.
const (
	none         = "none"
	cAccept      = "C accept-all"
	verdictdOff  = "verdictd off"
	verdictdProc = "verdictd proc"
	verdictdAuto = "verdictd auto"
)

func allPeers() []string { return []string{none, cAccept, verdictdOff, verdictdProc, verdictdAuto} }

// What all peers have.
const (
	queueLength = 8192
	recvBuffer  = 64 << 20
	copyRange   = 256
)

// shape is a way to open connections.
type shape struct {
	name, title, kind string
	parallel          int
}

func shapes() []shape {
	return []shape{
		{"loop1", "loop1: one process, one connection after the other", "loop", 1},
		{"loop16", "loop16: one process, 16 threads", "loop", 16},
		{"oneshot", "oneshot: a process for each connection, 8 at a time", "spawn", 8},
	}
}

func shapeNames() (names []string) {
	for _, s := range shapes() {
		names = append(names, s.name)
	}
	return names
}

// run starts the peer, calls fn with it and ends it.
func (b *bench) run(ctx context.Context, peer string, fn func(p *measure.Process) error) (err error) {
	if peer == none {
		return fn(nil)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := b.startDaemon
	if peer == cAccept {
		rules, err := hook.Install(b.rules())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, rules.Close()) }()
		start = b.startC
	}
	p, err := start(ctx, peer)
	if err != nil {
		return err
	}
	err = fn(p)
	if err != nil {
		cancel() // it may hang: kill it
	}
	return errors.Join(err, p.Close())
}

// rules are what verdictd installs for --hook output.
func (b *bench) rules() hook.Config {
	return hook.Config{Hooks: []hook.Hook{hook.Output}, Mask: hook.DefaultMask, Offload: b.Offload, NetNS: b.client.FD()}
}

func (b *bench) startC(ctx context.Context, _ string) (*measure.Process, error) {
	loop := measure.Loop{Mode: "batched", Queues: 1, MaxLen: queueLength, RecvBuffer: recvBuffer, CopyRange: copyRange}
	if b.Offload {
		m, err := hook.NewMarks(hook.DefaultMask)
		if err != nil {
			return nil, err
		}
		loop.Mark = m.Accept
	}
	return measure.Start(ctx, b.client, b.cPeer, loop.Args(), b.PeerCPU)
}

func (b *bench) startDaemon(ctx context.Context, peer string) (*measure.Process, error) {
	_, attribution, _ := strings.Cut(peer, " ")
	policy, offload := "process.rego", "off"
	if peer == verdictdOff {
		policy = "plain.rego"
	}
	if b.Offload {
		offload = "on"
	}
	if err := os.RemoveAll(b.log()); err != nil {
		return nil, err
	}
	return measure.StartDaemon(ctx, b.client, b.daemon, []string{
		"run", "--hook", "output", "--on-stop", "open", "--policy", filepath.Join(b.dir, policy), "--attribution", attribution, "--offload", offload,
		"--queue-length", strconv.Itoa(queueLength), "--copy-range", strconv.Itoa(copyRange),
		"--log", b.log(), "--control", "none", "--stats-interval", "0",
	}, b.PeerCPU)
}

func (b *bench) log() string { return filepath.Join(b.dir, "eve.json") }

// queued returns how many packets have been queued since the queue was bound.
func (b *bench) queued() (n float64, err error) {
	queues, err := queue.ReadKernel(b.client.FD())
	for _, q := range queues {
		n += float64(q.LastID)
	}
	return n, err
}

// unknown returns how many connections the daemon has logged: those that were
// judged without their process.
func (b *bench) unknown() (n int, err error) {
	f, err := os.Open(b.log())
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if strings.Contains(lines.Text(), `"event_type":"verdict"`) {
			n++
		}
	}
	return n, lines.Err()
}

// sample is one measurement of one peer.
type sample struct {
	Shape  string `json:"shape"`
	Peer   string `json:"peer"`
	Round  int    `json:"round"`
	Values values `json:"values"`
}

// measure runs all rounds. Each begins with another peer, so that none is always
// measured after the same one.
func (b *bench) measure(ctx context.Context, progress func(text string)) ([]sample, error) {
	var samples []sample
	for round := range b.Rounds {
		for _, s := range shapes() {
			if !slices.Contains(b.Only, s.name) {
				continue
			}
			for i := range b.Peers {
				peer := b.Peers[(i+round)%len(b.Peers)]
				progress(fmt.Sprintf("round %d of %d: %s, %s; load %s", round+1, b.Rounds, s.name, peer, measure.Load()))
				v, err := b.one(ctx, &s, peer)
				if err != nil {
					return nil, fmt.Errorf("measure %s under %s: %w", s.name, peer, err)
				}
				samples = append(samples, sample{s.name, peer, round + 1, v})
			}
		}
	}
	return samples, nil
}

// warmUp is how long connections are opened before it counts, in milliseconds.
const warmUp = 100

// one measures one peer once.
func (b *bench) one(ctx context.Context, s *shape, peer string) (v values, err error) {
	v = values{}
	var o outcome
	var warm outcome
	err = b.run(ctx, peer, func(p *measure.Process) error {
		if warm, err = b.connect(ctx, s, warmUp); err != nil {
			return err
		}
		p.Rest()
		before, err := p.Schedule()
		if err != nil {
			return err
		}
		first, err := b.queued()
		if err != nil {
			return err
		}
		if o, err = b.connect(ctx, s, b.Time.Milliseconds()); err != nil {
			return err
		}
		p.Rest()
		after, err := p.Schedule()
		if err != nil {
			return err
		}
		last, err := b.queued()
		v.fill(&o, after.Since(before), last-first)
		return err
	})
	if err == nil && (peer == verdictdProc || peer == verdictdAuto) {
		var n int
		n, err = b.unknown()
		all := float64(o.Connected + o.Failed + warm.Connected + warm.Failed)
		v[colKnown] = 100 * (1 - float64(n)/all)
	}
	return v, err
}
