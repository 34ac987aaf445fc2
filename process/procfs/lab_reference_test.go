package procfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/process"
)

// host is a mount namespace beside that of the test. A program in it stands for
// process 1: seen from there, the test is what a service manager has confined.
type host struct {
	t    testing.TB
	dir  string // a file system that only the host has is mounted here; we have a directory
	init *child
	proc string // what Open takes for /proc
	fs   *FS
}

func newHost(t testing.TB) *host {
	t.Helper()
	labtest.Require(t, labtest.Root)
	h := &host{t: t, dir: filepath.Join(t.TempDir(), "dir"), proc: t.TempDir()}
	if err := os.Mkdir(h.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	first := program(t, filepath.Join(t.TempDir(), "init"), "")
	onSpareThread(func() {
		if err := errors.Join(
			unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", h.dir, "tmpfs", 0, "mode=755"),
		); err != nil {
			t.Error(err)
			return
		}
		h.init = start(t, first, nil)
	})
	if t.Failed() {
		t.FailNow()
	}
	if err := os.Symlink("/proc/self", filepath.Join(h.proc, "self")); err != nil {
		t.Fatal(err)
	}
	h.add("1", h.init)
	h.fs = h.open()
	if !h.fs.ref.foreign() {
		t.Fatalf("paths are not those of process 1: %v", h.fs.ref.missing)
	}
	return h
}

// add makes a process known in proc.
func (h *host) add(name string, c *child) {
	h.t.Helper()
	if err := os.Symlink("/proc/"+strconv.Itoa(int(c.pid)), filepath.Join(h.proc, name)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) open() *FS {
	h.t.Helper()
	fs, err := Open(h.proc)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			h.t.Error(err)
		}
	})
	return fs
}

// in runs f in the host's mount namespace.
func (h *host) in(f func()) {
	h.t.Helper()
	onSpareThread(func() {
		ns, err := unix.Open("/proc/"+strconv.Itoa(int(h.init.pid))+"/ns/mnt", readOnly, 0)
		if err == nil {
			defer unix.Close(ns)
			err = errors.Join(unix.Unshare(unix.CLONE_FS), unix.Setns(ns, unix.CLONE_NEWNS))
		}
		if err != nil {
			h.t.Error(err)
			return
		}
		f()
	})
	if h.t.Failed() {
		h.t.FailNow()
	}
}

// run writes a program in the host's file system and starts it there.
func (h *host) run(name string) (c *child, path string, truth file) {
	h.t.Helper()
	path = filepath.Join(h.dir, name)
	h.in(func() {
		program(h.t, path, "")
		c, truth = start(h.t, path, nil), statOf(h.t, path)
	})
	h.add(strconv.Itoa(int(c.pid)), c)
	return c, path, truth
}

// eachWay runs a test with openat2 and without.
func eachWay(t *testing.T, h *host, f func(t *testing.T)) {
	t.Helper()
	could := h.fs.ref.cached
	for _, scoped := range []bool{true, false} {
		if scoped && !h.fs.ref.scoped {
			continue
		}
		h.fs.ref.scoped, h.fs.ref.cached = scoped, scoped && could
		t.Run(map[bool]string{true: "openat2", false: "stepwise"}[scoped], f)
	}
}

// TestLabHostPath: files that only the host has, there and gone, of processes that
// run and that have ended.
func TestLabHostPath(t *testing.T) {
	h := newHost(t)
	eachWay(t, h, func(t *testing.T) {
		c, path, truth := h.run(filepath.Base(t.Name()))
		ended := func() process.Exe {
			return h.fs.ResolveExe(path, truth.inode, truth.device, h.fs.ref.mountNS, 1<<30, 0)
		}
		want := process.Exe{Path: path, Inside: path, Inode: truth.inode, Device: truth.device}
		check := func(when string) {
			t.Helper()
			if got := must(h.fs.Exe(c.pid))(t); got != want {
				t.Errorf("%s: got %+v, want %+v", when, got, want)
			}
			if got := ended(); got != want {
				t.Errorf("%s, ended: got %+v, want %+v", when, got, want)
			}
		}
		check("at its path")
		hashed := NewHasher(h.fs, HasherConfig{}).hash(Request{PID: 1 << 30, Path: path, Exe: want})
		if hashed.Err != nil || hashed.Key.Inode != truth.inode || hashed.Key.Device != truth.device {
			t.Errorf("hash by path: %+v, want inode %d", hashed, truth.inode)
		}
		h.in(func() { program(t, path, "x") })
		want.Deleted = true
		check("replaced")
		h.in(func() { remove(t, path) })
		check("deleted")
	})
}

// TestLabHostShadow: what is at the same path in our own namespace, or in a third
// one, is not what the host has there.
func TestLabHostShadow(t *testing.T) {
	h := newHost(t)
	eachWay(t, h, func(t *testing.T) {
		_, path, _ := h.run(filepath.Base(t.Name()))
		ours := program(t, path, "y") // in the directory below the mount
		truth := statOf(t, ours)
		c := start(t, ours, nil)
		h.add(strconv.Itoa(int(c.pid)), c)
		own := must(namespace(h.fs.self, "ns/mnt"))(t)
		want := process.Exe{Inside: path, Inode: truth.inode, Device: truth.device}
		for _, when := range []string{"there", "deleted"} {
			if got := must(h.fs.Exe(c.pid))(t); got != want {
				t.Errorf("%s: got %+v, want %+v", when, got, want)
			}
			for _, ns := range []uint32{own, 0, 1} {
				if got := h.fs.ResolveExe(path, truth.inode, truth.device, ns, 1<<30, 0); got.Path != "" {
					t.Errorf("%s, of namespace %d: got %+v, want no path", when, ns, got)
				}
			}
			if when == "there" {
				remove(t, ours)
				want.Deleted = true
			}
		}
	})
}

// TestLabHostDescriptor: a file that a mount of our namespace shows at a path of
// the host's, executed in the host's namespace by its descriptor.
func TestLabHostDescriptor(t *testing.T) {
	h := newHost(t)
	path := program(t, filepath.Join(h.dir, "evil"), "z") // below the mount: not in the host
	f := must(os.Open(path))(t)
	defer f.Close()
	var c *child
	h.in(func() {
		c = start(t, "/proc/self/fd/3", func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{f} })
	})
	h.add(strconv.Itoa(int(c.pid)), c)
	for range 2 {
		if got := must(h.fs.Exe(c.pid))(t); got.Path != "" || got.Inside != path {
			t.Errorf("got %+v, want only Inside, %s", got, path)
		}
		os.Remove(path)
	}
}

// TestLabHostLink: links lead to what the host has there, or nowhere.
func TestLabHostLink(t *testing.T) {
	h := newHost(t)
	_, path, truth := h.run("a")
	link := filepath.Join(h.dir, "link")
	h.in(func() {
		if err := os.Symlink(h.dir, link); err != nil {
			t.Error(err)
		}
	})
	by := filepath.Join(link, filepath.Base(path))
	if h.fs.ref.scoped {
		// No ".." leads out, and a link leads to the path of the file.
		for name, want := range map[string]string{by: path, link + "/../" + filepath.Base(h.dir) + "/./" + filepath.Base(path): path, "/../../.." + path: "/../../.." + path} {
			if at, got, err := h.fs.ref.look(name); err != nil || !got.same(truth) || at != want {
				t.Errorf("openat2, %s: got %s %+v, %v, want %s %+v", name, at, got, err, want, truth)
			}
		}
		h.in(func() {
			if err := errors.Join(os.Symlink("loop", filepath.Join(h.dir, "loop")), os.Symlink("/nowhere", filepath.Join(h.dir, "dead"))); err != nil {
				t.Error(err)
			}
		})
		for name, want := range map[string]error{"loop": unix.ELOOP, "dead": unix.ENOENT, "a/x": unix.ENOTDIR, strings.Repeat("x/", 70): unix.ENOENT} {
			if _, _, err := h.fs.ref.look(h.dir + "/" + name); !errors.Is(err, want) {
				t.Errorf("openat2, %s: got %v, want %v", name, err, want)
			}
		}
	}
	h.fs.ref.scoped, h.fs.ref.cached = false, false
	for name, want := range map[string]error{
		path: nil, "/": nil, "/." + path + "/": nil, by: unix.ELOOP, link: unix.ELOOP, "/.." + path: unix.ELOOP,
		path + "/x": unix.ENOTDIR, path + "x": unix.ENOENT, "": unix.ENOENT, "a": unix.ENOENT,
	} {
		if _, _, err := h.fs.ref.look(name); !errors.Is(err, want) {
			t.Errorf("stepwise, %q: got %v, want %v", name, err, want)
		}
	}
}

// TestLabHostChroot: a process 1 in a chroot, and our own root directory in the
// host's namespace, show no paths that can be believed.
func TestLabHostChroot(t *testing.T) {
	h := newHost(t)
	own := must(namespace(h.fs.self, "ns/mnt"))(t)
	t.Run("own", func(t *testing.T) {
		onSpareThread(func() {
			if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chroot(filepath.Join(h.proc, "1/root"))); err != nil {
				t.Error(err)
				return
			}
			if _, err := h.fs.openHost(own); !errors.Is(err, errChroot) {
				t.Errorf("got %v, want %v", err, errChroot)
			}
		})
	})
	t.Run("process 1", func(t *testing.T) {
		first := filepath.Join(h.proc, "1")
		remove(t, first)
		var c *child
		h.in(func() {
			program(t, filepath.Join(h.dir, "init"), "")
			c = start(t, "/init", func(cmd *exec.Cmd) {
				cmd.SysProcAttr, cmd.Dir = &syscall.SysProcAttr{Chroot: h.dir}, "/"
			})
		})
		h.add("1", c)
		fs := h.open()
		if fs.ref.foreign() || fs.ref.mountNS != own || !errors.Is(fs.ref.missing, errChroot) {
			t.Errorf("got %+v, want our own namespace", fs.ref)
		}
	})
}

// TestLabMissing: what a thread without capabilities misses.
func TestLabMissing(t *testing.T) {
	h := newHost(t)
	if got := h.fs.Missing(); len(got) > 0 {
		t.Errorf("with all rights: %q", got)
	}
	onSpareThread(func() {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Error(err)
			return
		}
		got := strings.Join(h.fs.Missing(), "\n")
		for _, want := range []string{"CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"} {
			if want == "CAP_DAC_READ_SEARCH" && h.fs.cgroups < 0 {
				continue
			}
			if !strings.Contains(got, want) {
				t.Errorf("got %q, want %s in it", got, want)
			}
		}
	})
}
