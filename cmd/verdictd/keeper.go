package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/handover"
)

const (
	// keeperTries is how many workers may die in a row before the keeper gives
	// up. The pauses before them add up to 6.4 s.
	keeperTries = 9
	// keeperStable is how long a worker must have judged to count as a success.
	keeperStable = 10 * time.Second
	// keeperPause is the pause before the third worker; it doubles from then
	// on. The second one starts at once.
	keeperPause = 50 * time.Millisecond
	// keeperBatch is how many notices are heard at once.
	keeperBatch = 4096
)

// keeper starts the daemon as a child, its worker, holds the sockets of its
// queues, and starts it anew when it dies: the new one goes on with the same
// sockets. It is to its worker what systemd is to a service, in the same
// protocol. It reads no packet, no policy and no configuration.
type keeper struct {
	log     *slog.Logger
	program string
	above   handover.Notifier
	store   *handover.Keeper
	heard   chan struct{} // there may be something to hear
	signals chan os.Signal

	worker   int  // process id of the daemon, 0 if none runs
	group    int  // process group of all its processes
	ready    bool // some worker has judged packets
	readyAt  time.Time
	failures int // since the last worker that was stable
	stopping bool
	sweeping bool // the worker only leaves what --on-stop says
	retry    <-chan time.Time

	vigil vigil
}

// runKeeper is verdictd run --keeper. It returns when the worker has ended in
// good order, or cannot be kept running.
func runKeeper(e env) error {
	k := &keeper{
		log: slog.New(slog.NewTextHandler(e.stderr, nil)).With("keeper", os.Getpid()), above: handover.NewNotifier(),
		heard: make(chan struct{}), signals: make(chan os.Signal, 16),
	}
	var err error
	if k.program, err = os.Executable(); err != nil {
		return fmt.Errorf("find the running program: %w", err)
	}
	// A worker that an upgrade started becomes our child when the old one ends.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the parent of orphans: %w", err)
	}
	if k.store, err = handover.NewKeeper(); err != nil {
		return err
	}
	signal.Notify(k.signals, unix.SIGCHLD, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR2)
	defer signal.Stop(k.signals)
	over := make(chan struct{})
	var listen sync.WaitGroup
	listen.Go(func() { k.listen(over) })
	code, err := k.run()
	close(over)
	k.store.Close()
	listen.Wait()
	switch code {
	case exitInput:
		return badInput(errors.New("")) // the worker has said what
	case exitUnconfirmed:
		return errUnconfirmed
	}
	if code != exitOK && err == nil {
		err = errors.New("")
	}
	return err
}

// listen says when the worker has said something, until the store is closed.
func (k *keeper) listen(over <-chan struct{}) {
	for k.store.Wait() == nil {
		select {
		case k.heard <- struct{}{}:
		case <-over:
			return
		}
	}
}

// run returns the exit code of the worker that ended in good order.
func (k *keeper) run() (code int, err error) {
	if err := k.spawn(); err != nil {
		return exitError, err
	}
	looks := time.NewTicker(keeperLook)
	defer looks.Stop()
	for {
		select {
		case <-looks.C:
			k.drain()
			if code, over, err := k.look(); over {
				return code, err
			}
		case <-k.heard:
			k.drain()
		case <-k.retry:
			k.retry = nil
			if err := k.spawn(); err != nil {
				return exitError, err
			}
		case s := <-k.signals:
			k.drain() // the worker may have changed
			if s == unix.SIGCHLD {
				if code, over, err := k.reap(); over {
					return code, err
				}
				continue
			}
			k.stop(s)
			if k.worker == 0 && k.stopping {
				if err := k.sweep(); err != nil {
					return exitError, err
				}
			}
			k.forward(s.(syscall.Signal))
		}
	}
}

func (k *keeper) forward(s syscall.Signal) {
	if k.worker == 0 || k.sweeping {
		return // the next worker reads everything anew anyway
	}
	if err := unix.Kill(k.worker, s); err != nil {
		k.log.Warn("signal not passed on", "signal", s, "worker", k.worker, "error", err)
	}
}

// spawn starts a worker, with the sockets that the last one left.
func (k *keeper) spawn(more ...string) error {
	own, fds := k.store.Child()
	own = append(append(own, more...), k.vigil.begin()...)
	names := make([]string, len(own))
	for i, v := range own {
		names[i], _, _ = strings.Cut(v, "=")
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(names, name)
	})
	pid, err := syscall.ForkExec(k.program, os.Args, &syscall.ProcAttr{
		Env:   append(env, own...),
		Files: append([]uintptr{0, 1, 2}, fds...),
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return fmt.Errorf("start worker %s: %w", k.program, err)
	}
	k.worker, k.group, k.readyAt = pid, pid, time.Time{}
	k.log.Info("worker started", "worker", pid)
	return nil
}

// sweep starts a worker that only leaves what --on-stop says: told to stop, the
// keeper has none that could.
func (k *keeper) sweep() error {
	k.sweeping, k.retry = true, nil
	err := k.spawn(sweepEnv + "=1")
	k.vigil.stop = time.Now().Add(sweepLimit)
	return err
}

// hear does what one of the worker's processes says.
func (k *keeper) hear(n *handover.Notice) {
	if !k.ours(n.PID) {
		n.Close()
		return
	}
	if pid, err := strconv.Atoi(n.Values["MAINPID"]); err == nil && pid != k.worker && k.ours(pid) {
		k.log.Info("following the upgrade", "worker", pid, "before", k.worker)
		k.worker = pid
		k.vigil = vigil{stop: k.vigil.stop}
		if k.stopping { // the old one, which was told, had already let go
			k.forward(unix.SIGTERM)
		}
	}
	if n.PID == k.worker {
		k.hearAlive(n)
	}
	if n.Values["READY"] == "1" {
		k.ready, k.readyAt = true, time.Now()
		if err := k.above.Notify("READY=1"); err != nil {
			k.log.Warn("service manager not told", "error", err)
		}
	}
	k.store.Take(n)
}

// ours returns whether a process is the worker, which may have died, or one
// that runs and descends from it.
func (k *keeper) ours(pid int) bool {
	group, err := unix.Getpgid(pid)
	return k.worker != 0 && (pid == k.worker || err == nil && group == k.group)
}

// reap takes note of children that have ended. over says that the keeper has
// nothing more to do.
func (k *keeper) reap() (code int, over bool, err error) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid == 0 {
			return 0, false, nil
		}
		if pid == k.worker {
			return k.bury(status)
		}
	}
}

// bury decides what the worker's end means.
func (k *keeper) bury(status unix.WaitStatus) (code int, over bool, err error) {
	// Whoever the worker had started must not read its queues any more.
	_ = unix.Kill(-k.group, unix.SIGKILL) // fails if nobody is left
	for end := time.Now().Add(buryLimit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil && err != unix.EINTR {
			break // nobody is left
		}
	}
	k.drain()
	pid := k.worker
	k.worker = 0
	code = exitError
	if status.Exited() {
		code = status.ExitStatus()
	}
	switch {
	case k.stopping && k.ready && code != exitOK && !k.sweeping:
		k.log.Error("worker died when it was told to stop", "worker", pid, "end", ended(status))
		if err := k.sweep(); err != nil {
			return exitError, true, err
		}
		return 0, false, nil
	case code == exitOK, code == exitUnconfirmed, k.stopping, !k.ready:
		return code, true, nil
	case !k.readyAt.IsZero() && time.Since(k.readyAt) >= keeperStable:
		k.failures = 0
	}
	if k.failures++; k.failures == keeperTries {
		return exitError, true, fmt.Errorf("the worker died %d times in a row: giving up; "+
			"from now on packets are dropped, or pass with --fail open (see the messages above)", k.failures)
	}
	pause := time.Duration(0)
	if k.failures > 1 {
		pause = keeperPause << (k.failures - 2)
	}
	judged := "never ready"
	if !k.readyAt.IsZero() {
		judged = "ready for " + time.Since(k.readyAt).Round(time.Millisecond).String()
	}
	k.log.Error("worker died, starting another", "worker", pid, "end", ended(status), "was", judged, "pause", pause)
	k.retry = time.After(pause)
	return 0, false, nil
}

// drain hears everything that was said before. The bound, above what the
// kernel lets wait, is for a worker that says more and more.
func (k *keeper) drain() {
	for range keeperBatch {
		n := k.store.Receive()
		if n == nil {
			return
		}
		k.hear(n)
	}
}

// ended says how a process ended.
func ended(s unix.WaitStatus) string {
	if s.Signaled() {
		return "killed by " + unix.SignalName(s.Signal())
	}
	return fmt.Sprintf("exit code %d", s.ExitStatus())
}
