package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/bench/measure"
	"github.com/verdictd/verdictd/internal/lab"
)

// Lengths of queues.
const (
	drainLength = 65536 // holds a whole filling
	floodLength = 8192  // the daemon's default
)

// recvBuffer is enough for drainLength small packets.
const recvBuffer = 64 << 20

// patience is how long a queue may take to be emptied, and a stray packet to
// arrive.
const (
	patience = 30 * time.Second
	settle   = 100 * time.Millisecond
)

// options say how much is measured.
type options struct {
	Rounds     int           `json:"rounds"`
	Packets    int           `json:"packets"` // to fill a queue with
	Cycles     int           `json:"cycles"`  // fillings of each drain
	Flood      int           `json:"flood"`   // packets
	RoundTrips int           `json:"round_trips"`
	TCP        time.Duration `json:"tcp_ns"`
	Only       []string      `json:"only"`
	Peers      []string      `json:"peers"`
	SenderCPU  int           `json:"sender_cpu"` // -1: not pinned
	PeerCPU    int           `json:"peer_cpu"`
	CopyRange  int           `json:"copy_range"`
	Policy     string        `json:"policy"`
	Profile    string        `json:"-"`
}

// values are the figures of one measurement of one peer, by column.
type values map[string]float64

// Columns.
const (
	colCPU       = "ns/packet"
	colWall      = "wall ns"
	colRate      = "kpps"
	colSent      = "sent kpps"
	colLost      = "lost"
	colWaited    = "waited %" // of the time: threads that waited for a CPU
	colAnswered  = "answered" // not shown
	colAllocs    = "allocs"
	colAllocated = "bytes"
	colP50       = "p50 µs"
	colP99       = "p99 µs"
	colGigabits  = "Gbit/s"
	colPerKiB    = "CPU ns/KiB" // of both ends, the forwarding and the peer
)

// bench runs measurements.
type bench struct {
	options
	bed      *testbed
	dir      string // temporary
	self     string // this program
	cProgram string // peer.c compiled; "" if it could not be
}

// run starts the peer on that many queues, calls fn with it and ends it. The
// peer noQueue is fn(nil) without rules.
func (b *bench) run(ctx context.Context, s settings, cpu int, fn func(ctx context.Context, p *measure.Process) error) error {
	switch s.Peer {
	case noQueue:
		return errors.Join(b.bed.unqueue(), fn(ctx, nil))
	case conntrack:
		if err := b.bed.track(ctx); err != nil {
			return err
		}
		return errors.Join(fn(ctx, nil), b.bed.untrack(ctx))
	}
	if err := b.bed.queue(&s); err != nil {
		return err
	}
	s.RecvBuffer, s.CopyRange, s.Policy, s.Dir = recvBuffer, b.CopyRange, b.Policy, b.dir
	if isDaemon(s.Peer) {
		s.Profile = b.Profile
	}
	program, args, err := b.command(&s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := measure.Start(ctx, b.bed.router, program, args, cpu)
	if err != nil {
		return err
	}
	if err := fn(ctx, p); err != nil {
		cancel() // it may hang: kill it
		return errors.Join(fmt.Errorf("%s: %w", s.Peer, err), p.Close())
	}
	return p.Close()
}

// drain stops the peer, fills its queues, continues it and waits until all is
// answered, several times.
func (b *bench) drain(ctx context.Context, s settings, cpu, sources int) (values, error) {
	s.MaxLen = drainLength
	v := values{}
	err := b.run(ctx, s, cpu, func(ctx context.Context, p *measure.Process) error {
		// The second filling warms the caches for flows that are known.
		for range 2 {
			if _, err := b.cycle(ctx, p, sources); err != nil {
				return err
			}
		}
		before, err := ask(p)
		if err != nil {
			return err
		}
		var sum cycle
		for range b.Cycles {
			c, err := b.cycle(ctx, p, sources)
			if err != nil {
				return err
			}
			sum.add(c)
		}
		after, err := ask(p)
		if err != nil {
			return err
		}
		n := float64(b.Cycles * b.Packets)
		v[colCPU] = float64(sum.Ran) / n
		v[colWall] = float64(sum.wall) / n
		v[colRate] = n / 1e3 / sum.wall.Seconds()
		v[colWaited] = 100 * sum.Waited.Seconds() / sum.wall.Seconds()
		v[colLost] = float64(sum.lost)
		v[colAnswered] = float64(after.Packets - before.Packets)
		if isGo(s.Peer) {
			v[colAllocs] = float64(after.Mallocs-before.Mallocs) / n
			v[colAllocated] = float64(after.Bytes-before.Bytes) / n
		}
		return nil
	})
	return v, err
}

// isGo says whether the peer can tell what it allocated.
func isGo(peer string) bool {
	return !isC(peer) && peer != noQueue && peer != conntrack
}

// cycle is what one filling cost.
type cycle struct {
	measure.Schedule
	wall time.Duration
	lost int
}

func (c *cycle) add(d cycle) {
	c.Ran, c.Waited = c.Ran+d.Ran, c.Waited+d.Waited
	c.wall, c.lost = c.wall+d.wall, c.lost+d.lost
}

func (b *bench) cycle(ctx context.Context, p *measure.Process, sources int) (c cycle, err error) {
	if err := p.Stop(); err != nil {
		return c, err
	}
	first, err := b.bed.delivered()
	if err != nil {
		return c, err
	}
	if err := b.bed.flood(ctx, b.Packets, sources); err != nil {
		return c, err
	}
	before, err := p.Schedule()
	if err != nil {
		return c, err
	}
	begin := time.Now()
	if err := p.Signal(unix.SIGCONT); err != nil {
		return c, err
	}
	got, end, err := b.await(ctx, first, b.Packets)
	if err != nil {
		return c, err
	}
	p.Rest()
	after, err := p.Schedule()
	return cycle{after.Since(before), end.Sub(begin), b.Packets - got}, err
}

// await waits until want packets have been delivered since the count was
// first, or no more can come, and returns how many did and when.
func (b *bench) await(ctx context.Context, first uint32, want int) (got int, end time.Time, err error) {
	count := func() bool {
		var now uint32
		now, err = b.bed.delivered()
		if n := int(now - first); n != got {
			got, end = n, time.Now()
		}
		return err != nil || got >= want
	}
	end = time.Now()
	idle := lab.Poll(patience, func() bool {
		if ctx.Err() != nil || count() {
			return true
		}
		var waiting int
		waiting, _, err = b.bed.backlog()
		return err != nil || waiting == 0
	})
	if err = errors.Join(err, ctx.Err()); err != nil {
		return got, end, err
	}
	if !idle {
		return got, end, fmt.Errorf("packets still wait for a verdict after %s; %d of %d were delivered", patience, got, want)
	}
	lab.Poll(settle, count)
	return got, end, err
}

// flood sends packets as fast as it can.
func (b *bench) flood(ctx context.Context, s settings, cpu int) (values, error) {
	s.MaxLen = floodLength
	v := values{}
	err := b.run(ctx, s, cpu, func(ctx context.Context, p *measure.Process) error {
		if err := b.warm(ctx); err != nil {
			return err
		}
		first, err := b.bed.delivered()
		if err != nil {
			return err
		}
		before, err := p.Schedule()
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := b.bed.flood(ctx, b.Flood, 1); err != nil {
			return err
		}
		sent := time.Since(begin)
		got, end, err := b.await(ctx, first, b.Flood)
		if err != nil {
			return err
		}
		p.Rest()
		after, err := p.Schedule()
		v[colRate] = float64(got) / 1e3 / end.Sub(begin).Seconds()
		v[colSent] = float64(b.Flood) / 1e3 / sent.Seconds()
		v[colLost] = float64(b.Flood - got)
		if p != nil {
			s := after.Since(before)
			v[colCPU] = float64(s.Ran) / float64(max(got, 1))
			v[colWaited] = 100 * s.Waited.Seconds() / end.Sub(begin).Seconds()
		}
		return err
	})
	return v, err
}

// warm makes the flow known.
func (b *bench) warm(ctx context.Context) error {
	first, err := b.bed.delivered()
	if err != nil {
		return err
	}
	const packets = 1000
	if err := b.bed.flood(ctx, packets, 1); err != nil {
		return err
	}
	got, _, err := b.await(ctx, first, packets)
	if err == nil && got < packets {
		err = fmt.Errorf("%d of the first %d packets were lost (does the policy accept UDP port %d?)", packets-got, packets, sinkPort)
	}
	return err
}

// latency times round trips through the queue.
func (b *bench) latency(ctx context.Context, s settings, cpu int) (values, error) {
	s.MaxLen = floodLength
	v := values{}
	err := b.run(ctx, s, cpu, func(ctx context.Context, p *measure.Process) (err error) {
		stop, err := b.bed.echo()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
		if _, _, err := b.bed.roundTrips(ctx, min(b.RoundTrips, 200)); err != nil {
			return err
		}
		before, err := p.Schedule()
		if err != nil {
			return err
		}
		times, lost, err := b.bed.roundTrips(ctx, b.RoundTrips)
		if err != nil {
			return err
		}
		p.Rest()
		after, err := p.Schedule()
		if len(times) == 0 {
			return fmt.Errorf("no answer to %d datagrams", lost)
		}
		v[colP50] = micros(times[len(times)/2])
		v[colP99] = micros(times[len(times)*99/100])
		v[colLost] = float64(lost)
		if p != nil {
			v[colCPU] = float64(after.Since(before).Ran) / float64(2*b.RoundTrips)
		}
		return err
	})
	return v, err
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

// tcpRate measures a TCP connection.
func (b *bench) tcpRate(ctx context.Context, s settings) (values, error) {
	s.MaxLen = floodLength
	v := values{}
	err := b.run(ctx, s, -1, func(ctx context.Context, p *measure.Process) error {
		before, err := p.Schedule()
		if err != nil {
			return err
		}
		s, err := b.bed.tcp(ctx, b.TCP)
		if err != nil {
			return err
		}
		after, err := p.Schedule()
		v[colGigabits] = s.rate / 1e9
		v[colPerKiB] = float64(s.cpu+after.Since(before).Ran) / s.kib
		return err
	})
	return v, err
}

// command returns the program and arguments of a peer.
func (b *bench) command(s *settings) (string, []string, error) {
	switch s.Peer {
	case cBatched:
		return b.cProgram, s.cArgs("batched"), nil
	case cSimple:
		return b.cProgram, s.cArgs("simple"), nil
	case cSpin:
		return b.cProgram, s.cArgs("spin"), nil
	}
	arg, err := s.json()
	return b.self, []string{childArg, arg}, err
}
