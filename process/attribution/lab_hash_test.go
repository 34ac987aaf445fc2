package attribution_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/attribution"
	"github.com/verdictd/verdictd/process/record"
)

// trusted is what stands in a file by the time that it is hashed.
var trusted = []byte("a program that is trusted")

// copied copies the test binary to a file in dir, which rests for a while.
func copied(t *testing.T, dir string, rest time.Duration) string {
	t.Helper()
	text, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "program")
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	time.Sleep(rest)
	return path
}

// rest is longer than a tick of the clock of changes.
const rest = 50 * time.Millisecond

// TestLabHashOfWhatRan: nobody gives a program the hash of another file by what he
// writes into its own file, once it runs or has ended.
func TestLabHashOfWhatRan(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.BPF)
	lan := labtest.Pair(t)
	to := netip.MustParseAddrPort("10.99.0.2:9")
	r := working(t, lan.Client, attribution.Auto)
	a := r.New()
	defer a.Close()
	// start runs a program until it has a socket, and returns who that is of.
	start := func(t *testing.T, run *exec.Cmd) (*exec.Cmd, *process.Owner) {
		cmd, local := dialing(t, lan.Client, run, to.Addr().String())
		o := a.Settled(sentBy(local, to))
		if o.Process == nil || o.Source != process.BPFCookie {
			t.Fatalf("got %+v, want a recorded process", *o)
		}
		return cmd, o
	}
	// ended does so, lets it end and writes what is trusted over it.
	ended := func(t *testing.T, path string) *process.Owner {
		cmd, o := start(t, exec.Command(path))
		cmd.Process.Kill()
		cmd.Process.Wait()
		if err := os.WriteFile(path, trusted, 0o755); err != nil {
			t.Fatal(err)
		}
		return o
	}
	// hashOf returns the hash of an owner's program, or why there is none.
	hashOf := func(t *testing.T, o *process.Owner) (sum, why string) {
		known := lab.Poll(5*time.Second, func() bool {
			a.WantHash(o, 0)
			sum, why = r.HashOf(o)
			return sum != "" || why != ""
		})
		if !known {
			t.Fatal("neither a hash nor a reason to have none")
		}
		return sum, why
	}
	t.Run("runs", func(t *testing.T) {
		path := copied(t, t.TempDir(), rest)
		_, o := start(t, exec.Command(path))
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := sha256.Sum256(text)
		if sum, why := hashOf(t, o); sum != hex.EncodeToString(want[:]) {
			t.Errorf("got hash %q (%s), want %x", sum, why, want)
		}
		if err := os.WriteFile(path, trusted, 0o755); err == nil {
			t.Error("the kernel lets a program that runs be changed")
		}
	})
	t.Run("ended", func(t *testing.T) {
		o := ended(t, copied(t, t.TempDir(), rest))
		if sum, why := hashOf(t, o); sum != "" || why != process.NoHashChanged {
			t.Errorf("got hash %q (%s), want none: %s", sum, why, process.NoHashChanged)
		}
	})
	t.Run("fresh", func(t *testing.T) {
		dir := t.TempDir()
		for i := range 20 {
			path := copied(t, dir, 0)
			if i&1 == 0 {
				time.Sleep(rest)
			}
			if err := os.Chmod(path, 0o700|os.FileMode(i&1)); err != nil { // changed now
				t.Fatal(err)
			}
			if sum, why := hashOf(t, ended(t, path)); sum != "" {
				t.Errorf("got hash %s (%s), want none", sum, why)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("overlay of a user", func(t *testing.T) {
		dir := t.TempDir()
		for _, name := range []string{"lower", "upper", "work", "merged"} {
			if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		path := copied(t, filepath.Join(dir, "upper"), rest)
		script := fmt.Sprintf("cd %s && mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged && exec merged/program", dir)
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		_, o := start(t, cmd)
		if err := os.WriteFile(path, trusted, 0o755); err != nil {
			t.Fatal("the file below the overlay: ", err)
		}
		if sum, why := hashOf(t, o); sum != "" || why != process.NoHashFileSystem {
			t.Errorf("got hash %q (%s), want none: %s", sum, why, process.NoHashFileSystem)
		}
	})
}

// TestDoubt: only a file that must show each later change can be hashed later.
func TestDoubt(t *testing.T) {
	const ext4, fuse, second = 0xef53, 0x65735546, 1_000_000_000
	tick, changed := attribution.Tick(t)
	for name, tt := range map[string]struct {
		record   record.Process
		unlocked bool
		tick     uint64
		want     string
	}{
		"a tick has come":              {record.Process{FileSystem: ext4, Changed: changed - 1}, false, tick, ""},
		"none has come":                {record.Process{FileSystem: ext4, Changed: changed}, false, tick, process.NoHashFresh},
		"none, but its time was read":  {record.Process{FileSystem: ext4, Changed: changed, ChangedRead: true}, false, tick, ""},
		"from the future":              {record.Process{FileSystem: ext4, Changed: changed + second}, false, tick, process.NoHashFresh},
		"nobody knows the tick":        {record.Process{FileSystem: ext4, Changed: changed - second}, false, 0, process.NoHashFresh},
		"times in seconds, the same":   {record.Process{FileSystem: ext4, Changed: changed - changed%second, Granularity: second}, false, tick, process.NoHashFresh},
		"times in seconds, before":     {record.Process{FileSystem: ext4, Changed: changed - changed%second - second, Granularity: second}, false, tick, ""},
		"a file system of a user":      {record.Process{FileSystem: ext4, Changed: changed - second, UserMount: true}, false, tick, process.NoHashFileSystem},
		"a file system in user space":  {record.Process{FileSystem: fuse, Changed: changed - second}, false, tick, process.NoHashFileSystem},
		"what runs can be written":     {record.Process{FileSystem: ext4, Changed: changed - second}, true, tick, process.NoHashKernel},
		"written, and nothing is sure": {record.Process{Changed: changed}, true, 0, process.NoHashFileSystem},
	} {
		if got := attribution.Doubt(!tt.unlocked, &tt.record, tt.tick); got != tt.want {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
}
