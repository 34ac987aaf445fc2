package logsink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// lastRecord is what the last line of a file says of the log that wrote it.
type lastRecord struct {
	Seq      uint64 `json:"seq"`
	Stats    any    `json:"stats"`
	Verdictd struct {
		Run    string `json:"run"`
		Origin string `json:"origin"`
	} `json:"verdictd"`
}

// closed returns whether a log ended with r in good order: see Log.finish.
func (r *lastRecord) closed() bool { return r.Stats != nil && r.Verdictd.Origin == originLog }

// last returns the last record of the file before this process wrote to it; the
// zero value if there is none of ours.
func (o *output) last() (r lastRecord) {
	if o.file == nil || o.cfg.Pretty || json.Unmarshal(o.file.last, &r) != nil {
		return lastRecord{}
	}
	return r
}

// follow makes the output go on where another process's ended, and says what
// that one lost, or that a run begins. flush is for how long records of a process
// that died may have been in its memory.
func (o *output) follow(past *Past, p OutputPast, flush time.Duration) {
	last := o.last()
	switch {
	case past.Run == "":
		o.begin(&last, flush)
		return
	case past.Died:
		o.bury(past, p, &last)
		return
	}
	o.enc.seq = p.Seq
	if last.Verdictd.Run == past.Run {
		o.enc.seq = max(o.enc.seq, last.Seq)
	}
	o.seq.Store(o.enc.seq)
	o.written.Store(since(p.Seq, uint64(bytes.Count(p.Pending, []byte{'\n'}))))
	o.buf = append(o.buf, p.Pending...)
	if p.MidLine {
		o.torn = append(o.torn, ' ') // of a line that the other process began
	}
	if p.Missed > 0 {
		o.missed.Store(p.Missed)
		o.inherited = p.Missed
		o.cause = errors.New("the process before could not write them") // until the next flush
	}
	o.flush(time.Now())
}

// begin says that a run begins, and how the one before in the same file ended.
func (o *output) begin(last *lastRecord, flush time.Duration) {
	run := o.enc.cfg.Run
	if run == "" {
		return
	}
	text := fmt.Sprintf("run %s, seq begins at 1", run)
	switch {
	case last.Seq == 0:
	case last.closed():
		text += fmt.Sprintf("; before it run %s ended in good order, at seq %d", last.Verdictd.Run, last.Seq)
	default:
		text += fmt.Sprintf("; before it run %s stopped at seq %d without its last records: those of its last %v are missing, how many is not known",
			last.Verdictd.Run, last.Seq, flush)
	}
	o.add(&Event{Kind: Admin, Time: time.Now().UnixNano(), Reason: "log_begins", Origin: o.name(), Text: text})
}

// bury goes on with the run of a process that died, and counts what died with
// it. What it wrote it noted after each write; a write that it had no time to note
// is seen by the last record of the file, which is believed if it can be one of
// those that the output was given.
func (o *output) bury(past *Past, p OutputPast, last *lastRecord) {
	written := p.Written
	if last.Verdictd.Run == past.Run && last.Seq <= p.Seq {
		written = max(written, last.Seq)
	}
	lost := since(p.Seq, written) + p.Missed + past.Unread
	o.enc.seq = written
	o.written.Store(written)
	e := Event{
		Kind: Admin, Time: time.Now().UnixNano(), Reason: "log_recovered", Origin: o.name(),
		Text: fmt.Sprintf("process %d died; none of its records is missing, the last is seq %d", past.PID, written),
	}
	if lost > 0 {
		o.lost.Add(lost)
		e.Kind, e.Packets = Loss, [2]uint64{lost, lost}
		e.Text = fmt.Sprintf("process %d died and took with it what it had not written: its records after seq %d", past.PID, written)
	}
	o.add(&e)
}

// past returns what is left of a closed output. A line that was begun is given
// whole where the next process cuts off what there is of it.
func (o *output) past() OutputPast {
	p := OutputPast{Seq: o.enc.seq, Written: o.written.Load(), Missed: o.missed.Load()}
	if o.file != nil && o.file.regular {
		p.Pending = append(p.Pending, o.torn...)
	} else {
		p.MidLine = len(o.torn) > 0
	}
	p.Pending = append(p.Pending, o.buf...)
	return p
}
