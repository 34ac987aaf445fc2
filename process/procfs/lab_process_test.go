package procfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/process"
)

func TestProcess(t *testing.T) {
	fs := open(t)
	path := program(t, filepath.Join(t.TempDir(), "a"), "")
	before := time.Now()
	c := start(t, path, func(cmd *exec.Cmd) { cmd.Args = []string{"/usr/bin/curl", "two words", "\xff", ""} })
	after := time.Now()
	p := must(fs.Process(c.pid))(t)
	if p.PID != c.pid || p.Comm != "a" || p.Cmdline != `/usr/bin/curl two words \xff` || p.TTY != "" {
		t.Errorf("got %+v", p)
	}
	if p.Exe.Path != path {
		t.Errorf("argv[0] was believed: %+v", p.Exe)
	}
	// The clocks are compared once, and /proc rounds down to 10 ms.
	const slack = int64(tick) + int64(time.Millisecond)
	if p.Start < before.UnixNano()-slack || p.Start > after.UnixNano()+slack {
		t.Errorf("start %s, want between %s and %s", time.Unix(0, p.Start), before, after)
	}
	if ns := must(fs.Start(c.pid))(t); ns != p.Start || ns != fs.UnixOf(must(fs.StartBoot(c.pid))(t)) {
		t.Errorf("Start says %d, Process %d", ns, p.Start)
	}
	if len(p.Parents) == 0 || p.Parents[0].PID != uint32(os.Getpid()) {
		t.Fatalf("parents %+v, want %d first", p.Parents, os.Getpid())
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if p.Parents[0].Exe != self || p.Parents[0].Start != must(fs.Start(uint32(os.Getpid())))(t) {
		t.Errorf("parent %+v, want %s", p.Parents[0], self)
	}
	c.end()
	if p, err := fs.Process(c.pid); !errors.Is(err, ErrGone) {
		t.Errorf("after its end: %+v, %v", p, err)
	}
}

func TestComm(t *testing.T) {
	fs := open(t)
	path := program(t, filepath.Join(t.TempDir(), "a"), "")
	for comm, want := range map[string]string{
		"a) R 1 (b":      "a) R 1 (b",
		"x\ny\t":         "x\ny\t",
		"sshd\xff":       `sshd\xff`,
		"0123456789abcd": "0123456789abcd",
		" ":              " ",
		`a\nb`:           `a\nb`,
	} {
		c := start(t, path, nil, "CHILD=comm", "COMM="+comm)
		if p := must(fs.Process(c.pid))(t); p.Comm != want || p.Exe.Path != path || p.Start == 0 || len(p.Parents) == 0 {
			t.Errorf("%q: got %+v", comm, p)
		}
	}
}

func TestCmdlineHuge(t *testing.T) {
	fs := open(t)
	const arg, count = 100 << 10, 10 // 1 MB; one argument has at most 128 KiB
	c := start(t, program(t, filepath.Join(t.TempDir(), "a"), ""), func(cmd *exec.Cmd) {
		cmd.Args = []string{"x"} // so that "é" is cut in its middle
		for range count {
			cmd.Args = append(cmd.Args, "y"+strings.Repeat("é", arg/2))
		}
	})
	got := must(fs.Process(c.pid))(t).Cmdline
	if len(got) != process.MaxCmdline-1 || !utf8.ValidString(got) || !strings.HasPrefix(got, "x yéé") || !strings.HasSuffix(got, "é") {
		t.Errorf("%d bytes, begin %q, end %q", len(got), got[:8], got[len(got)-4:])
	}
}

func TestParents(t *testing.T) {
	fs := open(t)
	path := program(t, filepath.Join(t.TempDir(), "a"), "")
	c := start(t, path, nil, "CHILD=chain", "DEPTH="+strconv.Itoa(process.MaxParents+2))
	p := must(fs.Process(c.number(t)))(t)
	if len(p.Parents) != process.MaxParents {
		t.Fatalf("%d parents, want %d", len(p.Parents), process.MaxParents)
	}
	child := p.Start
	for _, parent := range p.Parents {
		if parent.Exe != path || parent.Comm != "a" || parent.Start > child {
			t.Errorf("parent %+v of a child started at %d", parent, child)
		}
		child = parent.Start
	}
}

// TestOrphan: a child whose parent has ended has another one, that was there
// before.
func TestOrphan(t *testing.T) {
	fs := open(t)
	c := start(t, program(t, filepath.Join(t.TempDir(), "a"), ""), nil, "CHILD=chain", "DEPTH=1", "ORPHAN=1")
	orphan := c.number(t)
	c.cmd.Process.Wait()
	p := must(fs.Process(orphan))(t)
	for _, parent := range p.Parents {
		if parent.PID == c.pid || parent.Start > p.Start {
			t.Errorf("parent %+v has ended", parent)
		}
	}
}

func TestForkWithoutExec(t *testing.T) {
	fs := open(t)
	path := program(t, filepath.Join(t.TempDir(), "a"), "")
	c := start(t, path, nil, "CHILD=fork")
	p := must(fs.Process(c.number(t)))(t)
	if p.PID == c.pid || p.Exe.Path != path || len(p.Parents) == 0 || p.Parents[0].PID != c.pid {
		t.Errorf("got %+v, want a child of %d", p, c.pid)
	}
}

func TestZombie(t *testing.T) {
	fs := open(t)
	c := start(t, program(t, filepath.Join(t.TempDir(), "a"), ""), nil)
	c.cmd.Process.Kill()
	if !lab.Poll(5*time.Second, func() bool {
		st := statusOf(t, fs, c.pid)
		return st.zombie() && st.threads <= 1 // until then the others still have the program
	}) {
		t.Fatal("no zombie")
	}
	p := must(fs.Process(c.pid))(t)
	if p.Comm != "a" || p.Exe != (process.Exe{}) || p.Cmdline != "" || p.Start == 0 || len(p.Parents) == 0 {
		t.Errorf("got %+v", p)
	}
}

// TestThread: /proc has entries for threads too, under numbers that are no pids.
func TestThread(t *testing.T) {
	fs := open(t)
	c := start(t, program(t, filepath.Join(t.TempDir(), "a"), ""), nil, "CHILD=thread")
	if p, err := fs.Process(c.number(t)); !errors.Is(err, ErrGone) {
		t.Errorf("got %+v, %v, want ErrGone", p, err)
	}
}

func TestLabKernelThread(t *testing.T) {
	labtest.Require(t, labtest.Root)
	const kthreadd = 2
	fs := open(t)
	p, err := fs.Process(kthreadd)
	if err != nil || p.Comm != "kthreadd" {
		labtest.Lacks(t, labtest.InitialPIDs, fmt.Errorf("process 2 is %q (%v)", p.Comm, err))
	}
	if p.Exe != (process.Exe{}) || p.Cmdline != "" || len(p.Parents) != 0 || p.Start == 0 {
		t.Errorf("got %+v", p)
	}
}

func TestLabSetuid(t *testing.T) {
	labtest.Require(t, labtest.Root)
	const nobody = 65534
	fs := open(t)
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := program(t, filepath.Join(dir, "a"), "")
	c := start(t, path, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	})
	if p := must(fs.Process(c.pid))(t); p.Exe.Path != path || p.Cmdline != path {
		t.Errorf("got %+v", p)
	}
}

// TestLabNoRights: who may not look at a program says nothing of it, and with
// hidepid=invisible there is no process.
func TestLabNoRights(t *testing.T) {
	labtest.Require(t, labtest.Root)
	dir := filepath.Join(t.TempDir(), "proc")
	mountAt(t, "proc", dir, "proc", 0, "hidepid=invisible")
	c := start(t, program(t, filepath.Join(t.TempDir(), "a"), ""), nil)
	fs := open(t)
	hidden, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer hidden.Close()
	if _, err := hidden.Process(c.pid); err != nil {
		t.Errorf("root cannot look: %v", err)
	}
	onSpareThread(func() {
		const nobody = 65534
		for _, call := range [][4]uintptr{{unix.SYS_SETGROUPS}, {unix.SYS_SETRESGID, nobody, nobody, nobody}, {unix.SYS_SETRESUID, nobody, nobody, nobody}} {
			if _, _, errno := syscall.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				t.Error(errno)
				return
			}
		}
		p, err := fs.Process(c.pid)
		if err != nil || p.Comm != "a" || p.Exe != (process.Exe{}) || p.Start == 0 {
			t.Errorf("as nobody: %+v, %v", p, err)
		}
		if p, err := hidden.Process(c.pid); !errors.Is(err, ErrGone) {
			t.Errorf("hidden from nobody: %+v, %v", p, err)
		}
	})
}

// TestLabPidReuse makes the kernel give the pid of an ended process to another.
func TestLabPidReuse(t *testing.T) {
	labtest.Require(t, labtest.Root)
	const last = "/proc/sys/kernel/ns_last_pid"
	fs := open(t)
	one := program(t, filepath.Join(t.TempDir(), "one"), "")
	two := program(t, filepath.Join(t.TempDir(), "two"), "2")
	const tries = 100 // other processes start meanwhile
	for range tries {
		a := start(t, one, nil)
		old := must(fs.entry(a.pid))(t)
		defer old.close()
		oldStart := must(fs.StartBoot(a.pid))(t)
		a.end()
		time.Sleep(2 * time.Duration(tick))
		if err := os.WriteFile(last, []byte(strconv.Itoa(int(a.pid)-1)), 0); err != nil {
			labtest.Lacks(t, labtest.Cap("writable "+last), err)
		}
		b := start(t, two, nil)
		if b.pid != a.pid {
			continue
		}
		if st, err := old.stat(); err == nil {
			t.Errorf("the old entry speaks of the new process: %+v", st)
		}
		if exe := fs.exe(old, stat{}); exe != (process.Exe{}) {
			t.Errorf("the old entry has the new program: %+v", exe)
		}
		if p := must(fs.Process(b.pid))(t); p.Exe.Path != two || SameStartBoot(must(fs.StartBoot(b.pid))(t), oldStart) {
			t.Errorf("got %+v", p)
		}
		// A record of the old process must not be answered by the new one.
		if exe := fs.ResolveExe(one, statOf(t, two).inode, statOf(t, two).device, 0, a.pid, oldStart); exe.Path != "" {
			t.Errorf("the new process answers for the old one: %+v", exe)
		}
		return
	}
	labtest.Lacks(t, "quiet machine", fmt.Errorf("no pid came again in %d tries", tries))
}
