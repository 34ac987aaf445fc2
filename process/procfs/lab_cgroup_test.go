package procfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/process"
)

// group makes a control group for the test.
func group(t testing.TB, fs *FS, path string) string {
	t.Helper()
	labtest.Require(t, labtest.Root)
	if fs.cgroups < 0 {
		labtest.Lacks(t, labtest.Cgroup2, errors.New("none is mounted"))
	}
	dir := filepath.Join(fs.cgroupMount, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		labtest.Lacks(t, labtest.Cgroup2, err)
	}
	t.Cleanup(func() {
		for d := dir; d != fs.cgroupMount; d = filepath.Dir(d) {
			// The kernel lets go of a group a moment after its last process.
			if !lab.Poll(5*time.Second, func() bool { err := os.Remove(d); return err == nil || errors.Is(err, os.ErrNotExist) }) {
				t.Errorf("%s is not empty", d)
			}
		}
	})
	return dir
}

func inGroup(t testing.TB, dir string) func(*exec.Cmd) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	}
}

func TestLabCgroup(t *testing.T) {
	fs := open(t)
	slice := fmt.Sprintf("procfs%d.slice", os.Getpid())
	for _, name := range []string{"web.service", "a (deleted)", "caf\xe9", `a\x2db.service`} {
		t.Run(name, func(t *testing.T) {
			path := "/" + slice + "/" + name
			dir := group(t, fs, path)
			c := start(t, program(t, filepath.Join(t.TempDir(), "a"), ""), inGroup(t, dir))
			defer c.end()
			want := process.ParseCgroup(process.Text([]byte(path)))
			want.ID = statOf(t, dir).inode
			if got := must(fs.CgroupOf(c.pid))(t); got != want {
				t.Errorf("by pid: got %+v, want %+v", got, want)
			}
			if got := must(fs.Cgroup(want.ID))(t); got != want {
				t.Errorf("by id: got %+v, want %+v", got, want)
			}
		})
	}
}

func TestLabCgroupRemoved(t *testing.T) {
	fs := open(t)
	path := fmt.Sprintf("/procfs%d-removed", os.Getpid())
	dir := group(t, fs, path)
	id := statOf(t, dir).inode
	c := start(t, program(t, filepath.Join(t.TempDir(), "a"), ""), inGroup(t, dir))
	c.cmd.Process.Kill()
	if !lab.Poll(5*time.Second, func() bool { return os.Remove(dir) == nil }) {
		t.Fatal("the group stays")
	}
	// The zombie is still in it.
	if got := must(fs.CgroupOf(c.pid))(t); got != (process.Cgroup{Path: path}) {
		t.Errorf("by pid: got %+v", got)
	}
	if got, err := fs.Cgroup(id); !errors.Is(err, ErrGone) {
		t.Errorf("by id: got %+v, %v", got, err)
	}
	c.end()
	if got, err := fs.Cgroup(id); !errors.Is(err, ErrGone) {
		t.Errorf("by id, without the zombie: got %+v, %v", got, err)
	}
	if _, err := fs.CgroupOf(c.pid); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}

func TestLabCgroupRoot(t *testing.T) {
	fs := open(t)
	group(t, fs, "") // requires
	id := statOf(t, fs.cgroupMount).inode
	if got := must(fs.Cgroup(id))(t); got != (process.Cgroup{ID: id, Path: "/"}) {
		t.Errorf("got %+v", got)
	}
	for _, id := range []uint64{0, 1 << 40, ^uint64(0)} {
		if got, err := fs.Cgroup(id); !errors.Is(err, ErrGone) {
			t.Errorf("%d: got %+v, %v, want ErrGone", id, got, err)
		}
	}
}
