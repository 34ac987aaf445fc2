package main_test

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// trial is how long the trials of these tests last.
const trial = 3 * time.Second

// reaches returns whether a datagram of a new flow is answered.
func reaches(t *testing.T, ns *lab.Namespace) bool {
	t.Helper()
	p := lab.Probe{Proto: lab.UDP, To: to("10.99.0.2", echoPort), Timeout: silence}
	got, err := ns.Probe(p)
	if err != nil {
		t.Fatal(err)
	}
	return got == lab.Answered
}

// becomes waits until new flows are answered, or not.
func becomes(t *testing.T, ns *lab.Namespace, open bool) {
	t.Helper()
	if !lab.Poll(wait, func() bool { return reaches(t, ns) == open }) {
		t.Fatalf("new flows pass: got %v, want %v", !open, open)
	}
}

// trialOf returns what status says is on trial; nil if nothing is.
func trialOf(t *testing.T, control string) (s *struct {
	Start, Undone  bool
	Policy, Before string
}) {
	t.Helper()
	got := labtest.Run(t, nil, "status", "--json", "--control", control)
	var status struct {
		Trial *struct {
			Start, Undone  bool
			Policy, Before string
		}
	}
	if err := json.Unmarshal([]byte(got.Stdout), &status); err != nil {
		t.Fatalf("status: %v: %s%s", err, got.Stdout, got.Stderr)
	}
	return status.Trial
}

// dial opens a TCP connection from the namespace, which the test itself holds.
func dial(t *testing.T, ns *lab.Namespace, addr string) net.Conn {
	t.Helper()
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", addr, wait)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestLabConfirmPolicy puts a policy on trial that cuts the connection of who
// loads it: that is told by name, and undone by itself, in the process that
// loaded the policy and in the next one after a kill.
func TestLabConfirmPolicy(t *testing.T) {
	setup(t)
	lan := labtest.Pair(t)
	echo(t, lan.Server, echoPort)
	control := filepath.Join(t.TempDir(), "control")
	start := func(policy string) *daemon {
		return startDaemon(t, lan.Client, policy, "--hook", "output", "--control", control)
	}
	d := start(acceptAll)
	path := d.policy
	conn := dial(t, lan.Client, "10.99.0.2:7001")

	reload := func(d *daemon, args ...string) labtest.Exit {
		t.Helper()
		return labtest.Run(t, nil, append([]string{"reload", "--control", control}, args...)...)
	}
	// The file is in use before the reload is asked for: that is undone all the same.
	writeFile(t, path, dropAll)
	becomes(t, lan.Client, false)
	got := reload(d, "--confirm", trial.String())
	own := func() string {
		return "cuts YOUR OWN connection: tcp " + conn.LocalAddr().String() + " -> 10.99.0.2:7001 ("
	}
	for _, want := range []string{"policy loaded: ", own(), "waits for verdictd confirm"} {
		if got.Code != 0 || !strings.Contains(got.Stdout, want) {
			t.Errorf("reload: got %d, %q, %s, want %q", got.Code, got.Stdout, got.Stderr, want)
		}
	}
	if s := trialOf(t, control); s == nil || s.Start || s.Policy == s.Before {
		t.Errorf("on trial: got %+v, want a policy", s)
	}
	becomes(t, lan.Client, true)
	if s := trialOf(t, control); s == nil || !s.Undone {
		t.Errorf("after the trial: got %+v, want that it is undone", s)
	}

	// Once more, with --confirm first, and told what it cuts.
	writeFile(t, path, acceptAll)
	if got := reload(d); got.Code != 0 || trialOf(t, control) != nil {
		t.Fatalf("reload of what was before: got %+v", got)
	}
	d.Signal(os.Interrupt)
	d.Wait()
	d = start(acceptAll)
	path = d.policy
	conn.Close()
	conn = dial(t, lan.Client, "10.99.0.2:7001")
	next := filepath.Join(filepath.Dir(path), "next")
	writeFile(t, next, dropAll)
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	got = reload(d, "--confirm", trial.String())
	if !strings.Contains(got.Stdout, own()) {
		t.Errorf("reload: got %s, want %q", got.Stdout, own())
	}
	// Killed during the trial: the next process goes on with it.
	d.Kill()
	d2 := labtest.StartDaemon(t, labtest.DaemonConfig{NS: lan.Client, Args: []string{"run", "--policy", path, "--hook", "output", "--control", control}})
	if s := trialOf(t, control); s == nil {
		t.Error("after a kill the trial is forgotten")
	}
	becomes(t, lan.Client, true)
	// And so does one that is started when it is over.
	d2.Kill()
	d3 := labtest.StartDaemon(t, labtest.DaemonConfig{NS: lan.Client, Args: []string{"run", "--policy", path, "--hook", "output", "--control", control}})
	if !reaches(t, lan.Client) {
		t.Error("a process after the trial uses the policy that was not confirmed")
	}
	if s := trialOf(t, control); s == nil || !s.Undone {
		t.Errorf("a process after the trial: got %+v, want that it is undone", s)
	}
	// What is confirmed stays.
	if got := reload(nil, "--confirm", "1m"); got.Code != 0 {
		t.Errorf("reload: %+v", got)
	}
	if got := labtest.Run(t, nil, "confirm", "--control", control); got.Code != 0 || !strings.HasPrefix(got.Stdout, "confirmed: policy ") {
		t.Errorf("confirm: got %+v", got)
	}
	if reaches(t, lan.Client) || trialOf(t, control) != nil {
		t.Error("a policy that was confirmed is on trial, or not in use")
	}
	if left, err := os.ReadDir(control + ".confirm"); err == nil {
		t.Errorf("left behind: %v", left)
	}
	if got := labtest.Run(t, nil, "confirm", "--control", control); got.Code != 1 || !strings.Contains(got.Stderr, "nothing waits for a confirmation") {
		t.Errorf("confirm without a trial: got %+v", got)
	}
	d3.Stop()
}

// TestLabConfirmStart starts with a policy that lets nothing out: unless that is
// confirmed the rules go out, by the daemon and, if that was killed, by the kernel.
func TestLabConfirmStart(t *testing.T) {
	setup(t)
	lan := labtest.Pair(t)
	echo(t, lan.Server, echoPort)
	control := filepath.Join(t.TempDir(), "control")
	args := []string{"--hook", "output", "--control", control, "--confirm", trial.String()}

	d := startDaemon(t, lan.Client, dropAll, args...)
	if reaches(t, lan.Client) {
		t.Error("the policy is not in force during the trial")
	}
	if code := d.Wait(); code != 4 {
		t.Errorf("exit code: got %d, want 4", code)
	}
	if !reaches(t, lan.Client) {
		t.Error("not as before after the trial")
	}
	if got := labtest.Run(t, lan.Client, "hook", "remove"); got.Code == 0 {
		t.Error("the rules were left in")
	}

	d = startDaemon(t, lan.Client, dropAll, args...)
	d.Kill()
	if reaches(t, lan.Client) {
		t.Error("fail closed does not hold during the trial")
	}
	becomes(t, lan.Client, true)
	if got := labtest.Run(t, lan.Client, "hook", "remove"); got.Code != 0 {
		t.Errorf("hook remove: %+v", got)
	}

	d = startDaemon(t, lan.Client, dropAll, "--hook", "output", "--control", control, "--confirm", "1m")
	rules := func() string { return labtest.Run(t, lan.Client, "hook", "show").Stdout }
	if got := rules(); !strings.Contains(got, "meta time >= ") {
		t.Errorf("rules during the trial: got %s, want an end of their time", got)
	}
	if got := labtest.Run(t, nil, "confirm", "--control", control); got.Code != 0 || got.Stdout != "confirmed: the start\n" {
		t.Errorf("confirm: %+v", got)
	}
	if got := rules(); strings.Contains(got, "meta time") || reaches(t, lan.Client) {
		t.Errorf("rules after the confirmation: got %s, want that they stay", got)
	}
	d.Stop()
}
