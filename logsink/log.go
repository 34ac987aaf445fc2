package logsink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Config says how a Log works.
type Config struct {
	Outputs []Output      // where records go; none means that they are only counted
	Encoder EncoderConfig // what each JSON record says
	Logger  *slog.Logger  // is told when an output fails and recovers; nil means nobody
	Journal *Journal      // where it counts; nil means in memory of its own

	RingEvents    int           // capacity of a ring; 0 means 8192
	Poll          time.Duration // how long to rest when the rings are nearly empty; 0 means 10 ms
	FlushInterval time.Duration // greatest age of an unwritten record; 0 means 200 ms
	SyncInterval  time.Duration // how often files are synced to disk; 0 means at close only
	LossInterval  time.Duration // how often losses are recorded at most; 0 means 1 s
}

// Log writes the audit log. Producers put events into rings of their own
// (Ring); one goroutine (Run) takes them out and writes them. Events of one
// ring stay in order. Events of different rings may stand in the log up to one
// poll interval out of order: sort by timestamp where that matters.
type Log struct {
	cfg     Config
	outputs []*output
	started time.Time

	reopenWanted atomic.Bool
	resizeWanted atomic.Pointer[fileSize]

	mu    sync.Mutex
	rings []*namedRing
	cold  []Event // from Put

	cutRecorded uint64 // of cut, for Run only

	before                LogStats // of earlier processes of the run
	events                atomic.Uint64
	taken, put, cut, told *atomic.Uint64 // in the journal
}

type namedRing struct {
	*Ring
	name     string
	recorded uint64 // losses that have been recorded
}

// maxCold bounds the events from Put that wait for Run.
const maxCold = 4096

// New opens the outputs. An error names the output and the remedy.
func New(cfg Config) (*Log, error) {
	setDefault(&cfg.RingEvents, 8192)
	setDefault(&cfg.Poll, 10*time.Millisecond)
	setDefault(&cfg.FlushInterval, 200*time.Millisecond)
	setDefault(&cfg.LossInterval, time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Log{
		cfg: cfg, started: time.Now(),
		taken: cfg.Journal.word(wordTaken), put: cfg.Journal.word(wordPut),
		cut: cfg.Journal.word(wordCut), told: cfg.Journal.word(wordTold),
	}
	if err := l.Open(cfg.Outputs, Past{}); err != nil {
		return nil, err
	}
	return l, nil
}

// Open opens outputs beside those of Config. It is for a log that goes on where
// that of another process ended, whose files are locked until then: events may
// be put into the rings before. past is what the other log left (Log.Past or
// Journal.Past); the zero value begins a run. It must not be called once Run
// runs. After an error it may be called again.
//
// A run that begins is told by a record (log_begins), as is what a process that
// died has lost.
func (l *Log) Open(outputs []Output, past Past) error {
	had, enc := len(l.outputs), l.cfg.Encoder
	if past.Run != "" {
		enc.Run = past.Run
	}
	for i, c := range outputs {
		o, err := newOutput(c, enc, l.cfg.Journal, had+i)
		if err != nil {
			for _, o := range l.outputs[had:] {
				err = errors.Join(err, o.close(time.Now()))
			}
			l.outputs = l.outputs[:had]
			return err
		}
		l.outputs = append(l.outputs, o)
		l.reportRepair(o)
	}
	for i, o := range l.outputs[had:] {
		o.follow(&past, past.output(i), l.cfg.FlushInterval)
	}
	l.before = past.Stats
	return nil
}

// Past returns what the log leaves to that of another process. It must be called
// after Run has returned.
func (l *Log) Past() Past {
	p := Past{Run: l.cfg.Encoder.Run, Stats: l.Stats()}
	for _, o := range l.outputs {
		p.Run = o.enc.cfg.Run
		p.Outputs = append(p.Outputs, o.past())
	}
	return p
}

func setDefault[T int | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// Ring returns a new ring for one producer. Its name tells rings apart in
// records of losses: "queue 0". It may be called from any goroutine, also
// while Run runs.
func (l *Log) Ring(name string) *Ring {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := len(l.rings)
	r := &namedRing{
		Ring: newRing(l.cfg.RingEvents, l.cfg.Journal.ring(i, wordHead), l.cfg.Journal.ring(i, wordLost)), name: "ring " + name,
	}
	l.rings = append(l.rings, r)
	return r.Ring
}

// Admin records a change of the daemon itself, now: what is one word ("start",
// "stop", "policy_loaded"), text says more. It may be called from any
// goroutine and does not wait for the log.
func (l *Log) Admin(what, text string) {
	l.Put(Event{Kind: Admin, Time: time.Now().UnixNano(), Reason: what, Text: text})
}

// Put records an event that comes from no packet path. It may be called from
// any goroutine and does not wait for the log; packet workers use a Ring.
func (l *Log) Put(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.cold) == maxCold {
		l.cut.Add(1)
		return
	}
	l.cold = append(l.cold, e)
	l.put.Add(1)
}

// Reopen makes Run open the files anew that log rotation has moved. It may be
// called from any goroutine and does not wait.
func (l *Log) Reopen() { l.reopenWanted.Store(true) }

// fileSize is when files are rotated and how many old ones stay, as in Output.
type fileSize struct {
	max  int64
	keep int
}

// Resize gives all files, from their next record on, other values of Output.MaxBytes
// and Output.Keep. It may be called from any goroutine and does not wait.
func (l *Log) Resize(maxBytes int64, keep int) { l.resizeWanted.Store(&fileSize{maxBytes, keep}) }

// Run writes events until ctx is done. Then it writes everything that is still
// in the rings, counters of its own and the rest of its buffers, closes the
// outputs and returns. Producers should have stopped when ctx ends: what they
// put later is not written. Run must be called once.
//
// An output that fails (disk full, I/O error) does not end Run: records are
// kept in memory, then counted as lost, and it is tried again each second. Run
// returns an error only if the last records could not be written. A writer
// that blocks forever blocks Run, never a producer.
func (l *Log) Run(ctx context.Context) error {
	ticker := time.NewTicker(l.cfg.Poll)
	defer ticker.Stop()
	now := time.Now()
	p := pacer{lastFlush: now, lastSync: now, lastLoss: now}
	for ctx.Err() == nil {
		busy := l.pass(time.Now(), ownerPatience) > l.cfg.RingEvents/4
		l.upkeep(&p, time.Now())
		if busy {
			continue
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	return l.finish()
}

// pacer remembers when what was last done.
type pacer struct{ lastFlush, lastSync, lastLoss time.Time }

// due returns whether interval has passed since *last, and if so moves *last.
func due(last *time.Time, now time.Time, interval time.Duration) bool {
	if now.Sub(*last) < interval {
		return false
	}
	*last = now
	return true
}

// ownerPatience is how long a record may wait for facts about its owner that are being
// looked up, if there is room for those behind it.
const ownerPatience = 100 * time.Millisecond

// pass writes what is in the rings now, but for records that wait for facts, and
// returns the most that it wrote of one of them.
func (l *Log) pass(now time.Time, patience time.Duration) int {
	l.mu.Lock()
	rings, cold := l.rings, l.cold
	l.cold = nil
	l.mu.Unlock()
	take := func(e *Event) {
		l.write(e, now)
		l.taken.Add(1)
	}
	for i := range cold {
		take(&cold[i])
	}
	most := 0
	write := func(e *Event, left int) bool {
		if e.Owner != nil && e.Owner.Later != nil {
			o, whole := e.Owner.Later()
			if !whole && left < l.cfg.RingEvents/2 && now.UnixNano()-e.Time < int64(patience) {
				return false
			}
			e.Owner = o
		}
		take(e)
		return true
	}
	for _, r := range rings {
		most = max(most, r.drainWhile(write))
	}
	return most
}

// write gives e to all outputs.
func (l *Log) write(e *Event, now time.Time) {
	l.events.Add(1)
	for _, o := range l.outputs {
		o.put(e, now)
	}
}

// upkeep does what is due beside writing.
func (l *Log) upkeep(p *pacer, now time.Time) {
	if due(&p.lastLoss, now, l.cfg.LossInterval) {
		l.recordLosses(now)
	}
	if size := l.resizeWanted.Swap(nil); size != nil {
		for _, o := range l.outputs {
			if o.file != nil {
				o.file.maxBytes, o.file.keep, o.file.limit = size.max, size.keep, size.max
			}
		}
	}
	if l.reopenWanted.CompareAndSwap(true, false) {
		l.reopen(now)
	}
	if due(&p.lastFlush, now, l.cfg.FlushInterval) {
		for _, o := range l.outputs {
			l.flush(o, now)
		}
	}
	if l.cfg.SyncInterval > 0 && due(&p.lastSync, now, l.cfg.SyncInterval) {
		for _, o := range l.outputs {
			o.sync()
		}
	}
}

// flush flushes o and tells of a change: the logger if writing fails, the log
// itself if rotation does.
func (l *Log) flush(o *output, now time.Time) {
	o.flush(now)
	if o.file != nil && o.file.rotateErr != nil {
		l.cfg.Logger.Error("audit log is not rotated and grows", "error", o.file.rotateErr)
		l.Admin("rotation_failed", o.file.rotateErr.Error())
		o.file.rotateErr = nil
	}
	switch {
	case o.cause != nil && !o.told:
		l.cfg.Logger.Error("audit log cannot be written, trying again each second", "output", o.cfg.Path, "error", o.cause)
	case o.cause == nil && o.told:
		l.cfg.Logger.Info("audit log is written again", "output", o.cfg.Path)
	}
	o.told = o.cause != nil
}

// recordLosses writes a Loss for each ring that has lost events since the
// last one.
func (l *Log) recordLosses(now time.Time) {
	l.mu.Lock()
	rings := l.rings
	l.mu.Unlock()
	for _, r := range rings {
		if lost := r.Lost(); lost != r.recorded {
			l.recordLoss(now, r.name, lost-r.recorded, lost)
			r.recorded = lost
		}
	}
	if cut := l.cut.Load(); cut != l.cutRecorded {
		l.recordLoss(now, "admin", cut-l.cutRecorded, cut)
		l.cutRecorded = cut
	}
}

func (l *Log) recordLoss(now time.Time, origin string, lost, total uint64) {
	l.write(&Event{
		Kind: Loss, Time: now.UnixNano(), Origin: origin,
		Packets: [2]uint64{lost, total}, Text: "ring full: the log is slower than the events",
	}, now)
	l.told.Add(lost)
}

func (l *Log) reopen(now time.Time) {
	for _, o := range l.outputs {
		err := o.reopen(now)
		if err != nil {
			l.cfg.Logger.Error("audit log stays in the old file", "error", err)
			l.Admin("reopen_failed", err.Error())
			continue
		}
		l.reportRepair(o)
	}
}

// reportRepair records that a torn record was cut off.
func (l *Log) reportRepair(o *output) {
	if o.file == nil || o.file.repaired == 0 {
		return
	}
	l.Put(Event{
		Kind: Admin, Time: time.Now().UnixNano(), Reason: "log_repaired", Origin: o.name(),
		Text: fmt.Sprintf("a torn last record of %d bytes was cut off", o.file.repaired),
	})
	o.file.repaired = 0
}

// originLog is the origin of the record that ends a log in good order.
const originLog = "log"

// finish writes everything that is left and closes.
func (l *Log) finish() error {
	now := time.Now()
	l.pass(now, 0)
	l.recordLosses(now)
	s := l.Stats()
	l.write(&Event{Kind: Stats, Time: now.UnixNano(), Origin: originLog, Counters: []Counter{
		{"uptime", uint64(now.Sub(l.started) / time.Second)},
		{"log_events", s.Events}, {"log_lost", s.Lost}, {"log_write_errors", s.WriteErrors}, {"log_rotations", s.Rotations},
	}}, now)
	return l.closeOutputs(now)
}

func (l *Log) closeOutputs(now time.Time) error {
	var errs []error
	for _, o := range l.outputs {
		errs = append(errs, o.close(now))
	}
	return errors.Join(errs...)
}

// LogStats counts what a Log did, and those of the processes before in its run.
type LogStats struct {
	Events      uint64 // taken out of rings and from Put, records of losses included
	Lost        uint64 // events that did not fit into a ring
	Unwritten   uint64 // records that an output could not take, summed over outputs
	WriteErrors uint64 // failed writes, summed over outputs
	Rotations   uint64
}

// Stats returns the counters. It may be called from any goroutine.
func (l *Log) Stats() LogStats {
	s := l.before
	s.Events += l.events.Load()
	l.mu.Lock()
	s.Lost += l.cut.Load()
	for _, r := range l.rings {
		s.Lost += r.Lost()
	}
	l.mu.Unlock()
	for _, o := range l.outputs {
		s.Unwritten += o.lost.Load()
		s.WriteErrors += o.errors.Load()
		s.Rotations += o.rotations.Load()
	}
	return s
}
