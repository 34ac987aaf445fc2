package attribution

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/procfs"
)

// TestHashAskedForAgain: a hash that nobody had time to make when a policy wanted it
// is asked for again whenever more may be known.
func TestHashAskedForAgain(t *testing.T) {
	fs, err := procfs.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fs.Close() })
	r := &Resolver{fs: fs}
	r.hashes.hasher = procfs.NewHasher(fs, procfs.HasherConfig{MaxSize: 1})
	start, err := fs.StartBoot(uint32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &st); err != nil {
		t.Fatal(err)
	}
	r.boot = fs.UnixOf(0)
	p := &process.Process{PID: uint32(os.Getpid()), Start: r.unixOf(start), Exe: process.Exe{Inode: st.Ino, Device: uint64(st.Dev)}}
	a := &Attributor{r: r, caches: newCaches()}
	crowded := newPool(poolConfig{workers: 1, share: 1, hung: 1, limit: time.Second})
	crowded.close()
	r.hashers = crowded
	if !a.WantHash(&process.Owner{Process: p}, 0) {
		t.Fatal("no hash will be known")
	}
	c := known{p: p, start: start, pending: process.FactHash}
	a.complete(&c, 0)
	r.hashers = newPool(poolConfig{workers: 1, share: 1, hung: 1, limit: time.Second})
	t.Cleanup(func() { r.hashers.close() })
	if !lab.Poll(5*time.Second, func() bool { a.complete(&c, 0); return c.pending == 0 }) || c.p.Exe.NoSHA256 != "too large" {
		t.Errorf("got %+v with %v pending, want that the program is too large to hash", c.p.Exe, c.pending)
	}
}
