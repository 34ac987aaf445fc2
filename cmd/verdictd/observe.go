package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/control"
	"github.com/verdictd/verdictd/ledger"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/policy"
)

// status is what a daemon tells about itself.
type status struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	State   string    `json:"state"` // starting, ready or stopping
	Started time.Time `json:"started"`
	Mode    string    `json:"mode"`
	Fail    string    `json:"fail"`
	Hook    string    `json:"hook,omitempty"` // empty: the user keeps the rules

	Enforced enforcement `json:"enforced"`

	Policy  policyStatus  `json:"policy"`
	Trial   *trialStatus  `json:"trial,omitempty"` // what has to be confirmed
	Packets ledger.Ledger `json:"packets"`
	Judged  judgedStatus  `json:"judged"`
	Flows   flowStatus    `json:"flows"`
	Audit   auditStatus   `json:"audit"`

	Attribution attributionStatus `json:"attribution"`
	Watchdog    watchdogStatus    `json:"watchdog"`
}

type policyStatus struct {
	Source     string    `json:"source"`
	Path       string    `json:"path,omitempty"` // absolute, or the URL of a bundle
	Generation uint64    `json:"generation"`
	SHA256     string    `json:"sha256"`
	Loaded     time.Time `json:"loaded"`
	Engine     string    `json:"engine"` // compiled or topdown

	// What was offered since and refused; nil if the policy in use is the latest.
	Refused *refusedPolicy `json:"refused,omitempty"`

	// Errors of the policy in use by the place in it that is to blame.
	ErrorsAt map[string]uint64 `json:"errors_at,omitempty"`

	// Decisions of compiled policies that OPA's evaluator made too, and those
	// of them that it made in another way.
	Compared   uint64 `json:"compared"`
	Mismatches uint64 `json:"mismatches"`

	// Since the start, over all generations.
	Evaluations uint64 `json:"evaluations"`
	Errors      uint64 `json:"errors"`   // Overruns included
	Overruns    uint64 `json:"overruns"` // evaluations that took longer than --policy-budget
}

// refusedPolicy is a policy or bundle that did not come into use.
type refusedPolicy struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

// since returns when the policy was refused, in Unix time; 0 if none is.
func (r *refusedPolicy) since() uint64 {
	if r == nil {
		return 0
	}
	return uint64(r.At.Unix())
}

// first returns the first line of the reason.
func (r *refusedPolicy) first() string {
	line, _, _ := strings.Cut(r.Reason, "\n")
	return line
}

// judgedStatus says where verdicts came from. Its counts may lag behind those
// of the ledger by a tenth of a second.
type judgedStatus struct {
	Known       uint64 `json:"known"`
	Established uint64 `json:"established"`
	Related     uint64 `json:"related"`
	Malformed   uint64 `json:"malformed"`
	WouldDrop   uint64 `json:"would_drop"`
}

type flowStatus struct {
	Now     uint64 `json:"now"`
	Limit   uint64 `json:"limit"`
	New     uint64 `json:"new"`
	Evicted uint64 `json:"evicted"`
	NoRoom  uint64 `json:"no_room"`

	// Flows that the kernel was told to let pass by the queue, and the packets
	// that did: they are in no account, the queue never saw them.
	Offloaded        uint64 `json:"offloaded"`
	OffloadedPackets uint64 `json:"offloaded_packets"`

	// Messages of this host's kernel about packets that began no connection: the
	// kernel does not queue them, and the rules let them pass.
	ErrorPackets uint64 `json:"error_packets"`

	// Packets of offloaded flows that came to the queue all the same: somebody
	// overwrites connection marks.
	Remarked uint64 `json:"remarked"`

	Marks markStatus `json:"marks"`
}

type auditStatus struct {
	File        string `json:"file,omitempty"` // absolute path; empty: standard output
	Events      uint64 `json:"events"`
	Lost        uint64 `json:"lost"`         // found the ring full
	Unwritten   uint64 `json:"unwritten"`    // records that an output could not take
	WriteErrors uint64 `json:"write_errors"` // failed writes
	Rotations   uint64 `json:"rotations"`
}

// observer is what of the daemon tells about the rest.
type observer struct {
	started time.Time
	state   atomic.Uint32 // a daemonState
	book    *ledger.Book
	control *control.Server // nil: none
	metrics net.Listener    // nil: none
	reload  reloader

	mu       sync.Mutex
	policy   *policy.Policy // in use
	loaded   time.Time
	refused  *refusedPolicy // offered since; nil: none
	enforced enforcement    // as looked at last
	marks    markStatus     // likewise
	overruns uint64         // of earlier policies
	ruleset  *hook.Ruleset  // in the kernel; nil: none of ours

	// For the goroutine that warns.
	remarked     uint64 // told of
	toldRemarked time.Time
}

// openObserver opens what others may ask by.
func (d *daemon) openObserver() error {
	o := &d.observer
	o.started = time.Now()
	d.watchdog.begin(d.hangsBefore())
	books, told := d.books()
	o.book = ledger.NewBook(ledger.Config{Queues: d.queues, NetNS: d.netns, WentDown: d.links.WentDown, Past: books})
	d.memory.overload = ledger.NewOverload(told)
	d.memory.told = told
	o.reload.ask = make(chan struct{})
	return d.listen()
}

// daemonState says how far a daemon has come.
type daemonState uint32

const (
	stateStarting daemonState = iota // the rules are not in yet
	stateReady
	stateStopping // the rules are out of use
)

func (s daemonState) String() string {
	return [...]string{"starting", "ready", "stopping"}[s]
}

func (o *observer) enter(s daemonState) { o.state.Store(uint32(s)) }

// listen opens the sockets.
func (d *daemon) listen() error {
	return errors.Join(d.listenControl(), d.listenMetrics())
}

func (d *daemon) closeObserver() {
	if c := d.observer.control; c != nil {
		c.Close()
	}
	d.observer.control = nil
	d.closeMetrics()
}

// observe runs until ctx is done and every client has been answered.
func (d *daemon) observe(ctx context.Context) error {
	var servers sync.WaitGroup
	var controlErr, metricsErr error
	if c := d.observer.control; c != nil {
		servers.Go(func() { controlErr = c.Serve(ctx, d.obey) })
	}
	if m := d.observer.metrics; m != nil {
		servers.Go(func() { metricsErr = d.serveMetrics(ctx, m) })
	}
	d.record(ctx)
	servers.Wait()
	return errors.Join(controlErr, metricsErr)
}

// follow notes the rules that are in the kernel.
func (o *observer) follow(r *hook.Ruleset) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ruleset = r
}

// passedBy returns how many packets passed by the queue in the kernel: those of
// offloaded flows, and messages of this host that the kernel queues for nobody.
func (o *observer) passedBy() (offloaded, errors uint64) {
	o.mu.Lock()
	r := o.ruleset
	o.mu.Unlock()
	if r == nil {
		return 0, 0
	}
	// Without marks, without a hook that has it, or while the rules are gone there
	// is no counter.
	offloaded, _, _ = r.Offloaded()
	errors, _, _ = r.Errors()
	return offloaded, errors
}

// status reads everything. It is called from several goroutines.
func (d *daemon) status() (*status, error) {
	o := &d.observer
	packets, err := o.book.Read()
	if err != nil {
		return nil, err
	}
	s, audit := d.engine.Stats(), d.audit.Stats()
	offloaded, errorPackets := o.passedBy()
	st := &status{
		Version: version(), PID: os.Getpid(), State: daemonState(o.state.Load()).String(), Started: o.started,
		Mode: d.mode.String(), Fail: failText(d.failOpen), Hook: d.Hook,
		Packets: packets,
		Judged: judgedStatus{
			Known: s.Known, Established: s.Established, Related: s.Related, Malformed: s.Malformed, WouldDrop: s.WouldDrop,
		},
		Flows: flowStatus{
			Now: s.Flows, Limit: uint64(max(d.Flows, 0)) * uint64(len(d.queues)), New: s.FlowsNew, Evicted: s.FlowsEvict, NoRoom: s.FlowsNoRoom,
			Offloaded: s.Offloaded, OffloadedPackets: offloaded,
			ErrorPackets: errorPackets, Remarked: s.Remarked,
		},
		Audit: auditStatus{
			File: absolute(d.Log.File), Events: audit.Events, Lost: audit.Lost, Unwritten: audit.Unwritten, WriteErrors: audit.WriteErrors, Rotations: audit.Rotations,
		},
	}
	st.Attribution, st.Trial = d.attributionStatus(), d.trials.shown.Load()
	st.Attribution.Holding, st.Attribution.Held, st.Attribution.Lacking = s.Holding, s.Held, s.Lacking
	st.Watchdog = d.watchdog.status(d.watchLimit)
	o.mu.Lock()
	defer o.mu.Unlock()
	snapshot, _ := d.engine.Snapshot()
	st.Policy = policyStatus{
		Source: d.source().String(), Path: absolute(d.Policy), Generation: snapshot.Generation, SHA256: snapshot.Hash,
		Loaded: o.loaded, Refused: o.refused,
		Evaluations: s.Evaluated, Errors: s.PolicyErrors, Overruns: o.overruns + o.policy.Stats().Overruns,
		Engine: o.policy.Engine().String(), ErrorsAt: o.policy.Stats().Places,
	}
	st.Enforced, st.Flows.Marks = o.enforced, o.marks
	shadow := d.shadow.Stats()
	st.Policy.Compared, st.Policy.Mismatches = shadow.Compared, shadow.Mismatches
	return st, nil
}

// absolute returns the path of a file as others can use it; "" for none.
func absolute(path string) string {
	if path == "" || path == "-" || strings.Contains(path, "://") {
		return strings.TrimPrefix(path, "-")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	return abs
}

func failText(open bool) string {
	if open {
		return "open"
	}
	return "closed"
}

// queued returns how many packets the installed rules sent to the queues.
func (d *daemon) queued() (sum uint64, err error) {
	counters, err := d.ruleset.Counters()
	for _, c := range counters {
		sum += c.Packets
	}
	return sum, err
}

// reloaded tells who waits for it what came of loading the policy; errs are why
// it was refused.
func (d *daemon) reloaded(errs []*policy.Error, cut *cutReport) {
	snapshot, _ := d.engine.Snapshot()
	d.observer.reload.done(reloadResult{
		Accepted: len(errs) == 0, Generation: snapshot.Generation, SHA256: snapshot.Hash, Errors: errs,
		Cut: cut, Trial: d.trials.underWay(),
	})
}

// inUse notes the policy that is in use from now on.
func (o *observer) inUse(p *policy.Policy) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.policy != nil {
		o.overruns += o.policy.Stats().Overruns
	}
	o.policy, o.loaded, o.refused = p, time.Now(), nil
}

// refuse notes that a policy was refused.
func (o *observer) refuse(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refused = &refusedPolicy{At: time.Now(), Reason: err.Error()}
}

// current returns the policy in use.
func (o *observer) current() *policy.Policy {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.policy
}

// watchEvery is how often the ledger is looked at for losses.
const watchEvery = time.Second

// record writes the counters into the audit log now and then, and warns of
// losses. It returns when ctx is done.
func (d *daemon) record(ctx context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	notes := time.NewTicker(noteEvery)
	defer notes.Stop()
	recorded, looked, lookedMarks := time.Now(), time.Now(), time.Now()
	d.lookMarks()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-notes.C:
			d.writeNote()
		case <-ticker.C:
			d.warn(false)
			d.remarked(time.Now())
			if time.Since(lookedMarks) >= marksEvery {
				lookedMarks = time.Now()
				d.lookMarks()
			}
			if time.Since(looked) >= enforceEvery {
				looked = time.Now()
				d.lookEnforced()
			}
			if every := d.live.Load().statsInterval; every > 0 && time.Since(recorded) >= every-watchEvery/2 {
				recorded = time.Now()
				d.recordStats()
			}
		}
	}
	d.warn(true)
}

// warn tells of losses that have not been told yet.
func (d *daemon) warn(last bool) {
	read := d.observer.book.Glance // each second
	if last {
		read = d.observer.book.Read
	}
	l, err := read()
	if err != nil {
		d.log.Error("losses are not known", "error", err)
		return
	}
	now := time.Now()
	for _, w := range d.memory.check(now, &l, last) {
		origin := "queues " + d.Queues.String()
		if w.Queue >= 0 {
			origin = fmt.Sprintf("queue %d", w.Queue)
		}
		if w.What == ledger.NearlyFull {
			d.log.Warn("queue nearly full", "origin", origin, "waiting", w.Count, "length", w.Total, "remedy", w.Remedy)
			d.audit.Admin("queue_nearly_full", fmt.Sprintf("%s: %d of %d packets waiting (%s)", origin, w.Count, w.Total, w.Remedy))
			continue
		}
		d.log.Log(context.Background(), slog.LevelWarn, "packets "+w.What, "origin", origin, "cause", w.Cause, "packets", w.Count, "total", w.Total, "remedy", w.Remedy)
		d.audit.Put(logsink.Event{
			Kind: logsink.Loss, Time: now.UnixNano(), Origin: origin, Packets: [2]uint64{w.Count, w.Total},
			Text: fmt.Sprintf("packets %s: %s (%s)", w.What, w.Cause, w.Remedy),
		})
	}
}

// recordStats writes the counters into the audit log.
func (d *daemon) recordStats() {
	st, err := d.status()
	if err != nil {
		d.log.Error("counters not recorded", "error", err)
		return
	}
	d.audit.Put(logsink.Event{
		Kind: logsink.Stats, Time: time.Now().UnixNano(), Origin: "verdictd", Counters: st.counters(time.Now()),
	})
}
