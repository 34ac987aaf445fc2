package main_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// offloaded returns how many packets the rules let pass by the queue.
func offloaded(t *testing.T, ns *lab.Namespace) uint64 {
	t.Helper()
	text, err := hook.Show(hook.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`counter offloaded \{ packets (\d+) `).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no counter of offloaded packets in %s", text)
	}
	return number(t, m[1])
}

// sinkPolicy reads an ICMP field, which no TCP or UDP packet has: its decisions
// about them are final.
const sinkPolicy = `package verdictd

decision := {"verdict": "accept", "rule": "sink"} if {
	input.dst_port == 7003
} else := {"verdict": "accept", "rule": "ping"} if {
	input.icmp.type in {8, 128}
}
`

// TestLabOffloadFlood sends 300,000 datagrams of an accepted flow: next to none
// come up, and all arrive.
func TestLabOffloadFlood(t *testing.T) {
	setup(t)
	const count = 300_000
	for _, addr := range []string{"10.99.2.2", "fd99:2::2"} {
		lan := labtest.Router(t)
		d := startDaemon(t, lan.Router, sinkPolicy, "--hook", "forward")
		got := sink(t, lan.Server, sinkPort)
		flood(t, lan.Client, lab.Flood{To: to(addr, sinkPort), Count: count, Rate: 150_000})
		all := got.Wait(count, wait)
		if all.Distinct+all.Lost < count {
			t.Errorf("%s: got %d datagrams, and %d that the sink had no room for, want %d", addr, all.Distinct, all.Lost, count)
		}
		passed := offloaded(t, lan.Router)
		s := d.finish()
		if s.packets >= 1000 || s.packets+passed < count {
			t.Errorf("%s: %d of %d packets came up and %d passed by, want less than 1000", addr, s.packets, count, passed)
		}
		t.Logf("%s: %d of %d packets came up", addr, s.packets, count)
	}
}

// TestLabRevoke denies flows that pass by the queue. From the moment that the
// new policy is in use no packet of theirs arrives, whoever sends first.
func TestLabRevoke(t *testing.T) {
	setup(t)
	at := []struct {
		hook  string
		ns    func(*lab.Network) *lab.Namespace
		rules bool // the user's own, as printed
	}{
		{"forward", func(n *lab.Network) *lab.Namespace { return n.Router }, false},
		{"forward", func(n *lab.Network) *lab.Namespace { return n.Router }, true},
		{"output,input", func(n *lab.Network) *lab.Namespace { return n.Client }, false},
		{"output,input", func(n *lab.Network) *lab.Namespace { return n.Server }, false},
	}
	for _, tt := range at {
		lan := labtest.Router(t)
		ns := tt.ns(lan)
		name := tt.hook + " at " + ns.Name()
		args := []string{"--hook", tt.hook}
		if tt.rules {
			name += " by own rules"
			args = []string{"--offload", "on"}
		}
		d := startDaemon(t, ns, acceptAll, args...)
		if tt.rules {
			printedRules(t, ns, "--hook", tt.hook, "--offload")
		}
		for round := range 2 {
			all := channels(t, lan.Client, lan.Server, addrs("10.99.2.2", "fd99:2::2")...)
			if !tt.rules && offloaded(t, ns) == 0 {
				t.Errorf("%s: nothing passed by the queue before", name)
			}
			d.reload(dropSink, round)
			atServer, atClient := capture(t, lan.Server, to7003), capture(t, lan.Client, to7003)
			silent(t, all)
			passed, _ := atServer.Packets()
			returned, _ := atClient.Packets()
			if ns == lan.Router && passed+returned > 0 || ns == lan.Client && passed > 0 || ns == lan.Server && returned > 0 {
				t.Errorf("%s: got %d packets at the server and %d at the client after the flow was denied", name, passed, returned)
			}
			d.reload(acceptAll, round)
			errors.Join(atServer.Close(), atClient.Close())
			for _, c := range all {
				errors.Join(c.client.Close(), c.server.Close())
			}
		}
		if code := d.Stop(); code != 0 {
			t.Errorf("%s: got exit code %d", name, code)
		}
		if s := d.Stderr(); strings.Contains(s, "returned=") && tt.rules {
			t.Errorf("%s: got packets back with their mark: %s", name, s)
		}
	}
}

// printedRules adds the rules that verdictd prints.
func printedRules(t *testing.T, ns *lab.Namespace, args ...string) {
	t.Helper()
	e := labtest.Run(t, nil, append([]string{"hook", "print-iptables"}, args...)...)
	path := filepath.Join(t.TempDir(), "rules.sh")
	writeFile(t, path, e.Stdout)
	labtest.Output(t, ns, "env", "IPTABLES=iptables-legacy", "IP6TABLES=ip6tables-legacy", "sh", path, "install")
}

// TestLabResetDenied ends TCP connections by resets to both sides.
func TestLabResetDenied(t *testing.T) {
	setup(t)
	for _, where := range []string{"forward", "output,input"} {
		lan := labtest.Router(t)
		ns := lan.Router
		if where != "forward" {
			ns = lan.Client
		}
		d := startDaemon(t, ns, acceptAll, "--hook", where, "--reset-denied")
		for _, addr := range addrs("10.99.2.2", "fd99:2::2") {
			at := netip.AddrPortFrom(addr, sinkPort)
			for _, first := range []string{"client", "server"} {
				c := tcpChannel(t, lan.Client, lan.Server, at)
				say(t, c.client, c.server)
				say(t, c.server, c.client)
				d.reload(dropSink, byHangup)
				order := []struct {
					name string
					conn net.Conn
				}{{"client", c.client}, {"server", c.server}}
				if first == "server" {
					order[0], order[1] = order[1], order[0]
				}
				for _, end := range order {
					if err := resetOf(end.conn); !errors.Is(err, unix.ECONNRESET) {
						t.Errorf("%s, %s, %s sends first: the %s got %v, want a reset", where, addr, first, end.name, err)
					}
				}
				d.reload(acceptAll, byHangup)
				errors.Join(c.client.Close(), c.server.Close())
			}
			// A connection that is new under the policy that denies it is dropped.
			d.reload(dropSink, byHangup)
			ask(t, []question{{lan.Client, lab.Probe{To: at, Timeout: silence}, lab.Silent}})
			d.reload(acceptAll, byHangup)
		}
		d.Stop()
	}
}

// resetOf sends a byte and returns what the connection ends with.
func resetOf(conn net.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	return err
}

// TestLabReject has every kind of sender told, at each hook.
func TestLabReject(t *testing.T) {
	setup(t)
	const rejectAll = `package verdictd

decision := {"verdict": "reject", "rule": "no", "mark": 7}
`
	for _, tt := range []struct {
		hook string
		ns   func(*lab.Network) *lab.Namespace
	}{
		{"output", func(n *lab.Network) *lab.Namespace { return n.Client }},
		{"output,input", func(n *lab.Network) *lab.Namespace { return n.Client }},
		{"input", func(n *lab.Network) *lab.Namespace { return n.Server }},
		{"output,input", func(n *lab.Network) *lab.Namespace { return n.Server }},
		{"forward", func(n *lab.Network) *lab.Namespace { return n.Router }},
		{"output,input,forward", func(n *lab.Network) *lab.Namespace { return n.Router }},
	} {
		lan := labtest.Router(t)
		ns := tt.ns(lan)
		echo(t, lan.Server, echoPort)
		d := startDaemon(t, ns, rejectAll, "--hook", tt.hook)
		var all []question
		for _, addr := range addrs("10.99.2.2", "fd99:2::2") {
			for proto, want := range map[lab.Proto]lab.Outcome{lab.TCP: lab.Refused, lab.UDP: lab.Unreachable, lab.ICMP: lab.Unreachable} {
				all = append(all, question{lan.Client, lab.Probe{Proto: proto, To: netip.AddrPortFrom(addr, echoPort), Timeout: wait}, want})
			}
		}
		ask(t, all)
		if s := d.finish(); s.packets != uint64(len(all)) {
			t.Errorf("%s at %s: got %d packets judged, want the %d questions and nothing that answers them", tt.hook, ns.Name(), s.packets, len(all))
		}
		rejected := d.records(func(r *record) bool { return r.decided() && len(r.Verdict.Reject) > 0 && r.Own.Rule == "no" })
		if len(rejected) != len(all) {
			t.Errorf("%s at %s: got %d records of a reject, want %d", tt.hook, ns.Name(), len(rejected), len(all))
		}
	}
}

// TestLabForeignMarks has other users of marks before and after: they see
// nothing of verdictd's, and theirs survive.
func TestLabForeignMarks(t *testing.T) {
	setup(t)
	const count = 50
	for family, client := range map[string]string{"10.99.2.2": client4, "fd99:2::2": client6} {
		lan := labtest.Router(t)
		d := startDaemon(t, lan.Router, acceptAll, "--hook", "forward")
		mangle := func(args ...string) { labtest.BothTables(t, lan.Router, append([]string{"-t", "mangle"}, args...)...) }
		// As many multi-uplink setups do: a mark per connection, restored whole.
		mangle("-A", "PREROUTING", "-m", "connmark", "--mark", "0/0xffffff", "-j", "CONNMARK", "--set-xmark", "0x70007/0xffffff")
		mangle("-A", "PREROUTING", "-j", "CONNMARK", "--restore-mark")
		mangle("-A", "FORWARD", "-m", "mark", "--mark", "0x70007")
		mangle("-A", "POSTROUTING", "-m", "mark", "--mark", "0x70007", "-m", "connmark", "--mark", "0x70007/0xffffff")
		got := sink(t, lan.Server, sinkPort)
		// One flow: all that comes after the first verdict passes by the queue.
		from := []netip.AddrPort{to(client, 40001)}
		flood(t, lan.Client, lab.Flood{From: from, To: to(family, sinkPort), Count: 1})
		want(t, got, 1)
		flood(t, lan.Client, lab.Flood{From: from, To: to(family, sinkPort), Count: count - 1, First: 1, Rate: 5000})
		want(t, got, count)
		for _, chain := range []string{"FORWARD", "POSTROUTING"} {
			rules := append(labtest.Counters(t, lan.Router, "mangle", chain), labtest.Counters6(t, lan.Router, "mangle", chain)...)
			if n := rules[0].Packets + rules[1].Packets; n != count {
				t.Errorf("%s: %d of %d packets had their owner's mark in %s", family, n, count, chain)
			}
		}
		if n := offloaded(t, lan.Router); n != count-1 {
			t.Errorf("%s: %d packets passed by the queue, want all but the first, %d", family, n, count-1)
		}
		if s := d.finish(); s.packets != 1 {
			t.Errorf("%s: got %d packets in the queue, want the first", family, s.packets)
		}
	}
}

// TestLabForgedMark sends packets that bring the marks of accepted flows along.
func TestLabForgedMark(t *testing.T) {
	setup(t)
	const denyAll = "package verdictd\n\ndecision := {\"verdict\": \"drop\", \"rule\": \"no\"}\n"
	lan := labtest.Router(t)
	d := startDaemon(t, lan.Client, denyAll, "--hook", "output")
	echo(t, lan.Server, echoPort)
	for number := range 5 {
		labtest.BothTables(t, lan.Client, "-t", "mangle", "-F")
		labtest.BothTables(t, lan.Client, "-t", "mangle", "-A", "OUTPUT", "-j", "MARK", "--set-mark", "0x"+strconv.Itoa(number)+"000000")
		ask(t, []question{{lan.Client, lab.Probe{Proto: lab.UDP, To: to("10.99.2.2", echoPort), Timeout: silence}, lab.Silent}})
	}
	d.finish()
}

// TestLabKilled kills the daemon and starts it again. What the killed one let
// pass by is judged anew, and of a flow whose beginning nobody remembers an
// answer is known for what it is.
func TestLabKilled(t *testing.T) {
	setup(t)
	const onlyOut = "package verdictd\n\ndecision := {\"verdict\": \"accept\", \"rule\": \"out\"} if input.direction == \"out\"\n"
	for _, deny := range []bool{false, true} {
		lan := labtest.Router(t)
		d := startDaemon(t, lan.Client, onlyOut, "--hook", "output,input")
		all := channels(t, lan.Client, lan.Server, addrs("10.99.2.2", "fd99:2::2")...)
		if offloaded(t, lan.Client) == 0 {
			t.Error("nothing passed by the queue before")
		}
		d.Kill()
		text := onlyOut
		if deny {
			text = dropSink
		}
		d = startDaemon(t, lan.Client, text, "--hook", "output,input")
		for _, c := range all {
			if deny {
				if err := hear(c.client, c.server, silence); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s: got %v from the client, want nothing", c.name, err)
				}
				continue
			}
			say(t, c.server, c.client)
			say(t, c.client, c.server)
		}
		d.Stop()
	}
}
