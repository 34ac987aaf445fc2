package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
)

// The peers, in the order of the tables.
const (
	noQueue      = "no queue"
	conntrack    = "conntrack only"
	cBatched     = "C batched"
	cSimple      = "C simple"
	cSpin        = "C spinning"
	goNFQueue    = "go-nfqueue"
	verdictdLoop = "verdictd loop"
	verdictd     = "verdictd"
	verdictdSpin = "verdictd spinning"
	verdictdOn   = "verdictd offload"
	verdictdOff  = "verdictd no offload"
)

// spinTime is how long the spinning peers look for packets before they sleep.
const spinTime = 50 * time.Microsecond

func allPeers() []string {
	return []string{noQueue, conntrack, cBatched, cSimple, cSpin, goNFQueue, verdictdLoop, verdictd, verdictdSpin, verdictdOn, verdictdOff}
}

// sleepers are the peers that sleep as soon as nothing is left to answer.
func sleepers() []string {
	return []string{cBatched, cSimple, goNFQueue, verdictdLoop, verdictd}
}

// isC says whether the peer is part of peer.c.
func isC(peer string) bool { return slices.Contains([]string{cBatched, cSimple, cSpin}, peer) }

// isDaemon says whether the peer has the whole engine.
func isDaemon(peer string) bool {
	return slices.Contains([]string{verdictd, verdictdSpin, verdictdOn, verdictdOff}, peer)
}

//go:embed peer.c
var peerSource string // a constant to us

// compile builds peer.c in dir and returns the program and the compiler.
func compile(ctx context.Context, dir string) (program, compiler string, err error) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		return "", "", fmt.Errorf("gcc is not on the path (install it: apt install gcc libc6-dev)")
	}
	source := filepath.Join(dir, "peer.c")
	if err := os.WriteFile(source, []byte(peerSource), 0o600); err != nil {
		return "", "", err
	}
	program = filepath.Join(dir, "peer")
	out, err := exec.CommandContext(ctx, gcc, "-O2", "-pthread", "-o", program, source).CombinedOutput()
	if err != nil {
		return "", "", fmt.Errorf("compile peer.c: %w (needs libc6-dev): %s", err, out)
	}
	version, err := exec.CommandContext(ctx, gcc, "-dumpfullversion").Output()
	if err != nil {
		return "", "", fmt.Errorf("ask gcc for its version: %w", err)
	}
	return program, "gcc " + strings.TrimSpace(string(version)), nil
}

// process is a running peer.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// start runs a peer in the router's namespace, bound to a CPU unless that is
// negative, and waits until it has bound its queues. ctx kills it.
func start(ctx context.Context, ns *lab.Namespace, program string, args []string, cpu int) (*process, error) {
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
	err = ns.Do(func() error { return onCPU(cpu, cmd.Start) })
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	p := &process{cmd: cmd, in: in, out: bufio.NewReader(out)}
	if line, err := p.out.ReadString('\n'); err != nil || line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("peer %v did not start: it said %q: %w", args, line, err), p.close())
	}
	return p, nil
}

// close ends the peer and waits for it.
func (p *process) close() error {
	const patience = 5 * time.Second
	_ = p.in.Close() // its end
	_ = p.signal(unix.SIGCONT)
	kill := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("peer %v: %w", p.cmd.Args, err)
	}
	return nil
}

// report asks the peer what it has done.
func (p *process) report() (r report, err error) {
	if _, err := io.WriteString(p.in, "report\n"); err != nil {
		return r, fmt.Errorf("ask peer: %w", err)
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return r, fmt.Errorf("answer of peer: %w", err)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("answer of peer %q: %w", line, err)
	}
	return r, nil
}

func (p *process) signal(s unix.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %v to peer: %w", s, err)
	}
	return nil
}

// stop stops all threads of the peer, until it gets SIGCONT.
func (p *process) stop() error {
	if err := p.signal(unix.SIGSTOP); err != nil {
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

// schedule is what the scheduler says of a peer: how long its threads ran,
// in user and kernel mode, and how long they waited for a CPU, also for one another.
type schedule struct {
	ran, waited time.Duration
}

func (s schedule) since(t schedule) schedule { return schedule{s.ran - t.ran, s.waited - t.waited} }

// schedule sums up the first two numbers of each thread's schedstat, which are
// nanoseconds. Of no peer at all it is zero.
func (p *process) schedule() (sum schedule, err error) {
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
		var s schedule
		if _, err := fmt.Sscan(string(text), &s.ran, &s.waited); err != nil {
			return sum, fmt.Errorf("read CPU time of peer: %s: %q: %w", task, text, err)
		}
		sum = schedule{sum.ran + s.ran, sum.waited + s.waited}
	}
	return sum, nil
}

// rest waits until all threads of the peer sleep: then all that it did is
// counted. A peer that never rests is taken as it is after a while.
func (p *process) rest() {
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
