package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/internal/blackbox"
	"github.com/verdictd/verdictd/ledger"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/queue"
)

// noteEvery is how often a daemon writes its note.
const noteEvery = 100 * time.Millisecond

// boxName names the black box among the descriptors that the supervisor holds.
const boxName = "blackbox"

// note is what a daemon has written down for the one after it, should it die: at
// most noteEvery old.
type note struct {
	PID    int              `json:"pid"`
	At     time.Time        `json:"at"`
	Run    string           `json:"run"` // of the audit log
	Engine engine.Past      `json:"engine"`
	Judged engine.Stats     `json:"judged"`
	Queues []queueNote      `json:"queues"`
	Books  ledger.Past      `json:"books"`
	Told   []ledger.Told    `json:"told"`
	Log    logsink.LogStats `json:"log"`
	Hangs  hangs            `json:"hangs"`
}

type queueNote struct {
	Num   uint16      `json:"num"`
	Stats queue.Stats `json:"stats"`
}

// memory is what the daemon knows of the one before that died, and where it
// leaves the same. Without a supervisor there is neither.
type memory struct {
	box  *blackbox.Box
	died *note // of the daemon before; nil: it did not die, or left none

	mu       sync.Mutex
	overload *ledger.Overload
	told     []ledger.Told // by it
	failed   bool          // the last note could not be written
}

// remember reads what a daemon that died has left, and opens a black box for this
// one. Without a black box a crash costs counters, not verdicts.
func (d *daemon) remember() (past logsink.Past) {
	m := &d.memory
	if f := d.line.take(boxName); f != nil && d.line.elder == nil {
		var err error
		if m.died, past, err = readBox(f); err != nil {
			d.log.Warn("what the process before counted is not known", "error", err)
		}
	}
	if !d.line.supervisor.Present() {
		return past
	}
	var err error
	if m.box, err = blackbox.New(); err != nil {
		d.log.Warn("a crash will lose the counters", "error", err)
	}
	return past
}

// readBox returns what is in the black box of a daemon that died.
func readBox(f *os.File) (*note, logsink.Past, error) {
	box, err := blackbox.Open(f)
	if err != nil {
		return nil, logsink.Past{}, err
	}
	defer box.Close()
	var n note
	if ok, err := box.Read(&n); err != nil || !ok {
		return nil, logsink.Past{}, err
	}
	past := logsink.NewJournal(box.Counters()).Past()
	past.Run, past.PID, past.Stats = n.Run, n.PID, n.Log
	return &n, past, nil
}

// check returns the warnings that are due, and remembers what is told by them.
func (m *memory) check(now time.Time, l *ledger.Ledger, last bool) []ledger.Warning {
	m.mu.Lock()
	defer m.mu.Unlock()
	due := m.overload.Check(now, l, last)
	m.told = m.overload.Past()
	return due
}

// journal returns where the audit log counts; nil: nowhere that survives.
func (m *memory) journal() *logsink.Journal {
	if m.box == nil {
		return nil
	}
	return logsink.NewJournal(m.box.Counters())
}

// newRun returns the id of a run of the audit log.
func newRun() string {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails, see crypto/rand
	return hex.EncodeToString(id[:])
}

// before returns what is known of a queue's owner that died; nil for nothing.
func (m *memory) before(num uint16) *queue.Position {
	if m.died == nil {
		return nil
	}
	for i := range m.died.Queues {
		if q := &m.died.Queues[i]; q.Num == num {
			return &queue.Position{Stats: q.Stats, Died: true}
		}
	}
	return nil
}

// continueCounts makes generation, numbers of flows and counters go on after those
// of a daemon that died. No packet has been judged yet.
func (d *daemon) continueCounts() {
	n := d.memory.died
	if n == nil {
		return
	}
	d.engine.Recover(n.Engine, n.Judged)
	d.generation = n.Engine.Generation
	if n.Engine.Continues(d.snapshot(d.policy)) {
		d.generation-- // it is the same that comes into use
	}
}

// hangsBefore returns what is known of hangs of the processes before.
func (d *daemon) hangsBefore() hangs {
	if n := d.memory.died; n != nil {
		return n.Hangs
	}
	return d.line.legacy.Hangs
}

// books returns what the ledger goes on after: the counters and what has been
// told of losses.
func (d *daemon) books() (ledger.Past, []ledger.Told) {
	if n := d.memory.died; n != nil {
		return n.Books, n.Told
	}
	return d.line.legacy.Books, d.line.legacy.Told
}

// writeNote writes down what the next daemon needs if this one dies.
func (d *daemon) writeNote() {
	m := &d.memory
	if m.box == nil || d.observer.book == nil {
		return // or nothing to tell yet
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := note{
		PID: os.Getpid(), At: time.Now(), Run: d.auditRun, Engine: d.engine.Published(), Judged: d.engine.Stats(),
		Books: d.observer.book.Past(), Log: d.audit.Stats(), Told: m.told, Hangs: d.watchdog.known(),
	}
	for _, q := range d.queues {
		n.Queues = append(n.Queues, queueNote{Num: q.Num(), Stats: q.Stats()})
	}
	err := m.box.Write(&n)
	if err != nil && !m.failed {
		d.log.Warn("a crash will lose the counters", "error", err)
	}
	m.failed = err != nil
}

// storeBox leaves the black box with the supervisor, in place of that of the
// daemon before.
func (d *daemon) storeBox() {
	m := &d.memory
	if m.box == nil {
		return
	}
	d.writeNote()
	d.supervise(d.line.supervisor.Forget(boxName))
	f, err := m.box.File()
	d.store(boxName, f, err)
}

// tellDeath records what became of the counts of a daemon that died.
func (d *daemon) tellDeath() {
	if h := d.watchdog.ended; h != nil {
		d.log.Error("going on for a process that stood still", "pid", h.PID, "at", h.What)
		d.audit.Admin("worker_replaced", h.String())
	}
	n := d.memory.died
	if n == nil {
		return
	}
	d.audit.Admin("recovered", fmt.Sprintf("process %d died; counters go on from those it had %v before this process took the queues: "+
		"packets that it answered after that are in none of them, and the ends of the %d flows that it knew are in no record",
		n.PID, d.attached.Sub(n.At).Round(time.Millisecond), n.Judged.Flows))
}
