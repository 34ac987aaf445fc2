package main

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/handover"
)

const (
	// keeperLook is how often the keeper looks at its worker. As the worker's own
	// watchdog it counts looks, not time.
	keeperLook = 200 * time.Millisecond

	// keeperStop is how long the keeper waits for a worker that was told to stop; the
	// worker ends itself before.
	keeperStop = stopLimit + 5*time.Second

	// sweepLimit is how long a process may take that only leaves what --on-stop says.
	sweepLimit = 10 * time.Second

	// buryLimit bounds the wait for processes that were killed. One that the kernel
	// does not let go yet never runs again.
	buryLimit = time.Second
)

// vigil is what the keeper knows of how its worker is.
type vigil struct {
	most   int       // looks without a word from it; 0: it has not asked for that
	silent int       // so many so far
	stop   time.Time // when it has to have ended; zero: it need not
	killed time.Time // by us
	traced bool      // it stands still because somebody traces it, and that is told
	ended  *hang     // it was ended
}

// hearAlive notes a worker's sign of life, or that it asks to be replaced.
func (k *keeper) hearAlive(n *handover.Notice) {
	if us, err := strconv.Atoi(n.Values["WATCHDOG_USEC"]); err == nil && us > 0 {
		limit := time.Duration(us) * time.Microsecond
		k.vigil.most = 1 + int((limit+keeperLook-1)/keeperLook) // the first may come at once
	}
	switch n.Values["WATCHDOG"] {
	case "1":
		k.vigil.silent, k.vigil.traced = 0, false
	case "trigger":
		k.log.Error("worker hangs, as it says itself: ending it", "worker", k.worker)
		k.endWorker(nil)
	}
}

// look looks at the worker, whose words have been heard. It returns what bury does.
func (k *keeper) look() (code int, over bool, err error) {
	v := &k.vigil
	switch {
	case k.worker == 0:
		return
	case !v.killed.IsZero():
		if time.Since(v.killed) > buryLimit { // the kernel holds it: it never runs again
			return k.bury(unix.WaitStatus(unix.SIGKILL))
		}
		return
	case !v.stop.IsZero() && time.Now().After(v.stop):
		k.log.Error("worker was told to stop and does not end: ending it", "worker", k.worker)
		k.endWorker(nil)
		return
	case v.most == 0:
		return
	}
	if v.silent++; v.silent < v.most {
		return
	}
	state := stateOf(k.worker)
	if state == "traced" && !k.stopping {
		if !v.traced {
			k.log.Warn("worker stands still because somebody traces it: left alone", "worker", k.worker)
		}
		v.traced = true
		return
	}
	silent := time.Duration(v.silent) * keeperLook
	k.log.Error("worker is silent: ending it", "worker", k.worker, "for", silent, "state", state)
	k.endWorker(&hang{At: time.Now(), PID: k.worker, Queue: -1, What: state + ", silent for " + silent.String()})
	return
}

// endWorker ends the worker, whose end reap will find. The next one is told why.
func (k *keeper) endWorker(why *hang) {
	k.vigil = vigil{ended: why, killed: time.Now()}
	// SIGKILL reaches one that is stopped, too. It fails if it has ended.
	_ = unix.Kill(k.worker, unix.SIGKILL)
}

// begin begins the vigil at a new worker, and returns what that is told of the one
// before.
func (v *vigil) begin() (env []string) {
	text := ""
	if v.ended != nil {
		b, err := json.Marshal(v.ended)
		if err == nil {
			text = string(b)
		}
	}
	*v = vigil{}
	return []string{hangEnv + "=" + text}
}

// stop notes a signal that tells to stop.
func (k *keeper) stop(s os.Signal) {
	if s != unix.SIGTERM && s != unix.SIGINT {
		return
	}
	if !k.stopping {
		k.vigil.stop = time.Now().Add(keeperStop)
	}
	k.stopping = true
}

// stateOf returns what a process is at, as its main thread is.
func stateOf(pid int) string {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "gone"
	}
	_, after, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	switch after[:min(1, len(after))] {
	case "R":
		return "running"
	case "S":
		return "sleeping"
	case "D":
		return "sleeping in the kernel"
	case "T":
		return "stopped by a signal"
	case "t":
		return "traced"
	}
	return "ended"
}
