package main_test

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabWorkerStopped stops the worker for good while packets come: the keeper tells
// of it and replaces it, what the policy accepts is judged then, and nothing else
// passes, meanwhile or later.
func TestLabWorkerStopped(t *testing.T) {
	for _, fail := range []string{"closed", "open"} {
		t.Run(fail, func(t *testing.T) {
			setup(t)
			const most = 2 * time.Second // of which the first is what one must wait
			net := labtest.Pair(t)
			got, denied := sink(t, net.Server, sinkPort), sink(t, net.Server, deniedSinkPort)
			control := filepath.Join(t.TempDir(), "control")
			u := startUpgradable(t, net.Client, portsPolicy, "--hook", "output", "--offload", "off", "--control", control, "--fail", fail)
			pid := u.worker()
			stopped := time.Now()
			if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			flood(t, net.Client, lab.Flood{To: to("10.99.0.2", deniedSinkPort), Count: 100})
			flood(t, net.Client, lab.Flood{To: to("10.99.0.2", sinkPort), Count: 100})
			u.WaitStderr("worker is silent: ending it")
			if took := time.Since(stopped); took > most {
				t.Errorf("ended after %v, want at most %v", took, most)
			}
			got.Wait(1, wait) // once another has started
			t.Logf("verdicts again after %v", time.Since(stopped))
			want(t, got, 100)
			want(t, denied, 0)
			u.waitProcesses(2)
			if !strings.Contains(u.Stderr(), `msg="worker is silent: ending it"`) || !strings.Contains(u.Stderr(), "stopped by a signal") {
				t.Errorf("got %s, want that the worker was stopped by a signal", u.Stderr())
			}
			exit := labtest.Run(t, net.Client, "status", "--json", "--control", control)
			var st struct {
				Watchdog struct {
					Count, Replaced uint64
					Hanging         []int
					Last            struct{ PID, Queue int }
				}
			}
			if err := json.Unmarshal([]byte(exit.Stdout), &st); err != nil {
				t.Fatal(err, exit.Stdout, exit.Stderr)
			}
			if w := st.Watchdog; w.Count != 1 || w.Replaced != 1 || len(w.Hanging) != 0 || w.Last.PID != pid || w.Last.Queue != -1 {
				t.Errorf("status says %+v, want that process %d was replaced", w, pid)
			}
			u.upgrade() // the counts go on
			exit = labtest.Run(t, net.Client, "status", "--control", control)
			if !strings.Contains(exit.Stdout, "\nwatchdog   1s, 1 hangs, 1 processes replaced\n") {
				t.Errorf("after an upgrade status says %s", exit.Stdout)
			}
			u.stop(true)
		})
	}
}

// TestLabStopWhileStopped tells verdictd to stop while its worker stands still: all of
// it ends soon, and what it leaves is what --on-stop says.
func TestLabStopWhileStopped(t *testing.T) {
	for _, onStop := range []string{"closed", "open"} {
		t.Run(onStop, func(t *testing.T) {
			setup(t)
			const most = 5 * time.Second
			net := labtest.Pair(t)
			echo(t, net.Server, echoPort)
			u := startUpgradable(t, net.Client, portsPolicy, "--hook", "output", "--on-stop", onStop)
			pid := u.worker()
			if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			code := u.Stop()
			if took := time.Since(begin); code != 0 || took > most {
				t.Errorf("ended with %d after %v, want 0 within %v: %s", code, took, most, u.Stderr())
			} else {
				t.Logf("ended after %v", took)
			}
			if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("the worker still runs: %v", err)
			}
			pass := map[string]lab.Outcome{"closed": lab.Denied, "open": lab.Answered}[onStop]
			ask(t, []question{{net.Client, lab.Probe{Proto: lab.UDP, To: to("10.99.0.2", echoPort), Timeout: silence}, pass}})
		})
	}
}
