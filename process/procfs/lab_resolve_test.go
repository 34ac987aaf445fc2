package procfs

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/process"
)

// TestLabResolveExe resolves records of a process that has ended.
func TestLabResolveExe(t *testing.T) {
	labtest.Require(t, labtest.Root)
	fs := open(t)
	const foreign, none = 1, uint32(0)
	tests := []struct {
		name          string
		ns            uint32
		change        func(t *testing.T, path string)
		path, deleted bool
	}{
		{"ours", fs.ref.mountNS, func(*testing.T, string) {}, true, false},
		{"ours, deleted", fs.ref.mountNS, func(t *testing.T, p string) { remove(t, p) }, true, true},
		{"ours, directory deleted", fs.ref.mountNS, func(t *testing.T, p string) {
			if err := os.RemoveAll(filepath.Dir(p)); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Dir(p), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, true, true},
		{"ours, replaced", fs.ref.mountNS, func(t *testing.T, p string) { program(t, p, "x") }, true, true},
		{"foreign, same file", foreign, func(*testing.T, string) {}, true, false},
		{"foreign, another file", foreign, func(t *testing.T, p string) { program(t, p, "x") }, false, false},
		{"foreign, nothing there", foreign, func(t *testing.T, p string) { remove(t, p) }, false, false},
		{"namespace unknown, same file", none, func(*testing.T, string) {}, true, false},
		{"namespace unknown, another file", none, func(t *testing.T, p string) { program(t, p, "x") }, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := program(t, filepath.Join(t.TempDir(), "d/a"), "")
			// A link keeps the inode from being used again.
			if err := os.Link(path, filepath.Join(t.TempDir(), "keep")); err != nil {
				t.Fatal(err)
			}
			truth := statOf(t, path)
			tt.change(t, path)
			want := process.Exe{Inside: path, Inode: truth.inode, Device: truth.device, Deleted: tt.deleted}
			if tt.path {
				want.Path = path
			}
			if got := fs.ResolveExe(path, truth.inode, truth.device, tt.ns, 0, 0); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// TestResolveExeDevice: inode numbers are of one file system.
func TestResolveExeDevice(t *testing.T) {
	fs := open(t)
	path := program(t, filepath.Join(t.TempDir(), "a"), "")
	truth := statOf(t, path)
	c := start(t, path, nil)
	for _, pid := range []uint32{0, c.pid} {
		got := fs.ResolveExe(path, truth.inode, truth.device+1, 1, pid, must(fs.StartBoot(c.pid))(t))
		if want := (process.Exe{Inside: path, Inode: truth.inode, Device: truth.device + 1}); got != want {
			t.Errorf("pid %d: got %+v, want %+v", pid, got, want)
		}
	}
}

// TestResolveExeLive: what runs says more than the record, if it is the same.
func TestResolveExeLive(t *testing.T) {
	fs := open(t)
	one := program(t, filepath.Join(t.TempDir(), "one"), "")
	two := program(t, filepath.Join(t.TempDir(), "two"), "2")
	c := start(t, one, nil, "CHILD=exec", "TARGET="+two)
	boot, first, second := must(fs.StartBoot(c.pid))(t), statOf(t, one), statOf(t, two)
	move(t, one, "moved")
	moved := sibling(one, "moved")
	if got := fs.ResolveExe(one, first.inode, first.device, 0, c.pid, boot+tick-1); got.Path != moved {
		t.Errorf("got %+v, want %s", got, moved)
	}
	if got := fs.ResolveExe(one, first.inode, first.device, 0, c.pid, boot+tick); got.Path != "" {
		t.Errorf("another start: got %+v", got)
	}
	// The process executes another file: it says nothing of the record any more.
	if _, err := c.in.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if !lab.Poll(5*time.Second, func() bool { return must(fs.Exe(c.pid))(t).Path == two }) {
		t.Fatal("no exec")
	}
	if got := fs.ResolveExe(one, first.inode, first.device, 0, c.pid, boot); got.Path != "" {
		t.Errorf("after exec: got %+v", got)
	}
	if got := fs.ResolveExe("", second.inode, second.device, 0, c.pid, boot); got.Path != two {
		t.Errorf("without a path: got %+v, want %s", got, two)
	}
	if got := fs.ResolveExe(two, 0, 0, 0, c.pid, boot); got.Path != "" || got.Inside != two {
		t.Errorf("without an inode: got %+v", got)
	}
}

// TestLabResolveExeOverlay: on overlayfs over two file systems the kernel's
// device (s_dev) is not that of stat(2), and files of both layers can have the same
// number: no path leads to what was recorded, but it can be where it was executed.
func TestLabResolveExeOverlay(t *testing.T) {
	labtest.Require(t, labtest.Root)
	fs := open(t)
	dir := t.TempDir()
	mountAt(t, "tmpfs", filepath.Join(dir, "low"), "tmpfs", 0, "")
	program(t, filepath.Join(dir, "low/a"), "")
	for _, d := range []string{"up", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(dir, "merged")
	if err := os.Mkdir(merged, 0o755); err != nil {
		t.Fatal(err)
	}
	options := "xino=off,lowerdir=" + dir + "/low,upperdir=" + dir + "/up,workdir=" + dir + "/work"
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		labtest.Lacks(t, "overlayfs", err)
	}
	t.Cleanup(func() { unix.Unmount(merged, unix.MNT_DETACH) })
	path := filepath.Join(merged, "a")
	var super uint64
	for _, m := range must(mounts(fs.self))(t) {
		if m.point == merged {
			super = m.device
		}
	}
	truth := statOf(t, path)
	t.Logf("stat says device %x, mountinfo %x", truth.device, super)
	c := start(t, path, nil)
	defer c.end()
	want := process.Exe{Inside: path, Inode: truth.inode, Device: super}
	for _, pid := range []uint32{0, c.pid} {
		if got := fs.ResolveExe(path, truth.inode, super, 1, pid, must(fs.StartBoot(c.pid))(t)); got != want {
			t.Errorf("pid %d: got %+v, want %+v", pid, got, want)
		}
	}
	if want.Path = path; fs.ref.atRoot {
		if got := fs.ResolveExe(path, truth.inode, super, fs.ref.mountNS, 0, 0); got != want {
			t.Errorf("executed in our namespace: got %+v, want %+v", got, want)
		}
	}
	if got, want := must(fs.Exe(c.pid))(t), (process.Exe{Path: path, Inside: path, Inode: truth.inode, Device: truth.device}); got != want {
		t.Errorf("of the process: got %+v, want %+v", got, want)
	}
}

func TestDevice(t *testing.T) {
	// 8:17 and a minor of more than 8 bits, as s_dev and as dev_t.
	for kernel, want := range map[uint32]uint64{8<<20 | 17: unix.Mkdev(8, 17), 259<<20 | 70000: unix.Mkdev(259, 70000)} {
		if got := Device(kernel); got != want {
			t.Errorf("%x: got %x, want %x", kernel, got, want)
		}
	}
}
