package main_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
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
		{"ipv4 source route has addresses left", sourceRoute(t)},
		{"ipv6 routing header has segments left", make6(unix.IPPROTO_ROUTING, append(routing, tcpHeader()...))},
	}
}

// options returns a header of destination options with that many bytes of padding.
func options(next byte, padding int) []byte {
	b := []byte{next, 0, 1, 4, 0, 0, 0, 0} // PadN
	for rest := padding; rest > 0; rest -= 254 {
		n := min(rest, 254)
		b = append(append(b, 1, byte(n-2)), make([]byte, n-2)...)
	}
	for len(b)%8 != 0 {
		b = append(b, 0) // Pad1
	}
	b[1] = byte(len(b)/8 - 1)
	return b
}

// sourceRoute returns a packet that goes on from the server to another address.
func sourceRoute(t *testing.T) []byte {
	t.Helper()
	p := ipPacket(t, client4, server4, unix.IPPROTO_TCP, tcpHeader())
	route := append([]byte{131, 7, 4}, append(netip.MustParseAddr(client4).AsSlice(), 0)...)
	p = slices.Insert(p, 20, route...)
	p[0] = 4<<4 | 7
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	p[10], p[11] = 0, 0
	sum := uint32(0)
	for i := range 28 {
		sum += uint32(p[i]) << (8 * (1 - i&1))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	return p
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
// accepts all. By default they are dropped, under --fail open too; with --malformed
// accept they pass.
func TestLabMalformed(t *testing.T) {
	for _, setting := range [][]string{{"--fail", "closed"}, {"--fail", "open"}, {"--fail", "closed", "--malformed", "accept"}} {
		t.Run(strings.Join(setting, " "), func(t *testing.T) {
			setup(t)
			net := labtest.Router(t)
			for _, iface := range []string{"all", "eth0"} { // else the kernel drops source routes before any hook
				if err := net.Router.Sysctl("net/ipv4/conf/"+iface+"/accept_source_route", "1"); err != nil {
					t.Fatal(err)
				}
			}
			d := startDaemon(t, net.Router, acceptAll, append(setting, "--copy-range", "1024")...)
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
			if len(setting) > 2 {
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

// TestLabLongHeaders: ports behind more extension headers than the kernel copies at
// first are judged, and a sender of such packets is past no policy.
func TestLabLongHeaders(t *testing.T) {
	setup(t)
	net := labtest.Router(t)
	d := observe(t, net.Router, portsPolicy, "--fail", "open", "--hook", "forward")
	arrived := capture(t, net.Server, func(p []byte) bool { return isTo(p, server6) && len(p) > 200 })
	const each = 5
	for _, padding := range []int{240, 1000} {
		for _, port := range []uint16{sinkPort, deniedSinkPort} {
			udp := make([]byte, 8)
			binary.BigEndian.PutUint16(udp, 40000)
			binary.BigEndian.PutUint16(udp[2:], port)
			binary.BigEndian.PutUint16(udp[4:], 8)
			p := ipPacket(t, client6, server6, unix.IPPROTO_DSTOPTS, append(options(unix.IPPROTO_UDP, padding), udp...))
			if err := net.Client.Inject("eth0", slices.Repeat([][]byte{p}, each)...); err != nil {
				t.Fatal(err)
			}
		}
	}
	const pass = 2 * each
	if n := arrived.Wait(pass+1, silence); n != pass {
		t.Errorf("%d packets arrived, want the %d to the port that is open", n, pass)
	}
	if a := d.books(2 * pass).Total; a.Dropped != pass || a.Accepted != pass || a.Queued != 2*pass || a.Unexplained != 0 {
		t.Errorf("got %+v, want %d accepted and as many dropped", a, pass)
	}
	d.Stop() // the rules have seen some packets twice
	if s := d.summary(); s.malformed != 0 || s.packets != 2*pass {
		t.Errorf("got %+v, want %d packets, none malformed", s, 2*pass)
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
