package main_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabOwnerOwnRules: with rules of the user's own, printed by verdictd, programs
// that end at once are known too.
func TestLabOwnerOwnRules(t *testing.T) {
	const count = 400
	setup(t, labtest.GCC, labtest.BPF)
	lan, b := labtest.Pair(t), newSenders(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	pin := filepath.Join(dir, "record")
	d := startDaemon(t, lan.Client, acceptAll, "--record-pin", pin)
	script := labtest.Run(t, nil, "hook", "print-iptables", "--hook", "output", "--record-pin", pin)
	if script.Code != 0 {
		t.Fatal(script.Stderr)
	}
	cmd := exec.Command("sh", "-s", "install")
	cmd.Stdin = strings.NewReader(script.Stdout)
	cmd.Env = append(os.Environ(), "IPTABLES=iptables-legacy", "IP6TABLES=ip6tables-legacy")
	var out []byte
	err := lan.Client.Do(func() (err error) { out, err = cmd.CombinedOutput(); return err })
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	truth := b.run(lan.Client, count, 20000, "10.99.0.2", "fd99::2", "")
	d.Stop()
	s := d.score(truth, filepath.Join(b.dir, "plain"), "")
	t.Logf("%d programs, %d in the log, %d known, %d wrong", count, s.seen, s.known, s.wrong)
	if s.seen != count || s.known < count || s.wrong > 0 {
		t.Errorf("%d programs: %d in the log, %d known, %d wrong", count, s.seen, s.known, s.wrong)
	}
	if _, err := os.Stat(pin); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pinned program is still there: %v", err)
	}
}

// TestLabOwnerLeavesNothing: of the programs in the kernel none is left after an
// orderly end, and none after a killed daemon's rules are removed.
func TestLabOwnerLeavesNothing(t *testing.T) {
	setup(t, labtest.BPF)
	lan := labtest.Pair(t)
	before := bpfPrograms(t)
	d := startDaemon(t, lan.Client, acceptAll, "--hook", "output,input,forward")
	if n := len(bpfPrograms(t)) - len(before); n < 10 {
		t.Errorf("got %d programs of a running daemon, want 10 or more", n)
	}
	if code := d.Stop(); code != 0 {
		t.Errorf("got exit code %d, want 0", code)
	}
	gone := func() bool { return len(bpfPrograms(t)) <= len(before) }
	if !lab.Poll(wait, gone) {
		t.Errorf("got %d programs after the end, want %d", len(bpfPrograms(t)), len(before))
	}
	startDaemon(t, lan.Client, acceptAll, "--hook", "output").Kill()
	if got := labtest.Run(t, lan.Client, "hook", "remove"); got.Code != 0 {
		t.Fatal(got.Stderr)
	}
	if !lab.Poll(wait, gone) {
		t.Errorf("got %d programs after a kill, want %d", len(bpfPrograms(t)), len(before))
	}
}

// bpfPrograms returns the numbers of all BPF programs in the kernel.
func bpfPrograms(t *testing.T) (all []ebpf.ProgramID) {
	t.Helper()
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all, id = append(all, next), next
	}
}
