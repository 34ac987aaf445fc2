package labtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/internal/lab"
)

// fake records what a helper does to a test, and ends its goroutine as a real
// test would.
type fake struct {
	testing.TB
	skipped, failed string
	cleanups        []func()
}

func (f *fake) Helper() {}

func (f *fake) Skipf(format string, args ...any) {
	f.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (f *fake) Fatalf(format string, args ...any) {
	f.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (f *fake) Errorf(format string, args ...any) { f.failed = fmt.Sprintf(format, args...) }

func (f *fake) Cleanup(fn func()) { f.cleanups = append(f.cleanups, fn) }

// watch runs fn as the body of a test and waits for its end.
func watch(t *testing.T, fn func(*fake)) *fake {
	f := &fake{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn(f)
	}()
	<-done
	return f
}

func TestRequireNamesWhatIsMissing(t *testing.T) {
	const missing = Cap("a feature nobody has")
	Require(t, Root) // without it the reason is another one
	t.Setenv(env, "")
	got := watch(t, func(f *fake) { Require(f, missing) })
	if !strings.Contains(got.skipped, string(missing)) || !strings.Contains(got.skipped, "unknown capability") {
		t.Errorf("skip message: %q", got.skipped)
	}
	t.Setenv(env, required)
	if Has(t, missing) {
		t.Error("the machine has a feature that nobody has")
	}
	got = watch(t, func(f *fake) { Require(f, missing) })
	if !strings.Contains(got.failed, string(missing)) || got.skipped != "" {
		t.Errorf("with %s=%s: failed %q, skipped %q", env, required, got.failed, got.skipped)
	}
}

func TestProbesAnswer(t *testing.T) {
	Require(t, Root)
	Leaks(t)
	for _, c := range []Cap{NFQueue, NFLog, NFTables, Conntrack, IPTablesBinary, NFTBinary, NFTQueue, Tshark} {
		t.Log(c, ":", probe(c))
	}
	ns, err := lab.NewNamespace("probe")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	const noSubsystem = 200 << 8
	if err := nfnetlink(ns, noSubsystem, 0, nil); err == nil {
		t.Error("a subsystem that does not exist answered")
	}
	if err := onPath("no-such-program"); err == nil {
		t.Error("a program that does not exist is on the path")
	}
}

func TestCorpus(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("VERDICTD_CORPUS", dir)
	if err := os.Mkdir(filepath.Join(dir, "public"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, want := Corpus(t, "public"), filepath.Join(dir, "public"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	t.Setenv(env, required)
	got := watch(t, func(f *fake) { Corpus(f, "absent") })
	if !strings.Contains(got.skipped, "corpus") || got.failed != "" {
		t.Errorf("absent corpus: skipped %q, failed %q, want a skip even with %s", got.skipped, got.failed, required)
	}
}

func TestDaemon(t *testing.T) {
	Require(t, Root)
	Leaks(t)
	ns, err := lab.NewNamespace("daemon")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	inside, err := os.Readlink(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	path := Build(t, "./internal/lab/labtest/testdata/daemon")
	if again := Build(t, "./internal/lab/labtest/testdata/daemon"); again != path {
		t.Errorf("second build gave %s, first %s", again, path)
	}
	d := StartDaemon(t, DaemonConfig{NS: ns, Path: path, Args: []string{"7"}, Env: []string{"LAB_TEST=yes"}})
	if got := d.Stop(); got != 7 {
		t.Errorf("exit code: got %d, want 7", got)
	}
	if got, want := d.Stdout(), inside+" <nil> yes\n"; got != want {
		t.Errorf("stdout: got %q, want %q", got, want)
	}
	if got, want := d.Stderr(), "starting\nnow ready\n"; got != want {
		t.Errorf("stderr: got %q, want %q", got, want)
	}
	k := StartDaemon(t, DaemonConfig{Path: path, Args: []string{"0"}, Ready: func(l string) bool { return l == "starting" }})
	k.WaitStderr("now")
	k.Kill()
	if got := k.Code(); got != -1 {
		t.Errorf("code after SIGKILL: got %d, want -1", got)
	}
	if err := syscall.Kill(k.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process after Kill: %v, want %v", err, syscall.ESRCH)
	}
	got := watch(t, func(f *fake) { StartDaemon(f, DaemonConfig{Path: path, Args: []string{"no number"}}) })
	if !strings.Contains(got.failed, "code 2 before it was ready") || !strings.Contains(got.failed, "invalid syntax") {
		t.Errorf("a daemon that does not start: %q", got.failed)
	}
}

func TestLeaksSeesThem(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	var file *os.File
	f := watch(t, func(f *fake) {
		Leaks(f)
		file, _ = os.Open(os.DevNull)
		go func() { <-stop }()
	})
	defer file.Close()
	for _, fn := range f.cleanups {
		fn()
	}
	for _, want := range []string{"goroutine", "TestLeaksSeesThem", os.DevNull} {
		if !strings.Contains(f.failed, want) {
			t.Errorf("report lacks %q: %q", want, f.failed)
		}
	}
}

func TestParseCounters(t *testing.T) {
	tests := []struct {
		name, out string
		want      []Rule
		err       string
	}{
		{"empty chain", "-P INPUT ACCEPT -c 5 300\n", nil, ""},
		{"rules", "-N x\n-A x -p udp -c 1 28\n-A x -i eth0 -c 123456789012 9 -j NFLOG --nflog-prefix \"a b\"\n", []Rule{
			{Packets: 1, Bytes: 28, Text: "-A x -p udp -c 1 28"},
			{Packets: 123456789012, Bytes: 9, Target: "NFLOG", Text: "-A x -i eth0 -c 123456789012 9 -j NFLOG --nflog-prefix \"a b\""},
		}, ""},
		{"no counters", "-A x -j DROP\n", nil, "no counters"},
		{"no number", "-A x -c 1 y -j DROP\n", nil, "counters in"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseCounters(tt.out)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error: got %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
