package procfs

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// socket makes a socket; the truth is its inode.
func socket(t testing.TB) (f *os.File, inode uint32) {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if f, err = conn.(*net.UDPConn).File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return f, uint32(st.Ino)
}

type holder struct {
	pid uint32
	fd  int
}

func holdersOf(t *testing.T, fs *FS, inode uint32) []holder {
	t.Helper()
	var got []holder
	err := fs.Holders(t.Context(), func(i, pid uint32, fd int) error {
		if i == inode {
			got = append(got, holder{pid, fd})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestHolders(t *testing.T) {
	fs := open(t)
	f, inode := socket(t)
	me := holder{uint32(os.Getpid()), int(f.Fd())}
	if got := holdersOf(t, fs, inode); !slices.Equal(got, []holder{me}) {
		t.Errorf("got %v, want %v", got, me)
	}
	path := program(t, filepath.Join(t.TempDir(), "a"), "")
	for _, mode := range []string{"CHILD=", "CHILD=leader"} { // also if its first thread ended
		const inherited = 3
		c := start(t, path, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{f} }, mode)
		got := holdersOf(t, fs, inode)
		if len(got) != 2 || !slices.Contains(got, me) || !slices.Contains(got, holder{c.pid, inherited}) {
			t.Errorf("%s: got %v, want %v and %d", mode, got, me, c.pid)
		}
		if pid, ok := fs.HoldersOf([]uint32{1 << 30, c.pid, me.pid}, inode); !ok || pid != c.pid {
			t.Errorf("%s: HoldersOf says %d, %v, want %d", mode, pid, ok, c.pid)
		}
		c.end()
	}
	f.Close()
	if got := holdersOf(t, fs, inode); len(got) != 0 {
		t.Errorf("closed: got %v", got)
	}
	if pid, ok := fs.HoldersOf([]uint32{me.pid}, inode); ok {
		t.Errorf("closed: HoldersOf says %d", pid)
	}
}

func TestHoldersEnds(t *testing.T) {
	fs := open(t)
	socket(t)
	stop := errors.New("stop")
	calls := 0
	err := fs.Holders(t.Context(), func(uint32, uint32, int) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("error %v after %d calls", err, calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := fs.Holders(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
