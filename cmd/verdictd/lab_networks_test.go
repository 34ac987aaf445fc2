package main_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

const dropAll = `package verdictd

decision := {"verdict": "drop", "rule": "nothing-leaves"}
`

// nft runs a script of nft in the namespace.
func nft(t *testing.T, ns *lab.Namespace, script string) string {
	t.Helper()
	return labtest.Output(t, ns, "nft", script)
}

// ip runs ip in the namespace.
func ip(t *testing.T, ns *lab.Namespace, args string) {
	t.Helper()
	labtest.Output(t, ns, "ip", strings.Fields(args)...)
}

// TestLabLoopbackNAT sends to addresses of this host that a NAT turns elsewhere:
// at OUTPUT the kernel's interface is lo. What leaves is judged; what a NAT keeps
// here passes by the queue, as all else over lo.
func TestLabLoopbackNAT(t *testing.T) {
	setup(t, labtest.NFTBinary)
	for _, printed := range []bool{false, true} {
		lan := labtest.Pair(t)
		echo(t, lan.Server, echoPort)
		echo(t, lan.Client, echoPort)
		nft(t, lan.Client, `add table inet n { chain o { type nat hook output priority -100;
			ip daddr 10.99.0.1 th dport 8080 meta l4proto { tcp, udp } dnat ip to 10.99.0.2:7001;
			ip6 daddr fd99::1 th dport 8080 meta l4proto { tcp, udp } dnat ip6 to [fd99::2]:7001;
			th dport 8081 meta l4proto { tcp, udp } redirect to :7001; }; }`)
		args := []string{"--hook", "output"}
		if printed {
			args = nil
		}
		d := startDaemon(t, lan.Client, dropAll, args...)
		if printed {
			printedRules(t, lan.Client, "--hook", "output")
		}
		for _, proto := range []lab.Proto{lab.TCP, lab.UDP} {
			for _, tt := range []struct {
				to    string
				stays bool
			}{
				{"10.99.0.2:7001", false}, {"10.99.0.1:8080", false}, {"[fd99::1]:8080", false},
				{"10.99.0.1:7001", true}, {"127.0.0.1:8081", true}, {"[::1]:8081", true}, {"[fd99::1]:7001", true},
			} {
				got, err := lan.Client.Probe(lab.Probe{Proto: proto, To: netip.MustParseAddrPort(tt.to), Timeout: silence})
				if err != nil || (got == lab.Answered) != tt.stays {
					t.Errorf("printed %t: %s to %s: got %s, error %v; answered: want %t", printed, proto, tt.to, got, err, tt.stays)
				}
			}
		}
		d.Stop()
	}
}

// TestLabKernelErrors sends packets that the router cannot forward. Its messages
// carry a connection that was never confirmed, which the kernel does not queue.
func TestLabKernelErrors(t *testing.T) {
	setup(t)
	lan := labtest.Router(t)
	ip(t, lan.Router, "route add unreachable 10.99.9.0/24")
	ip(t, lan.Router, "route add unreachable fd99:9::/64")
	d := observe(t, lan.Router, acceptAll, "--hook", "output")
	isError := func(p []byte) bool {
		return p[0]>>4 == 4 && p[9] == 1 && (p[20] == 3 || p[20] == 11) || p[0]>>4 == 6 && p[6] == 58 && (p[40] == 1 || p[40] == 3)
	}
	got := capture(t, lan.Client, isError)
	sent := 0
	for _, tt := range [][3]string{{client4, server4, "10.99.9.9"}, {client6, server6, "fd99:9::9"}} {
		for port, dst := range tt[1:] {
			p, err := lab.UDPPacket(to(tt[0], uint16(40000+port)), to(dst, 9), []byte("probe"))
			if err != nil {
				t.Fatal(err)
			}
			if dst == tt[1] {
				p[map[byte]int{4: 8, 6: 7}[p[0]>>4]] = 1 // TTL or hop limit; a raw socket fills in the checksum
			}
			if _, err := lan.Client.SendIP(p); err != nil {
				t.Fatal(err)
			}
			sent++
		}
	}
	if n := got.Wait(sent, wait); n != sent {
		t.Errorf("got %d of %d messages of the router", n, sent)
	}
	if l := d.books(0); l.Total.Unexplained != 0 {
		t.Errorf("got %d packets unexplained", l.Total.Unexplained)
	}
}

// TestLabBridge sends a broadcast to two ports of a bridge, whose copies share a
// connection, and makes neighbours find each other across it.
func TestLabBridge(t *testing.T) {
	setup(t)
	sw := namespace(t, "switch")
	ip(t, sw, "link add br0 type bridge mcast_snooping 0")
	ip(t, sw, "link set br0 up")
	for _, family := range []string{"iptables", "ip6tables"} {
		if err := sw.Sysctl("net/bridge/bridge-nf-call-"+family, "1"); err != nil {
			labtest.Lacks(t, labtest.BridgeNetfilter, err)
		}
	}
	var hosts []*lab.Namespace
	for i := 1; i <= 3; i++ {
		host, port := namespace(t, fmt.Sprintf("host%d", i)), fmt.Sprintf("port%d", i)
		cfg := lab.LinkConfig{NameA: port, AddrsB: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.99.5.%d/24", i)), netip.MustParsePrefix(fmt.Sprintf("fd99:5::%d/64", i))}}
		if err := lab.Link(sw, host, cfg); err != nil {
			t.Fatal(err)
		}
		ip(t, sw, "link set "+port+" master br0")
		hosts = append(hosts, host)
	}
	d := observe(t, sw, portsPolicy, "--hook", "forward")
	const count = 10
	sinks := []*lab.Sink{sink(t, hosts[1], sinkPort), sink(t, hosts[2], sinkPort)}
	for i := range uint32(count) { // a flow each
		flood(t, hosts[0], lab.Flood{To: to("10.99.5.255", sinkPort), Count: 1, First: i})
	}
	for _, s := range sinks {
		if got := s.Wait(count, wait); got.Distinct != count {
			t.Errorf("%s: got %d of %d broadcasts", s.Addr(), got.Distinct, count)
		}
	}
	echo(t, hosts[1], echoPort)
	for _, addr := range []string{"10.99.5.2", "fd99:5::2"} {
		got, err := hosts[0].Probe(lab.Probe{Proto: lab.TCP, To: to(addr, echoPort), Timeout: 3 * time.Second})
		if err != nil || got != lab.Answered {
			t.Errorf("%s: got %s, error %v, want %s", addr, got, err, lab.Answered)
		}
	}
	if l := d.books(0); l.Total.Unexplained != 0 || l.Total.Lost.NotQueued != 0 {
		t.Errorf("got %d packets unexplained, %d not queued, want none", l.Total.Unexplained, l.Total.Lost.NotQueued)
	}
	// Who is not known to the bridge yet is sent copies by all ports. The first ones
	// of a flow share a connection, and the kernel queues none of them: that is
	// counted, by its cause, and told. A later one is alone with its connection.
	silent, err := net.ParseMAC("02:00:00:00:99:99")
	if err != nil {
		t.Fatal(err)
	}
	ip(t, hosts[0], "neigh add 10.99.5.9 lladdr "+silent.String()+" dev eth0")
	const flows = 5
	for i := range uint32(flows) {
		flood(t, hosts[0], lab.Flood{To: to("10.99.5.9", sinkPort), Count: 1, First: i})
	}
	lost := func() uint64 { return d.books(0).Total.Lost.NotQueued }
	if !lab.Poll(wait, func() bool { return lost() >= flows }) || lost() > 2*flows {
		t.Errorf("got %d copies counted as not queued, want %d to %d", lost(), flows, 2*flows)
	}
	d.WaitStderr("not_queued")
	t.Logf("%d copies of %d packets were not queued", lost(), flows)
}

// vpnMark has bits of verdictd's default mask: Mullvad's.
const vpnMark = 0x6d6f6c65

// TestLabForeignMark lets a program mark its packets with a whole word that
// decides their route, as VPNs do: the mark stays, and so does the route.
func TestLabForeignMark(t *testing.T) {
	setup(t)
	for _, offload := range []string{"on", "off"} {
		lan := labtest.Pair(t)
		echo(t, lan.Server, echoPort)
		for _, family := range []string{"-4", "-6"} {
			ip(t, lan.Client, family+" rule add not fwmark "+fmt.Sprint(vpnMark)+" lookup 99")
			ip(t, lan.Client, family+" route add unreachable default table 99")
		}
		d := startDaemon(t, lan.Client, acceptAll, "--hook", "output,input", "--offload", offload)
		for _, addr := range []string{"10.99.0.2", "fd99::2"} {
			for mark, want := range map[int]bool{vpnMark: true, vpnMark ^ 1: false} {
				if got := asks(t, lan.Client, addr, mark); got != want {
					t.Errorf("offload %s: %s with mark %#x: answered %t, want %t", offload, addr, mark, got, want)
				}
			}
		}
		d.Stop()
	}
}

// asks says whether the echo server answers datagrams with a packet mark.
func asks(t *testing.T, ns *lab.Namespace, addr string, mark int) bool {
	t.Helper()
	answer := make([]byte, 8)
	err := ns.Do(func() error {
		dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
			failed := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) })
			if failed != nil {
				return failed
			}
			return err
		}}
		c, err := dialer.DialContext(t.Context(), "udp", to(addr, echoPort).String())
		if err != nil {
			return err
		}
		defer c.Close()
		for range 3 { // later packets of an accepted flow too
			if _, err := c.Write([]byte("question")); err != nil {
				return err
			}
			if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				return err
			}
			if _, err := c.Read(answer); err != nil {
				return err
			}
		}
		return nil
	})
	return err == nil && bytes.Equal(answer, []byte("question"))
}

// TestLabAnswerKeepsRoute lets a server with two ways to its client answer by the
// interface that the question came by (IP_PKTINFO), though the other is better.
// A mark that changes in the queue would make the kernel route the answer anew.
func TestLabAnswerKeepsRoute(t *testing.T) {
	setup(t)
	lan := labtest.Pair(t)
	second := lab.LinkConfig{NameA: "eth1", NameB: "eth1", AddrsA: []netip.Prefix{netip.MustParsePrefix("10.99.7.1/24")}, AddrsB: []netip.Prefix{netip.MustParsePrefix("10.99.7.2/24")}}
	if err := lab.Link(lan.Client, lan.Server, second); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []*lab.Namespace{lan.Client, lan.Server} {
		for _, name := range []string{"all", "eth0", "eth1"} {
			if err := ns.Sysctl("net/ipv4/conf/"+name+"/rp_filter", "0"); err != nil {
				t.Fatal(err)
			}
		}
	}
	ip(t, lan.Client, "addr add 10.99.8.1/32 dev lo")
	ip(t, lan.Server, "route add 10.99.8.0/24 via 10.99.0.1 metric 10")
	ip(t, lan.Server, "route add 10.99.8.0/24 via 10.99.7.1 metric 20")
	answerByInterface(t, lan.Server, echoPort)
	// Not final for a UDP socket: each answer goes to the queue, and comes from it.
	policy := strings.Replace(acceptAll, `"rule": "open"}`, "\"rule\": \"open\"} if input.uid != 77\ndecision := {\"verdict\": \"accept\", \"rule\": \"open\"} if not input.uid", 1)
	d := startDaemon(t, lan.Server, policy, "--hook", "output,input")
	wrong := capture(t, lan.Client, func(p []byte) bool { return isTo(p, "10.99.8.1") }) // comes by eth0
	for range 5 {
		got, err := lan.Client.Probe(lab.Probe{Proto: lab.UDP, From: to("10.99.8.1", 0), To: to("10.99.7.2", echoPort)})
		if err != nil || got != lab.Answered {
			t.Errorf("got %s, error %v, want %s", got, err, lab.Answered)
		}
	}
	if n, _ := wrong.Packets(); n > 0 {
		t.Errorf("got %d answers by the better route, want none", n)
	}
	if s := d.finish(); s.packets < 10 {
		t.Errorf("got %d packets in the queue, want questions and answers", s.packets)
	}
}

// answerByInterface echoes datagrams by the interface that they came by.
func answerByInterface(t *testing.T, ns *lab.Namespace, port uint16) {
	t.Helper()
	var conn *net.UDPConn
	err := ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: int(port)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		data, oob := make([]byte, 64), make([]byte, 64)
		for {
			n, control, _, from, err := conn.ReadMsgUDP(data, oob)
			if err != nil {
				return
			}
			clear(oob[20:28]) // ipi_spec_dst and ipi_addr: only the interface counts
			if _, _, err := conn.WriteMsgUDP(data[:n], oob[:control], from); err != nil {
				return
			}
		}
	}()
}

// TestLabFlushed flushes the whole ruleset while datagrams that the policy drops
// are sent. The rules come back because the kernel tells of it, not because of the
// look now and then; the record says who flushed them and for how long they were
// gone; and what gets out does so in that time.
func TestLabFlushed(t *testing.T) {
	setup(t, labtest.NFTBinary)
	lan := labtest.Pair(t)
	d := startDaemon(t, lan.Client, dropAll, "--hook", "output")
	got := sink(t, lan.Server, sinkPort)
	sent := make(chan error, 1)
	const count, rate = 500, 250
	go func() {
		_, err := lan.Client.Flood(t.Context(), lab.Flood{To: to("10.99.0.2", sinkPort), Count: count, Rate: rate})
		sent <- err
	}()
	time.Sleep(silence)
	if n := got.Received().Distinct; n != 0 {
		t.Errorf("%d datagrams got out before", n)
	}
	began := time.Now()
	nft(t, lan.Client, "flush ruleset")
	d.WaitStderr(`by="\"nft\" (pid `)
	open := time.Since(began)
	time.Sleep(silence) // the sink reads what was under way
	out := got.Received().Distinct
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if n := got.Received().Distinct; n != out {
		t.Errorf("%d datagrams got out after the rules were said to be back", n-out)
	}
	if most := int(open.Seconds()*rate) + 1; out > most {
		t.Errorf("%d of %d datagrams got out, want at most %d in %v", out, count, most, open)
	}
	m := regexp.MustCompile(`put in again.* gap=(\S+)`).FindStringSubmatch(d.Stderr())
	if m == nil {
		t.Fatalf("no gap in %s", d.Stderr())
	}
	if gap, err := time.ParseDuration(m[1]); err != nil || gap <= 0 || gap > open {
		t.Errorf("got a gap of %s (%v), want one that the kernel told of, within %v", m[1], err, open)
	}
	t.Logf("%d of %d datagrams got out, gap %s, seen from outside %v", out, count, m[1], open)
}

// TestLabOneOwner starts and stops others beside a daemon whose rules are in: all
// are refused with its process id, and the rules stay.
func TestLabOneOwner(t *testing.T) {
	setup(t)
	ns := labtest.Pair(t).Client
	d := startDaemon(t, ns, acceptAll, "--hook", "output", "--queue", "3")
	for _, args := range [][]string{
		{"run", "--hook", "input", "--queue", "4"}, {"hook", "install"}, {"hook", "remove"},
	} {
		e := labtest.Run(t, ns, args...)
		if want := fmt.Sprintf("(pid %d, ", d.PID()); e.Code == 0 || !strings.Contains(e.Stderr, want) {
			t.Errorf("verdictd %v: got exit code %d, %s want one that names %q", args, e.Code, e.Stderr, want)
		}
	}
	if e := labtest.Run(t, ns, "hook", "show"); !strings.Contains(e.Stdout, "queue to 3") {
		t.Errorf("the rules have changed: %s", e.Stdout)
	}
	d.Stop()
	for _, args := range [][]string{{"hook", "install"}, {"hook", "remove"}} {
		if e := labtest.Run(t, ns, args...); e.Code != 0 {
			t.Errorf("verdictd %v after the end: got exit code %d: %s", args, e.Code, e.Stderr)
		}
	}
}

// TestLabStopTakesMarks ends a daemon that takes its rules out: no connection keeps
// a mark of it, and those of others stay.
func TestLabStopTakesMarks(t *testing.T) {
	setup(t, labtest.Conntrack, labtest.NFTBinary)
	lan := labtest.Pair(t)
	echo(t, lan.Server, echoPort)
	nft(t, lan.Client, "add table inet n { chain o { type filter hook output priority 5; ct mark set ct mark | 0x5; }; }")
	d := startDaemon(t, lan.Client, acceptAll, "--hook", "output,input", "--on-stop", "open")
	if !asks(t, lan.Client, "10.99.0.2", 0) {
		t.Error("not answered")
	}
	if offloaded(t, lan.Client) == 0 {
		t.Error("nothing passed by the queue")
	}
	d.Stop()
	marks := func() (list string) {
		if err := lan.Client.Do(func() error {
			text, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
			list = string(text)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return list
	}
	if list := marks(); !strings.Contains(list, "mark=5 ") || strings.Count(list, "mark=") != strings.Count(list, "mark=5 ")+strings.Count(list, "mark=0 ") {
		t.Errorf("got connections with marks of verdictd, or without those of others: %s", list)
	}
}
