package logsink

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// record is what the tests read back.
type record struct {
	Seq      uint64
	Type     string `json:"event_type"`
	Flow     uint64 `json:"flow_id"`
	Stats    map[string]uint64
	Verdictd struct {
		Admin, Message, Origin string
		Lost                   uint64
		LostTotal              uint64 `json:"lost_total"`
	}
}

// readRecords parses JSON lines and checks that seq has no gap.
func readRecords(t *testing.T, b []byte) []record {
	t.Helper()
	var all []record
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		var r record
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			t.Fatalf("%v: %s", err, s.Bytes())
		}
		all = append(all, r)
		if r.Seq != uint64(len(all)) {
			t.Fatalf("record %d has seq %d", len(all), r.Seq)
		}
	}
	return all
}

// gate is a writer that blocks until it is opened.
type gate struct {
	open    chan struct{}
	entered chan struct{}
	once    sync.Once
	bytes.Buffer
}

func newGate() *gate { return &gate{open: make(chan struct{}), entered: make(chan struct{})} }

func (g *gate) Write(b []byte) (int, error) {
	g.once.Do(func() { close(g.entered) })
	<-g.open
	return g.Buffer.Write(b)
}

// start runs l and returns a function that stops it and returns Run's error.
func start(t *testing.T, l *Log) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	return func() error { cancel(); return <-done }
}

func newLog(t *testing.T, cfg Config) *Log {
	t.Helper()
	cfg.Poll, cfg.FlushInterval = time.Millisecond, time.Millisecond
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// produce puts n events with flow ids from first on and returns how many fit.
func produce(r *Ring, first, n uint64) (ok uint64) {
	for i := first; i < first+n; i++ {
		e := r.Next()
		if e == nil {
			continue
		}
		*e = tcpEvent()
		e.Flow = i
		r.Commit()
		ok++
	}
	return ok
}

// TestLogStoppedWriter: producers go on while the writer hangs, and in the end
// each event is either in the log or in a record of a loss.
func TestLogStoppedWriter(t *testing.T) {
	const producers, each = 4, 5000
	g := newGate()
	l := newLog(t, Config{Outputs: []Output{{Path: "gate", Writer: g}}, RingEvents: 256, LossInterval: time.Millisecond})
	stop := start(t, l)
	l.Admin("start", "test")
	<-g.entered

	var wg sync.WaitGroup
	for i := range producers {
		r := l.Ring("p" + string(rune('0'+i)))
		wg.Go(func() { produce(r, uint64(i)<<32+1, each) })
	}
	wg.Wait() // would hang here if a producer waited for the writer
	close(g.open)
	if err := stop(); err != nil {
		t.Fatal(err)
	}

	var logged, lost uint64
	last := map[uint64]uint64{}
	for _, r := range readRecords(t, g.Bytes()) {
		switch r.Type {
		case "drop":
			logged++
			if p := r.Flow >> 32; r.Flow <= last[p] {
				t.Errorf("producer %d: event %d after %d", p, r.Flow, last[p])
			}
			last[r.Flow>>32] = r.Flow
		case "loss":
			lost += r.Verdictd.Lost
		}
	}
	if logged+lost != producers*each || lost == 0 {
		t.Errorf("got %d logged + %d lost, want %d in all and some lost", logged, lost, producers*each)
	}
	if s := l.Stats(); s.Lost != lost || s.Unwritten != 0 {
		t.Errorf("stats: got %+v, want %d lost", s, lost)
	}
}

// TestLogConcurrent checks the sum under load, with rings made while the log
// runs.
func TestLogConcurrent(t *testing.T) {
	const producers, each = 4, 20000
	var buf bytes.Buffer
	l := newLog(t, Config{Outputs: []Output{{Path: "buffer", Writer: &buf}}, RingEvents: 1024})
	stop := start(t, l)
	var wg sync.WaitGroup
	for range producers {
		wg.Go(func() {
			r := l.Ring("x")
			for i := range uint64(each / 100) {
				produce(r, i*100+1, 100)
				l.Stats()
			}
		})
	}
	wg.Wait()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	var logged, lost, final uint64
	for _, r := range readRecords(t, buf.Bytes()) {
		logged += map[string]uint64{"drop": 1}[r.Type]
		lost += r.Verdictd.Lost
		final += r.Stats["log_lost"]
	}
	if logged+lost != producers*each || final != lost {
		t.Errorf("got %d logged + %d lost (%d in stats), want %d", logged, lost, final, producers*each)
	}
}

// failing is a writer that fails while err is set, after a part of the bytes.
type failing struct {
	mu    sync.Mutex
	err   error
	tries int
	bytes.Buffer
}

func (f *failing) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries++
	if f.err == nil {
		return f.Buffer.Write(b)
	}
	n, _ := f.Buffer.Write(b[:min(len(b), 10)])
	return n, f.err
}

// TestOutputFails: a full disk costs what does not fit into the buffer, and
// the log says how much that was.
func TestOutputFails(t *testing.T) {
	w := &failing{err: errors.New("no space left on device")}
	o, err := newOutput(Output{Path: "disk", Writer: w, BufferBytes: 5000}, EncoderConfig{}, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	const n = 100
	now, e := time.Unix(0, testTime), tcpEvent()
	for range n {
		o.put(&e, now)
		o.flush(now)
	}
	if w.tries != 1 {
		t.Errorf("tries within a second: got %d, want 1", w.tries)
	}
	now = now.Add(retryInterval)
	w.err = nil
	o.flush(now)
	if err := o.close(now); err != nil {
		t.Fatal(err)
	}
	records := readRecords(t, w.Bytes())
	loss := records[len(records)-1]
	if got := uint64(len(records)-1) + loss.Verdictd.Lost; got != n || loss.Verdictd.Message != "no space left on device" {
		t.Errorf("got %d records and %+v, want %d in all", len(records)-1, loss.Verdictd, n)
	}
}

func TestOutputFailsAtClose(t *testing.T) {
	want := errors.New("no space left on device")
	l := newLog(t, Config{Outputs: []Output{{Path: "disk", Writer: &failing{err: want}}}})
	l.Admin("start", "")
	if err := start(t, l)(); !errors.Is(err, want) || !strings.Contains(err.Error(), "audit log disk") {
		t.Errorf("got %v, want %v", err, want)
	}
}

// TestOutputFullDisk writes to the device that is always full.
func TestOutputFullDisk(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		labtest.Lacks(t, "/dev/full", err)
	}
	var told bytes.Buffer
	l := newLog(t, Config{Outputs: []Output{{Path: "/dev/full"}}, Logger: slog.New(slog.NewTextHandler(&told, nil))})
	stop := start(t, l)
	for deadline := time.Now().Add(10 * time.Second); l.Stats().WriteErrors < 2; time.Sleep(time.Millisecond) {
		l.Admin("x", "")
		if time.Now().After(deadline) {
			t.Fatal("no write error within 10 s")
		}
	}
	if err := stop(); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("got %v, want no space left on device", err)
	}
	if got := strings.Count(told.String(), "audit log cannot be written"); got != 1 {
		t.Errorf("logger: told %d times, want once: %s", got, told.String())
	}
}

func TestLogReopen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "eve.json")
	l := newLog(t, Config{Outputs: []Output{{Path: path}}, SyncInterval: time.Millisecond})
	stop := start(t, l)
	l.Admin("before", "")
	waitFor(t, path, "before")
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	l.Reopen()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the file was not opened anew within 10 s")
		}
	}
	l.Admin("after", "")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	all := contents(t, dir)
	if !strings.Contains(all["eve.json.old"], "before") || strings.Contains(all["eve.json.old"], "after") {
		t.Errorf("old file: got %s", all["eve.json.old"])
	}
	if !strings.Contains(all["eve.json"], "after") || strings.Contains(all["eve.json"], "before") {
		t.Errorf("new file: got %s", all["eve.json"])
	}
	readRecords(t, []byte(all["eve.json.old"]+all["eve.json"]))
}

func waitFor(t *testing.T, path, want string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: no %q within 10 s", path, want)
		}
	}
}

// TestLogRotates runs a log over several files: all records are there, in
// order.
func TestLogRotates(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "eve.json")
	if err := os.WriteFile(path, []byte("{\"torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := newLog(t, Config{Outputs: []Output{{Path: path, MaxBytes: 20000, Keep: 100}}})
	stop := start(t, l)
	if got := produce(l.Ring("p"), 1, 500); got != 500 {
		t.Fatalf("produced %d, want 500", got)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	all := contents(t, dir)
	joined := all["eve.json"]
	for i := 1; i < len(all); i++ {
		part := all["eve.json."+string(rune('0'+i/10))+string(rune('0'+i%10))]
		if i < 10 {
			part = all["eve.json."+string(rune('0'+i))]
		}
		if len(part) > 20000 || part == "" {
			t.Errorf("file %d has %d bytes", i, len(part))
		}
		joined = part + joined
	}
	records := readRecords(t, []byte(joined))
	if len(records) != 502 || records[0].Verdictd.Admin != "log_repaired" || uint64(len(all)-1) != l.Stats().Rotations {
		t.Errorf("got %d records in %d files, first %+v", len(records), len(all), records[0].Verdictd)
	}
}

func TestPutIsBounded(t *testing.T) {
	var buf bytes.Buffer
	l := newLog(t, Config{Outputs: []Output{{Path: "b", Writer: &buf, Pretty: true}}})
	for range maxCold + 7 {
		l.Admin("x", "")
	}
	if err := start(t, l)(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(buf.String(), "ADMIN"); got != maxCold {
		t.Errorf("got %d, want %d", got, maxCold)
	}
	if !strings.Contains(buf.String(), "7 lost total=7 origin=admin") {
		t.Errorf("no loss of 7 in %s", buf.String()[len(buf.String())-300:])
	}
}

func TestNewErrors(t *testing.T) {
	tests := []struct {
		name, path, want string
	}{
		{"no path", "", "use - for standard output"},
		{"no directory", t.TempDir() + "/x/y", "create it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(Config{Outputs: []Output{{Path: tt.path}}})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestRingAllocatesNothing(t *testing.T) {
	r, e := NewRing(8), tcpEvent()
	drain := func(*Event) {}
	if n := testing.AllocsPerRun(100, func() {
		for range 10 { // two more than fit
			if slot := r.Next(); slot != nil {
				*slot = e
				r.Commit()
			}
		}
		r.Drain(drain)
	}); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

// Resize makes a file that may grow rotate from its next record on.
func TestLogResize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "eve.json")
	l := newLog(t, Config{Outputs: []Output{{Path: path}}})
	r := l.Ring("test")
	p, now := pacer{}, time.Now()
	write := func() {
		produce(r, 1, 50)
		l.pass(now, 0)
		l.upkeep(&p, now)
		l.flush(l.outputs[0], now)
	}
	write()
	if _, err := os.Stat(path + ".1"); err == nil || l.Stats().Rotations != 0 {
		t.Fatal("rotated without a size")
	}
	l.Resize(2000, 2)
	write()
	for _, name := range []string{path, path + ".1", path + ".2"} {
		if info, err := os.Stat(name); err != nil || name != path+".2" && info.Size() > 2000 {
			t.Errorf("%s: got %v, %v, want up to 2000 bytes", name, info, err)
		}
	}
	if _, err := os.Stat(path + ".3"); err == nil {
		t.Error("more old files stay than wanted")
	}
	if err := start(t, l)(); err != nil {
		t.Fatal(err)
	}
}
