package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabOwnerRecordsStay: what the kernel has recorded outlives the process that
// let it, by an upgrade and by a crash: a socket that was used before is not taken
// for one that was only found.
func TestLabOwnerRecordsStay(t *testing.T) {
	for name, next := range map[string]func(u *upgradable){
		"upgrade": func(u *upgradable) { u.upgrade() },
		"crash": func(u *upgradable) {
			n := len(u.pids())
			if err := unix.Kill(u.worker(), unix.SIGKILL); err != nil {
				u.t.Fatal(err)
			}
			u.waitProcesses(n + 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			setup(t, labtest.GCC, labtest.BPF)
			lan, b := labtest.Pair(t), newSenders(t)
			old := b.serve(lan.Client, 4, 20000)
			u := startUpgradable(t, lan.Client, acceptAll, "--hook", "input")
			later := b.serve(lan.Client, 4, 20004)
			for range 2 {
				next(u)
			}
			b.run(lan.Server, 8, 20000, "10.99.0.1", "fd99::1", "")
			u.stop(name == "crash")
			text, err := os.ReadFile(u.log)
			if err != nil {
				t.Fatal(err)
			}
			owners := ownersOf(t, string(text))
			for i, want := range append(old, later...) {
				source := "diag"
				if i >= len(old) {
					source = "bpf-cookie"
				}
				list := owners[want.port]
				if len(list) != 1 || list[0].Own.Process.PID != want.pid || list[0].Own.Process.Source != source {
					t.Errorf("port %d: got %+v, want %+v by %s", want.port, list, want, source)
				}
			}
		})
	}
}

// TestLabOwnerOwnSys: in a mount namespace with a /sys of its own, as ip netns exec
// makes one, the hierarchy of control groups is not mounted.
func TestLabOwnerOwnSys(t *testing.T) {
	const count = 64
	setup(t, labtest.GCC, labtest.BPF)
	lan, b := labtest.Pair(t), newSenders(t)
	group := newCgroup(t)
	d := &daemon{t: t, ns: lan.Client}
	d.Process = labtest.StartDaemon(t, labtest.DaemonConfig{NS: lan.Client, Path: "unshare", Args: []string{
		"--mount", "sh", "-c", `mount -t sysfs none /sys && exec "$0" run --hook output`, labtest.Binary(t),
	}})
	truth := b.run(lan.Client, count, 20000, "10.99.0.2", "fd99::2", group)
	d.Stop()
	s := d.score(truth, filepath.Join(b.dir, "plain"), "/"+filepath.Base(group))
	// One in four is deleted while it runs: its path is known only where that of
	// process 1 may be looked at.
	if s.known < count*3/4 || s.wrong > 0 {
		t.Errorf("%d programs: %d known, %d wrong", count, s.known, s.wrong)
	}
	for port, list := range ownersOf(t, d.Stdout()) {
		if port >= 20000 && list[0].Own.Process.Cgroup == "" {
			t.Errorf("port %d: got no control group", port)
		}
	}
}

// TestLabOwnerPolicy: a policy that names program, hash, parent and control group
// lets through what it names and nothing else.
func TestLabOwnerPolicy(t *testing.T) {
	setup(t, labtest.GCC, labtest.BPF)
	lan, b := labtest.Pair(t), newSenders(t)
	group := newCgroup(t)
	plain, renamed := filepath.Join(b.dir, "plain"), filepath.Join(b.dir, "renamed")
	d := startDaemon(t, lan.Client, fmt.Sprintf(`package verdictd

runner if {
	some p in input.process.parents
	p.exe == %[1]q
}

decision := {"verdict": "accept", "rule": "named"} if {
	input.process.exe == %[1]q
	input.process.cgroup == %[2]q
	input.process.user == "root"
	input.process.source == "bpf-flow"
	runner
} else := {"verdict": "accept", "rule": "hashed"} if {
	input.process.exe_sha256 == %[3]q
}
`, plain, "/"+filepath.Base(group), sum(t, renamed)), "--hook", "output")
	inside := b.run(lan.Client, 64, 20000, "10.99.0.2", "fd99::2", group)
	outside := b.run(lan.Client, 64, 21000, "10.99.0.2", "fd99::2", "")
	again := b.run(lan.Client, 64, 22000, "10.99.0.2", "fd99::2", "") // the hash is known by now
	d.Stop()
	rules := d.rulesByPort()
	for _, s := range inside {
		if got := rules[s.port]; (s.exe == plain && s.uid == 0) != (got == "named") {
			t.Errorf("inside: %+v: rule %q", s, got)
		}
	}
	for _, s := range append(outside, again...) {
		got := rules[s.port]
		switch {
		case got == "named":
			t.Errorf("outside the group: %+v: rule %q", s, got)
		case strings.Contains(s.exe, "/gone-"): // process and file are gone before anybody can read it
		case s.port >= 22000 && got != "hashed":
			t.Errorf("hash known: %+v: rule %q", s, got) // both files have the same bytes
		}
	}
}

// rulesByPort returns the rule of the last decision about each port.
func (d *daemon) rulesByPort() map[uint16]string {
	d.t.Helper()
	all := map[uint16]string{}
	for _, r := range d.records(func(r *record) bool { return r.decided() && !strings.HasPrefix(r.Proto, "IPv6-ICMP") }) {
		all[r.DstPort] = r.Own.Rule
	}
	return all
}
