package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/handover"
	"github.com/verdictd/verdictd/ledger"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/queue"
)

// handoverEnv names the descriptor that connects a daemon with the one whose
// place it takes.
const handoverEnv = "VERDICTD_HANDOVER"

// What the two say to each other, in this order.
const (
	kindRecords handover.Kind = iota + 1 // old: names and descriptors of the kernel's records
	kindReady                            // new: policy loaded, everything prepared
	kindLegacy                           // old: stopped reading; legacy, and the sockets
	kindFlows                            // old: number of a queue and a block of its flows; repeated
	kindEnd                              // old: that was all
	kindServing                          // new: packets are judged, rules are in
	kindGo                               // old: I will not go on; the place is yours
	kindClosed                           // old: audit log closed; closed
)

// legacy is what a daemon leaves to the next one, beside its flows.
type legacy struct {
	Stopped time.Time             `json:"stopped"` // reading
	Engine  engine.Past           `json:"engine"`
	Queues  []queueLegacy         `json:"queues"`
	NFLog   logsink.NFLogPosition `json:"nflog"`
	Marks   marksLegacy           `json:"marks"`
	Files   []string              `json:"files"`   // names of the sockets
	Control string                `json:"control"` // path of its control socket; empty: none
	Hook    string                `json:"hook"`    // where its rules are; empty: it has none of its own
	Run     string                `json:"run"`     // of the audit log
	Books   ledger.Past           `json:"books"`
	Told    []ledger.Told         `json:"told"`
	Hangs   hangs                 `json:"hangs"`
}

// marksLegacy are the marks of connections that the rules know.
type marksLegacy struct {
	Latest hook.Marks `json:"latest"`
	InUse  hook.Marks `json:"in_use"`
}

type queueLegacy struct {
	Num      uint16            `json:"num"`
	Position queue.Position    `json:"position"`
	Worker   engine.WorkerPast `json:"worker"`
}

// closed says where the audit log ended.
type closed struct {
	Log       logsink.Past `json:"log"`
	Sequences []uint64     `json:"sequences"` // seq of the last record of each output: what versions without Log say and read
}

// past returns where the log of the run goes on.
func (c *closed) past(run string) logsink.Past {
	p := c.Log
	if p.Run == "" { // the elder died, and the file knows its last record, or is older
		p.Run = run
	}
	if len(p.Outputs) == 0 {
		for _, seq := range c.Sequences {
			p.Outputs = append(p.Outputs, logsink.OutputPast{Seq: seq, Written: seq})
		}
	}
	return p
}

// succession connects a daemon with who was there before it, who watches over
// it and who comes after it. The zero value is a daemon without any of them.
type succession struct {
	supervisor handover.Notifier
	sockets    map[string]*os.File // of the daemon before, by name, until they are used
	elder      *handover.Conn      // the daemon whose place we take; nil if there is none, or it died
	legacy     legacy              // of the elder
	committed  chan struct{}       // closed when the place is ours
	stored     []string            // names of the sockets left with the supervisor
	afterCrash bool                // the supervisor gave us what a dead process left
	sweeps     bool                // told to stop before it began

	hear     chan os.Signal // SIGUSR2: upgrade
	requests chan upgradeRequest
	program  string // what an upgrade starts unless it is told
}

// newSuccession finds out what the environment says about the daemon's place.
func newSuccession() (*succession, error) {
	s := &succession{
		supervisor: handover.NewNotifier(), sockets: handover.Given(),
		committed: make(chan struct{}), hear: make(chan os.Signal, 1), requests: make(chan upgradeRequest),
	}
	s.afterCrash, s.sweeps = len(s.sockets) > 0, os.Getenv(sweepEnv) != ""
	// Never stopped: where nobody listens SIGUSR2 ends a process.
	signal.Notify(s.hear, unix.SIGUSR2)
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP) // the same
	var err error
	if s.program, err = os.Executable(); err != nil {
		return nil, fmt.Errorf("find the running program: %w", err)
	}
	text := os.Getenv(handoverEnv)
	if text == "" {
		return s, nil
	}
	os.Unsetenv(handoverEnv)
	fd, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("%s=%q: %w", handoverEnv, text, err)
	}
	unix.CloseOnExec(fd)
	s.elder, err = handover.Join(os.NewFile(uintptr(fd), "handover"))
	return s, err
}

func queueName(num uint16) string { return fmt.Sprintf("queue-%d", num) }

const (
	nflogName   = "nflog"
	controlName = "control"
)

// take returns the socket of that name, which is then the caller's, or nil.
func (s *succession) take(name string) *os.File {
	f := s.sockets[name]
	delete(s.sockets, name)
	return f
}

// position returns where the elder stopped reading a queue; nil if it did not
// say so because it died.
func (s *succession) position(num uint16) *queue.Position {
	for i := range s.legacy.Queues {
		if q := &s.legacy.Queues[i]; q.Num == num {
			return &q.Position
		}
	}
	return nil
}

// openQueue binds a queue, or goes on with one that the daemon before bound.
func (d *daemon) openQueue(cfg queue.Config) (*queue.Queue, error) {
	f := d.line.take(queueName(cfg.Num))
	if f == nil {
		return queue.Open(cfg)
	}
	at := d.line.position(cfg.Num)
	if at == nil {
		at = d.memory.before(cfg.Num)
	}
	q, err := queue.Attach(cfg, f, at)
	switch {
	case err == nil && (at == nil || at.Died):
		d.log.Warn("going on where another process died", "queue", cfg.Num)
	case errors.Is(err, syscall.ENODEV): // a socket that lost its queue, such as by a change of namespace
		return queue.Open(cfg)
	}
	return q, err
}

// openNFLog binds the groups, or goes on with those of the daemon before.
func (d *daemon) openNFLog(cfg logsink.NFLogConfig) (*logsink.NFLogReader, error) {
	f := d.line.take(nflogName)
	if f == nil {
		return logsink.OpenNFLog(cfg, d.audit)
	}
	return logsink.AttachNFLog(cfg, d.audit, f, d.line.legacy.NFLog)
}

// greetElder begins to speak with the elder, who goes on judging.
func (d *daemon) greetElder() error {
	c := d.line.elder
	if c == nil {
		return nil
	}
	if err := c.SetDeadline(time.Now().Add(prepareLimit)); err != nil {
		return err
	}
	return c.Greet()
}

// takeOver takes over from the elder: what it knows, and its sockets. From its
// return on packets wait for us.
func (d *daemon) takeOver() error {
	c := d.line.elder
	if c == nil {
		return nil
	}
	if err := c.Send(kindReady, nil); err != nil {
		return err
	}
	m, err := c.Receive()
	if err != nil {
		return err
	}
	if err := d.inherit(m); err != nil {
		m.Close()
		return err
	}
	return d.inheritFlows()
}

// inherit takes over everything but the flows.
func (d *daemon) inherit(m *handover.Message) error {
	if m.Kind != kindLegacy {
		return fmt.Errorf("take over: message %d, want %d", m.Kind, kindLegacy)
	}
	l := &d.line.legacy
	if err := m.Decode(l); err != nil {
		return err
	}
	if l.Run != "" {
		d.auditRun = l.Run
	}
	if len(l.Files) != len(m.Files) {
		return fmt.Errorf("take over: %d sockets, want %d", len(m.Files), len(l.Files))
	}
	d.line.sockets = make(map[string]*os.File)
	for i, name := range l.Files {
		d.line.sockets[name] = m.Files[i]
	}
	d.observer.enter(stateReady) // its rules are in
	next := d.snapshot(d.policy)
	same := l.Engine.Continues(next)
	d.marks.succeed(l.Marks, same, d.settings.ruleset != nil)
	next.Marks = engineMarks(d.marks.marks)
	d.generation = d.engine.Succeed(l.Engine, next)
	d.observer.inUse(d.policy)
	for i := range l.Queues {
		if w := d.workerOf(l.Queues[i].Num); w != nil {
			w.Inherit(l.Queues[i].Worker, same)
		}
	}
	return nil
}

// inheritFlows reads the flows. Those of a queue that we do not serve are left
// out.
func (d *daemon) inheritFlows() error {
	for {
		m, err := d.line.elder.Receive()
		if err != nil {
			return err
		}
		m.Close()
		if m.Kind == kindEnd {
			return nil
		}
		if m.Kind != kindFlows || len(m.Payload) < 2 {
			return fmt.Errorf("take over: message %d of %d bytes among the flows", m.Kind, len(m.Payload))
		}
		w := d.workerOf(binary.BigEndian.Uint16(m.Payload))
		if w == nil {
			continue
		}
		n, err := w.AddFlows(m.Payload[2:])
		if err != nil {
			return err
		}
		d.inherited += n
	}
}

// workerOf returns the worker of a queue, nil if there is none.
func (d *daemon) workerOf(num uint16) *engine.Worker {
	if i := slices.Index(d.Queues, num); i >= 0 {
		return d.workers[i]
	}
	return nil
}

// commit tells the elder that packets are judged, and waits until it has given
// up its place. An error means that the elder goes on.
func (d *daemon) commit() error {
	c := d.line.elder
	if c == nil {
		return nil
	}
	if err := c.Send(kindServing, nil); err != nil {
		return err
	}
	m, err := c.Receive()
	if err != nil {
		return fmt.Errorf("take over: the old process does not let go: %w", err)
	}
	m.Close()
	if m.Kind != kindGo {
		return fmt.Errorf("take over: message %d, want %d", m.Kind, kindGo)
	}
	close(d.line.committed)
	d.log.Info("took over", "packets_waited", d.attached.Sub(d.line.legacy.Stopped).Round(time.Microsecond), "flows", d.inherited)
	return c.SetDeadline(time.Time{})
}

// awaitLog waits until the elder has closed the audit log, and opens it. What
// cannot be opened is tried again: verdicts do not depend on it.
func (d *daemon) awaitLog(ctx context.Context) {
	c := d.line.elder
	if c == nil {
		return
	}
	select {
	case <-d.line.committed:
	case <-ctx.Done():
		return
	}
	// Told to stop, the elder still has a moment to close the log: else what this
	// process has to say would be in no log.
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Now().Add(handOverLimit)) })
	defer stop()
	var end closed
	m, err := c.Receive()
	if err == nil && m.Kind == kindClosed {
		err = m.Decode(&end)
	}
	if err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
		d.log.Error("how the audit log ended is not known, its last records may be missing", "error", err)
	}
	for told := false; ; told = true {
		err := d.audit.Open(d.logOutputs(), end.past(d.auditRun))
		if err == nil {
			return
		}
		if !told {
			d.log.Error("audit log cannot be opened, trying again each second", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(logRetry):
		}
	}
}

// logRetry is how often the audit log is tried again.
const logRetry = time.Second

// settle tells the supervisor that the daemon is ready, and leaves the sockets
// with it: if the daemon dies, the next one goes on with them. Sockets of the
// daemon before that are not used are let go.
func (d *daemon) settle() {
	s := d.line
	for name, f := range s.sockets {
		f.Close()
		d.supervise(s.supervisor.Forget(name))
	}
	clear(s.sockets)
	if s.supervisor.Present() {
		for name, open := range d.openSockets() {
			f, err := open()
			d.store(name, f, err)
		}
		records, err := d.records()
		d.supervise(err)
		for name, f := range records {
			d.store(name, f, nil)
		}
		d.storeBox()
	}
	d.supervise(s.supervisor.Notify("READY=1"))
}

// openSockets returns what opens a second descriptor of each socket that a
// next daemon needs.
func (d *daemon) openSockets() map[string]func() (*os.File, error) {
	open := make(map[string]func() (*os.File, error))
	for _, q := range d.queues {
		open[queueName(q.Num())] = q.File
	}
	if d.nflog != nil {
		open[nflogName] = d.nflog.File
	}
	return open
}

// store leaves f with the supervisor, unless err says that there is none.
func (d *daemon) store(name string, f *os.File, err error) {
	if err == nil {
		err = d.line.supervisor.Store(name, f)
		f.Close()
	}
	d.supervise(err)
	d.line.stored = append(d.line.stored, name)
}

// supervise logs that the supervisor could not be told something.
func (d *daemon) supervise(err error) {
	if err != nil {
		d.log.Warn("a crash may lose packets", "error", err)
	}
}

// leave lets the supervisor forget the sockets at an orderly end.
func (d *daemon) leave() {
	for _, name := range d.line.stored {
		d.supervise(d.line.supervisor.Forget(name))
	}
	for _, f := range d.line.sockets {
		f.Close()
	}
	if d.line.elder != nil {
		d.line.elder.Close()
	}
}
