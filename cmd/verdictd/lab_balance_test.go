package main_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabBalance spreads the packets of 64 senders over four queues.
func TestLabBalance(t *testing.T) {
	setup(t)
	const senders, each = 64, 20
	// Of 64 sources the upper half is accepted: .32 to .63 and :20 to :3f.
	const policy = `package verdictd

decision := {"verdict": "accept", "rule": "upper half"} if {
	some network in {"10.98.0.32/27", "fd98::1:20/123"}
	net.cidr_contains(network, input.ip.src)
}
`
	client, server, sources := manySenders(t, senders)
	d := startDaemon(t, server, policy, "--queue", "0-3")
	d.rule("INPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-balance", "0:3")
	got := sink(t, server, sinkPort)
	for family, addr := range []string{"10.98.1.1", "fd98::2:1"} {
		flood(t, client, lab.Flood{
			To: to(addr, sinkPort), From: sources[family], Count: senders * each, First: uint32(family * senders * each),
		})
	}
	want(t, got, senders*each)
	s := d.finish()
	if s.packets != 2*senders*each || s.accepted != senders*each {
		t.Errorf("got %d packets and %d accepted, want %d and %d", s.packets, s.accepted, 2*senders*each, senders*each)
	}
	received := make(map[netip.Addr]int)
	for from, n := range got.Received().Sources {
		received[from.Addr()] += n
	}
	queues := make(map[uint16]int)
	for _, r := range d.records((*record).decided) {
		queues[r.Own.Queue]++
		last := r.Src.AsSlice()[len(r.Src.AsSlice())-1]
		action, datagrams := "drop", 0
		if last >= senders/2 {
			action, datagrams = "accept", each
		}
		if r.Verdict.Action != action || received[r.Src] != datagrams {
			t.Errorf("source %s on queue %d: got %s and %d datagrams, want %s and %d", r.Src, r.Own.Queue, r.Verdict.Action, received[r.Src], action, datagrams)
		}
	}
	if len(queues) != 4 || queues[0]+queues[1]+queues[2]+queues[3] != 2*senders {
		t.Errorf("got flows %v by queue, want %d on the queues 0 to 3", queues, 2*senders)
	}
}

// manySenders links a client with many addresses, 10.98.0.0 and fd98::1:0
// upwards, to a server, 10.98.1.1 and fd98::2:1. The sources are by family.
func manySenders(t *testing.T, count int) (client, server *lab.Namespace, sources [2][]netip.AddrPort) {
	t.Helper()
	client, server = namespace(t, "client"), namespace(t, "server")
	cfg := lab.LinkConfig{AddrsB: []netip.Prefix{netip.MustParsePrefix("10.98.1.1/14"), netip.MustParsePrefix("fd98::2:1/64")}}
	for i := range count {
		for family, text := range []string{fmt.Sprintf("10.98.0.%d/14", i), fmt.Sprintf("fd98::1:%x/64", i)} {
			p := netip.MustParsePrefix(text)
			cfg.AddrsA = append(cfg.AddrsA, p)
			sources[family] = append(sources[family], netip.AddrPortFrom(p.Addr(), 0))
		}
	}
	if err := lab.Link(client, server, cfg); err != nil {
		t.Fatal(err)
	}
	return client, server, sources
}

func namespace(t *testing.T, name string) *lab.Namespace {
	t.Helper()
	ns, err := lab.NewNamespace(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// outgoing accepts what this host starts, and no flow that comes in.
const outgoing = `package verdictd

decision := {"verdict": "accept", "rule": "outgoing"} if {
	input.direction == "out"
	input.dst_port in {7001, 7003}
} else := {"verdict": "accept", "rule": "ping"} if {
	input.direction == "out"
	input.icmp.type in {8, 128}
	input.packet.length < 100
}
`

// TestLabTwoQueues sends the two directions of flows to two queues: answers
// must find the flow that the other queue accepted.
func TestLabTwoQueues(t *testing.T) {
	setup(t)
	net := labtest.Pair(t)
	d := startDaemon(t, net.Client, outgoing, "--queue", "10-11")
	d.rule("OUTPUT", "-j", "NFQUEUE", "--queue-num", "10")
	d.rule("INPUT", "-j", "NFQUEUE", "--queue-num", "11")
	echo(t, net.Server, echoPort, deniedEchoPort)
	echo(t, net.Client, echoPort)
	asked := questions(net.Client, addrs("10.99.0.2", "fd99::2")...)
	for _, q := range questions(net.Server, addrs("10.99.0.1", "fd99::1")...) {
		q.Timeout, q.want = silence, lab.Silent // nobody may come in
		asked = append(asked, q)
	}
	ask(t, asked)
	d.finish()
	for _, r := range d.records((*record).decided) {
		queue, action := uint16(10), "drop"
		if r.Own.Hook == "input" {
			queue = 11
		}
		if r.Own.Rule == "outgoing" || r.Own.Rule == "ping" || r.Own.Reason == "established" {
			action = "accept"
		}
		if r.Own.Queue != queue || r.Verdict.Action != action {
			t.Errorf("got %s on queue %d, want %s on queue %d: %+v", r.Verdict.Action, r.Own.Queue, action, queue, r)
		}
	}
	for _, q := range []uint16{10, 11} {
		if len(d.records(func(r *record) bool { return r.decided() && r.Own.Queue == q })) == 0 {
			t.Errorf("got no decision from queue %d", q)
		}
	}
}
