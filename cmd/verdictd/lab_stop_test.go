package main_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// rulesState returns what verdictd's table in the namespace does.
func rulesState(t *testing.T, ns *lab.Namespace) hook.State {
	t.Helper()
	s, err := hook.Inspect(hook.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// verdictdAt runs commands of one verdictd in a namespace, many times over.
type verdictdAt struct {
	t      *testing.T
	ns     *lab.Namespace
	binary string
}

func newVerdictdAt(t *testing.T, ns *lab.Namespace) verdictdAt {
	t.Helper()
	return verdictdAt{t, ns, labtest.Binary(t)}
}

// command runs one to its end.
func (v verdictdAt) command(args ...string) labtest.Exit {
	v.t.Helper()
	p := labtest.Start(v.t, labtest.DaemonConfig{NS: v.ns, Path: v.binary, Args: args})
	code := p.Wait()
	return labtest.Exit{Code: code, Stdout: p.Stdout(), Stderr: p.Stderr()}
}

// daemon starts one and waits until it is ready.
func (v verdictdAt) daemon(args ...string) *upgradable {
	v.t.Helper()
	p := labtest.StartDaemon(v.t, labtest.DaemonConfig{NS: v.ns, Path: v.binary, Args: append([]string{"run"}, args...)})
	return &upgradable{daemon: &daemon{Process: p, t: v.t, ns: v.ns}}
}

// TestLabStopClosed sends what the policy denies without a pause while verdictd is
// stopped and started again, with a typo in the configuration, killed and
// upgraded: not one packet arrives from the first start on, until the rules are
// taken out by hand.
func TestLabStopClosed(t *testing.T) {
	setup(t)
	net := labtest.Pair(t)
	denied, good := sink(t, net.Server, deniedSinkPort), sink(t, net.Server, sinkPort)
	file := filepath.Join(t.TempDir(), "verdictd.yaml")
	configure := func(more string) {
		writeFile(t, file, fmt.Sprintf("policy: %s\nhook: output\ncontrol: %s\n%s", file+".rego", file+".ctl", more))
	}
	writeFile(t, file+".rego", portsPolicy)
	configure("")
	v := newVerdictdAt(t, net.Client)
	run := func() *upgradable { return v.daemon("--config", file) }
	d := run()
	var floods sync.WaitGroup
	floods.Go(func() {
		if _, err := net.Client.Flood(t.Context(), lab.Flood{To: to("10.99.0.2", deniedSinkPort), Count: 20_000, Rate: 4000}); err != nil {
			t.Error(err)
		}
	})
	wantClosed := func(when string) {
		t.Helper()
		if s := rulesState(t, net.Client); !s.Blocked || s.Queues {
			t.Errorf("%s: got %+v, want that everything is dropped", when, s)
		}
		exit := v.command("status", "--control", file+".ctl")
		if exit.Code != 1 || !strings.Contains(exit.Stderr, "drop every packet that it would judge (verdictd run takes them over, verdictd hook remove takes them out)") {
			t.Errorf("%s: got status %+v, want that it tells of the rules", when, exit)
		}
	}
	stop := func(d *upgradable) {
		t.Helper()
		if code := d.Stop(); code != 0 || !strings.Contains(d.Stderr(), `on-stop=closed to_open="verdictd hook remove"`) {
			t.Errorf("got exit code %d and %q, want 0 and how to open", code, d.Stderr())
		}
	}
	for range 2 {
		stop(d)
		wantClosed("after a stop")
		d = run()
	}
	stop(d)
	configure("hok: input\n")
	if exit := v.command("run", "--config", file); exit.Code != 2 {
		t.Errorf("got exit code %d for a broken configuration, want 2", exit.Code)
	}
	wantClosed("after a start that failed")
	configure("offload: \"off\"\n")
	d = run()
	d.Kill()
	if s := rulesState(t, net.Client); !s.Queues || s.Bypass {
		t.Errorf("after a kill: got %+v, want that nothing passes", s)
	}
	d = run()
	flood(t, net.Client, lab.Flood{To: to("10.99.0.2", sinkPort), Count: 50})
	want(t, good, 50)
	exit := v.command("upgrade", "--pid", fmt.Sprint(d.PID()))
	if exit.Code != 0 {
		t.Errorf("got %+v, want an upgrade", exit)
	}
	var pid, old int
	fmt.Sscanf(exit.Stdout, "process %d has taken the place of %d", &pid, &old)
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if !lab.Poll(wait, func() bool { return boundQueues(t, net.Client) == 0 }) {
		t.Error("the successor does not stop")
	}
	wantClosed("after an upgrade and a stop")
	floods.Wait()
	want(t, denied, 0)
	if exit := v.command("hook", "remove"); exit.Code != 0 {
		t.Errorf("hook remove: got %+v", exit)
	}
	flood(t, net.Client, lab.Flood{To: to("10.99.0.2", deniedSinkPort), Count: 50})
	want(t, denied, 50)
}

// TestLabOnStop starts and stops verdictd with each value, and each default.
func TestLabOnStop(t *testing.T) {
	tests := []struct {
		args  string
		state hook.State
	}{
		{"--fail closed", hook.State{Installed: true, Blocked: true}},
		{"--fail open", hook.State{}},
		{"--mode monitor", hook.State{}},
		{"--fail closed --on-stop open", hook.State{}},
		{"--fail open --on-stop closed", hook.State{Installed: true, Blocked: true}},
	}
	setup(t)
	ns := namespace(t, "on stop")
	v := newVerdictdAt(t, ns)
	for _, tt := range tests {
		policy := filepath.Join(t.TempDir(), "policy.rego")
		writeFile(t, policy, acceptAll)
		d := v.daemon(append([]string{"--hook", "output", "--policy", policy}, strings.Fields(tt.args)...)...)
		if code := d.Stop(); code != 0 {
			t.Errorf("%s: got exit code %d: %s", tt.args, code, d.Stderr())
		}
		if got := rulesState(t, ns); got != tt.state {
			t.Errorf("%s: got %+v after the stop, want %+v", tt.args, got, tt.state)
		}
	}
}

// TestLabStopDuring stops verdictd within milliseconds of a crash or an upgrade. What is left is what --on-stop says, no process, no socket
// file, and the exit code is 0.
func TestLabStopDuring(t *testing.T) {
	setup(t)
	ns := namespace(t, "stop")
	dir := t.TempDir()
	policy, ctl := filepath.Join(dir, "policy.rego"), filepath.Join(dir, "ctl")
	writeFile(t, policy, acceptAll)
	v := newVerdictdAt(t, ns)
	for i, what := range []string{"crash", "upgrade"} {
		for j, after := range []time.Duration{0, 4, 30, 150} {
			closed := (i+j)%2 == 0
			onStop := map[bool]string{true: "closed", false: "open"}[closed]
			u := v.daemon("--keeper", "--hook", "output,input", "--policy", policy, "--control", ctl,
				"--log", filepath.Join(dir, "eve.json"), "--on-stop", onStop)
			first := u.worker()
			sig := unix.SIGKILL
			if what == "upgrade" {
				sig = unix.SIGUSR2
			}
			if err := unix.Kill(first, sig); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after * time.Millisecond)
			name := fmt.Sprintf("%s, stopped after %v, on-stop %s", what, after*time.Millisecond, onStop)
			if code := u.Stop(); code != 0 {
				t.Errorf("%s: got exit code %d: %s", name, code, u.Stderr())
			}
			if got, want := rulesState(t, ns), (hook.State{Installed: closed, Blocked: closed}); got != want {
				t.Errorf("%s: got %+v, want %+v: %s", name, got, want, u.Stderr())
			}
			if n := boundQueues(t, ns); n != 0 {
				t.Errorf("%s: %d queues are bound", name, n)
			}
			for _, path := range []string{ctl, fmt.Sprintf("/run/verdictd/upgrade/%d.sock", first)} {
				if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s: %s is left (%v)", name, path, err)
				}
			}
			for _, pid := range u.pids() {
				if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
					t.Errorf("%s: process %d is left (%v)", name, pid, err)
					unix.Kill(pid, unix.SIGKILL)
				}
			}
		}
	}
}

// TestLabStatusReady asks for the status from the first moment of a start on, and
// throughout upgrades: exit code 0 means that the rules are in, and who asks
// during an upgrade always gets an answer.
func TestLabStatusReady(t *testing.T) {
	setup(t)
	ns := namespace(t, "status")
	dir := t.TempDir()
	ctl := filepath.Join(dir, "ctl")
	policy := filepath.Join(dir, "policy.rego")
	writeFile(t, policy, acceptAll)
	v := newVerdictdAt(t, ns)
	p := labtest.Start(t, labtest.DaemonConfig{NS: ns, Path: v.binary, Args: []string{"run", "--keeper", "--hook", "output", "--on-stop", "open", "--control", ctl,
		"--policy", policy, "--log", filepath.Join(dir, "eve.json")}})
	u := &upgradable{daemon: &daemon{Process: p, t: t, ns: ns}}
	codes := map[int]int{}
	for codes[0] == 0 && codes[1] < 1000 {
		exit := v.command("status", "--control", ctl)
		codes[exit.Code]++
		installed := rulesState(t, ns).Installed
		if exit.Code == 0 && !installed || exit.Code == 3 && !strings.Contains(exit.Stderr, "verdictd is starting") {
			t.Errorf("got %+v with the table there: %v", exit, installed)
		}
	}
	t.Logf("exit codes of status until ready: %v", codes)
	u.waitProcesses(1)
	for range 4 {
		n := len(u.pids())
		u.Signal(unix.SIGUSR2)
		for len(u.pids()) == n {
			for _, command := range []string{"status", "reload"} {
				if exit := v.command(command, "--control", ctl); exit.Code != 0 {
					t.Fatalf("%s during an upgrade: got %+v", command, exit)
				}
			}
		}
	}
	if code := p.Stop(); code != 0 {
		t.Errorf("got exit code %d", code)
	}
}
