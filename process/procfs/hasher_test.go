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

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/process"
)

// hasher runs one until the end of the test; ask asks it and waits.
func hasher(t *testing.T, fs *FS, cfg HasherConfig) (h *Hasher, ask func(Request) Result) {
	t.Helper()
	h = NewHasher(fs, cfg)
	results := make(chan Result, 16)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- h.Run(ctx, func(r Result) { results <- r }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return h, func(r Request) Result {
		t.Helper()
		if !h.Request(r) {
			t.Fatal("dropped")
		}
		select {
		case res := <-results:
			return res
		case <-time.After(20 * time.Second):
			t.Fatal("no answer")
			return Result{}
		}
	}
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
	h, ask := hasher(t, fs, HasherConfig{})
	path := program(t, filepath.Join(t.TempDir(), "a"), "")
	c := start(t, path, nil)
	want, key := sum(t, path), must2(h.KeyAt(path))(t)
	r := Request{PID: c.pid, StartBoot: must(fs.StartBoot(c.pid))(t), Path: path, Exe: must(fs.Exe(c.pid))(t)}
	if _, ok := h.Lookup(key); ok {
		t.Error("kept before it was asked for")
	}
	if res := ask(r); res.Err != nil || res.SHA256 != want || res.Key != key || res.PID != c.pid {
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
	_, ask := hasher(t, fs, HasherConfig{})
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
	_, ask := hasher(t, fs, HasherConfig{})
	st := statOf(t, "/dev/zero")
	r := Request{Path: "/dev/zero", Exe: process.Exe{Inode: st.inode, Device: st.device}}
	if res := ask(r); !errors.Is(res.Err, ErrGone) {
		t.Errorf("got %+v", res)
	}
}

func TestHasherChanging(t *testing.T) {
	fs := open(t)
	h, ask := hasher(t, fs, HasherConfig{})
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
	if got, ok := h.Lookup(must2(h.KeyAt(path))(t)); ok {
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
	fs := open(t)
	h := NewHasher(fs, HasherConfig{Waiting: 2, Entries: 2})
	for i := range 5 {
		if ok := h.Request(Request{}); ok != (i < 2) {
			t.Errorf("request %d: %v", i, ok)
		}
	}
	if h.Dropped() != 3 {
		t.Errorf("%d dropped, want 3", h.Dropped())
	}
	keys := []Key{{Inode: 1}, {Inode: 2}, {Inode: 3}, {Inode: 4}, {Inode: 5}}
	for _, k := range keys {
		h.keep(k, "x")
	}
	for i, k := range keys {
		if _, ok := h.Lookup(k); ok != (i >= 3) {
			t.Errorf("key %d: %v", i, ok)
		}
	}
}

// TestHasherEnds: a big file does not hold up the end.
func TestHasherEnds(t *testing.T) {
	labtest.Leaks(t)
	fs := must(Open("/proc"))(t)
	path := filepath.Join(t.TempDir(), "a")
	f := must(os.Create(path))(t)
	const big = 1 << 40 // sparse
	if err := f.Truncate(big); err != nil {
		labtest.Lacks(t, "sparse files", err)
	}
	f.Close()
	h := NewHasher(fs, HasherConfig{})
	st := statOf(t, path)
	h.Request(Request{Path: path, Exe: process.Exe{Inode: st.inode, Device: st.device}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- h.Run(ctx, func(r Result) { t.Errorf("answer %+v", r) })
	}()
	if !lab.Poll(5*time.Second, func() bool { return len(h.requests) == 0 }) {
		t.Error("not taken")
	}
	time.Sleep(200 * time.Millisecond)
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("did not end")
	}
	if err := fs.Close(); err != nil {
		t.Error(err)
	}
}

func must2[T any](v T, ok bool) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if !ok {
			t.Fatal(unix.ENOENT)
		}
		return v
	}
}
