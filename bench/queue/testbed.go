package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/queue"
)

// Ports on the server. The example policy accepts all three.
const (
	sinkPort = 53
	echoPort = 123
	tcpPort  = 443
)

// manySources is how many addresses the client has.
const manySources = 64

// testbed is a client, a router whose forwarded packets are queued, and a
// server.
type testbed struct {
	client, router, server *lab.Namespace
	serverAddr             netip.Addr
	rules                  *hook.Ruleset
	sink                   int   // socket at sinkPort that counts and discards
	senders                []int // sockets connected to it, one for each source
	senderCPU              int   // where traffic is made; -1 for anywhere
	receiverCPU            int   // where TCP's server runs; the same
}

// newTestbed makes everything but the rules.
func newTestbed(senderCPU, receiverCPU int) (*testbed, error) {
	t := &testbed{serverAddr: netip.MustParseAddr("10.99.2.2"), sink: -1, senderCPU: senderCPU, receiverCPU: receiverCPU}
	for _, ns := range []struct {
		name string
		slot **lab.Namespace
	}{{"client", &t.client}, {"router", &t.router}, {"server", &t.server}} {
		made, err := lab.NewNamespace(ns.name)
		if err != nil {
			return nil, errors.Join(err, t.close())
		}
		*ns.slot = made
	}
	for _, step := range []func() error{t.wire, t.openSink, t.openSenders} {
		if err := step(); err != nil {
			return nil, errors.Join(err, t.close())
		}
	}
	return t, nil
}

func (t *testbed) close() error {
	for _, fd := range append(t.senders, t.sink) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	return errors.Join(t.unqueue(), t.client.Close(), t.router.Close(), t.server.Close())
}

// source returns the client's address number i.
func source(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, 1, byte(2 + i)}) }

func (t *testbed) wire() error {
	var sources []netip.Prefix
	for i := range manySources {
		sources = append(sources, netip.PrefixFrom(source(i), 24))
	}
	clientGW, serverGW := netip.MustParseAddr("10.99.1.1"), netip.MustParseAddr("10.99.2.1")
	err := lab.Link(t.client, t.router, lab.LinkConfig{
		AddrsA: sources, AddrsB: []netip.Prefix{netip.PrefixFrom(clientGW, 24)},
	})
	if err != nil {
		return err
	}
	err = lab.Link(t.router, t.server, lab.LinkConfig{
		NameA: "eth1", AddrsA: []netip.Prefix{netip.PrefixFrom(serverGW, 24)},
		AddrsB: []netip.Prefix{netip.PrefixFrom(t.serverAddr, 24)},
	})
	if err != nil {
		return err
	}
	anywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	return errors.Join(
		t.client.AddRoute(anywhere, clientGW),
		t.server.AddRoute(anywhere, serverGW),
		t.router.SetForwarding(true),
	)
}

// queue makes the router queue what it forwards, over so many queues and with
// such marks as s says, by the ruleset that verdictd itself installs. No packet
// may come before the queues are bound.
func (t *testbed) queue(s *settings) error {
	if t.rules != nil {
		c := t.rules.Config()
		if int(c.QueueLast) == s.Queues-1 && c.Mask == s.Mask && c.Offload == s.Offload {
			return nil
		}
	}
	if err := t.unqueue(); err != nil {
		return err
	}
	rules, err := hook.Install(hook.Config{
		Hooks: []hook.Hook{hook.Forward}, QueueLast: uint16(s.Queues - 1), NetNS: t.router.FD(),
		Mask: s.Mask, Offload: s.Offload,
	})
	if err != nil {
		return err
	}
	t.rules = rules
	return nil
}

// unqueue takes the rules out. No packet may be queued.
func (t *testbed) unqueue() error {
	if t.rules == nil {
		return nil
	}
	err := t.rules.Close()
	t.rules = nil
	return err
}

// tracked is a table at the hook that queue uses, which makes the kernel track
// connections and does no more.
const tracked = `table inet bench {
	chain forward {
		type filter hook forward priority 10
		ct state invalid counter
	}
}
`

// track has forwarded packets tracked in place of queued.
func (t *testbed) track(ctx context.Context) error {
	return errors.Join(t.unqueue(), t.nft(ctx, tracked))
}

// untrack ends what track began.
func (t *testbed) untrack(ctx context.Context) error { return t.nft(ctx, "delete table inet bench\n") }

// nft runs nft in the router with commands.
func (t *testbed) nft(ctx context.Context, commands string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(commands)
	var out []byte
	err := t.router.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		return fmt.Errorf("run nft: %w: %s", err, out)
	}
	return nil
}

// backlog returns how many packets wait in the router's queues, and how many
// the kernel has dropped because a queue or its receive buffer was full.
func (t *testbed) backlog() (waiting, dropped int, err error) {
	var queues []queue.Kernel
	err = t.router.Do(func() error {
		queues, err = queue.ReadKernel(0)
		return err
	})
	for _, q := range queues {
		waiting += int(q.Depth)
		dropped += int(q.QueueDropped) + int(q.UserDropped)
	}
	return waiting, dropped, err
}
