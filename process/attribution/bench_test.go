package attribution_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/attribution"
	"github.com/verdictd/verdictd/rules"
)

// measure asks who owns the flows in turn, and reports the median and the 99th
// percentile of the answers' times. before is called before each.
func measure(b *testing.B, a *attribution.Attributor, m *packet.Meta, flows []*packet.Packet, want process.Source, before func()) {
	b.Helper()
	times := make([]time.Duration, 0, 1<<20)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		before()
		p := flows[i%len(flows)]
		start := time.Now()
		o, _ := a.Owner(m, p)
		took := time.Since(start)
		if o.Source != want || want > process.UIDOnly && o.Process == nil {
			b.Fatalf("owner of %+v: got %+v, want it by %s", p, o, want)
		}
		if len(times) < cap(times) {
			times = append(times, took)
		}
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2]), "p50-ns")
	b.ReportMetric(float64(times[len(times)*99/100]), "p99-ns")
}

// BenchmarkOwner asks about the first packets of flows. Processes are forgotten
// before each question where it says so: a process that is new to us costs more.
func BenchmarkOwner(b *testing.B) {
	lan, r := resolver(b, attribution.Auto)
	a := attributor(b, r)
	output := &packet.Meta{Hook: packet.Output, HasUID: true, HasGID: true}
	nothing := func() {}
	flows, end := sender(b, lan.Client, 1000)
	defer end()
	b.Run("known process", func(b *testing.B) { measure(b, a, output, flows, process.BPFFlow, nothing) })
	b.Run("new process", func(b *testing.B) { measure(b, a, output, flows, process.BPFFlow, a.ForgetProcesses) })
	b.Run("new process, ended", func(b *testing.B) {
		gone, end := sender(b, lan.Client, 100)
		end()
		measure(b, a, output, gone, process.BPFFlow, a.ForgetProcesses)
	})
	b.Run("input", func(b *testing.B) {
		back := make([]*packet.Packet, len(flows))
		for i, p := range flows {
			back[i] = udp(netip.AddrPortFrom(p.Dst, p.DstPort), netip.AddrPortFrom(p.Src, p.SrcPort))
		}
		measure(b, a, &packet.Meta{Hook: packet.Input}, back, process.BPFCookie, nothing)
	})
	b.Run("unknown", func(b *testing.B) {
		none := []*packet.Packet{udp(netip.MustParseAddrPort(clientAddr+":1"), netip.MustParseAddrPort(sinkAddr))}
		measure(b, a, &packet.Meta{Hook: packet.Output, HasUID: true}, none, process.UIDOnly, nothing)
	})
}

// BenchmarkOwnerProc does the same without a record.
func BenchmarkOwnerProc(b *testing.B) {
	lan, r := resolver(b, attribution.Proc)
	flows, end := sender(b, lan.Client, 1000)
	defer end()
	r.Seed(b.Context())
	measure(b, attributor(b, r), &packet.Meta{Hook: packet.Output, HasUID: true, HasGID: true}, flows, process.Diag, func() {})
}

func BenchmarkChanges(b *testing.B) {
	lan, r := resolver(b, attribution.Auto)
	flows, end := sender(b, lan.Client, 1000)
	defer end()
	a := attributor(b, r)
	keys := make([]packet.Key, len(flows))
	for i, p := range flows {
		keys[i] = p.Key()
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if a.Changes(&keys[i%len(keys)]) == 0 {
			b.Fatal("0 is no number of changes")
		}
	}
}

type acceptAll struct{}

func (acceptAll) Evaluate(_ *rules.Facts, d *rules.Decision) error {
	*d = rules.Decision{Action: packet.Accept}
	return nil
}

// handler returns what judges the packets of known flows: once for each flow.
func handler(tb testing.TB, a engine.Attributor, flows []*packet.Packet) (one func(i int)) {
	tb.Helper()
	c := engine.Config{Workers: 1, Now: func() int64 { return time.Now().UnixNano() }}
	if a != nil {
		c.Attributor = func() engine.Attributor { return a }
	}
	e := engine.New(c)
	e.Publish(engine.Snapshot{Policy: acceptAll{}, Generation: 1, Mode: engine.Enforce})
	w := e.NewWorker(nil)
	var data [][]byte
	for _, p := range flows {
		text, err := lab.UDPPacket(netip.AddrPortFrom(p.Src, p.SrcPort), netip.AddrPortFrom(p.Dst, p.DstPort), []byte("x"))
		if err != nil {
			tb.Fatal(err)
		}
		data = append(data, text)
	}
	m := &packet.Meta{Hook: packet.Output, HasUID: true, HasGID: true, EtherType: packet.EtherTypeIPv4,
		Length: uint32(len(data[0])), Time: time.Now().UnixNano()}
	one = func(i int) {
		if v := w.Handle(m, data[i%len(data)]); v.Action != packet.Accept {
			tb.Fatalf("got %+v, want accept", v)
		}
	}
	for i := range data {
		one(i)
	}
	return one
}

// BenchmarkHandle judges packets of known flows, with a real Attributor and
// without.
func BenchmarkHandle(b *testing.B) {
	lan, r := resolver(b, attribution.Auto)
	flows, end := sender(b, lan.Client, 100)
	defer end()
	for _, tt := range []struct {
		name string
		a    engine.Attributor
	}{{"off", nil}, {"auto", attributor(b, r)}} {
		b.Run(tt.name, func(b *testing.B) {
			one := handler(b, tt.a, flows)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				one(i)
			}
		})
	}
}

// TestKnownFlowCostsNothing: packets of known flows need neither memory nor the
// operating system to find their owner.
func TestKnownFlowCostsNothing(t *testing.T) {
	lan, r := resolver(t, attribution.Auto)
	flows, end := sender(t, lan.Client, 100)
	defer end()
	one := handler(t, attributor(t, r), flows)
	const packets = 100
	// AllocsPerRun counts those of the whole process, and the lookups that the
	// first packets asked for may still go on beside: what a packet needs it
	// needs in every round.
	least := math.Inf(1)
	for round := 0; round < 10 && least > 0; round++ {
		least = min(least, testing.AllocsPerRun(packets, func() {
			for i := range flows {
				one(i)
			}
		}))
	}
	if least != 0 {
		t.Errorf("%v allocations for %d packets, want none", least, len(flows))
	}
	calls, err := systemCalls(func() {
		for i := range packets * len(flows) {
			one(i)
		}
	})
	if err != nil {
		labtest.Lacks(t, "perf events of system calls", err)
	}
	// The runtime may call: for its timers, for a garbage collection.
	if most := packets * len(flows) / 100; calls > most {
		t.Errorf("%d system calls for %d packets", calls, packets*len(flows))
	}
}

// systemCalls counts the system calls of the thread that runs fn.
func systemCalls(fn func()) (n int, err error) {
	text, err := os.ReadFile("/sys/kernel/tracing/events/raw_syscalls/sys_enter/id")
	if err != nil {
		return 0, err
	}
	var id uint64
	if _, err := fmt.Sscan(strings.TrimSpace(string(text)), &id); err != nil {
		return 0, err
	}
	return count(id, fn)
}

func count(tracepoint uint64, fn func()) (n int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := unix.PerfEventOpen(&unix.PerfEventAttr{
		Type: unix.PERF_TYPE_TRACEPOINT, Config: tracepoint, Size: uint32(unix.PERF_ATTR_SIZE_VER0),
	}, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	fn()
	var value [8]byte
	if _, err := unix.Read(fd, value[:]); err != nil {
		return 0, err
	}
	return int(binary.NativeEndian.Uint64(value[:])), nil
}

// BenchmarkSearch finds out who holds which socket, by the kernel's iterator and by
// a search of /proc, with a hundred processes beside those that are there.
func BenchmarkSearch(b *testing.B) {
	_, r := resolver(b, attribution.Auto)
	if !r.Tables() {
		labtest.Lacks(b, "iterator task_file, in the initial pid namespace", fmt.Errorf("%+v", r.Report().Programs))
	}
	for range 100 {
		child := exec.Command("cat")
		in, err := child.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := child.Start(); err != nil {
			b.Fatal(err)
		}
		defer func() { _ = errors.Join(in.Close(), child.Wait()) }()
	}
	for _, way := range []struct {
		name   string
		tables bool
	}{{"iterator", true}, {"proc", false}} {
		b.Run(way.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := r.List(b.Context(), way.tables); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
