package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/config"
	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/internal/handover"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/queue"
	"github.com/verdictd/verdictd/rules"
)

// A goroutine hangs if it works and gets nowhere, or sleeps too long, as often as it
// was looked at.
func TestWatched(t *testing.T) {
	const limit = time.Second
	steady := func(p queue.Pulse) func(int) (queue.Pulse, uint64) {
		return func(int) (queue.Pulse, uint64) { return p, 7 }
	}
	tests := []struct {
		name  string
		at    func(look int) (queue.Pulse, uint64)
		hangs int // the look at which it does, 0: never
	}{
		{"works and gets nowhere", steady(queue.Pulse{Running: true, Busy: true}), 5},
		{"evaluates packet after packet", func(i int) (queue.Pulse, uint64) {
			return queue.Pulse{Running: true, Busy: true}, uint64(i)
		}, 0},
		{"answers batch after batch", func(i int) (queue.Pulse, uint64) {
			return queue.Pulse{Running: true, Busy: true, Beat: uint64(i)}, 7
		}, 0},
		{"has ended", steady(queue.Pulse{}), 0},
		{"wakes up each second", func(i int) (queue.Pulse, uint64) {
			return queue.Pulse{Running: true, Beat: uint64(i / 6)}, 7
		}, 0},
		{"is never woken", steady(queue.Pulse{Running: true}), 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			look := 0
			q := watched{
				pulse: func() queue.Pulse { p, _ := tt.at(look); return p },
				steps: func() uint64 { _, n := tt.at(look); return n },
			}
			got := 0
			for ; look < 30; look++ {
				begun, _ := q.look()
				if (begun || q.oversleeps(limit)) && got == 0 {
					got = look
				}
			}
			if got != tt.hangs {
				t.Errorf("hangs at look %d, want %d", got, tt.hangs)
			}
		})
	}
}

// hangingPolicy lets whoever asks it wait.
type hangingPolicy struct{ release chan struct{} }

func (p hangingPolicy) Evaluate(*rules.Facts, *rules.Decision) error {
	<-p.release
	return errors.New("released")
}

// TestLabHangingQueue lets the goroutine of a queue hang in the policy: it is told
// where, the supervisor is asked for another process, and a stop comes to its end.
// One that comes back is no longer told of.
func TestLabHangingQueue(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	for _, back := range []bool{false, true} {
		t.Run(map[bool]string{false: "for good", true: "for a while"}[back], func(t *testing.T) {
			net := labtest.Pair(t)
			d, notes := supervised(t, net.Client, config.Config{Hook: "output", Mode: "enforce", OnStop: "open", Attribution: "off"})
			policy := hangingPolicy{make(chan struct{})}
			ready := make(chan struct{})
			d.ready = func() {
				d.engine.Publish(engine.Snapshot{Policy: policy})
				close(ready)
			}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- d.run(ctx) }()
			<-ready
			to := netip.MustParseAddrPort("10.99.0.2:7")
			if _, err := net.Client.Flood(t.Context(), lab.Flood{To: to, Count: 1}); err != nil {
				t.Fatal(err)
			}
			hanging := func() bool {
				st, err := d.status()
				if err != nil {
					t.Fatal(err)
				}
				return slices.Equal(st.Watchdog.Hanging, []uint16{0}) && st.Watchdog.Count == 1
			}
			if !lab.Poll(5*time.Second, hanging) {
				t.Errorf("the hang is not told of")
			}
			if h := d.watchdog.known(); h.Last == nil || !strings.Contains(h.Last.What, "hangingPolicy.Evaluate") || h.Replaced != 1 {
				t.Errorf("got %+v, want where it hangs", h.Last)
			}
			if !lab.Poll(time.Second, func() bool { return strings.Contains(notes(), "WATCHDOG=trigger") }) {
				t.Errorf("the supervisor was told %q", notes())
			}
			if back {
				close(policy.release)
				if !lab.Poll(5*time.Second, func() bool { return !hanging() }) {
					t.Error("it has come back, and is still said to hang")
				}
			}
			stop()
			select {
			case err := <-ended:
				if errors.Is(err, errHangs) == back {
					t.Errorf("ended with %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("told to stop, it does not end")
			}
			if !back {
				close(policy.release)
			}
		})
	}
}

// supervised returns a daemon with a supervisor, and what that was told so far.
func supervised(t *testing.T, ns *lab.Namespace, c config.Config) (d *daemon, told func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	c.Control, c.Log.File = noControl, os.DevNull
	s, err := newSettings(c)
	if err != nil {
		t.Fatal(err)
	}
	s.netns, s.ruleset.NetNS = ns.FD(), ns.FD()
	d = newDaemon(env{stdout: io.Discard, stderr: io.Discard}, s)
	d.line.supervisor = handover.NewNotifier()
	var text strings.Builder
	return d, func() string {
		buf := make([]byte, 4096)
		for conn.SetReadDeadline(time.Now().Add(time.Millisecond)) == nil {
			n, err := conn.Read(buf)
			if err != nil {
				break
			}
			text.WriteString(string(buf[:n]) + "\n")
		}
		return text.String()
	}
}

// startWorker starts a process that a keeper takes for its worker.
func startWorker(t *testing.T, k *keeper, traced bool) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Ptrace: traced}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	k.worker, k.group = cmd.Process.Pid, cmd.Process.Pid
	return cmd
}

// The keeper ends a worker that asked to be watched and is silent, and one that says
// that it hangs; not one that somebody traces, unless it is told to stop.
func TestKeeperLooks(t *testing.T) {
	const usual = "1000000" // µs
	tests := []struct {
		name     string
		asks     string
		says     string // at each look
		signal   unix.Signal
		traced   bool
		stopping bool
		ends     int    // the look at which it is ended, 0: never
		state    string // that it is in
	}{
		{name: "silent", asks: usual, ends: 6, state: "sleeping"},
		{name: "stopped", asks: usual, signal: unix.SIGSTOP, ends: 6, state: "stopped by a signal"},
		{name: "alive", asks: usual, says: "1", state: "sleeping"},
		{name: "hangs", asks: usual, says: "trigger", ends: 1, state: "sleeping"},
		{name: "did not ask", state: "sleeping"},
		{name: "patient", asks: "3000000", ends: 16, state: "sleeping"},
		{name: "traced", asks: usual, traced: true, state: "traced"},
		{name: "traced, to stop", asks: usual, traced: true, stopping: true, ends: 6, state: "traced"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := &keeper{log: slog.New(slog.DiscardHandler), stopping: tt.stopping}
			cmd := startWorker(t, k, tt.traced)
			if tt.signal != 0 {
				if err := unix.Kill(k.worker, tt.signal); err != nil {
					t.Fatal(err)
				}
			}
			if !lab.Poll(5*time.Second, func() bool { return stateOf(k.worker) == tt.state }) {
				t.Fatalf("the process is %s", stateOf(k.worker))
			}
			k.hearAlive(&handover.Notice{PID: k.worker, Values: map[string]string{"WATCHDOG_USEC": tt.asks}})
			ends := 0
			for look := 1; look <= 20 && ends == 0; look++ {
				k.hearAlive(&handover.Notice{PID: k.worker, Values: map[string]string{"WATCHDOG": tt.says}})
				if k.vigil.killed.IsZero() {
					k.look()
				}
				if !k.vigil.killed.IsZero() {
					ends = look
				}
			}
			if ends != tt.ends {
				t.Errorf("ended at look %d, want %d", ends, tt.ends)
			}
			silent := tt.ends > 1
			if h := k.vigil.ended; (h != nil) != silent || silent && (h.PID != cmd.Process.Pid || !strings.HasPrefix(h.What, tt.state)) {
				t.Errorf("told as %+v, want %v, that it was %s", h, silent, tt.state)
			}
		})
	}
}
