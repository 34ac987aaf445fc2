package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/verdictd/verdictd/internal/handover"
	"github.com/verdictd/verdictd/queue"
)

const (
	// watchParts is how often within its time limit the watchdog looks. It counts
	// looks, not time: when nobody was running (a machine suspended, a virtual one
	// paused, a process stopped) none was missed.
	watchParts = 5

	// managerPatience is how many limits of silence a service manager is asked to
	// bear, as it measures time.
	managerPatience = 3

	// stopLimit bounds a stop, whatever hangs. An orderly one takes less than half
	// of it: a queue is emptied for 2 s at most, records are written for 10 s.
	stopLimit = 30 * time.Second

	// stackFrames is how much is told of what a goroutine was at.
	stackFrames = 12
)

// errHangs ends a stop that a queue's goroutine does not take part in.
var errHangs = errors.New("its goroutine does not come back, and was left behind")

// hangEnv tells a worker of the keeper that the one before was ended because it was
// silent: a hang in JSON.
const hangEnv = "VERDICTD_HANG"

// hang is a worker, or the goroutine of a queue, that did not come back.
type hang struct {
	At    time.Time `json:"at"`
	PID   int       `json:"pid"`
	Queue int       `json:"queue"` // -1: the whole process
	What  string    `json:"what"`  // it was at
}

func (h *hang) String() string {
	if h.Queue < 0 {
		return fmt.Sprintf("process %d stood still: %s", h.PID, h.What)
	}
	return fmt.Sprintf("queue %d of process %d: %s", h.Queue, h.PID, h.What)
}

// hangs is what is known of all of them, also of earlier processes.
type hangs struct {
	Count    uint64 `json:"count"`
	Replaced uint64 `json:"replaced"` // processes that a supervisor ended for it
	Last     *hang  `json:"last,omitempty"`
}

// watchdogStatus is what status says of the watchdog.
type watchdogStatus struct {
	Limit   string   `json:"limit"` // "0s": there is none
	Hanging []uint16 `json:"hanging"`
	hangs
}

// watchdog looks whether the goroutines of the queues come back from their work.
type watchdog struct {
	queues atomic.Pointer[[]watched] // nil: nothing is judged yet

	ended *hang // of the process before, by the keeper

	mu   sync.Mutex
	past hangs
}

// watched is a queue that is watched.
type watched struct {
	num   uint16
	pulse func() queue.Pulse
	steps func() uint64

	last  headway
	looks int         // at which last was the same
	hangs atomic.Bool // and it is said so

	abandoned atomic.Bool // the daemon ends without its goroutine
}

// headway is how far a queue's goroutine is.
type headway struct {
	pulse queue.Pulse
	steps uint64
}

// look looks at a queue once and returns whether it has begun, or ceased, to hang.
func (q *watched) look() (begun, ceased bool) {
	now := headway{q.pulse(), q.steps()}
	if now != q.last || !now.pulse.Running {
		q.last, q.looks = now, 0
		return false, q.hangs.Swap(false)
	}
	q.looks++
	return q.looks == watchParts && now.pulse.Busy && !q.hangs.Swap(true), false
}

// oversleeps returns whether the goroutine has waited longer than it may: nobody
// woke it.
func (q *watched) oversleeps(limit time.Duration) bool {
	allowed := watchParts + int(queue.Idle*watchParts/limit)
	return q.looks == allowed && !q.last.pulse.Busy && !q.hangs.Swap(true)
}

// watch runs until ctx is done. told is done once the daemon is told to stop, which
// has to come to an end from then on.
func (d *daemon) watch(ctx, told context.Context) {
	forced := context.AfterFunc(told, func() {
		select {
		case <-ctx.Done():
		case <-time.After(stopLimit):
			d.log.Error("told to stop, and does not come to an end: ended by force", "after", stopLimit, "at", stacks())
			os.Exit(exitError)
		}
	})
	defer forced()
	if d.watchLimit == 0 {
		<-ctx.Done()
		return
	}
	ticker := time.NewTicker(d.watchLimit / watchParts)
	defer ticker.Stop()
	for looks := 0; ; looks++ {
		if alive := d.lookAtQueues(); alive && (handover.Kept() || looks%watchParts == 0) {
			d.tellAlive()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// tellAlive tells the supervisor that the process works, and how much silence is too
// much.
func (d *daemon) tellAlive() {
	limit := d.watchLimit
	if !handover.Kept() {
		limit *= managerPatience
	}
	// One that does not take it will end us, or is not there.
	_ = d.line.supervisor.Beat("WATCHDOG=1", fmt.Sprintf("WATCHDOG_USEC=%d", limit.Microseconds()))
}

// lookAtQueues looks at all queues and returns whether all come back.
func (d *daemon) lookAtQueues() (alive bool) {
	list := d.watchdog.queues.Load()
	if list == nil {
		return true
	}
	alive = true
	for i := range *list {
		q := &(*list)[i]
		switch begun, ceased := q.look(); {
		case begun, q.oversleeps(d.watchLimit):
			d.reportHang(q)
		case ceased:
			d.log.Warn("the goroutine of a queue has come back", "queue", q.num)
			d.audit.Admin("worker_back", fmt.Sprintf("queue %d is answered again", q.num))
		}
		alive = alive && !q.hangs.Load()
	}
	return alive
}

// reportHang tells everybody that a queue is not answered, and asks the supervisor
// for a new process.
func (d *daemon) reportHang(q *watched) {
	h := hang{At: time.Now(), PID: os.Getpid(), Queue: int(q.num), What: stackOf(q.num)}
	replaced := d.line.supervisor.Present()
	remedy := "the supervisor starts a new process"
	if !replaced {
		remedy = "restart verdictd, and run it with --keeper or under systemd, which replace it"
	}
	d.watchdog.add(h, replaced)
	d.log.Error("a queue is not answered: its goroutine does not come back", "queue", q.num, "for", d.watchLimit, "at", h.What, "remedy", remedy)
	d.audit.Admin("worker_hangs", h.String())
	if !replaced {
		return
	}
	d.writeNote()
	d.supervise(d.line.supervisor.Notify("WATCHDOG=trigger"))
}

// add counts a hang.
func (w *watchdog) add(h hang, replaced bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.past.Count++
	if replaced {
		w.past.Replaced++
	}
	w.past.Last = &h
}

// known returns what is known of hangs so far.
func (w *watchdog) known() hangs {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.past
}

// begin makes the counts go on after those of the process before, which the keeper
// may have ended.
func (w *watchdog) begin(before hangs) {
	w.mu.Lock()
	w.past = before
	w.mu.Unlock()
	text := os.Getenv(hangEnv)
	os.Unsetenv(hangEnv)
	if text != "" && json.Unmarshal([]byte(text), &w.ended) == nil {
		w.add(*w.ended, true)
	}
}

// startWatch starts the watchdog. It ends, and is waited for, by stop.
func (d *daemon) startWatch(told context.Context) (stop func()) {
	ctx, end := context.WithCancel(context.WithoutCancel(told))
	var watching sync.WaitGroup
	watching.Go(func() { d.watch(ctx, told) })
	return func() {
		end()
		watching.Wait()
	}
}

// status returns what to tell.
func (w *watchdog) status(limit time.Duration) watchdogStatus {
	st := watchdogStatus{Limit: limit.String(), Hanging: []uint16{}, hangs: w.known()}
	if list := w.queues.Load(); list != nil {
		for i := range *list {
			if q := &(*list)[i]; q.hangs.Load() {
				st.Hanging = append(st.Hanging, q.num)
			}
		}
	}
	return st
}

// text is what status prints.
func (st *watchdogStatus) text() string {
	var b strings.Builder
	if st.Limit == time.Duration(0).String() {
		return "watchdog   off\n"
	}
	fmt.Fprintf(&b, "watchdog   %s, %d hangs, %d processes replaced\n", st.Limit, st.Count, st.Replaced)
	if len(st.Hanging) > 0 {
		fmt.Fprintf(&b, "           NOT ANSWERED NOW: queues %v\n", st.Hanging)
	}
	if st.Last != nil {
		fmt.Fprintf(&b, "           last: %s, %s\n", st.Last.At.Format(time.RFC3339), st.Last)
	}
	return b.String()
}

// watchQueues makes the queues known to the watchdog.
func (d *daemon) watchQueues() {
	list := make([]watched, len(d.queues))
	for i, q := range d.queues {
		list[i].num, list[i].pulse, list[i].steps = q.Num(), q.Pulse, d.workers[i].Steps
	}
	d.watchdog.queues.Store(&list)
}

// abandons returns whether the goroutine of the queue at an index was left behind: what
// it works with is still its own.
func (w *watchdog) abandons(i int) bool {
	list := w.queues.Load()
	return list != nil && (*list)[i].abandoned.Load()
}

// runQueue answers the packets of a queue until ctx is done. A goroutine that hangs
// by then is left behind.
func (d *daemon) runQueue(ctx context.Context, i int) error {
	q := d.queues[i]
	done := make(chan error, 1)
	go pprof.Do(ctx, pprof.Labels(queueLabel, strconv.Itoa(int(q.Num()))), func(ctx context.Context) {
		done <- q.Run(ctx, d.workers[i])
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	if d.watchLimit == 0 {
		return <-done
	}
	ticker := time.NewTicker(d.watchLimit / watchParts)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
		}
		if w := &(*d.watchdog.queues.Load())[i]; w.hangs.Load() {
			w.abandoned.Store(true)
			return fmt.Errorf("queue %d: %w", q.Num(), errHangs)
		}
	}
}

// queueLabel is the label of a queue's goroutine.
const queueLabel = "queue"

// stackOf returns what the goroutine of a queue is at: its functions, innermost
// first.
func stackOf(num uint16) string {
	label := fmt.Sprintf("{%q:%q}", queueLabel, strconv.Itoa(int(num)))
	for block := range strings.SplitSeq(stacks(), "\n\n") {
		if !strings.Contains(block, label) || !strings.Contains(block, "queue.(*Queue).Run") {
			continue
		}
		var calls []string
		for line := range strings.Lines(block) {
			if f := strings.Fields(line); len(f) >= 3 && f[0] == "#" && strings.HasPrefix(f[1], "0x") {
				calls = append(calls, f[2])
			}
		}
		return strings.Join(calls[:min(len(calls), stackFrames)], " < ")
	}
	return "unknown"
}

// stacks returns what all goroutines are at.
func stacks() string {
	var b bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
		return err.Error()
	}
	return b.String()
}

// checkWatchdog reads the limit of the watchdog.
func (s *settings) checkWatchdog() (err error) {
	const least, most = 500 * time.Millisecond, time.Minute
	s.watchLimit = max(time.Second, 2*s.budget) // one decision is no hang
	if s.Watchdog == "" {
		return nil
	}
	if s.watchLimit, err = time.ParseDuration(s.Watchdog); err != nil || s.watchLimit != 0 && (s.watchLimit < least || s.watchLimit > most) {
		return settingErrorf("watchdog", "want a time from %v to %v, or 0 for none, got %q", least, most, s.Watchdog)
	}
	if s.watchLimit != 0 && s.watchLimit < 2*s.budget {
		return settingErrorf("watchdog", "want at least twice the time that one decision may take, %v (--policy-budget), got %q", s.budget, s.Watchdog)
	}
	return nil
}
