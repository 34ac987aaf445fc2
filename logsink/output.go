package logsink

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// Output says where records go and what they look like.
type Output struct {
	// Path is the file to append to; "-" is standard output. Writer, if not
	// nil, is written to instead, and Path is just its name.
	Path   string
	Writer io.Writer

	Pretty bool // lines for people (AppendPretty) instead of EVE JSON
	Colour bool // with Pretty: colour the verdict

	// MaxBytes is the size at which a file is rotated: Path is renamed to
	// Path.1, Path.1 to Path.2 and so on. 0 means never. Keep is how many old
	// files stay; 0 means none.
	MaxBytes int64
	Keep     int

	// BufferBytes is how much is held in memory while the output cannot be
	// written; what comes after is counted as lost. 0 means 1 MiB.
	BufferBytes int
}

const (
	defaultBuffer = 1 << 20
	writeSize     = 64 << 10 // a buffer this full is written at once
	retryInterval = time.Second
)

// output is an open Output with what waits to be written. Only the log's
// goroutine touches it, but for the counters.
type output struct {
	cfg  Output
	enc  *Encoder
	file *file // nil if it is no file
	w    io.Writer
	buf  []byte
	torn []byte // what was written of a line whose rest is in buf

	cause   error // why writing fails; nil if it does not
	told    bool  // the logger knows that it fails
	retryAt time.Time

	inherited uint64 // records that the process before missed

	records, lost, errors, rotations atomic.Uint64

	// In the journal; missed are records lost since writing fails.
	seq, written, missed *atomic.Uint64
}

// newOutput opens an output, which is number i of journal.
func newOutput(cfg Output, enc EncoderConfig, journal *Journal, i int) (*output, error) {
	if cfg.BufferBytes == 0 {
		cfg.BufferBytes = defaultBuffer
	}
	o := &output{
		cfg: cfg, enc: NewEncoder(enc), buf: make([]byte, 0, writeSize+4096),
		seq: journal.output(i, wordSeq), written: journal.output(i, wordWritten), missed: journal.output(i, wordMissed),
	}
	switch {
	case cfg.Writer != nil:
		o.w = cfg.Writer
	case cfg.Path == "-":
		o.w = os.Stdout
	case cfg.Path == "":
		return nil, errors.New("audit log: no path given (use - for standard output)")
	default:
		f, err := openFile(cfg.Path, cfg.MaxBytes, cfg.Keep)
		if err != nil {
			return nil, err
		}
		o.file = f
	}
	return o, nil
}

// put adds e to what is to be written, or counts it as lost.
func (o *output) put(e *Event, now time.Time) {
	if len(o.buf) >= writeSize {
		o.flush(now)
	}
	if len(o.buf) >= o.cfg.BufferBytes {
		o.missed.Add(1)
		o.lost.Add(1)
		return
	}
	o.add(e)
}

func (o *output) add(e *Event) {
	o.records.Add(1)
	if o.cfg.Pretty {
		o.enc.seq++
		o.buf = AppendPretty(o.buf, e, o.cfg.Colour)
	} else {
		o.buf = o.enc.Append(o.buf, e)
	}
	o.seq.Store(o.enc.seq)
}

// flush writes what is there. While writing fails it tries once a second.
func (o *output) flush(now time.Time) {
	if len(o.buf) == 0 || o.cause != nil && now.Before(o.retryAt) {
		return
	}
	err := o.writeAll()
	if err == nil {
		o.recovered(now)
		return
	}
	o.errors.Add(1)
	o.cause, o.retryAt = err, now.Add(retryInterval)
}

// writeAll writes the buffer, which may take several files.
func (o *output) writeAll() error {
	for len(o.buf) > 0 {
		n, err := o.write(o.buf)
		o.wrote(o.buf[:n])
		o.buf = o.buf[:copy(o.buf, o.buf[n:])]
		if err != nil {
			return err
		}
	}
	return nil
}

// wrote notes that b was written. Each record is a line.
func (o *output) wrote(b []byte) {
	if end := bytes.LastIndexByte(b, '\n'); end >= 0 {
		o.torn = o.torn[:0]
		o.written.Add(uint64(bytes.Count(b, []byte{'\n'})))
		b = b[end+1:]
	}
	o.torn = append(o.torn, b...)
}

func (o *output) write(b []byte) (int, error) {
	if o.file == nil {
		return o.w.Write(b)
	}
	n, err := o.file.write(b, len(o.torn) == 0)
	o.rotations.Store(o.file.rotations)
	return n, err
}

// recovered records that writing had failed and what that cost.
func (o *output) recovered(now time.Time) {
	if o.cause == nil {
		return
	}
	e := Event{Kind: Admin, Time: now.UnixNano(), Reason: "output_recovered", Origin: o.name(), Text: o.cause.Error()}
	if missed := o.missed.Load(); missed > 0 {
		e.Kind, e.Packets = Loss, [2]uint64{missed, o.lost.Load() + o.inherited}
	}
	o.cause = nil
	o.add(&e)
	o.missed.Store(0)
}

// reopen follows a file that has been moved. It returns nil for other outputs.
func (o *output) reopen(now time.Time) error {
	if o.file == nil {
		return nil
	}
	o.flush(now)
	if len(o.torn) > 0 { // the rest of the line belongs into the old file
		return fmt.Errorf("reopen audit log %s: a record is half written (ask again when the disk has space): %w", o.cfg.Path, o.cause)
	}
	return o.file.reopen()
}

// sync makes what was written survive a power failure.
func (o *output) sync() {
	if o.file == nil || !o.file.regular {
		return
	}
	if err := o.file.f.Sync(); err != nil {
		o.errors.Add(1)
	}
}

// close writes the rest and returns an error if that is not possible.
func (o *output) close(now time.Time) error {
	o.retryAt = now
	o.flush(now)
	o.flush(now) // the record of a recovery
	if o.file != nil {
		o.sync()
		if err := o.file.f.Close(); err != nil && o.cause == nil {
			o.cause = err
		}
	}
	if o.cause == nil {
		return nil
	}
	return fmt.Errorf("audit log %s: the last %d bytes and %d records after them could not be written: %w",
		o.cfg.Path, len(o.buf), o.missed.Load(), o.cause)
}

func (o *output) name() string { return "output " + o.cfg.Path }
