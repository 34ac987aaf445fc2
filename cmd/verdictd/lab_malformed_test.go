package main_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// malformed is a packet that the kernel forwards and no transport would take,
// or that hides what it would deliver.
type malformed struct {
	detail string // what the audit log says
	bytes  []byte
}

func malformedPackets(t *testing.T) []malformed {
	t.Helper()
	make4 := func(proto uint8, payload []byte) []byte { return ipPacket(t, client4, server4, proto, payload) }
	make6 := func(proto uint8, payload []byte) []byte { return ipPacket(t, client6, server6, proto, payload) }
	offset := tcpHeader()
	offset[12] = 4 << 4
	udp := make([]byte, 8)
	binary.BigEndian.PutUint16(udp[4:], 9)
	// Destination options, each 8 bytes with 4 of padding, one after the other.
	chain := bytes.Repeat([]byte{unix.IPPROTO_DSTOPTS, 0, 1, 4, 0, 0, 0, 0}, 65)
	chain[64*8] = unix.IPPROTO_TCP
	routing := append([]byte{unix.IPPROTO_TCP, 2, 0, 1, 0, 0, 0, 0}, make([]byte, 16)...)
	const (
		short = "packet ends inside the transport header"
		tiny  = "first fragment ends inside the transport header"
	)
	return []malformed{
		{short, make4(unix.IPPROTO_TCP, tcpHeader()[:10])},
		{short, make6(unix.IPPROTO_TCP, tcpHeader()[:10])},
		{short, make4(unix.IPPROTO_ICMP, make([]byte, 3))},
		{"tcp data offset below 5", make4(unix.IPPROTO_TCP, offset)},
		{"udp length beyond the packet", make4(unix.IPPROTO_UDP, udp)},
		{tiny, fragment(t, make4(unix.IPPROTO_TCP, tcpHeader()))},
		{tiny, fragment(t, make6(unix.IPPROTO_TCP, tcpHeader()))},
		{"too many ipv6 extension headers", make6(unix.IPPROTO_DSTOPTS, append(chain, tcpHeader()...))},
		{"ipv6 routing header has segments left", make6(unix.IPPROTO_ROUTING, append(routing, tcpHeader()...))},
	}
}

// tcpHeader returns a TCP header with a SYN.
func tcpHeader() []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h[0:], 40000)
	binary.BigEndian.PutUint16(h[2:], echoPort)
	h[12], h[13] = 5<<4, 2
	return h
}

func ipPacket(t *testing.T, from, to string, proto uint8, payload []byte) []byte {
	t.Helper()
	p, err := lab.IPPacket(netip.MustParseAddr(from), netip.MustParseAddr(to), proto, payload)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fragment returns the first 8 bytes of the packet's payload as a fragment.
func fragment(t *testing.T, p []byte) []byte {
	t.Helper()
	all, err := lab.Fragment(p, 8, 7)
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

// TestLabMalformed sends packets that cannot be judged past a policy that
// accepts all. By default they are dropped, with --fail open they pass.
func TestLabMalformed(t *testing.T) {
	for _, fail := range []string{"closed", "open"} {
		t.Run(fail, func(t *testing.T) {
			setup(t)
			net := labtest.Router(t)
			d := startDaemon(t, net.Router, acceptAll, "--fail", fail, "--copy-range", "1024")
			d.rule("FORWARD", "-i", "eth0", "-j", "NFQUEUE", "--queue-num", "0")
			arrived := capture(t, net.Server, func(p []byte) bool { return isTo(p, server4) || isTo(p, server6) })
			const each = 5
			packets := malformedPackets(t)
			wanted := make(map[string]int)
			for _, p := range packets {
				if err := net.Client.Inject("eth0", slices.Repeat([][]byte{p.bytes}, each)...); err != nil {
					t.Fatal(err)
				}
				wanted[p.detail] += each
			}
			good := ipPacket(t, client4, server4, unix.IPPROTO_TCP, tcpHeader())
			short := slices.Clone(good)
			short[0] = 4<<4 | 4 // the kernel drops headers below 20 bytes before any hook
			if err := net.Client.Inject("eth0", short, good); err != nil {
				t.Fatal(err)
			}
			pass := 1
			action, bad := "drop", each*len(packets)
			if fail == "open" {
				action, pass = "accept", 1+bad
			}
			if got := arrived.Wait(pass, wait); got != pass {
				t.Errorf("got %d packets at the server, want %d", got, pass)
			}
			s := d.finish()
			if got, _ := arrived.Packets(); s.malformed != uint64(bad) || s.accepted != uint64(pass) || got != pass {
				t.Errorf("got %+v and %d packets at the server, want %d malformed and %d accepted", s, got, bad, pass)
			}
			checkMalformed(t, d, action, wanted)
		})
	}
}

// checkMalformed checks what the audit log says about malformed packets: how
// many by detail, and what became of them.
func checkMalformed(t *testing.T, d *daemon, action string, wanted map[string]int) {
	t.Helper()
	got := make(map[string]int)
	for _, r := range d.records(func(r *record) bool { return r.decided() && r.Own.Status == "malformed" }) {
		got[r.Own.Detail]++
		if r.Verdict.Action != action || r.Own.Reason != "malformed" || action == "drop" && r.Drop.Reason != "decode error" {
			t.Errorf("got %+v, want %s for being malformed", r, action)
		}
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Errorf("malformed packets in the audit log (-want +got):\n%s", diff)
	}
}

// TestLabStorm sends random bytes: as packets, which the kernel mostly drops
// itself, and behind a valid IP header. verdictd judges what comes and goes on.
func TestLabStorm(t *testing.T) {
	setup(t)
	const bursts, burst = 30, 300
	net := labtest.Router(t)
	echo(t, net.Server, echoPort)
	d := startDaemon(t, net.Router, portsPolicy)
	d.rule("FORWARD", "-j", "NFQUEUE", "--queue-num", "0")
	random := rand.New(rand.NewPCG(1, 2))
	fill := func(b []byte) []byte {
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	for range bursts {
		packets := make([][]byte, burst)
		for i := range packets {
			noise := fill(make([]byte, random.IntN(200)+20))
			switch proto := noise[0]; i % 3 {
			case 0:
				packets[i] = noise
			case 1:
				packets[i] = ipPacket(t, client4, server4, proto, noise[1:])
			default:
				// Mostly extension headers and real protocols: random ones would hardly ever be.
				known := []uint8{0, 6, 17, 43, 44, 51, 58, 60, 132, 136, proto}
				packets[i] = ipPacket(t, client6, server6, known[random.IntN(len(known))], noise[1:])
			}
		}
		if err := net.Client.Inject("eth0", packets...); err != nil {
			t.Fatal(err)
		}
		d.waitJudged(0)
	}
	answered(t, net.Client, "10.99.2.2:7001")
	answered(t, net.Client, "[fd99:2::2]:7001")
	s := d.finish()
	if s.malformed < 1000 || s.packets < bursts*burst/2 {
		t.Errorf("got %+v, want most of the valid headers judged and many of them malformed", s)
	}
	t.Logf("%d random packets: %d judged, %d malformed, %d dropped", bursts*burst, s.packets, s.malformed, s.dropped)
}
