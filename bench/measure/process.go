package measure

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
)

// patience is how long a peer may take to come to rest.
const patience = 30 * time.Second

// Process is a running peer. Of a nil Process, which stands for no peer at all,
// Schedule and Rest may be called.
type Process struct {
	cmd *exec.Cmd
	in  io.WriteCloser // nil: a daemon, which signals end
	out *bufio.Reader

	rest sync.WaitGroup // reads what a daemon says once it is ready
}

// Start runs a peer in a namespace, bound to a CPU unless that is negative, and
// waits until it says "ready". ctx kills it.
func Start(ctx context.Context, ns *lab.Namespace, program string, args []string, cpu int) (*Process, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := launch(ns, cmd, cpu); err != nil {
		return nil, err
	}
	p := &Process{cmd: cmd, in: in, out: bufio.NewReader(out)}
	if line, err := p.out.ReadString('\n'); err != nil || line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("peer %v did not start: it said %q: %w", args, line, err), p.Close())
	}
	return p, nil
}

// launch starts a program in a namespace, on a CPU.
func launch(ns *lab.Namespace, cmd *exec.Cmd, cpu int) error {
	if err := ns.Do(func() error { return OnCPU(cpu, cmd.Start) }); err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return nil
}

// StartDaemon runs a program that stays until SIGTERM, the same way. It is ready
// when it has written a line with the word "ready" on its standard error. What it
// has written is in the error if it ends before.
func StartDaemon(ctx context.Context, ns *lab.Namespace, program string, args []string, cpu int) (*Process, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	text, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := launch(ns, cmd, cpu); err != nil {
		return nil, err
	}
	p := &Process{cmd: cmd}
	lines := bufio.NewScanner(text)
	var said strings.Builder
	for lines.Scan() {
		fmt.Fprintln(&said, lines.Text())
		if strings.Contains(lines.Text(), "ready") {
			p.rest.Go(func() { _, _ = io.Copy(io.Discard, text) })
			return p, nil
		}
	}
	return nil, fmt.Errorf("%s %v did not start: %w: %s", program, args, cmd.Wait(), said.String())
}

// stopWait is how long a peer may take to end.
const stopWait = 5 * time.Second

// Close ends the peer and waits for it.
func (p *Process) Close() error {
	if p.in == nil {
		_ = p.Signal(unix.SIGTERM)
	} else {
		_ = p.in.Close() // its end
	}
	_ = p.Signal(unix.SIGCONT)
	kill := time.AfterFunc(stopWait, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	p.rest.Wait()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("peer %v: %w", p.cmd.Args, err)
	}
	return nil
}

// Ask sends the peer a line and returns the line that it answers.
func (p *Process) Ask(line string) ([]byte, error) {
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		return nil, fmt.Errorf("ask peer: %w", err)
	}
	answer, err := p.out.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("answer of peer: %w", err)
	}
	return answer, nil
}

// Signal sends a signal.
func (p *Process) Signal(s unix.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %v to peer: %w", s, err)
	}
	return nil
}

// Stop stops all threads of the peer, until it gets SIGCONT.
func (p *Process) Stop() error {
	if err := p.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	for {
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WSTOPPED, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for peer to stop: %w", err)
		}
	}
}

// Schedule is what the scheduler says of a peer: how long its threads ran, in
// user and kernel mode, and how long they waited for a CPU, also for one another.
type Schedule struct {
	Ran, Waited time.Duration
}

// Since returns what has been added since t.
func (s Schedule) Since(t Schedule) Schedule { return Schedule{s.Ran - t.Ran, s.Waited - t.Waited} }

// Schedule sums up the first two numbers of each thread's schedstat, which are
// nanoseconds. Of no peer at all it is zero.
func (p *Process) Schedule() (sum Schedule, err error) {
	if p == nil {
		return sum, nil
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		return sum, fmt.Errorf("read CPU time of peer: no /proc/%d/task/*/schedstat (needs CONFIG_SCHED_INFO)", p.cmd.Process.Pid)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			return sum, fmt.Errorf("read CPU time of peer: %w", err)
		}
		var s Schedule
		if _, err := fmt.Sscan(string(text), &s.Ran, &s.Waited); err != nil {
			return sum, fmt.Errorf("read CPU time of peer: %s: %q: %w", task, text, err)
		}
		sum = Schedule{sum.Ran + s.Ran, sum.Waited + s.Waited}
	}
	return sum, nil
}

// Rest waits until all threads of the peer sleep: then all that it did is
// counted. A peer that never rests is taken as it is after a while.
func (p *Process) Rest() {
	if p == nil {
		return
	}
	lab.Poll(patience, func() bool {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
		for _, task := range tasks {
			text, readErr := os.ReadFile(task)
			// The state follows the name, which is in brackets.
			at := strings.LastIndex(string(text), ") ")
			if readErr != nil || at < 0 || text[at+2] != 'S' {
				return false
			}
		}
		return err == nil
	})
}
