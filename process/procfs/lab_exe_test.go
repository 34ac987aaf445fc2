package procfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/process"
)

// TestExe moves the file of a running process about.
func TestExe(t *testing.T) {
	tests := []struct {
		name    string
		file    string // "a" if empty
		change  func(t *testing.T, path string)
		want    string // name in the directory
		deleted bool
	}{
		{name: "as it was", change: func(*testing.T, string) {}, want: "a"},
		{name: "renamed", change: func(t *testing.T, p string) { move(t, p, "b") }, want: "b"},
		{name: "deleted", change: func(t *testing.T, p string) { remove(t, p) }, want: "a", deleted: true},
		{name: "replaced", change: func(t *testing.T, p string) { program(t, p, "x") }, want: "a", deleted: true},
		{name: "deleted and another there", change: func(t *testing.T, p string) { remove(t, p); program(t, p, "x") }, want: "a", deleted: true},
		{name: "name with the mark", file: "a (deleted)", change: func(*testing.T, string) {}, want: "a (deleted)"},
		{name: "name with the mark, deleted", file: "a (deleted)", change: func(t *testing.T, p string) { remove(t, p) }, want: "a (deleted)", deleted: true},
		{name: "name with the mark beside one without", file: "a (deleted)", change: func(t *testing.T, p string) { program(t, sibling(p, "a"), "x") }, want: "a (deleted)"},
		{name: "deleted, a link elsewhere", change: func(t *testing.T, p string) { link(t, p, "b"); remove(t, p) }, want: "a", deleted: true},
		{name: "deleted and linked again", change: func(t *testing.T, p string) { link(t, p, "b"); remove(t, p); link(t, sibling(p, "b"), "a") }, want: "a"},
		{name: "directory renamed", file: "d/a", change: func(t *testing.T, p string) { move(t, filepath.Dir(p), "e") }, want: "e/a"},
		{name: "bytes that are no UTF-8", file: "caf\xe9", change: func(*testing.T, string) {}, want: `caf\xe9`},
		{name: "newline", file: "a\nb", change: func(*testing.T, string) {}, want: "a\nb"},
	}
	fs := open(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.file == "" {
				tt.file = "a"
			}
			path := program(t, filepath.Join(t.TempDir(), tt.file), "")
			c := start(t, path, nil)
			truth := statOf(t, path)
			dir := path[:len(path)-len(tt.file)]
			tt.change(t, path)
			want := process.Exe{Path: dir + tt.want, Inside: dir + tt.want, Inode: truth.inode, Device: truth.device, Deleted: tt.deleted}
			if tt.deleted && !fs.ref.atRoot { // without rights nobody can say whose path it is
				want.Path = ""
			}
			if got := must(fs.Exe(c.pid))(t); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// TestExeAmbiguous: a link is left, and something else is at the whole text. It
// may be a deleted "a", or an "a (deleted)" that something was mounted over.
func TestExeAmbiguous(t *testing.T) {
	fs := open(t)
	path := program(t, filepath.Join(t.TempDir(), "a"), "")
	c := start(t, path, nil)
	link(t, path, "b")
	remove(t, path)
	program(t, path+mark, "x")
	if got := must(fs.Exe(c.pid))(t); got.Path != "" || got.Deleted {
		t.Errorf("got %+v, want no path", got)
	}
}

// spoofed is a file that a private mount namespace shows another file at.
const spoofed = "/usr/bin/env"

// TestLabExeMountNamespace runs a program that its mount namespace shows as
// another, in four ways.
func TestLabExeMountNamespace(t *testing.T) {
	labtest.Require(t, labtest.Root)
	fs := open(t)
	path := program(t, filepath.Join(t.TempDir(), "evil"), "")
	private := func(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} }
	truth := statOf(t, path)
	want := process.Exe{Inside: spoofed, Inode: truth.inode, Device: truth.device}

	t.Run("bind mount", func(t *testing.T) {
		c := start(t, path, private, "CHILD=bind", "SOURCE="+path, "TARGET="+spoofed)
		if got := must(fs.Exe(c.pid))(t); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
	t.Run("by descriptor in our own namespace", func(t *testing.T) {
		helper := start(t, path, private, "CHILD=bind", "KEEP=1", "SOURCE="+path, "TARGET="+spoofed)
		f, err := os.Open("/proc/" + strconv.Itoa(int(helper.pid)) + "/fd/" + helper.said)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c := start(t, "/proc/self/fd/3", func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{f} })
		text, _ := os.Readlink("/proc/" + strconv.Itoa(int(c.pid)) + "/exe")
		e := must(fs.entry(c.pid))(t)
		defer e.close()
		if ns := must(namespace(e.fd, "ns/mnt"))(t); ns != fs.ref.mountNS || text != spoofed {
			t.Fatalf("the test does not spoof: namespace %d, ours %d, text %q", ns, fs.ref.mountNS, text)
		}
		if got := must(fs.Exe(c.pid))(t); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
	t.Run("deleted there", func(t *testing.T) {
		path := program(t, filepath.Join(t.TempDir(), "evil"), "")
		c := start(t, path, private, "CHILD=bind", "SOURCE="+path, "TARGET="+spoofed)
		remove(t, path)
		if got := must(fs.Exe(c.pid))(t); got.Path != "" || got.Inside != spoofed || !got.Deleted {
			t.Errorf("got %+v, want Inside and Deleted only", got)
		}
	})
	t.Run("same file at the same path", func(t *testing.T) {
		c := start(t, path, private)
		want := process.Exe{Path: path, Inside: path, Inode: truth.inode, Device: truth.device}
		if got := must(fs.Exe(c.pid))(t); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

// TestLabExeEscaped: a file moved out of the directory that is bind-mounted has
// no path in that mount.
func TestLabExeEscaped(t *testing.T) {
	labtest.Require(t, labtest.Root)
	fs := open(t)
	dir := t.TempDir()
	mountAt(t, "tmpfs", filepath.Join(dir, "fs"), "tmpfs", 0, "")
	program(t, filepath.Join(dir, "fs/in/x"), "")
	mountAt(t, filepath.Join(dir, "fs/in"), filepath.Join(dir, "bound"), "", unix.MS_BIND, "")
	c := start(t, filepath.Join(dir, "bound/x"), nil)
	defer c.end()
	if err := os.MkdirAll(filepath.Join(dir, "fs/usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "fs/in/x"), filepath.Join(dir, "fs", spoofed)); err != nil {
		t.Fatal(err)
	}
	if got := must(fs.Exe(c.pid))(t); got.Path != "" || got.Inside != "" || got.Inode == 0 {
		t.Errorf("got %+v, want no path", got)
	}
}

func TestLabExeChroot(t *testing.T) {
	labtest.Require(t, labtest.Root)
	fs := open(t)
	root := t.TempDir()
	path := program(t, filepath.Join(root, spoofed), "")
	c := start(t, spoofed, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		cmd.Dir = "/"
	})
	if got := must(fs.Exe(c.pid))(t); got.Path != path || got.Deleted {
		t.Errorf("got %+v, want %s", got, path)
	}
	remove(t, path)
	if got := must(fs.Exe(c.pid))(t); got.Path != path || !got.Deleted {
		t.Errorf("got %+v, want %s, deleted", got, path)
	}
}

// TestLabOwnChroot: from a root directory that is not that of the namespace, a
// path that was walked to the latter does not lead to the same.
func TestLabOwnChroot(t *testing.T) {
	labtest.Require(t, labtest.Root)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	var before, after bool
	var err error
	onSpareThread(func() {
		for _, step := range []func() error{
			func() error { return unix.Unshare(unix.CLONE_NEWNS) },
			func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
			func() error { return unix.Mount("/proc", filepath.Join(dir, "proc"), "", unix.MS_BIND, "") },
			func() error { before = atRoot(); return nil },
			func() error { return unix.Chroot(dir) },
			func() error { after = enteredRootIsOurs(); return nil },
		} {
			if err == nil {
				err = step()
			}
		}
	})
	if err != nil || !before || after {
		t.Errorf("at root %v, in chroot %v, error %v; want true, false", before, after, err)
	}
}

func TestExeMemfd(t *testing.T) {
	fs := open(t)
	c := start(t, program(t, filepath.Join(t.TempDir(), "a"), ""), nil, "CHILD=memfd")
	got := must(fs.Exe(c.pid))(t)
	if got.Path != "" || got.Inside != "/memfd:named" || !got.Deleted || got.Inode == 0 {
		t.Errorf("got %+v, want only Inside", got)
	}
}

// TestExeLeaderEnded: the first thread has ended, the process has not.
func TestExeLeaderEnded(t *testing.T) {
	fs := open(t)
	path := program(t, filepath.Join(t.TempDir(), "a"), "")
	c := start(t, path, nil, "CHILD=leader")
	p := must(fs.Process(c.pid))(t)
	if st := statusOf(t, fs, c.pid); !st.zombie() {
		t.Fatalf("state is %c, want Z", st.state)
	}
	if p.Exe.Path != path || p.Cmdline != path {
		t.Errorf("got %+v, want %s", p, path)
	}
}

func move(t testing.TB, path, name string) {
	t.Helper()
	if err := os.Rename(path, sibling(path, name)); err != nil {
		t.Fatal(err)
	}
}

func link(t testing.TB, path, name string) {
	t.Helper()
	if err := os.Link(path, sibling(path, name)); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func sibling(path, name string) string { return filepath.Join(filepath.Dir(path), name) }

// mountAt mounts until the end of the test.
func mountAt(t testing.TB, source, target, fsType string, flags uintptr, data string) {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, target, fsType, flags, data); err != nil {
		t.Fatalf("mount %s: %v", target, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
