package logsink

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// following opens a log with outputs after past and returns what stops it.
func following(t *testing.T, cfg Config, past Past, outputs ...Output) (*Log, func() error) {
	t.Helper()
	l := newLog(t, cfg)
	l.Admin("waits", "for the log before")
	if err := l.Open(outputs, past); err != nil {
		t.Fatal(err)
	}
	return l, start(t, l)
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A log that goes on where another ended numbers and counts on, in the same run.
func TestLogGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "eve.json")
	output := Output{Path: path}
	first := newLog(t, Config{Outputs: []Output{output}, Encoder: EncoderConfig{Run: "one"}})
	locked := newLog(t, Config{})
	if err := locked.Open([]Output{output}, Past{}); err == nil {
		t.Fatal("got no error for a file that another log has locked")
	}
	first.Admin("first", "")
	if err := start(t, first)(); err != nil {
		t.Fatal(err)
	}
	second, stop := following(t, Config{Encoder: EncoderConfig{Run: "two"}}, first.Past(), output)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	b := readFile(t, path)
	records := readRecords(t, b) // log_begins, first, counters; waits, counters
	if got := second.Past(); len(records) != 5 || got.Outputs[0].Seq != 5 || got.Run != "one" || got.Stats.Events != 4 {
		t.Errorf("got %d records and left %+v, want 5 of one run, and 4 events", len(records), got)
	}
	if strings.Count(string(b), `"run":"one"`) != 5 {
		t.Errorf("got records of another run:\n%s", b)
	}
	_, stop = following(t, Config{Encoder: EncoderConfig{Run: "three"}}, Past{}, output)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if b = readFile(t, path)[len(b):]; !bytes.Contains(b, []byte(`"message":"run three, seq begins at 1; before it run one ended in good order, at seq 5"`)) {
		t.Errorf("a new run does not say so:\n%s", b)
	}
}

// What a log could not write, and what it had no room for, is written or told by
// the one after it.
func TestLogHandsOver(t *testing.T) {
	disk := &failing{err: errors.New("no space left on device")}
	output := Output{Path: "disk", Writer: disk, BufferBytes: 5000}
	first := newLog(t, Config{Outputs: []Output{output}, Encoder: EncoderConfig{Run: "one"}})
	const n = 100
	if ok := produce(first.Ring("test"), 1, n); ok != n {
		t.Fatalf("%d of %d events found room", ok, n)
	}
	if err := start(t, first)(); err == nil {
		t.Fatal("the first log could write")
	}
	past := first.Past()
	if past.Outputs[0].Missed == 0 || !past.Outputs[0].MidLine {
		t.Fatalf("got %+v, want records missed and a line begun", past.Outputs[0])
	}
	disk.err = nil
	second, stop := following(t, Config{}, past, output)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	var flows, lost uint64
	for _, r := range readRecords(t, disk.Bytes()) {
		if r.Flow != 0 {
			flows++
		}
		lost += r.Verdictd.Lost
	}
	// The first log's record of its counters found no room either.
	if s := second.Stats(); flows+lost != n+1 || s.Unwritten != lost || s.Events != n+3 {
		t.Errorf("got %d records of flows, %d told as lost and %+v, want all %d", flows, lost, s, n)
	}
}

// TestJournal lets a process die at every stage of a record's way, and counts
// what its journal and its file leave.
func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "eve.json")
	mem := make([]byte, JournalSize)
	l, err := New(Config{
		Outputs: []Output{{Path: path}}, Encoder: EncoderConfig{Run: "one"}, Journal: NewJournal(mem), RingEvents: 16,
	})
	if err != nil {
		t.Fatal(err)
	}
	ring, now := l.Ring("test"), time.Now()
	take := func(n uint64) {
		produce(ring, 1, n)
		l.pass(now, 0)
	}
	take(5)
	l.flush(l.outputs[0], now) // log_begins and 5 are written
	take(3)                    // encoded
	l.Admin("waits", "for the log")
	produce(ring, 1, 18)        // 16 fit
	l.outputs[0].file.f.Close() // the process dies

	p := NewJournal(mem).Past()
	p.Run, p.PID = "one", 4711
	const lost = 3 + 1 + 18
	if p.Unread != 1+18 || p.Outputs[0].Seq != 9 || p.Outputs[0].Written != 6 {
		t.Errorf("got %+v", p)
	}
	next, stop := following(t, Config{}, p, Output{Path: path})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	records := readRecords(t, readFile(t, path))
	r := records[6]
	if r.Type != "loss" || r.Verdictd.Lost != lost || r.Verdictd.Message != "process 4711 died and took with it what it had not written: its records after seq 6" {
		t.Errorf("got %+v, want a loss of %d", r, lost)
	}
	if s := next.Stats(); s.Unwritten != lost {
		t.Errorf("got %+v, want %d records unwritten", s, lost)
	}
}

// TestJournalAndFile compares what a process noted before it died with what its file
// holds: each record is either in the file or told as lost.
func TestJournalAndFile(t *testing.T) {
	const made, noted = 8, 4 // log_begins among them
	line := func(run string, seq int) string {
		return fmt.Sprintf(`{"seq":%d,"event_type":"verdict","verdictd":{"run":%q}}`+"\n", seq, run)
	}
	tests := []struct {
		name, file string // what the file ends with
		written    uint64
	}{
		{"nothing that was not noted", line("one", 4), 4},
		{"a write that was not noted", line("one", 5) + line("one", 6), 6},
		{"all", line("one", 8), 8},
		{"a torn line", line("one", 5) + `{"seq":6,"event_type":"verdict","verdictd":{"run":"one"}}`, 5},
		{"only a torn line", `{"seq":6`, 4},
		{"an empty file, as after a rotation", "", 4},
		{"an older line", line("one", 2), 4},
		{"another run", line("other", 7), 4},
		{"more than was made", line("one", 9), 4},
		{"no number", `{"seq":"6","verdictd":{"run":"one"}}` + "\n", 4},
		{"no record", "hello\n", 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "eve.json")
			if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			past := Past{Run: "one", PID: 4711, Died: true, Outputs: []OutputPast{{Seq: made, Written: noted}}}
			l, stop := following(t, Config{}, past, Output{Path: path})
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if s := l.Stats(); s.Unwritten != made-tt.written {
				t.Errorf("got %d records told as lost, want %d", s.Unwritten, made-tt.written)
			}
			if b := readFile(t, path); !bytes.Contains(b, fmt.Appendf(nil, `"seq":%d,`, tt.written+1)) {
				t.Errorf("the first record is not number %d:\n%s", tt.written+1, b)
			}
		})
	}
}

// Without a journal the file alone tells that a run stopped.
func TestLogDied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "eve.json")
	l := newLog(t, Config{Outputs: []Output{{Path: path}}, Encoder: EncoderConfig{Run: "one"}})
	l.flush(l.outputs[0], time.Now())
	l.outputs[0].file.f.Close()
	before := len(readFile(t, path))
	_, stop := following(t, Config{Encoder: EncoderConfig{Run: "two"}}, Past{}, Output{Path: path})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if b := readFile(t, path)[before:]; !bytes.Contains(b, []byte("before it run one stopped at seq 1 without its last records")) {
		t.Errorf("got\n%s", b)
	}
}
