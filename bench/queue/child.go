package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"sync/atomic"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/bench/measure"
	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/queue"
)

// childArg, as first argument, makes this program one of the measured peers;
// the second is its settings as JSON.
const childArg = "-measured-peer"

// settings are what a peer is run with. They are the same for every peer of a
// comparison.
type settings struct {
	Peer       string        `json:"peer"`
	Queues     int           `json:"queues"`      // 0 to Queues-1 are bound
	MaxLen     int           `json:"max_len"`     // packets
	RecvBuffer int           `json:"recv_buffer"` // bytes, before the kernel doubles it
	CopyRange  int           `json:"copy_range"`  // bytes
	Policy     string        `json:"policy"`      // file or directory
	Spin       time.Duration `json:"spin_ns"`
	Mask       uint32        `json:"mask"` // of marks that rules and peer share; 0: none
	Offload    bool          `json:"offload"`
	Dir        string        `json:"dir"`     // for the audit log
	Profile    string        `json:"profile"` // CPU profile to write, "" for none
}

// cArgs returns the settings as the arguments of peer.c.
func (s *settings) cArgs(mode string) []string {
	return measure.Loop{
		Mode: mode, Queues: s.Queues, MaxLen: s.MaxLen, RecvBuffer: s.RecvBuffer, CopyRange: s.CopyRange, Spin: s.Spin,
	}.Args()
}

// report is what a peer says about itself when it is asked.
type report struct {
	Packets uint64 `json:"packets"` // answered since the start
	Mallocs uint64 `json:"mallocs"` // heap objects allocated since the start
	Bytes   uint64 `json:"bytes"`   // the same in bytes
}

// loop is a peer at work in the child.
type loop struct {
	run     func(ctx context.Context) error // until ctx is done
	packets func() uint64                   // answered so far; called from another goroutine
}

// runChild is the child's main function: it binds the queues, says "ready",
// reports whenever a line comes and ends with its input.
func runChild(arg string, in io.Reader, out io.Writer) error {
	var s settings
	if err := json.Unmarshal([]byte(arg), &s); err != nil {
		return fmt.Errorf("settings of peer: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l, err := openLoop(ctx, &s)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.Peer, err)
	}
	endProfile, err := startProfile(s.Profile)
	if err != nil {
		return err
	}
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return l.run(ctx) })
	tasks.Go(func() error {
		defer cancel()
		return answer(l.packets, in, out)
	})
	return errors.Join(tasks.Wait(), endProfile())
}

func answer(packets func() uint64, in io.Reader, out io.Writer) error {
	if _, err := fmt.Fprintln(out, "ready"); err != nil {
		return err
	}
	var mem runtime.MemStats
	enc := json.NewEncoder(out)
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		runtime.ReadMemStats(&mem)
		if err := enc.Encode(report{Packets: packets(), Mallocs: mem.Mallocs, Bytes: mem.TotalAlloc}); err != nil {
			return err
		}
	}
	return lines.Err()
}

func startProfile(path string) (end func() error, err error) {
	if path == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

func openLoop(ctx context.Context, s *settings) (*loop, error) {
	switch {
	case s.Peer == goNFQueue:
		return openGoNFQueue(ctx, s)
	case s.Peer == verdictdLoop:
		return openQueues(s, func(int) packet.Handler { return acceptAll{} })
	case isDaemon(s.Peer):
		return openDaemon(ctx, s)
	}
	return nil, fmt.Errorf("unknown peer %q", s.Peer)
}

// acceptAll is the cheapest handler there can be.
type acceptAll struct{}

func (acceptAll) Handle(*packet.Meta, []byte) packet.Verdict {
	return packet.Verdict{Action: packet.Accept}
}

// openQueues binds the queues and gives each a handler of its own.
func openQueues(s *settings, handler func(i int) packet.Handler) (*loop, error) {
	queues := make([]*queue.Queue, s.Queues)
	handlers := make([]packet.Handler, s.Queues)
	for i := range queues {
		q, err := queue.Open(queue.Config{
			Num: uint16(i), MaxLen: uint32(s.MaxLen), CopyRange: uint32(s.CopyRange), RecvBuffer: s.RecvBuffer, Spin: s.Spin,
		})
		if err != nil {
			return nil, err // the process ends and its sockets with it
		}
		queues[i], handlers[i] = q, handler(i)
	}
	return &loop{
		run: func(ctx context.Context) error {
			tasks, ctx := errgroup.WithContext(ctx)
			for i, q := range queues {
				tasks.Go(func() error {
					return errors.Join(q.Run(ctx, handlers[i]), q.Close())
				})
			}
			return tasks.Wait()
		},
		packets: func() (sum uint64) {
			for _, q := range queues {
				sum += q.Stats().Received
			}
			return sum
		},
	}, nil
}

// openDaemon is what cmd/verdictd does with a queue: policy, engine, flow
// table and audit log to a file.
func openDaemon(ctx context.Context, s *settings) (*loop, error) {
	p, err := policy.Load(ctx, policy.Source{Path: s.Policy})
	if err != nil {
		return nil, err
	}
	audit, err := logsink.New(logsink.Config{Outputs: []logsink.Output{{Path: filepath.Join(s.Dir, "audit.json")}}})
	if err != nil {
		return nil, err
	}
	e := engine.New(engine.Config{Workers: s.Queues, Now: func() int64 { return time.Now().UnixNano() }})
	marks, err := s.marks()
	if err != nil {
		return nil, err
	}
	e.Publish(engine.Snapshot{Policy: p, Generation: 1, Hash: p.Hash(), Mode: engine.Enforce, Marks: marks})
	l, err := openQueues(s, func(i int) packet.Handler {
		return e.NewWorker(audit.Ring(fmt.Sprintf("queue %d", i)))
	})
	if err != nil {
		return nil, err
	}
	judge := l.run
	l.run = func(ctx context.Context) error {
		tasks, ctx := errgroup.WithContext(ctx)
		tasks.Go(func() error { return judge(ctx) })
		tasks.Go(func() error { return audit.Run(ctx) })
		return tasks.Wait()
	}
	return l, nil
}

// marks returns what the ruleset of testbed.queue understands.
func (s *settings) marks() (engine.Marks, error) {
	if s.Mask == 0 {
		return engine.Marks{}, nil
	}
	m, err := hook.NewMarks(s.Mask)
	if !s.Offload {
		m.Accept = 0
	}
	return engine.Marks{Mask: m.Mask, Reject: m.Reject, Reply: m.Reply, Related: m.Related, Accept: m.Accept}, err
}

// openGoNFQueue runs go-nfqueue as its example does, but for what is the same
// for all peers (sizes and flags) and for errors, which must not end the loop.
func openGoNFQueue(ctx context.Context, s *settings) (*loop, error) {
	if s.Queues != 1 {
		return nil, fmt.Errorf("%d queues: only one is measured", s.Queues)
	}
	nf, err := nfqueue.Open(&nfqueue.Config{
		MaxPacketLen: uint32(s.CopyRange), MaxQueueLen: uint32(s.MaxLen),
		Copymode: nfqueue.NfQnlCopyPacket, Flags: nfqueue.NfQaCfgFlagGSO | nfqueue.NfQaCfgFlagUIDGid,
	})
	if err != nil {
		return nil, err
	}
	raw, err := nf.Con.SyscallConn()
	if err != nil {
		return nil, err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, s.RecvBuffer),
			unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1),
		)
	})
	if err := errors.Join(err, optErr); err != nil {
		return nil, err
	}
	var packets atomic.Uint64
	err = nf.RegisterWithErrorFunc(ctx, func(a nfqueue.Attribute) int {
		if nf.SetVerdict(*a.PacketID, nfqueue.NfAccept) == nil {
			packets.Add(1)
		}
		return 0
	}, func(error) int { return 0 })
	if err != nil {
		return nil, err
	}
	return &loop{
		run: func(ctx context.Context) error {
			<-ctx.Done()
			return nil // the process ends, and its socket with it
		},
		packets: packets.Load,
	}, nil
}
