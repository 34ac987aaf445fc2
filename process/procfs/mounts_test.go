package procfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestOurMount compares the two ways to know a mount, for all mounts.
func TestOurMount(t *testing.T) {
	fs := open(t)
	seen := 0
	for _, m := range must(mounts(fs.self))(t) {
		fd, err := openat(unix.AT_FDCWD, m.point, pathOnly)
		if err != nil {
			continue
		}
		listed, ok := listedMount(fs.self, fd)
		if device, ours := ourMount(fs.self, fd); !ok || !ours || device != listed {
			t.Errorf("%s: device %x, %v, listed as %x, %v", m.point, device, ours, listed, ok)
		}
		seen++
		unix.Close(fd)
	}
	if seen == 0 {
		t.Error("no mount was looked at")
	}
}

// TestLabForeignMount: a file that was opened in another mount namespace, and
// one in a mount that was taken away since, are in none of ours.
func TestLabForeignMount(t *testing.T) {
	labtest.Require(t, labtest.Root)
	fs := open(t)
	check := func(name, path string, after func()) {
		fd, err := openat(unix.AT_FDCWD, path, pathOnly)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		after()
		if _, ours := ourMount(fs.self, fd); ours {
			t.Errorf("%s: statmount says it is ours", name)
		}
		if _, ours := listedMount(fs.self, fd); ours {
			t.Errorf("%s: mountinfo says it is ours", name)
		}
	}
	path := program(t, filepath.Join(t.TempDir(), "a"), "")
	c := start(t, path, func(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} })
	check("foreign", "/proc/"+strconv.Itoa(int(c.pid))+"/exe", func() {})

	dir := filepath.Join(t.TempDir(), "fs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	check("taken away", dir, func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	})
}

func TestStatmountUnknown(t *testing.T) {
	if _, err := statmount(1 << 62); !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOSYS) {
		t.Errorf("got %v", err)
	}
}
