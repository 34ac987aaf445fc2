package procfs

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func open(t testing.TB) *FS {
	t.Helper()
	fs, err := Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	})
	return fs
}

// built is testdata/child as a static executable, so that it also runs where
// there are no libraries.
var built = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "procfs")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "child")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./testdata/child")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
})

// program writes the child under a name of its own. extra bytes at the end make
// it another file.
func program(t testing.TB, path string, extra string) string {
	t.Helper()
	b, err := built()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	// Written elsewhere and renamed: a fork of another test that still has it open
	// for writing would make it busy.
	if err := os.WriteFile(path+".new", append(b[:len(b):len(b)], extra...), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// child is a running process.
type child struct {
	cmd  *exec.Cmd
	pid  uint32
	said string
	end  func() // closes its standard input and waits; may be called twice
	in   interface{ Write([]byte) (int, error) }
}

// start runs a program and waits for its first line.
func start(t testing.TB, path string, set func(*exec.Cmd), env ...string) *child {
	t.Helper()
	cmd := exec.Command(path)
	cmd.Path, cmd.Err = path, nil
	cmd.Env, cmd.Stderr = append([]string{}, env...), os.Stderr
	if set != nil {
		set(cmd)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd, pid: uint32(cmd.Process.Pid), in: in}
	c.end = sync.OnceFunc(func() {
		in.Close()
		cmd.Wait() // how it ended says nothing
	})
	t.Cleanup(c.end)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%s did not say that it runs: %v", path, err)
	}
	c.said = strings.TrimSpace(line)
	return c
}

// number is what a child said, as a pid.
func (c *child) number(t testing.TB) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(c.said, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// statusOf is what /proc/PID/stat says.
func statusOf(t testing.TB, fs *FS, pid uint32) stat {
	t.Helper()
	e := must(fs.entry(pid))(t)
	defer e.close()
	return must(e.stat())(t)
}

// statOf is the truth about a path.
func statOf(t testing.TB, path string) file {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return file{inode: st.Ino, device: st.Dev}
}

// must returns a value whose making is not what is tested.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
