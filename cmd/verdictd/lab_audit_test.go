package main_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabNFLog reads what NFLOG rules of the user report into the audit log.
func TestLabNFLog(t *testing.T) {
	setup(t, labtest.NFLog)
	const count = 300
	network := labtest.Pair(t)
	log := filepath.Join(t.TempDir(), "eve.json")
	d := startDaemon(t, network.Server, acceptAll, "--nflog-group", "5-6", "--log", log)
	rule := func(group string, port uint16) {
		labtest.BothTables(t, network.Server, "-A", "INPUT", "-p", "udp", "--dport", fmt.Sprint(port),
			"-j", "NFLOG", "--nflog-group", group, "--nflog-prefix", "in on "+fmt.Sprint(port)+": ")
	}
	rule("5", sinkPort)
	rule("6", deniedSinkPort)
	ports := map[uint16]uint16{5: sinkPort, 6: deniedSinkPort} // by group
	for _, addr := range []string{"10.99.0.2", "fd99::2"} {
		for _, port := range ports {
			flood(t, network.Client, lab.Flood{To: to(addr, port), Count: count})
		}
	}
	var reported uint64
	for _, r := range append(labtest.Counters(t, network.Server, "", "INPUT"), labtest.Counters6(t, network.Server, "", "INPUT")...) {
		reported += r.Packets
	}
	if code := d.Stop(); code != 0 || reported != 4*count {
		t.Errorf("got exit code %d and %d packets reported by the rules, want 0 and %d", code, reported, 4*count)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var logged, lost uint64
	got := make(map[netip.AddrPort]int)
	for _, r := range parse(t, string(text)) {
		lost += r.Own.Lost
		if r.Type != "packet" {
			continue
		}
		logged++
		got[netip.AddrPortFrom(r.Dst, r.DstPort)]++
		if want := fmt.Sprintf("in on %d: ", ports[r.Own.Group]); r.Own.Prefix != want || r.DstPort != ports[r.Own.Group] || r.In != "eth0" || r.Own.Hook != "input" {
			t.Errorf("got %+v, want prefix %q", r, want)
		}
	}
	if logged+lost != reported || len(got) != 4 {
		t.Errorf("got %d packets logged to %v and %d lost, want %d together", logged, got, lost, reported)
	}
}

// TestLabUID tells the sockets of two users apart.
func TestLabUID(t *testing.T) {
	setup(t)
	const policy = `package verdictd

decision := {"verdict": "accept", "rule": "her"} if input.uid == 1001
`
	const count = 50
	network := labtest.Pair(t)
	got := sink(t, network.Server, sinkPort)
	d := startDaemon(t, network.Client, policy, "--hook", "output")
	var allowed []netip.AddrPort
	for _, addr := range []string{"10.99.0.2", "fd99::2"} {
		for _, uid := range []int{1001, 1002} {
			c := listenAs(t, network.Client, uid)
			for range count {
				send(t, c, net.UDPAddrFromAddrPort(to(addr, sinkPort)), "from one of the two")
			}
			if uid == 1001 {
				allowed = append(allowed, c.LocalAddr().(*net.UDPAddr).AddrPort())
			}
		}
	}
	if !lab.Poll(wait, func() bool { return got.Received().Datagrams == 2*count }) {
		t.Errorf("got %d datagrams, want %d", got.Received().Datagrams, 2*count)
	}
	s := d.finish()
	for from, n := range got.Received().Sources {
		if n != count || !slices.ContainsFunc(allowed, func(a netip.AddrPort) bool { return a.Port() == from.Port() }) {
			t.Errorf("got %d datagrams from %s, want %d and only from %v", n, from, count, allowed)
		}
	}
	decided := d.records(func(r *record) bool { return r.decided() && r.DstPort == sinkPort })
	for _, r := range decided {
		action := map[uint32]string{1001: "accept", 1002: "drop"}
		if r.Own.UID == nil || r.Verdict.Action != action[*r.Own.UID] {
			t.Errorf("got %+v, want a verdict by uid %v", r, action)
		}
	}
	if len(decided) != 4 || s.accepted != 2*count {
		t.Errorf("got %d decisions and %d packets accepted, want 4 and %d", len(decided), s.accepted, 2*count)
	}
}

// listenAs opens a UDP socket for both families that belongs to the user.
func listenAs(t *testing.T, ns *lab.Namespace, uid int) (c *net.UDPConn) {
	t.Helper()
	err := ns.Do(func() error {
		// Of this thread only; the kernel notes it in the socket's file.
		if err := unix.Setfsuid(uid); err != nil {
			return err
		}
		var err error
		c, err = net.ListenUDP("udp", nil)
		return errors.Join(err, unix.Setfsuid(0))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestLabMonitor lets everything pass and records what a policy would have
// dropped; so does verdictd without a policy, which would drop nothing.
func TestLabMonitor(t *testing.T) {
	const count = 100
	tests := []struct {
		name, policy string
		args         []string
		would        string
		wouldN       uint64
	}{
		{"policy", portsPolicy, []string{"--mode", "monitor"}, "drop", 2 * count},
		{"built-in policy", "", nil, "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			setup(t)
			network := labtest.Pair(t)
			good, bad := sink(t, network.Server, sinkPort), sink(t, network.Server, deniedSinkPort)
			d := startDaemon(t, network.Client, tt.policy, tt.args...)
			d.rule("OUTPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "0")
			floodAll(t, network.Client, lab.Flood{Count: count}, addrs("10.99.0.2", "fd99::2"), good, bad)
			want(t, good, 2*count)
			want(t, bad, 2*count)
			if s := d.finish(); s.accepted != 4*count || s.dropped != 0 || s.wouldDrop != tt.wouldN {
				t.Errorf("got %+v, want %d accepted and %d that would be dropped", s, 4*count, tt.wouldN)
			}
			decided := d.records((*record).decided)
			for _, r := range decided {
				would, mode := "", ""
				if r.DstPort == deniedSinkPort && tt.would != "" {
					would, mode = tt.would, "monitor"
				}
				if r.Verdict.Action != "accept" || r.Own.Would != would || r.Own.Mode != mode {
					t.Errorf("got %s, would %q, mode %q, want accept, %q, %q", r.Verdict.Action, r.Own.Would, r.Own.Mode, would, mode)
				}
			}
			if len(decided) != 4 {
				t.Errorf("got %d decisions, want 4", len(decided))
			}
		})
	}
}

// TestLabDemo runs the demo in a namespace of its own and compares what it
// prints, and that nothing is left behind.
func TestLabDemo(t *testing.T) {
	setup(t)
	ns := namespace(t, "demo")
	tmp := t.TempDir()
	mark := "VERDICTD_LAB_DEMO=" + tmp
	p := labtest.Start(t, labtest.DaemonConfig{NS: ns, Args: []string{"demo"}, Env: []string{mark, "TMPDIR=" + tmp}})
	if code := p.Wait(); code != 0 || p.Stderr() != "" {
		t.Errorf("got exit code %d and %q, want 0 and silence", code, p.Stderr())
	}
	// What, hook, protocol, to, verdict, rule, what the sender saw.
	lines := []string{
		"web output tcp 10.99.0.2:443 accept web answered",
		"web, IPv6 output tcp [fd99::2]:443 accept web answered",
		"name lookup output udp 10.99.0.2:53 accept dns answered",
		"clock output udp [fd99::2]:123 accept ntp answered",
		"ping output icmp 10.99.0.2 accept icmp answered",
		"ping, IPv6 output icmp fd99::2 accept icmp answered",
		"telnet output tcp 10.99.0.2:23 reject clear-text refused telnet sends passwords in clear text",
		"some other port output tcp 10.99.0.2:8081 drop default silent no rule accepts it",
		"the same, IPv6 output tcp [fd99::2]:8081 drop default silent no rule accepts it",
		"some other datagram output udp 10.99.0.2:9999 drop default silent no rule accepts it",
		"ssh comes in input tcp 10.99.0.1:22 accept ssh answered from the management network",
		"database comes in input tcp 10.99.0.1:5432 drop default silent no rule accepts it",
	}
	var got []string
	for line := range strings.Lines(p.Stdout()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	if len(got) < 3 || !slices.Equal(lines, got[3:min(len(got), 3+len(lines))]) {
		t.Errorf("got\n%s\nwant the lines\n%s", p.Stdout(), strings.Join(lines, "\n"))
	}
	if _, err := hook.Show(hook.Config{NetNS: ns.FD()}); !errors.Is(err, hook.ErrNotInstalled) {
		t.Errorf("got %v, want no rules outside the demo's namespaces", err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
		t.Errorf("got %v, error %v, want no file left", left, err)
	}
	if links, err := ns.Links(); err != nil || len(links) != 1 {
		t.Errorf("got interfaces %v, error %v, want lo only", links, err)
	}
	// Its namespaces live as long as its last process.
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range environments {
		text, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(text), mark) { // else gone meanwhile
			t.Errorf("%s: a process of the demo is left", path)
		}
	}
}
