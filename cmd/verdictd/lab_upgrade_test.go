package main_test

import (
	"errors"
	"fmt"
	"net"
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

// upgradable is a daemon whose process changes. Its log is a file: a pipe to
// the test ends with the first process.
type upgradable struct {
	*daemon
	log  string
	late bool // the audit log may be too slow for the events, and says so then
}

// startUpgradable runs verdictd with --keeper, so that one process stays.
func startUpgradable(t *testing.T, ns *lab.Namespace, policy string, args ...string) *upgradable {
	t.Helper()
	log := filepath.Join(t.TempDir(), "eve.json")
	d := startDaemon(t, ns, policy, append([]string{"--keeper", "--log", log}, args...)...)
	u := &upgradable{daemon: d, log: log}
	t.Cleanup(func() { // the keeper is killed after a failure, not its worker
		for _, pid := range u.pids() {
			unix.Kill(pid, unix.SIGKILL)
		}
	})
	return u
}

// pids returns the processes that got ready, in order.
func (u *upgradable) pids() (all []int) {
	for _, m := range regexp.MustCompile(`msg=ready pid=(\d+)`).FindAllStringSubmatch(u.Stderr(), -1) {
		pid, _ := strconv.Atoi(m[1])
		all = append(all, pid)
	}
	return all
}

// worker returns the process that judges.
func (u *upgradable) worker() int {
	all := u.pids()
	return all[len(all)-1]
}

// waitProcesses waits until n processes have got ready.
func (u *upgradable) waitProcesses(n int) {
	u.t.Helper()
	if !lab.Poll(wait, func() bool { return len(u.pids()) >= n }) {
		u.t.Fatalf("got %d processes, want %d: %s", len(u.pids()), n, u.Stderr())
	}
}

// upgrade lets a new process take over.
func (u *upgradable) upgrade() {
	u.t.Helper()
	n := len(u.pids())
	u.Signal(unix.SIGUSR2)
	u.waitProcesses(n + 1)
}

// stop stops verdictd and checks the audit log: numbers without gap, no loss but
// that of a process that died. It returns the summary of the last process.
func (u *upgradable) stop(died bool) summary {
	u.t.Helper()
	if code := u.Stop(); code != 0 {
		u.t.Errorf("got exit code %d, want 0: %s", code, u.Stderr())
	}
	text, err := os.ReadFile(u.log)
	if err != nil {
		u.t.Fatal(err)
	}
	next := 1
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		var seq int
		if _, err := fmt.Sscanf(line[strings.Index(line, `"seq":`):], `"seq":%d`, &seq); err != nil {
			u.t.Fatalf("line %d: %v: %s", i+1, err, line)
		}
		loss := strings.Contains(line, `"event_type":"loss"`) && (!died || !strings.Contains(line, " died and took with it "))
		if seq != next || !u.late && loss {
			u.t.Fatalf("line %d: got seq %d, want %d and no loss: %s", i+1, seq, next, line)
		}
		next = seq + 1
	}
	if _, err := hook.Show(hook.Config{NetNS: u.ns.FD()}); !errors.Is(err, hook.ErrNotInstalled) {
		u.t.Errorf("got rules after the end: %v", err)
	}
	if n := waiting(u.t, u.ns); n != 0 {
		u.t.Errorf("%d packets wait after the end", n)
	}
	if _, line, _ := strings.Cut(u.Stderr(), "msg=stopped "); strings.Contains(line, "unexplained") {
		u.t.Errorf("the books do not close: %s", line)
	}
	return u.summary()
}

// TestLabUpgrade lets new processes take over while datagrams and connections
// go on: none is lost or fails, a connection from before lives on, and the
// books and the audit log go on as if it were one process.
func TestLabUpgrade(t *testing.T) {
	for _, tt := range []struct {
		offload string
		more    []string
	}{{"off", nil}, {"on", nil}, {"off", []string{"--spin", "50us"}}} {
		t.Run(strings.Join(append([]string{"offload", tt.offload}, tt.more...), " "), func(t *testing.T) {
			upgradeUnderLoad(t, tt.offload, tt.more...)
		})
	}
}

func upgradeUnderLoad(t *testing.T, offload string, more ...string) {
	setup(t)
	rounds := 10
	rate, conns := 50_000, 2000
	if labtest.UnderRace() || len(more) > 0 {
		rounds = 5
		rate, conns = 20_000, 500 // all are some ten times slower, or one CPU less is there
	}
	net := labtest.Pair(t)
	echo(t, net.Server, echoPort)
	got := tallyAt(t, net.Server)
	denied := sink(t, net.Server, deniedSinkPort)
	u := startUpgradable(t, net.Client, portsPolicy, append([]string{
		"--hook", "output,input", "--queue-length", "65536", "--offload", offload,
		"--flows", "1048576", // a set of the default table is full of connections just ended now and then
	}, more...)...)
	u.late = !labtest.UnderRace() // 4,000 records/s, while whatever else runs
	old := holdConnection(t, net.Client)

	began := time.Now()
	l, stop := runLoad(t, net, rate, conns)
	for range rounds {
		before := got.distinct.Load()
		if !lab.Poll(wait, func() bool { return got.distinct.Load() > before+int64(rate/10) }) {
			t.Fatalf("no datagrams come: %s", u.Stderr())
		}
		u.upgrade()
		old.check()
		flood(t, net.Client, lab.Flood{To: to("10.99.0.2", deniedSinkPort), Count: 10})
	}
	took := time.Since(began).Seconds()
	stop()
	old.check()
	got.want(t, l.sent.Load())
	want(t, denied, 0)
	if l.failed.Load() != 0 || l.connected.Load() == 0 {
		t.Errorf("got %d connections, %d failed, want all to work: %s", l.connected.Load(), l.failed.Load(), l.reason())
	}
	s := u.stop(false)
	if s.lost != 0 || s.accepted+s.dropped != s.packets || offload == "off" && s.packets < uint64(l.sent.Load()) || s.dropped < uint64(10*rounds) {
		t.Errorf("got %+v, want what all processes judged together, and nothing lost", s)
	}
	for _, m := range regexp.MustCompile(`packets_waited=(\S+) flows=(\d+)`).FindAllStringSubmatch(u.Stderr(), -1) {
		t.Logf("took over: packets waited %s, %s flows", m[1], m[2])
	}
	t.Logf("%d upgrades; %d datagrams (%.0f/s), %d connections (%.0f/s)", rounds,
		l.sent.Load(), float64(l.sent.Load())/took, l.connected.Load(), float64(l.connected.Load())/took)
}

// held is a connection that stays.
type held struct {
	t    *testing.T
	conn net.Conn
}

func holdConnection(t *testing.T, ns *lab.Namespace) *held {
	t.Helper()
	h := &held{t: t}
	err := ns.Do(func() (err error) {
		h.conn, err = net.DialTimeout("tcp", "10.99.0.2:7001", wait)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.conn.Close() })
	h.check()
	return h
}

// check sends something and wants it back.
func (h *held) check() {
	h.t.Helper()
	h.conn.SetDeadline(time.Now().Add(wait))
	buf := make([]byte, 4)
	if _, err := h.conn.Write([]byte("ping")); err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.conn.Read(buf); err != nil || string(buf) != "ping" {
		h.t.Fatalf("got %q, %v on a connection from before", buf, err)
	}
}

// TestLabUpgradeFails tries upgrades that cannot succeed: the process that runs
// goes on, with its flows and its policy.
func TestLabUpgradeFails(t *testing.T) {
	setup(t)
	net := labtest.Pair(t)
	echo(t, net.Server, echoPort)
	got := sink(t, net.Server, sinkPort)
	u := startUpgradable(t, net.Client, portsPolicy, "--hook", "output,input")
	old := holdConnection(t, net.Client)
	script := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexit 7\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, stop := runLoad(t, net, 2000, 100)
	first := u.worker()
	tests := []struct {
		name, program, policy, want string
	}{
		{"no such program", "/nowhere/verdictd", portsPolicy, "no such file"},
		{"not a program", u.policy, portsPolicy, "permission denied"},
		{"ends", script, portsPolicy, "exit status 7"},
		{"another program", "/bin/true", portsPolicy, "exit status 0"},
		{"broken policy", "", "package verdictd\ndecision := ", "exit status 2"},
	}
	for _, tt := range tests {
		writeFile(t, u.policy, tt.policy)
		args := []string{"upgrade", "--pid", strconv.Itoa(first)}
		if tt.program != "" {
			args = append(args, tt.program)
		}
		exit := labtest.Run(t, net.Client, args...)
		if exit.Code != 1 || !strings.Contains(exit.Stderr, tt.want) {
			t.Errorf("%s: got exit code %d and %q, want 1 and %q", tt.name, exit.Code, exit.Stderr, tt.want)
		}
		old.check()
	}
	writeFile(t, u.policy, portsPolicy)
	if exit := labtest.Run(t, net.Client, "upgrade", "--pid", strconv.Itoa(first)); exit.Code != 0 || !strings.Contains(exit.Stdout, fmt.Sprint("place of ", first)) {
		t.Errorf("got exit code %d, %q and %q, want that a good one succeeds afterwards", exit.Code, exit.Stdout, exit.Stderr)
	}
	u.waitProcesses(2)
	old.check()
	stop()
	want(t, got, int(l.sent.Load()))
	if l.failed.Load() != 0 {
		t.Errorf("%d connections failed", l.failed.Load())
	}
	if s := u.stop(false); s.lost != 0 {
		t.Errorf("got %+v, want nothing lost", s)
	}
}

// TestLabUpgradeSettings lets a new process with other settings take over, for
// each setting that the hand-over depends on from each value to each: the
// upgrade succeeds and the policy goes on being enforced.
func TestLabUpgradeSettings(t *testing.T) {
	settings := []struct{ attribution, hook, offload, nflog, log string }{
		{"auto", "output", "on", "5", "eve.json"},
		{"auto", "output", "on", "5", "eve.json"},
		{"proc", "output", "off", "", "eve.json"},
		{"proc", "", "off", "", "-"},
		{"off", "", "off", "5", "-"},
		{"off", "output,input", "on", "", "eve.json"},
		{"auto", "", "off", "5", "other.json"},
		{"off", "output", "off", "5", "eve.json"},
		{"proc", "output,input", "off", "5", "eve.json"},
		{"auto", "output", "on", "", "eve.json"},
	}
	for _, keeper := range []bool{true, false} {
		t.Run(fmt.Sprintf("keeper %v", keeper), func(t *testing.T) {
			setup(t, labtest.NFLog)
			net := labtest.Pair(t)
			echo(t, net.Server, echoPort)
			echo(t, net.Server, deniedEchoPort)
			labtest.IPTables(t, net.Client, "-A", "OUTPUT", "-j", "NFQUEUE", "--queue-num", "0")
			dir := t.TempDir()
			path := func(name string) string { return filepath.Join(dir, name) }
			writeFile(t, path("policy.rego"), portsPolicy)
			configure := func(i int) {
				s := settings[i]
				text := fmt.Sprintf("policy: %s\ncontrol: %s\nattribution: %s\noffload: %q\n", path("policy.rego"), path("ctl"), s.attribution, s.offload)
				if s.hook != "" {
					text += "hook: " + s.hook + "\n"
				}
				if s.nflog != "" {
					text += "nflog-group: " + s.nflog + "\n"
				}
				if s.log != "-" {
					s.log = path(s.log)
				}
				writeFile(t, path("verdictd.yaml"), text+"log:\n  file: \""+s.log+"\"\n")
			}
			configure(0)
			args := []string{"run", "--config", path("verdictd.yaml")}
			if keeper {
				args = append(args, "--keeper")
			}
			first := labtest.Daemon(t, net.Client, args...)
			ready := regexp.MustCompile(`msg=ready pid=(\d+)`).FindStringSubmatch(first.Stderr())
			pid := int(number(t, ready[1]))
			t.Cleanup(func() { unix.Kill(pid, unix.SIGKILL) }) // fails after the orderly end
			for i := range settings {
				if i > 0 {
					configure(i)
					exit := labtest.Run(t, net.Client, "upgrade", "--pid", strconv.Itoa(pid))
					next := regexp.MustCompile(`^process (\d+) has taken`).FindStringSubmatch(exit.Stdout)
					if exit.Code != 0 || next == nil {
						t.Fatalf("%+v after %+v: got exit code %d and %q", settings[i], settings[i-1], exit.Code, exit.Stderr)
					}
					pid = int(number(t, next[1]))
				}
				ask(t, []question{
					{net.Client, lab.Probe{Proto: lab.UDP, To: to("10.99.0.2", echoPort), Timeout: wait}, lab.Answered},
					{net.Client, lab.Probe{Proto: lab.UDP, To: to("10.99.0.2", deniedEchoPort), Timeout: silence}, lab.Silent},
				})
				_, err := hook.Show(hook.Config{NetNS: net.Client.FD()})
				if installed := err == nil; installed != (settings[i].hook != "") {
					t.Errorf("%+v: the table is there: %v (%v)", settings[i], installed, err)
				}
			}
			if err := unix.Kill(pid, unix.SIGTERM); err != nil {
				t.Error(err)
			}
			if !lab.Poll(wait, func() bool { return boundQueues(t, net.Client) == 0 }) {
				t.Error("the queue is bound after the end")
			}
		})
	}
}
