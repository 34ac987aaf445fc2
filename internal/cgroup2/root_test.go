package cgroup2

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab/labtest"
)

func TestMount(t *testing.T) {
	tests := []struct {
		line, root, point string
		ok                bool
	}{
		{"30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw", "/", "/sys/fs/cgroup", true},
		{"41 32 0:28 /../.. /sys/fs/cgroup/a\\040b rw - cgroup2 cgroup rw,nsdelegate", "/../..", "/sys/fs/cgroup/a b", true},
		{"31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", "", "", false},
		{"31 24 0:27 / /a\\ - cgroup2 x rw", "/", `/a\`, true},
		{"cgroup2", "", "", false},
		{"", "", "", false},
	}
	for _, tt := range tests {
		if root, point, ok := mount(tt.line); root != tt.root || point != tt.point || ok != tt.ok {
			t.Errorf("%q: got %q, %q, %v, want %q, %q, %v", tt.line, root, point, ok, tt.root, tt.point, tt.ok)
		}
	}
}

// isCgroup2 tells whether a descriptor is of such a file system.
func isCgroup2(t *testing.T, f *os.File) bool {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Type == unix.CGROUP2_SUPER_MAGIC
}

func TestRoot(t *testing.T) {
	f, point, err := Root()
	if err != nil {
		labtest.Lacks(t, labtest.Cgroup2, err)
	}
	defer f.Close()
	if !isCgroup2(t, f) || point == "" {
		t.Errorf("got %s at %q, want a directory of cgroup2", f.Name(), point)
	}
}

// TestLabDetached mounts the hierarchy nowhere: its root is the same directory.
func TestLabDetached(t *testing.T) {
	f, err := detached()
	if errors.Is(err, unix.EPERM) {
		labtest.Lacks(t, labtest.Root, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !isCgroup2(t, f) {
		t.Error("got something else than cgroup2")
	}
	mounted, _, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	defer mounted.Close()
	a, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b, err := mounted.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if a.Name() == "" || a.IsDir() != b.IsDir() {
		t.Errorf("got %v, want a directory as %v", a, b)
	}
}
