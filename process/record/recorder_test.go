package record_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/process/record"
)

// held lists the maps, programs and links that this process holds or keeps by
// its links.
func held(t testing.TB) map[string]bool {
	t.Helper()
	const dir = "/proc/self/fdinfo"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // the one that read the list
		}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			if name == "map_id" || name == "prog_id" || name == "link_id" {
				all[name+" "+strings.TrimSpace(value)] = true
			}
		}
	}
	return all
}

// existing lists all maps, programs and links of the kernel.
func existing(t testing.TB) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for id, err := ebpf.ProgramGetNextID(0); err == nil; id, err = ebpf.ProgramGetNextID(id) {
		all[fmt.Sprintf("prog_id %d", id)] = true
	}
	for id, err := ebpf.MapGetNextID(0); err == nil; id, err = ebpf.MapGetNextID(id) {
		all[fmt.Sprintf("map_id %d", id)] = true
	}
	links := new(link.Iterator)
	defer links.Close()
	for links.Next() {
		all[fmt.Sprintf("link_id %d", links.ID)] = true
	}
	return all
}

// gone waits until nothing of ours exists and returns what still does.
func gone(t testing.TB, ours map[string]bool) []string {
	t.Helper()
	var left []string
	lab.Poll(settle, func() bool {
		left = nil
		now := existing(t)
		for o := range ours {
			if now[o] {
				left = append(left, o)
			}
		}
		return len(left) == 0
	})
	return left
}

// TestLabNothingStays opens and closes a recorder often, and once with a bad
// cgroup: no descriptor, program, map or link stays.
func TestLabNothingStays(t *testing.T) {
	requireBPF(t)
	labtest.Leaks(t)
	ours := map[string]bool{}
	const rounds = 50
	for range rounds {
		r, err := record.Open(record.Config{Owners: 1024, Flows: 1024, Processes: 256, Forward: true})
		if err != nil {
			t.Fatal(err)
		}
		now := held(t)
		maps.Copy(ours, now)
		// 12 maps; 21 links; 21 programs by their links, and the flow program.
		if len(now) != 12+21+22 {
			t.Errorf("holds %v", now)
		}
		s := r.Stats()
		const programs = 22
		if len(s.Programs) != programs || len(s.Missing) != 0 {
			t.Fatalf("got %+v", s)
		}
		for _, p := range s.Programs {
			if !p.Attached || p.Reason != "" {
				t.Errorf("got %+v", p)
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
	}
	if r, err := record.Open(record.Config{Cgroup: t.TempDir()}); err == nil {
		r.Close()
		t.Error("attached to a directory that is no cgroup")
	} else {
		t.Log(err)
	}
	if left := gone(t, ours); len(left) > 0 {
		t.Errorf("of %d objects stay behind: %v", len(ours), left)
	}
}

// TestLabPin: the pin goes with the recorder.
func TestLabPin(t *testing.T) {
	requireBPF(t)
	dir := filesystem(t)
	r := open(t, record.Config{})
	if err := r.Pin(t.TempDir() + "/flow"); err == nil {
		t.Error("pinned to a file system of another kind")
	} else {
		t.Log(err)
	}
	if err := r.Pin(dir + "/flow"); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/flow"); !os.IsNotExist(err) {
		t.Errorf("pin: got %v", err)
	}
}

// TestLabSuccessor: the next recorder has the records of the one before, and
// both record while both are there.
func TestLabSuccessor(t *testing.T) {
	b := newBench(t)
	labtest.Leaks(t)
	o, p := b.sender(t, command{words: strings.Fields(sendUDP)})
	f, n := flowOf(t, b.rec)
	files, err := b.rec.Files()
	if err != nil {
		t.Fatal(err)
	}
	next := open(t, record.Config{Inherited: files})
	for name, file := range files {
		if file.Fd() != ^uintptr(0) {
			t.Errorf("file of %s was not closed", name)
		}
	}
	if s := next.Stats(); len(s.Inherited) != 12 {
		t.Errorf("got %v", s.Inherited)
	}
	var p2 record.Process
	var o2 record.Owner
	f2, n2 := flowOf(t, next)
	if f2 != f || n2 != n || !next.Process(p.PID, p.ExecID, &p2) || p2 != p || !next.Owner(o.Cookie, &o2) || o2 != o {
		t.Errorf("got %+v %+v %+v, want %+v %+v %+v", f2, p2, o2, f, p, o)
	}
	b.sender(t, command{words: strings.Fields(sendUDP)})
	if f3, n3 := flowOf(t, next); f3.Cookie == f.Cookie || n3 == n {
		t.Errorf("got %+v (%d) after %d", f3, n3, n)
	}
	if files, err = b.rec.Files(); err != nil {
		t.Fatal(err)
	}
	other := open(t, record.Config{Inherited: files, Flows: 100})
	if s := other.Stats(); strings.Join(s.Inherited, " ") != "owners requests closed shares running past changes counters scratch interfaces zeros" {
		t.Errorf("got %v of another size", s.Inherited)
	}
	files, err = b.rec.Files()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := record.Open(record.Config{Inherited: files, Cgroup: t.TempDir()}); err == nil {
		t.Error("attached to a directory that is no cgroup")
	}
	for name, file := range files {
		if file.Fd() != ^uintptr(0) {
			t.Errorf("file of %s was not closed after an error", name)
		}
	}
}

// TestLabKept: while somebody holds the descriptors of a recorder that has died,
// recording goes on, and the next one knows who was there meanwhile.
func TestLabKept(t *testing.T) {
	b := newBench(t)
	files, err := b.rec.Files()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.rec.Close(); err != nil {
		t.Fatal(err)
	}
	pid := command{ns: b.net.Client, words: strings.Fields(sendUDP)}.run(t)
	b.rec = open(t, record.Config{Inherited: files})
	var p record.Process
	f, _ := flowOf(t, b.rec)
	if f.Owner.PID != pid || !b.rec.Process(pid, f.Owner.ExecID, &p) || p.Exec == 0 || !p.Exited {
		t.Errorf("got %+v, %+v, want pid %d", f, p, pid)
	}
	b.sender(t, command{words: strings.Fields(sendUDP)})
}

// TestLabNoAllocs: what is called for packets does not allocate.
func TestLabNoAllocs(t *testing.T) {
	b := newBench(t)
	o, _ := b.sender(t, command{words: strings.Fields(sendUDP)})
	hit, miss := key(17, client4, server4), key(17, client4, "10.99.0.2:10")
	var f record.Flow
	var owner record.Owner
	for name, call := range map[string]func(){
		"flow":         func() { b.rec.Flow(hit, 0, ownUser(), &f) },
		"flow, none":   func() { b.rec.Flow(miss, 0, ownUser(), &f) },
		"owner":        func() { b.rec.Owner(o.Cookie, &owner) },
		"owner, none":  func() { b.rec.Owner(1, &owner) },
		"changes":      func() { b.rec.Changes(hit) },
		"process none": func() { b.rec.Process(0, 0, nil) },
	} {
		const runs = 1000
		// Pools drop at random under the race detector, and at each collection.
		if n := testing.AllocsPerRun(runs, call); n > 0 && !labtest.UnderRace() {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestLabLookups: several goroutines look up while the flow is written anew.
func TestLabLookups(t *testing.T) {
	b := newBench(t)
	b.sender(t, command{words: strings.Fields(sendUDP)})
	done := make(chan struct{})
	wrong := make(chan record.Flow, 1)
	for range 2 {
		go func() {
			var f record.Flow
			for {
				select {
				case <-done:
					wrong <- record.Flow{}
					return
				default:
				}
				if b.rec.Flow(key(17, client4, server4), 0, ownUser(), &f) && f.HasOwner && f.Owner.Cookie != f.Cookie {
					wrong <- f
					return
				}
			}
		}()
	}
	for range 50 {
		b.sender(t, command{words: strings.Fields(sendUDP)})
	}
	close(done)
	for range 2 {
		if f := <-wrong; f.HasOwner {
			t.Errorf("mixed: %+v", f)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	requireBPF(b)
	for b.Loop() {
		r, err := record.Open(record.Config{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkLookups(b *testing.B) {
	bench := newBench(b)
	pid := command{ns: bench.net.Client, words: strings.Fields(sendUDP)}.run(b)
	k := key(17, client4, server4)
	var f record.Flow
	var p record.Process
	if !bench.rec.Flow(k, 0, ownUser(), &f) {
		b.Fatal("not recorded")
	}
	for name, call := range map[string]func(){
		"flow":    func() { bench.rec.Flow(k, 0, ownUser(), &f) },
		"owner":   func() { bench.rec.Owner(f.Cookie, &f.Owner) },
		"process": func() { bench.rec.Process(pid, f.Owner.ExecID, &p) },
		"changes": func() { bench.rec.Changes(k) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				call()
			}
		})
	}
}

// BenchmarkPrograms sends datagrams from one unconnected socket and reports what
// each program took, by the kernel's own clock.
func BenchmarkPrograms(b *testing.B) {
	bench := newBench(b)
	stats, err := ebpf.EnableStats(uint32(statsRunTime))
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	socket := boundUDP(b, bench.net.Client, mustAddrPort("0.0.0.0:7001"))
	before := runTimes()
	start := time.Now()
	for i := 0; b.Loop(); i++ {
		sendTo(socket, server4)
		if i%16 == 0 {
			closeUDP(b, bench.net.Client)
		}
	}
	b.ReportMetric(float64(time.Since(start).Nanoseconds())/float64(b.N), "ns/packet")
	for name, after := range runTimes() {
		if runs := after.runs - before[name].runs; runs > 0 {
			b.ReportMetric(float64(after.time-before[name].time)/float64(runs), "ns/"+name)
		}
	}
}
