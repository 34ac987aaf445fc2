package handover

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// pair returns both ends of a connection.
func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	a, file, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err = Join(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Conn{a, b} {
		c.SetDeadline(time.Now().Add(10 * time.Second))
		t.Cleanup(func() { c.Close() })
	}
	return a, b
}

func TestMessages(t *testing.T) {
	labtest.Leaks(t)
	a, b := pair(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	tests := []struct {
		name    string
		kind    Kind
		payload []byte
		files   int
	}{
		{"nothing", 1, []byte{}, 0},
		{"payload", 2, []byte("text"), 0},
		{"more than the socket holds", 3, big, 0},
		{"files", 65535, []byte("x"), 3},
		{"as many files as go", 4, []byte{}, maxFiles},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var files []*os.File
			for range tt.files {
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				defer w.Close()
				files = append(files, w)
			}
			sent := make(chan error, 1)
			go func() { sent <- a.Send(tt.kind, tt.payload, files...) }()
			m, err := b.Receive()
			if err := errors.Join(err, <-sent); err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if m.Kind != tt.kind || !bytes.Equal(m.Payload, tt.payload) || len(m.Files) != tt.files {
				t.Errorf("got kind %d, %d bytes, %d files, want %d, %d, %d", m.Kind, len(m.Payload), len(m.Files), tt.kind, len(tt.payload), tt.files)
			}
			for i, f := range m.Files {
				var here, there unix.Stat_t
				if unix.Fstat(int(f.Fd()), &here) != nil || unix.Fstat(int(files[i].Fd()), &there) != nil || here.Ino != there.Ino {
					t.Errorf("file %d is another one", i)
				}
				if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
					t.Errorf("file %d goes on to children: flags %#x, %v", i, flags, err)
				}
			}
		})
	}
}

func TestReceiveErrors(t *testing.T) {
	tests := []struct {
		name string
		raw  []byte
		want string
	}{
		{"end", nil, "EOF"},
		{"end in header", []byte{0, 0, 0}, "unexpected EOF"},
		{"end in payload", []byte{0, 0, 0, 9, 0, 1, 0, 0, 'x'}, "unexpected EOF"},
		{"too long", []byte{255, 0, 0, 0, 0, 1, 0, 0}, "4278190080 bytes"},
		{"files that did not come", []byte{0, 0, 0, 0, 0, 1, 0, 2}, "2 descriptors, of which 0 came"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			labtest.Leaks(t)
			a, b := pair(t)
			if _, err := a.unix.Write(tt.raw); err != nil && len(tt.raw) > 0 {
				t.Fatal(err)
			}
			a.Close()
			if _, err := b.Receive(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestReceiveAfterReset(t *testing.T) {
	a, b := pair(t)
	if err := b.Send(1, []byte("never read")); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want EOF", err)
	}
}

func TestGreet(t *testing.T) {
	a, b := pair(t)
	greeted := make(chan error, 1)
	go func() { greeted <- a.Greet() }()
	if err := errors.Join(b.Greet(), <-greeted); err != nil {
		t.Error(err)
	}
	if err := a.Send(kindVersion, []byte{Version + 1}); err != nil {
		t.Fatal(err)
	}
	if err := b.Greet(); err == nil || !strings.Contains(err.Error(), "version [3], this one 2") {
		t.Errorf("got %v, want that the versions differ", err)
	}
}

func TestSendTooMuch(t *testing.T) {
	a, _ := pair(t)
	if err := a.Send(1, make([]byte, maxPayload+1)); err == nil {
		t.Error("got no error for a payload above the limit")
	}
	if err := a.Send(1, nil, make([]*os.File, maxFiles+1)...); err == nil {
		t.Error("got no error for files above the limit")
	}
}

// TestChild is not a test: it is the child of TestKeeper, which tells what it
// was given. Started by itself it has nothing to tell.
func TestChild(t *testing.T) {
	if !Kept() {
		return
	}
	files := Given()
	if Given() != nil || os.Getenv(countEnv) != "" {
		t.Error("descriptors are given twice")
	}
	for name, f := range files {
		text, err := io.ReadAll(f)
		fmt.Printf("given %s: %s %v\n", name, text, err)
	}
}

func TestKeeper(t *testing.T) {
	labtest.Leaks(t)
	k, err := NewKeeper()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	n := Notifier{fd: int(k.child.Fd())}
	store := func(name, text string) {
		t.Helper()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := w.WriteString(text); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if err := n.Store(name, r); err != nil {
			t.Fatal(err)
		}
	}
	store("one", "first")
	store("two", "second")
	store("three", "third")
	store("two", "second again")
	if err := errors.Join(n.Forget("one"), n.Forget("never heard of"), n.Notify("READY=1", "STATUS=a=b")); err != nil {
		t.Fatal(err)
	}
	ready := false
	for {
		notice := k.Receive()
		if notice == nil {
			break
		}
		if notice.PID != os.Getpid() {
			t.Errorf("got sender %d, want %d", notice.PID, os.Getpid())
		}
		ready = ready || notice.Values["READY"] == "1" && notice.Values["STATUS"] == "a=b"
		k.Take(notice)
	}
	if !ready {
		t.Error("READY=1 did not come")
	}
	env, fds := k.Child()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestChild$")
	cmd.Env = append(os.Environ(), env...)
	for _, fd := range fds {
		dup, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(dup), "kept")
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	out, err := cmd.CombinedOutput()
	for _, want := range []string{"given two: second again <nil>", "given three: third <nil>", "PASS"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("got %v and %s, want %q", err, out, want)
		}
	}
	if strings.Contains(string(out), "first") {
		t.Errorf("got %s, want that what was forgotten is gone", out)
	}
}

// TestKeeperStandsStill fills the keeper's socket: who tells it something gets
// an error, and is not held up for ever.
func TestKeeperStandsStill(t *testing.T) {
	k, err := NewKeeper()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	n := Notifier{fd: int(k.child.Fd())}
	for began := time.Now(); err == nil; {
		if time.Since(began) > 5*notifyLimit {
			t.Fatal("sends go on")
		}
		err = n.Notify("READY=1")
	}
	if !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("got %v, want EAGAIN", err)
	}
	// Neither a full socket nor an empty one holds the keeper up.
	for k.Receive() != nil {
	}
	if err := n.Notify("READY=1"); err != nil {
		t.Errorf("got %v after all was heard", err)
	}
	if err := k.Wait(); err != nil || k.Receive() == nil {
		t.Errorf("got %v and nothing, want the notice", err)
	}
}

// TestBeat: what is sent again and again takes no room from what matters.
func TestBeat(t *testing.T) {
	k, err := NewKeeper()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	n := Notifier{fd: int(k.child.Fd())}
	for range 100 { // more than the socket takes
		if err := n.Beat("WATCHDOG=1"); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Notify("READY=1"); err != nil {
		t.Errorf("got %v, want that there is room", err)
	}
	for _, want := range []string{"WATCHDOG", "READY"} {
		if got := k.Receive(); got == nil || got.Values[want] != "1" {
			t.Errorf("got %+v, want %s", got, want)
		}
	}
	if got := k.Receive(); got != nil {
		t.Errorf("got %+v besides", got)
	}
	if err := n.Beat("WATCHDOG=1"); err != nil || k.Receive() == nil {
		t.Errorf("got %v and nothing once all was heard", err)
	}
}

// TestNotifierOfKeeper finds the keeper by the descriptor, and gives it on by a
// descriptor only.
func TestNotifierOfKeeper(t *testing.T) {
	k, err := NewKeeper()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	t.Setenv(notifyEnv, "/a/path")
	t.Setenv(keeperFDEnv, fmt.Sprint(k.child.Fd()))
	n := NewNotifier()
	if !n.Present() || n.path != "" || os.Getenv(keeperFDEnv) != "" {
		t.Errorf("got %+v and %s=%q, want the descriptor, and no trace", n, keeperFDEnv, os.Getenv(keeperFDEnv))
	}
	env, files, err := n.Bequeath(7)
	if err != nil || len(files) != 1 || len(env) != 1 || env[0] != keeperFDEnv+"=7" {
		t.Fatalf("got %v, %v, %v, want one descriptor, number 7", env, files, err)
	}
	files[0].Close()
	if env, files, err := (Notifier{path: "/a/path"}).Bequeath(7); env != nil || files != nil || err != nil {
		t.Errorf("got %v, %v, %v for a path, want nothing: it is in the environment", env, files, err)
	}
}

func TestGivenToAnother(t *testing.T) {
	for _, pid := range []string{"1", "", "x"} {
		t.Setenv(countEnv, "1")
		t.Setenv(namesEnv, "queue-0")
		t.Setenv(pidEnv, pid)
		if got := Given(); got != nil {
			t.Errorf("LISTEN_PID=%q: got %v, want nothing", pid, got)
		}
	}
}

func TestNobodyToNotify(t *testing.T) {
	if err := (Notifier{}).Notify("READY=1"); err != nil {
		t.Errorf("got %v without a service manager, want nothing", err)
	}
	err := Notifier{path: t.TempDir() + "/gone"}.Notify("READY=1")
	if !errors.Is(err, syscall.ENOENT) {
		t.Errorf("got %v for a socket that is gone, want ENOENT", err)
	}
}
