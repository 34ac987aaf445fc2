package labtest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
)

// DaemonConfig says what to start and when it counts as ready.
type DaemonConfig struct {
	NS   *lab.Namespace // nil: the namespace of the test
	Path string         // executable; "" means Binary
	Args []string
	Env  []string // added to the environment of the test
	// Ready tells from one line of stderr that the program is ready; nil means
	// that the line contains "ready".
	Ready func(line string) bool
	// Timeout bounds the start, and later the stop; 0 means 20 s.
	Timeout time.Duration
}

// Process is a program started by Daemon, StartDaemon or Start. Its methods
// belong to the goroutine of the test, but for Stdout and Stderr.
type Process struct {
	t       testing.TB
	cmd     *exec.Cmd
	timeout time.Duration
	stdout  output
	stderr  output
	ready   chan struct{} // closed at the line that says so
	done    chan struct{} // closed when the process is reaped
}

// Daemon starts verdictd inside the namespace and waits until it is ready. At
// the end of the test it is killed if it still runs, and if the test failed
// its stderr is logged.
func Daemon(t testing.TB, ns *lab.Namespace, args ...string) *Process {
	t.Helper()
	return StartDaemon(t, DaemonConfig{NS: ns, Args: args})
}

// StartDaemon is Daemon with all settings.
func StartDaemon(t testing.TB, cfg DaemonConfig) *Process {
	t.Helper()
	p := Start(t, cfg)
	timer := time.NewTimer(p.timeout)
	defer timer.Stop()
	select {
	case <-p.ready:
	case <-p.done:
		t.Fatalf("%s ended with code %d before it was ready: %s", p.cmd, p.Code(), p.Stderr())
	case <-timer.C:
		t.Fatalf("%s was not ready after %s: %s", p.cmd, p.timeout, p.Stderr())
	}
	return p
}

// Start starts a program without waiting until it is ready.
func Start(t testing.TB, cfg DaemonConfig) *Process {
	t.Helper()
	p := &Process{t: t, timeout: cfg.Timeout, ready: make(chan struct{}), done: make(chan struct{})}
	if p.timeout == 0 {
		p.timeout = 20 * time.Second
	}
	p.stderr.until, p.stderr.found = cfg.Ready, p.ready
	if p.stderr.until == nil {
		p.stderr.until = func(line string) bool { return strings.Contains(line, "ready") }
	}
	path := cfg.Path
	if path == "" {
		path = Binary(t)
	}
	p.cmd = exec.Command(path, cfg.Args...)
	p.cmd.Env = append(os.Environ(), cfg.Env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// A grandchild that keeps the pipes open must not hold up Wait.
	p.cmd.WaitDelay = time.Second
	if err := p.start(cfg.NS); err != nil {
		t.Fatalf("start %s: %v", p.cmd, err)
	}
	t.Cleanup(p.cleanup)
	return p
}

// start runs the child on a thread of its own that lives as long as the
// child: Pdeathsig strikes when the thread ends, not the process.
func (p *Process) start(ns *lab.Namespace) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		start := p.cmd.Start
		if ns != nil {
			start = func() error { return ns.Do(p.cmd.Start) }
		}
		err := start()
		started <- err
		if err == nil {
			p.cmd.Wait() // the result is in ProcessState
		}
		close(p.done)
	}()
	return <-started
}

func (p *Process) cleanup() {
	select {
	case <-p.done:
	default:
		p.Kill()
	}
	if p.t.Failed() {
		p.t.Logf("stderr of %s:\n%s", p.cmd, p.Stderr())
	}
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the process. A process that has ended is an error
// of the test.
func (p *Process) Signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Errorf("signal %s to %s: %v", sig, p.cmd, err)
	}
}

// Stop sends SIGTERM, waits and returns the exit code. A process that does not
// end in time is killed and fails the test.
func (p *Process) Stop() int {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
	return p.Wait()
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("kill %s: %v", p.cmd, err)
	}
	<-p.done
}

// Wait waits until the process ends by itself and returns its exit code, -1 if
// a signal ended it. A process that does not end in time is killed and fails
// the test.
func (p *Process) Wait() int {
	p.t.Helper()
	timer := time.NewTimer(p.timeout)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.t.Errorf("%s did not end within %s", p.cmd, p.timeout)
		p.Kill()
	}
	return p.Code()
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Code returns the exit code after the end, -1 if a signal ended the process.
func (p *Process) Code() int { return p.cmd.ProcessState.ExitCode() }

// Stdout returns what the process has printed so far.
func (p *Process) Stdout() string { return p.stdout.String() }

// Stderr returns what the process has printed to stderr so far.
func (p *Process) Stderr() string { return p.stderr.String() }

// WaitStderr waits until stderr contains the text and fails the test if that
// does not happen within the timeout of the process.
func (p *Process) WaitStderr(text string) {
	p.t.Helper()
	if !lab.Poll(p.timeout, func() bool { return strings.Contains(p.Stderr(), text) }) {
		p.t.Fatalf("%s did not say %q within %s: %s", p.cmd, text, p.timeout, p.Stderr())
	}
}

// Exit is how a program ended.
type Exit struct {
	Code           int // -1 if a signal ended it
	Stdout, Stderr string
}

// Run runs verdictd to its end, inside the namespace unless it is nil. The exit
// code is for the test to judge.
func Run(t testing.TB, ns *lab.Namespace, args ...string) Exit {
	t.Helper()
	p := Start(t, DaemonConfig{NS: ns, Args: args})
	code := p.Wait()
	return Exit{Code: code, Stdout: p.Stdout(), Stderr: p.Stderr()}
}

// output collects what a process writes and closes found at the first whole
// line for which until holds.
type output struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	line  int // where the first unfinished line begins
	until func(line string) bool
	found chan struct{}
}

// Write keeps b. It never fails.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf.Write(b)
	for o.found != nil {
		line, _, whole := bytes.Cut(o.buf.Bytes()[o.line:], []byte("\n"))
		if !whole {
			break
		}
		o.line += len(line) + 1
		if o.until(string(line)) {
			close(o.found)
			o.found = nil
		}
	}
	return len(b), nil
}

// String returns all that was written.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
