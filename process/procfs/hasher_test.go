package procfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/process"
)

// answer is what came of a request.
type answer struct {
	Key    Key
	SHA256 string
	Err    error
}

// hash hashes a file to its end.
func (h *Hasher) hash(r Request) (a answer) {
	reading, sum, err := h.Open(r)
	if reading == nil {
		return answer{SHA256: sum, Err: err}
	}
	defer reading.Close()
	buf := make([]byte, 64<<10)
	for a.SHA256 == "" && a.Err == nil {
		a.SHA256, a.Err = reading.Read(buf)
	}
	a.Key = reading.key
	return a
}

// hasher returns one, and what asks it.
func hasher(fs *FS, cfg HasherConfig) (h *Hasher, ask func(Request) answer) {
	h = NewHasher(fs, cfg)
	return h, h.hash
}

func sum(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func TestHasher(t *testing.T) {
	fs := open(t)
	h, ask := hasher(fs, HasherConfig{})
	path := program(t, filepath.Join(t.TempDir(), "a"), "")
	c := start(t, path, nil)
	want, key := sum(t, path), keyAt(t, path)
	r := Request{PID: c.pid, StartBoot: must(fs.StartBoot(c.pid))(t), Path: path, Exe: must(fs.Exe(c.pid))(t)}
	if _, ok := h.Lookup(key); ok {
		t.Error("kept before it was asked for")
	}
	if res := ask(r); res.Err != nil || res.SHA256 != want || res.Key != key {
		t.Errorf("got %+v, want %s", res, want)
	}
	if got, ok := h.Lookup(key); !ok || got != want {
		t.Errorf("lookup: %q, %v", got, ok)
	}
	if n := testing.AllocsPerRun(100, func() { h.Lookup(key) }); n != 0 {
		t.Errorf("Lookup allocates %v times", n)
	}
	// Replaced: the process still runs what was asked for, the path is another.
	program(t, path, "x")
	if res := ask(r); res.Err != nil || res.SHA256 != want {
		t.Errorf("replaced: got %+v, want %s", res, want)
	}
	other := r
	other.StartBoot += tick
	if res := ask(other); !errors.Is(res.Err, ErrGone) || res.SHA256 != "" {
		t.Errorf("another start: %+v", res)
	}
	c.end()
	if res := ask(r); !errors.Is(res.Err, ErrGone) || res.SHA256 != "" {
		t.Errorf("ended and replaced: %+v", res)
	}
	// The new file, by its path alone.
	r.Exe.Inode = statOf(t, path).inode
	if res := ask(r); res.Err != nil || res.SHA256 != sum(t, path) || res.SHA256 == want {
		t.Errorf("by path: %+v", res)
	}
	for _, r := range []Request{{}, {PID: c.pid, Exe: r.Exe}, {Path: path}} {
		if res := ask(r); !errors.Is(res.Err, ErrGone) {
			t.Errorf("%+v: %+v", r, res)
		}
	}
}

func TestHasherDeleted(t *testing.T) {
	fs := open(t)
	_, ask := hasher(fs, HasherConfig{})
	path := program(t, filepath.Join(t.TempDir(), "a"), "")
	for _, mode := range []string{"CHILD=", "CHILD=leader", "CHILD=memfd"} {
		path := program(t, path+mode, "")
		want := sum(t, path)
		c := start(t, path, nil, mode)
		remove(t, path)
		r := Request{PID: c.pid, StartBoot: must(fs.StartBoot(c.pid))(t), Exe: must(fs.Exe(c.pid))(t)}
		if res := ask(r); res.Err != nil || res.SHA256 != want {
			t.Errorf("%s: got %+v, want %s", mode, res, want)
		}
	}
}

// TestHasherDevice: a path that leads to a device by now is not even opened.
func TestHasherDevice(t *testing.T) {
	fs := open(t)
	_, ask := hasher(fs, HasherConfig{})
	st := statOf(t, "/dev/zero")
	r := Request{Path: "/dev/zero", Exe: process.Exe{Inode: st.inode, Device: st.device}}
	if res := ask(r); !errors.Is(res.Err, ErrGone) {
		t.Errorf("got %+v", res)
	}
}

func TestHasherChanging(t *testing.T) {
	fs := open(t)
	h, ask := hasher(fs, HasherConfig{})
	path := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 32<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	st := statOf(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		for ctx.Err() == nil {
			f.WriteAt([]byte("y"), 0)
			time.Sleep(time.Millisecond)
		}
	}()
	r := Request{Path: path, Exe: process.Exe{Inode: st.inode, Device: st.device}}
	if res := ask(r); !errors.Is(res.Err, ErrWriting) || res.SHA256 != "" {
		t.Errorf("while it is written: %+v", res)
	}
	cancel()
	<-ended
	// One byte of the same length, at once: the clock of changes is coarse, and the
	// hash that is kept must be of the last content.
	if res := ask(r); res.Err != nil || res.SHA256 != sum(t, path) {
		t.Errorf("at rest: %+v", res)
	}
	f := must(os.OpenFile(path, os.O_WRONLY, 0))(t)
	defer f.Close()
	if _, err := f.WriteAt([]byte("z"), 0); err != nil {
		t.Fatal(err)
	}
	if got, ok := h.Lookup(keyAt(t, path)); ok {
		t.Errorf("changed content has hash %s", got)
	}
	if res := ask(r); res.Err != nil || res.SHA256 != sum(t, path) {
		t.Errorf("changed: %+v", res)
	}
	// A change that lies in the future is hashed and not kept.
	future := time.Now().Add(time.Hour)
	if err := os.Chtimes(path, future, future); err != nil {
		t.Fatal(err)
	}
	if res := ask(r); res.Err != nil || res.SHA256 != sum(t, path) || res.Key.Mtime != future.UnixNano() {
		t.Errorf("other times: %+v", res)
	}
}

func TestHasherBounds(t *testing.T) {
	h := NewHasher(open(t), HasherConfig{Entries: 2})
	keys := []Key{{Inode: 1}, {Inode: 2}, {Inode: 3}, {Inode: 4}, {Inode: 5}}
	for _, k := range keys {
		h.keep(k, "x")
		h.keep(k, "x")
	}
	for i, k := range keys {
		if _, ok := h.Lookup(k); ok != (i >= 3) {
			t.Errorf("key %d: %v", i, ok)
		}
	}
}

// TestHasherSize: of a file that is too large nothing is read, one that grows
// beyond the bound is left, and so is one that takes too long.
func TestHasherSize(t *testing.T) {
	fs := open(t)
	path := filepath.Join(t.TempDir(), "a")
	f := must(os.Create(path))(t)
	defer f.Close()
	const big = 1 << 40 // sparse
	if err := f.Truncate(big); err != nil {
		labtest.Lacks(t, "sparse files", err)
	}
	st := statOf(t, path)
	r := Request{Path: path, Exe: process.Exe{Inode: st.inode, Device: st.device}}
	h := NewHasher(fs, HasherConfig{})
	if reading, _, err := h.Open(r); reading != nil || !errors.Is(err, ErrTooLarge) {
		t.Errorf("1 TiB: %v, %v", reading, err)
	}
	if a := NewHasher(fs, HasherConfig{MaxSize: big, Time: 10 * time.Millisecond}).hash(r); !errors.Is(a.Err, ErrTooSlow) {
		t.Errorf("1 TiB without a bound: %+v", a)
	}
	if err := f.Truncate(1); err != nil {
		t.Fatal(err)
	}
	reading, _, err := h.Open(r)
	if err != nil || reading.Left() != 1 {
		t.Fatalf("1 byte: %+v, %v", reading, err)
	}
	defer reading.Close()
	if err := f.Truncate(big); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = reading.Read(make([]byte, 1<<20))
	}
	if !errors.Is(err, ErrTooLarge) || reading.offset > DefaultMaxSize+8<<20 {
		t.Errorf("grown: %v after %d bytes", err, reading.offset)
	}
}

func keyAt(t testing.TB, path string) Key {
	t.Helper()
	key, _, err := keyOf(unix.AT_FDCWD, path, 0)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
