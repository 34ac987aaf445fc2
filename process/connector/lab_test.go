package connector

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

const wait = 5 * time.Second

// listenFor opens a Conn until the test ends.
func listenFor(t *testing.T, kinds Kind, buffer int) *Conn {
	t.Helper()
	labtest.Require(t, labtest.Root)
	c, err := open(kinds, buffer)
	if err != nil {
		labtest.Lacks(t, labtest.Connector, err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// collector keeps events.
type collector struct {
	mu  sync.Mutex
	all []Event
}

func (c *collector) add(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, e)
}

// of returns the events of a process, forks of threads and their ends left out.
func (c *collector) of(pid uint32) []Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	var got []Event
	for _, e := range c.all {
		if e.PID == pid && (e.PID == e.TID || e.Kind == Comm) {
			got = append(got, e)
		}
	}
	return got
}

// run runs the Conn until the test ends.
func run(t *testing.T, c *Conn) *collector {
	t.Helper()
	var got collector
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, got.add) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &got
}

// ended runs a command and returns its process's events when it has ended.
func ended(t *testing.T, got *collector, cmd *exec.Cmd) []Event {
	t.Helper()
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	pid := uint32(cmd.Process.Pid)
	exits := func(e Event) bool { return e.Kind == Exit }
	if !lab.Poll(wait, func() bool { return slices.ContainsFunc(got.of(pid), exits) }) {
		t.Fatalf("process %d: got %+v, want an exit", pid, got.of(pid))
	}
	return got.of(pid)
}

// TestLabProcess follows real processes from fork to exit, through a change of
// user.
func TestLabProcess(t *testing.T) {
	c := listenFor(t, 0, bufferBytes)
	got := run(t, c)
	cmd := exec.Command("/bin/sh", "-c", "exit 3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65533}}
	before := monotonic(t)
	events := ended(t, got, cmd)
	var kinds []string
	last := before
	for _, e := range events {
		kinds = append(kinds, e.Kind.String())
		if e.Time < last || e.Time > monotonic(t) {
			t.Errorf("%s: got time %s, want one after %s", e.Kind, e.Time, last)
		}
		last = e.Time
		switch {
		case e.Kind == Fork && e.ParentPID != uint32(os.Getpid()):
			t.Errorf("fork: got parent %d, want %d", e.ParentPID, os.Getpid())
		case e.Kind == UID && (e.Real != 65534 || e.Effective != 65534):
			t.Errorf("uid: got %d, %d, want 65534", e.Real, e.Effective)
		case e.Kind == GID && (e.Real != 65533 || e.Effective != 65533):
			t.Errorf("gid: got %d, %d, want 65533", e.Real, e.Effective)
		case e.Kind == Exit && (e.ExitCode != 3<<8 || e.ParentPID != uint32(os.Getpid())):
			t.Errorf("exit: got code %#x, parent %d, want 0x300, %d", e.ExitCode, e.ParentPID, os.Getpid())
		}
	}
	if got, want := strings.Join(kinds, " "), "fork gid uid exec exit"; got != want {
		t.Errorf("got events %q, want %q", got, want)
	}
	if s := c.Stats(); s.Lost != 0 || s.Overruns != 0 || s.Events < 5 {
		t.Errorf("got %+v, want nothing lost", s)
	}
}

func monotonic(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// TestLabKinds asks for some kinds: others are not handed on, whoever filters.
func TestLabKinds(t *testing.T) {
	c := listenFor(t, Exec|Exit, bufferBytes)
	t.Logf("filtered by the kernel: %v", c.Filtered())
	got := run(t, c)
	events := ended(t, got, exec.Command("/bin/true"))
	if len(events) != 2 || events[0].Kind != Exec || events[1].Kind != Exit {
		t.Errorf("got %+v, want exec and exit", events)
	}
	if s := c.Stats(); s.Lost != 0 {
		t.Errorf("got %+v, want nothing lost", s)
	}
	other, err := Open(Comm) // another listener does not matter
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if events = ended(t, got, exec.Command("/bin/true")); len(events) != 2 {
		t.Errorf("got %+v, want exec and exit", events)
	}
}

// renamer names a thread of its own, which stays on one CPU: each name makes an
// event of that CPU. It takes counts from the channel until that is closed.
func renamer(counts <-chan int, done chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with its name
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		done <- err
		return
	}
	first := 0
	for !set.IsSet(first) {
		first++
	}
	set.Zero()
	set.Set(first)
	err := unix.SchedSetaffinity(0, &set)
	for n := range counts {
		for i := 0; i < n && err == nil; i++ {
			name := append(fmt.Appendf(nil, "n%d", i), 0)
			err = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
		}
		done <- err
	}
}

// TestLabSlowReader makes more events than a small buffer holds before anybody
// reads: those lost are counted.
func TestLabSlowReader(t *testing.T) {
	c := listenFor(t, 0, 64<<10)
	counts, done := make(chan int), make(chan error)
	go renamer(counts, done)
	defer close(counts)
	total := 0
	rename := func(n int) {
		t.Helper()
		counts <- n
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		total += n
	}
	rename(5000)
	got := run(t, c)
	// The gap shows with the first event after what the buffer had kept.
	if !lab.Poll(wait, func() bool { rename(1); return c.Stats().Lost > 0 }) {
		t.Fatalf("got %+v, want some lost", c.Stats())
	}
	names := func() (n int) {
		for _, e := range got.of(uint32(os.Getpid())) {
			if e.Kind == Comm && strings.HasPrefix(e.Comm(), "n") {
				n++
			}
		}
		return n
	}
	if !lab.Poll(wait, func() bool { return names()+int(c.Stats().Lost) >= total }) {
		t.Errorf("got %d names and %+v, want %d together at least", names(), c.Stats(), total)
	}
	// Other processes' events may be among the lost, but few.
	if s := c.Stats(); s.Overruns == 0 || int(s.Lost) < 4000 || names()+int(s.Lost) > total+1000 {
		t.Errorf("got %d of %d names and %+v", names(), total, s)
	}
	t.Logf("%d of %d names, %+v", names(), total, c.Stats())
}

// TestLabElsewhere opens in another network namespace.
func TestLabElsewhere(t *testing.T) {
	labtest.Require(t, labtest.Root)
	ns := labtest.Pair(t).Client
	err := ns.Do(func() error {
		c, err := Open(0)
		if err == nil {
			c.Close()
		}
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "initial network namespace only") {
		t.Errorf("got error %v, want one that names the namespace", err)
	}
}

// TestLabClose ends Run, by Close and by the context, and leaves nothing.
func TestLabClose(t *testing.T) {
	labtest.Require(t, labtest.Root)
	labtest.Leaks(t)
	for _, byClose := range []bool{false, true} {
		c, err := Open(0)
		if err != nil {
			labtest.Lacks(t, labtest.Connector, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx, func(Event) {}) }()
		if byClose {
			c.Close()
		} else {
			cancel()
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		cancel()
		if !byClose {
			if err := c.Run(ctx, nil); err != nil {
				t.Errorf("after the end of the context: %v", err)
			}
			c.Close()
		}
	}
}
