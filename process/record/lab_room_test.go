package record_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/process/record"
)

// cookies opens sockets and returns their cookies, and what closes them.
func cookies(t *testing.T, n int) (all []uint64, end func()) {
	t.Helper()
	var fds []int
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			t.Fatal(err)
		}
		fds, all = append(fds, fd), append(all, cookie)
	}
	return all, func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}

// known counts the sockets that have an owner.
func known(r *record.Recorder, all []uint64) (n int) {
	for _, cookie := range all {
		var o record.Owner
		if r.Owner(cookie, &o) {
			n++
		}
	}
	return n
}

// TestLabFairShare: whoever opens many sockets has his share of the room and no more,
// which is counted; the room is his again when they are closed, and however many come
// and go, none that is open is forgotten.
func TestLabFairShare(t *testing.T) {
	requireBPF(t)
	const room, share = 64, 16
	// Cgroups of its own, so that other tests' sockets are not in the way. In one
	// below the root the share is the user's.
	cg := cgroup(t)
	r := open(t, record.Config{Owners: room, Cgroup: cg})
	back := enter(t, cg)
	defer back()
	first, end := cookies(t, share+10)
	if got := known(r, first); got != share || r.Stats().OwnersFailed != 10 {
		t.Errorf("of %d sockets %d are known, %+v; want %d", len(first), got, r.Stats(), share)
	}
	end()
	first, end = cookies(t, 2)
	defer end()
	for range 1000 {
		_, closed := cookies(t, 1)
		closed()
	}
	if got := known(r, first); got != 2 {
		t.Errorf("after 1000 others were opened and closed %d of 2 are known", got)
	}
	second, end2 := cookies(t, share)
	defer end2()
	if got := known(r, second); got != share-2 {
		t.Errorf("%d more are known, want %d", got, share-2)
	}
}

// enter moves this process into a cgroup, until the returned function is called.
func enter(t *testing.T, cg string) func() {
	t.Helper()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, path, _ := strings.Cut(string(own), "0::")
	before := filepath.Join(filepath.Dir(cg), strings.TrimSpace(path))
	move := func(to string) error {
		return os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte("0"), 0)
	}
	if err := move(cg); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := move(before); err != nil {
			t.Error(err)
		}
	}
}

// TestLabForks: what a process has executed stays known while others come and go.
func TestLabForks(t *testing.T) {
	requireBPF(t)
	const past, others = 64, 1000
	r := open(t, record.Config{Processes: past})
	cmd := exec.Command("/bin/cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	}()
	pid := uint32(cmd.Process.Pid)
	var before, after record.Process
	// Start returns when execve has closed its descriptors, before it is recorded.
	for deadline := time.Now().Add(5 * time.Second); !r.Running(pid, &before) || filepath.Base(before.Path) != "cat"; {
		if time.Now().After(deadline) {
			t.Fatalf("got %+v, want cat", before)
		}
		time.Sleep(time.Millisecond)
	}
	churn := exec.Command("/bin/sh", "-c", "i=0; while [ $i -lt "+uintText(others)+" ]; do (:); i=$((i+1)); done")
	if out, err := churn.CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	if !r.Running(pid, &after) || after != before || !r.Process(pid, before.ExecID, &after) {
		t.Errorf("got %+v after %d others, want %+v", after, others, before)
	}
	var p record.Process
	if r.Running(uint32(churn.Process.Pid), &p) {
		t.Errorf("got %+v of a process that has ended", p)
	}
}
