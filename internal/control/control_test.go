package control

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// serveAt starts a server that answers "hello" and returns what ends it.
func serveAt(t *testing.T, path string, h Handler) (stop func()) {
	t.Helper()
	s, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, h) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

func hello(_ context.Context, command string) (any, error) {
	if command != "hello" {
		return nil, errors.New("unknown command " + command)
	}
	return map[string]int{"answer": 42}, nil
}

func TestCall(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing", "a.sock")
	if _, err := Listen(missing); err == nil || !strings.Contains(err.Error(), "there is no directory "+filepath.Dir(missing)) {
		t.Errorf("got %v, want that the directory is missing", err)
	}
	path := filepath.Join(t.TempDir(), "a.sock")
	stop := serveAt(t, path, hello)
	defer stop()
	var got struct{ Answer int }
	if err := Call(t.Context(), path, "hello", &got); err != nil || got.Answer != 42 {
		t.Errorf("got %+v, %v, want 42", got, err)
	}
	err := Call(t.Context(), path, "bye", &got)
	if want := "verdictd at " + path + ": unknown command bye"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("got mode %v, %v, want a socket for its owner alone", info.Mode(), err)
	}
	stop()
	if err := Call(t.Context(), path, "hello", &got); !errors.Is(err, ErrNobody) {
		t.Errorf("got %v, want %v", err, ErrNobody)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that the socket is gone", err)
	}
}

// What a client sends that is no request is answered with the reason.
func TestNonsense(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	defer serveAt(t, path, hello)()
	tests := []struct{ name, send, want string }{
		{"no JSON", "status\n", "read request: invalid character"},
		{"no end", `{"version":1`, "want one line"},
		{"too long", strings.Repeat("x", maxRequest) + "\n", "want one line of at most 4096 bytes"},
		{"another version", `{"version":2,"command":"hello"}` + "\n", "version 2 of the control protocol, want 1"},
		{"no command", `{"version":1}` + "\n", "unknown command"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte(tt.send)); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil || !strings.Contains(line, `"version":1,"error":"`) || !strings.Contains(line, tt.want) {
				t.Errorf("got %q, %v, want an error with %q", line, err, tt.want)
			}
		})
	}
}

// Clients that say nothing take their places, but neither keep others out for
// good nor hold up the end.
func TestSilentClients(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	stop := serveAt(t, path, hello)
	for range maxClients {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Call(ctx, path, "hello", new(any)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want that it waits", err)
	}
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("the end took %s", took)
	}
}

// The end waits for handlers, and their clients learn that there is no answer.
func TestEndDuringCommand(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	began := make(chan struct{})
	var ended atomic.Bool
	stop := serveAt(t, path, func(ctx context.Context, _ string) (any, error) {
		close(began)
		<-ctx.Done()
		ended.Store(true)
		return nil, ctx.Err()
	})
	called := make(chan error, 1)
	go func() { called <- Call(t.Context(), path, "wait", new(any)) }()
	<-began
	stop()
	if !ended.Load() {
		t.Error("the end did not wait for the command")
	}
	if err := <-called; err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("got %v, want no answer", err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.sock")
	// What a dead daemon left: a socket that nobody listens on.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if err := Call(t.Context(), path, "hello", new(any)); !errors.Is(err, ErrNobody) {
		t.Errorf("stale socket: got %v, want %v", err, ErrNobody)
	}
	stop := serveAt(t, path, hello)
	defer stop()

	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("second daemon: got %v, want %v", err, ErrInUse)
	}
	if err := Call(t.Context(), path, "hello", new(any)); err != nil {
		t.Errorf("first daemon after that: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(dir, strings.Repeat("x", 108))
	for path, want := range map[string]string{file: "not a socket", long: "at most 107 bytes", filepath.Join(file, "a.sock"): "not a directory"} {
		_, err := Listen(path)
		if err == nil || !strings.HasPrefix(err.Error(), "make control socket "+path+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("listen at %s: got %v, want %s", path, err, want)
		}
	}
	if _, err := os.Lstat(file); err != nil {
		t.Errorf("a file in the way: %v", err)
	}
}

// Of many that find a dead daemon's socket one takes its place.
func TestListenRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	var servers [8]*Server
	var wg sync.WaitGroup
	for i := range servers {
		wg.Go(func() {
			s, err := Listen(path)
			if err != nil && !errors.Is(err, ErrInUse) {
				t.Error(err)
			}
			servers[i] = s
		})
	}
	wg.Wait()
	won := 0
	for _, s := range servers {
		if s != nil {
			won++
			defer s.Close()
		}
	}
	if won != 1 {
		t.Errorf("got %d servers, want 1", won)
	}
}

// Another user is refused, whatever the file's mode.
func TestOtherUser(t *testing.T) {
	labtest.Require(t, labtest.Root)
	dir, err := os.MkdirTemp("/tmp", "verdictd-control-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "a.sock")
	defer serveAt(t, path, hello)()
	call := func() error {
		errs := make(chan error)
		go func() { errs <- asNobody(func() error { return Call(context.Background(), path, "hello", new(any)) }) }()
		return <-errs
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := call(); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "needs root") {
		t.Errorf("got %v, want that it may not connect", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := call(); err == nil || !strings.Contains(err.Error(), "user 65534 may not control verdictd") {
		t.Errorf("got %v, want that it is refused", err)
	}
}
