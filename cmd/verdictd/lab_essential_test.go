package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabEssential lets a host that is judged by the example stay on its
// network: it renews leases of a DHCP server, joins groups, hears queries, and
// gets the answers to what it asks by multicast, and nothing that it did not ask.
func TestLabEssential(t *testing.T) {
	setup(t, labtest.Dnsmasq, labtest.Busybox)
	example, err := os.ReadFile(filepath.Join(labtest.Repository(t), "policy.rego.example"))
	if err != nil {
		t.Fatal(err)
	}
	network := labtest.Pair(t)
	serveLeases(t, network.Server)
	d := startDaemon(t, network.Client, string(example), "--hook", "output,input")

	renewLease(t, network.Client)
	askDHCPv6(t, network.Client)
	joinGroups(t, network.Client)
	sendQueries(t, network.Server)
	unasked := 0
	for _, group := range []string{"224.0.0.251:5353", "239.255.255.250:1900"} {
		unasked += askGroup(t, network, group)
	}

	rules := map[string]int{}
	dropped := 0
	ok := lab.Poll(wait, func() bool {
		clear(rules)
		dropped = 0
		for _, r := range d.records((*record).decided) {
			rules[r.Own.Hook+" "+r.Own.Rule]++
			if r.Type == "drop" {
				dropped++
			}
		}
		for _, rule := range []string{
			"output dhcp", "output igmp", "input igmp", "output mld", "input mld", "output multicast-question", "input multicast-answer",
		} {
			if rules[rule] == 0 {
				return false
			}
		}
		return dropped == unasked
	})
	if !ok {
		t.Errorf("decisions by rule: %v, of them %d dropped, want each kind and %d dropped\n%s", rules, dropped, unasked, d.Stdout())
	}
	d.finish()
}

// inNamespace starts a program in the namespace; it is stopped at the end.
func inNamespace(t *testing.T, ns *lab.Namespace, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("%s: %s", name, out)
		}
	})
	return cmd
}

// serveLeases serves addresses of both families.
func serveLeases(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	inNamespace(t, ns, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file=", "--interface=eth0", "--bind-interfaces",
		"--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"), "--dhcp-range=10.99.0.50,10.99.0.60,2m", "--dhcp-range=fd99::50,fd99::60,2m",
		"--log-dhcp", "--log-facility=-", "--dhcp-authoritative", "--no-ping")
}

// renewLease gets a lease and renews it: the first by a packet socket, which
// passes no hook, the second as any UDP.
func renewLease(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	dir := t.TempDir()
	log, script := filepath.Join(dir, "log"), filepath.Join(dir, "script")
	text := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = bound ] && ip addr add \"$ip/24\" dev \"$interface\"\necho \"$1\" >> %s\n", log)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	client := inNamespace(t, ns, "busybox", "udhcpc", "-f", "-i", "eth0", "-s", script, "-t", "20", "-T", "1", "-A", "1")
	heard := func(word string) bool {
		return lab.Poll(wait, func() bool {
			b, _ := os.ReadFile(log) // not there yet
			return strings.Contains(string(b), word)
		})
	}
	if !heard("bound") {
		t.Fatal("no lease")
	}
	if err := client.Process.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if !heard("renew") {
		t.Error("the lease was not renewed")
	}
}

// socket opens a socket for UDP or raw packets at eth0 of the namespace.
func socket(t *testing.T, ns *lab.Namespace, network, at string) net.PacketConn {
	t.Helper()
	var conn net.PacketConn
	cfg := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		cerr := raw.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "eth0") })
		return errors.Join(cerr, err)
	}}
	err := ns.Do(func() (err error) {
		conn, err = cfg.ListenPacket(context.Background(), network, at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// write sends bytes to an address, which may have a zone.
func write(t *testing.T, conn net.PacketConn, to net.Addr, b []byte) {
	t.Helper()
	if _, err := conn.WriteTo(b, to); err != nil {
		t.Fatal(err)
	}
}

// receives returns whether a packet comes in time, and from whom.
func receives(t *testing.T, conn net.PacketConn, limit time.Duration) (from net.Addr, ok bool) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	_, from, err := conn.ReadFrom(make([]byte, 2048))
	return from, err == nil
}

// askDHCPv6 asks for the configuration by multicast (RFC 8415, 18.2.6).
func askDHCPv6(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	conn := socket(t, ns, "udp6", "[::]:546")
	request := []byte{
		11, 1, 2, 3, // Information-request, its transaction
		0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 1, // client: DUID-LL, Ethernet
		0, 8, 0, 2, 0, 0, // elapsed time
		0, 6, 0, 2, 0, 23, // asks for name servers
	}
	to := &net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: 547, Zone: "eth0"}
	for range 20 { // the server may not listen yet
		inZone(t, ns, func() { write(t, conn, to, request) })
		if from, ok := receives(t, conn, time.Second/2); ok {
			if at := netip.MustParseAddrPort(from.String()); at.Port() != 547 || !at.Addr().IsLinkLocalUnicast() {
				t.Errorf("answer from %v", from)
			}
			return
		}
	}
	t.Error("no answer by DHCPv6")
}

// inZone calls f where the zones of addresses are looked up in the namespace.
func inZone(t *testing.T, ns *lab.Namespace, f func()) {
	t.Helper()
	if err := ns.Do(func() error { f(); return nil }); err != nil {
		t.Fatal(err)
	}
}

// joinGroups makes the kernel report that it listens to groups.
func joinGroups(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	join4(t, ns, socket(t, ns, "udp4", "0.0.0.0:0"), "239.1.2.3")
	conn := socket(t, ns, "udp6", "[::]:0")
	mreq := &unix.IPv6Mreq{Interface: uint32(index(t, ns))}
	copy(mreq.Multiaddr[:], net.ParseIP("ff02::1234"))
	option(t, conn, func(fd int) error { return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, mreq) })
}

func join4(t *testing.T, ns *lab.Namespace, conn net.PacketConn, group string) {
	t.Helper()
	mreq := &unix.IPMreqn{Multiaddr: netip.MustParseAddr(group).As4(), Ifindex: int32(index(t, ns))}
	option(t, conn, func(fd int) error { return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, mreq) })
}

func option(t *testing.T, conn net.PacketConn, f func(fd int) error) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	if err := errors.Join(cerr, err); err != nil {
		t.Fatal(err)
	}
}

// index returns the number of eth0.
func index(t *testing.T, ns *lab.Namespace) int {
	t.Helper()
	links, err := ns.Links()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Name == "eth0" {
			return l.Index
		}
	}
	t.Fatal("no eth0")
	return 0
}

// sendQueries asks who listens to groups, as routers do; the kernel sends
// multicast with TTL 1.
func sendQueries(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	inZone(t, ns, func() {
		write(t, socket(t, ns, "ip4:2", "10.99.0.2"), &net.IPAddr{IP: net.ParseIP("224.0.0.1")}, []byte{0x11, 1, 0xee, 0xfe, 0, 0, 0, 0})
		query := append([]byte{130, 0, 0, 0, 0, 100, 0, 0}, make([]byte, 16)...)
		write(t, socket(t, ns, "ip6:58", "::"), &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: "eth0"}, query)
	})
}

// askGroup asks a group, of which the server is a member, and gets its answer,
// which comes from another port. What comes before the question does not arrive.
// It returns how many such packets there were.
func askGroup(t *testing.T, network *lab.Network, group string) int {
	t.Helper()
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(group))
	member := socket(t, network.Server, "udp4", fmt.Sprintf("0.0.0.0:%d", to.Port))
	join4(t, network.Server, member, to.IP.String())
	responder := socket(t, network.Server, "udp4", "10.99.0.2:0")
	asker := socket(t, network.Client, "udp4", "10.99.0.1:0")

	write(t, responder, asker.LocalAddr(), []byte("unasked"))
	if _, ok := receives(t, asker, silence); ok {
		t.Errorf("%s: got what it had not asked for", group)
	}
	for i := range 3 { // each question has answers, not the first one only
		write(t, asker, to, []byte("who is there?"))
		from, ok := receives(t, member, wait)
		if !ok {
			t.Fatalf("%s: question %d did not arrive", group, i)
		}
		another := socket(t, network.Server, "udp4", "10.99.0.2:0")
		write(t, another, from, []byte("I am"))
		if _, ok := receives(t, asker, wait); !ok {
			t.Errorf("%s: no answer to question %d", group, i)
		}
	}
	return 1
}
