package record_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/process/record"
)

const (
	client4, server4 = "10.99.0.1:7001", "10.99.0.2:9"
	sendUDP          = "udp " + server4 + " 7001"
)

// bench is a client whose OUTPUT calls the flow program.
type bench struct {
	net *lab.Network
	rec *record.Recorder
}

func newBench(t testing.TB) bench {
	t.Helper()
	requireBPF(t)
	labtest.Require(t, labtest.IPTablesBinary)
	b := bench{net: labtest.Pair(t)}
	b.rec = open(t, record.Config{})
	rule(t, b.rec, b.net.Client)
	return b
}

// sender runs a helper that sends from client4 and returns what was recorded of
// it: the owner of the flow, and the process.
func (b bench) sender(t *testing.T, c command) (record.Owner, record.Process) {
	t.Helper()
	c.ns = b.net.Client
	pid := c.run(t)
	user := ownUser()
	if c.attr != nil && c.attr.Credential != nil {
		user = record.UserOf(c.attr.Credential.Uid)
	}
	var f record.Flow
	if !b.rec.Flow(key(17, client4, server4), 0, user, &f) || !f.HasOwner || f.Owner.PID != pid {
		t.Fatalf("got %+v, want pid %d", f, pid)
	}
	var p record.Process
	if !b.rec.Process(pid, f.Owner.ExecID, &p) || p.Start != f.Owner.Start {
		t.Fatalf("process %+v, owner %+v", p, f.Owner)
	}
	return f.Owner, p
}

// isFile checks inode and device against a file.
func isFile(t *testing.T, p record.Process, path string) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if p.Inode != st.Ino || p.Device != st.Dev {
		t.Errorf("got inode %d on %x, want %d on %x", p.Inode, p.Device, st.Ino, st.Dev)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		t.Fatal(err)
	}
	if p.Changed != st.Ctim.Nano() || p.FileSystem != uint32(fs.Type) || p.UserMount || p.Granularity <= 0 || p.Granularity > time.Second {
		t.Errorf("got %+v, want it changed at %d, on a file system of type %x", p, st.Ctim.Nano(), fs.Type)
	}
}

func mountNS(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return uint32(st.Ino)
}

// runs checks that a process runs the file of a path in our mount namespace.
func runs(t *testing.T, p record.Process, path string) {
	t.Helper()
	if p.Path != path || p.PathCut || p.Nlink0 || p.MountNS != mountNS(t, "/proc/self/ns/mnt") {
		t.Errorf("got %+v, want path %s", p, path)
	}
	isFile(t, p, path)
	if p.Exec == 0 || p.ParentPID == 0 || p.ParentStart == 0 || p.ParentStart > p.Start {
		t.Errorf("got times and parent %+v", p)
	}
}

func TestLabProgramFile(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	first, second := copyOf(t, filepath.Join(dir, "first")), copyOf(t, filepath.Join(dir, "second"))
	t.Run("absolute", func(t *testing.T) {
		_, p := b.sender(t, command{path: first, words: strings.Fields(sendUDP), args: []string{"one", "two words"}})
		runs(t, p, first)
		if p.Exec < p.Start {
			t.Errorf("got times %+v", p)
		}
		if p.Comm != "first" || p.Args != first+" one two words" || p.ArgsCut || p.TTY != "" {
			t.Errorf("got %+v", p)
		}
		if p.ParentPID != uint32(os.Getpid()) {
			t.Errorf("got parent %d, want %d", p.ParentPID, os.Getpid())
		}
	})
	t.Run("relative", func(t *testing.T) {
		_, p := b.sender(t, command{path: "./first", dir: dir, words: strings.Fields(sendUDP)})
		runs(t, p, first)
	})
	t.Run("link", func(t *testing.T) {
		link := filepath.Join(dir, "link")
		if err := os.Symlink(first, link); err != nil {
			t.Fatal(err)
		}
		_, p := b.sender(t, command{path: link, words: strings.Fields(sendUDP)})
		runs(t, p, first)
	})
	t.Run("script", func(t *testing.T) {
		script := filepath.Join(dir, "script")
		if err := os.WriteFile(script, []byte("#!"+second+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		_, p := b.sender(t, command{path: script, words: strings.Fields(sendUDP)})
		runs(t, p, second)
	})
}

// TestLabProgramOfChild: exec and fork in all orders.
func TestLabProgramOfChild(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	first, second := copyOf(t, filepath.Join(dir, "first")), copyOf(t, filepath.Join(dir, "second"))
	t.Run("what it ran before", func(t *testing.T) {
		_, p := b.sender(t, command{path: first, words: append([]string{"exec", second}, strings.Fields(sendUDP)...)})
		var before record.Process
		if !b.rec.Process(p.PID, p.ExecID-1, &before) || before.Start != p.Start || before.Path != first {
			t.Errorf("got %+v, want the record of %s", before, first)
		}
	})
	t.Run("execs", func(t *testing.T) {
		cmd := exec.Command("/bin/sh", "-c", "read x; exec sleep 0")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		before := b.rec.Execs(uint32(cmd.Process.Pid))
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		if after := b.rec.Execs(uint32(cmd.Process.Pid)); after == before {
			t.Errorf("got %d before and after another program", after)
		}
	})
	t.Run("exec twice", func(t *testing.T) {
		_, p := b.sender(t, command{path: first, words: append([]string{"exec", second}, strings.Fields(sendUDP)...)})
		runs(t, p, second)
	})
	t.Run("fork and exec", func(t *testing.T) {
		_, p := b.sender(t, command{path: first, words: append([]string{"fork"}, strings.Fields(sendUDP)...)})
		runs(t, p, first)
		var parent record.Process
		if !b.rec.Process(p.ParentPID, p.ParentExecID, &parent) || parent.Start != p.ParentStart || parent.Path != first {
			t.Errorf("got parent %+v of %+v", parent, p)
		}
	})
	t.Run("fork without exec", func(t *testing.T) {
		_, p := b.sender(t, command{path: first, words: append([]string{"clone"}, strings.Fields(sendUDP)...)})
		runs(t, p, first)
		var parent record.Process
		if !b.rec.Process(p.ParentPID, p.ParentExecID, &parent) || parent.Exec != p.Exec || parent.PID == p.PID {
			t.Errorf("got parent %+v of %+v", parent, p)
		}
	})
}

// TestLabProgramBounds: what does not fit is cut and said to be.
func TestLabProgramBounds(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	first := copyOf(t, filepath.Join(dir, "first"))
	t.Run("many arguments", func(t *testing.T) {
		_, p := b.sender(t, command{path: first, words: strings.Fields(sendUDP), args: []string{strings.Repeat("x", 300)}})
		if !p.ArgsCut || !strings.HasPrefix(p.Args, first+" xxx") || len(p.Args) != 256 {
			t.Errorf("got %d bytes: %q", len(p.Args), p.Args)
		}
	})
	t.Run("long path", func(t *testing.T) {
		deep := filepath.Join(dir, strings.Repeat(strings.Repeat("d", 200)+"/", 4))
		if err := os.MkdirAll(deep, 0o755); err != nil {
			t.Fatal(err)
		}
		long := copyOf(t, filepath.Join(deep, "long"))
		_, p := b.sender(t, command{path: long, words: strings.Fields(sendUDP)})
		if rest, ok := strings.CutPrefix(p.Path, "..."); !p.PathCut || !ok || !strings.HasSuffix(long, rest) || len(rest) < 300 {
			t.Errorf("got %+v", p)
		}
		isFile(t, p, long)
	})
	t.Run("many directories", func(t *testing.T) {
		deep := filepath.Join(dir, strings.Repeat("d/", 40))
		if err := os.MkdirAll(deep, 0o755); err != nil {
			t.Fatal(err)
		}
		_, p := b.sender(t, command{path: copyOf(t, filepath.Join(deep, "deep")), words: strings.Fields(sendUDP)})
		if !p.PathCut || !strings.HasPrefix(p.Path, ".../d/d/d") || !strings.HasSuffix(p.Path, "/d/deep") {
			t.Errorf("got %+v", p)
		}
	})
}

// TestLabProgramGone: what runs has no name any more, or another one.
func TestLabProgramGone(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	t.Run("deleted", func(t *testing.T) {
		path := copyOf(t, filepath.Join(dir, "deleted"))
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		_, p := b.sender(t, command{path: procFD(f), words: strings.Fields(sendUDP)})
		if p.Path != path || !p.Nlink0 || p.Inode != st.Ino || p.Device != st.Dev {
			t.Errorf("got %+v, want path %s", p, path)
		}
	})
	t.Run("renamed", func(t *testing.T) {
		old, renamed := copyOf(t, filepath.Join(dir, "old")), filepath.Join(dir, "renamed")
		if err := os.Rename(old, renamed); err != nil {
			t.Fatal(err)
		}
		_, p := b.sender(t, command{path: renamed, words: strings.Fields(sendUDP)})
		if p.Path != renamed || p.Nlink0 {
			t.Errorf("got %+v, want path %s", p, renamed)
		}
	})
	t.Run("memfd", func(t *testing.T) {
		fd, err := unix.MemfdCreate("secret", 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "memfd")
		defer f.Close()
		self, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(self); err != nil {
			t.Fatal(err)
		}
		_, p := b.sender(t, command{path: procFD(f), words: strings.Fields(sendUDP)})
		if p.Path != "memfd:secret" || !p.Nlink0 || p.MountNS != 0 || p.Inode == 0 {
			t.Errorf("got %+v", p)
		}
	})
}

// TestLabMountNamespace: a process may give itself a mount namespace in which
// its program has the path of another one.
func TestLabMountNamespace(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	liar, honest := copyOf(t, filepath.Join(dir, "liar")), copyOf(t, filepath.Join(dir, "honest"))
	script := "mount --bind " + liar + " " + honest + " && stat -L -c %i /proc/self/ns/mnt >" + dir + "/ns && exec " + honest
	cmd := command{path: lookPath(t, "unshare"), args: []string{"--mount", "--propagation", "private", "sh", "-c", script}, words: strings.Fields(sendUDP)}
	_, p := b.sender(t, cmd)
	ns, err := os.ReadFile(filepath.Join(dir, "ns"))
	if err != nil {
		t.Fatal(err)
	}
	if p.Path != honest || p.MountNS == mountNS(t, "/proc/self/ns/mnt") || uintText(p.MountNS) != strings.TrimSpace(string(ns)) {
		t.Errorf("got %+v, want path %s in %s", p, honest, ns)
	}
	isFile(t, p, liar)
}

func TestLabCredentials(t *testing.T) {
	b := newBench(t)
	dir, err := os.MkdirTemp("/", "record-test-") // all may enter it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := copyOf(t, filepath.Join(dir, "helper"))
	cg := cgroup(t)
	o, _ := b.sender(t, command{path: path, words: strings.Fields(sendUDP), cgroup: cg,
		attr: &unix.SysProcAttr{Credential: credential(12345, 54321)}})
	var st unix.Stat_t
	if err := unix.Stat(cg, &st); err != nil {
		t.Fatal(err)
	}
	if o.UID != 12345 || o.GID != 54321 || o.CgroupID != st.Ino || o.TID == 0 || o.NetNS == 0 ||
		o.Hook != record.HookCreate || !strings.HasPrefix(string(o.Comm[:]), "helper\x00") {
		t.Errorf("got %+v, want cgroup %d", o, st.Ino)
	}
}

func lookPath(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestLabTerminal: the controlling terminal has the name that ps gives it.
func TestLabTerminal(t *testing.T) {
	b := newBench(t)
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		labtest.Lacks(t, "/dev/ptmx", err)
	}
	defer master.Close()
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	name := "pts/" + uintText(uint32(number))
	slave, err := os.OpenFile("/dev/"+name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	_, p := b.sender(t, command{words: strings.Fields(sendUDP),
		attr: &unix.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}, stdin: slave})
	if p.TTY != name { // taken before exec
		t.Errorf("got %+v, want terminal %s", p, name)
	}
}
