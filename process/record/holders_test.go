package record_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/process/record"
)

// TestLabHolders compares what the kernel lists with what /proc shows of a process
// whose sockets do not change.
func TestLabHolders(t *testing.T) {
	requireBPF(t)
	r := open(t, record.Config{Owners: 16, Flows: 16, Processes: 16})
	if !r.ListsHolders() {
		t.Fatalf("no iterator: %+v", r.Stats().Programs)
	}
	var opened []*os.File
	for _, kind := range []struct{ domain, typ int }{
		{unix.AF_INET, unix.SOCK_STREAM}, {unix.AF_INET6, unix.SOCK_DGRAM}, {unix.AF_UNIX, unix.SOCK_STREAM},
	} {
		fd, err := unix.Socket(kind.domain, kind.typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		opened = append(opened, os.NewFile(uintptr(fd), "socket"))
	}
	again, err := unix.FcntlInt(opened[0].Fd(), unix.F_DUPFD_CLOEXEC, 0) // one socket, two descriptors
	if err != nil {
		t.Fatal(err)
	}
	opened = append(opened, os.NewFile(uintptr(again), "socket"))
	defer func() {
		for _, f := range opened {
			_ = f.Close()
		}
	}()

	child := exec.Command("cat")
	child.ExtraFiles = opened[1:2] // its descriptor 3
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(in.Close(), child.Wait()); err != nil {
			t.Error(err)
		}
	}()

	own, start := self(t)
	got := map[string]bool{}
	var childs []record.Holder
	err = r.Holders(t.Context(), func(h *record.Holder) error {
		if h.PID != own {
			if h.PID == uint32(child.Process.Pid) {
				childs = append(childs, *h)
			}
			return nil
		}
		const tick = 10_000_000 // ns, USER_HZ is 100
		if h.Start/tick != start {
			t.Errorf("got start %d ns, /proc has %d ticks", h.Start, start)
		}
		if key := fmt.Sprintf("%d %d", h.FD, h.Inode); got[key] {
			t.Errorf("descriptor %d is given twice", h.FD)
		} else {
			got[key] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(childs) != 1 || childs[0].FD != 3 || !got[fmt.Sprintf("%d %d", opened[1].Fd(), childs[0].Inode)] {
		t.Errorf("got %+v of the child, want descriptor 3 of a socket that it shares", childs)
	}
	want := socketsOf(t, "/proc/self/fd")
	if len(want) < len(opened) || len(got) != len(want) {
		t.Errorf("got %d descriptors, /proc shows %d, %d were opened", len(got), len(want), len(opened))
	}
	for key := range want {
		if !got[key] {
			t.Errorf("descriptor and inode %s are missing", key)
		}
	}

	stop := errors.New("enough")
	if err := r.Holders(t.Context(), func(*record.Holder) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v, want the error of yield", err)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Holders(done, func(*record.Holder) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

// self returns this process's number in the initial pid namespace and its start in
// ticks, both from /proc.
func self(t *testing.T) (pid uint32, start uint64) {
	t.Helper()
	if ns, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns != "pid:[4026531836]" {
		labtest.Lacks(t, labtest.InitialPIDs, fmt.Errorf("it is in %s (%v)", ns, err))
	}
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const startTime = 22 - 3 // proc(5); the first after the name is the third
	if start, err = strconv.ParseUint(fields[startTime], 10, 64); err != nil {
		t.Fatal(err)
	}
	return uint32(os.Getpid()), start
}

// socketsOf returns "descriptor inode" of each socket in a directory of
// descriptors.
func socketsOf(t *testing.T, dir string) map[string]bool {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if inode, ok := strings.CutPrefix(link, "socket:["); ok && err == nil {
			found[e.Name()+" "+strings.TrimSuffix(inode, "]")] = true
		}
	}
	return found
}
