package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
)

// BenchmarkFlows fills the flow table of one queue with 2^20 flows under the
// example policy, and reports what that takes: heap before and after the
// flows came, and memory resident in the end, all without what the process had
// before. Time is that of a new flow, without reading it from the kernel.
//
//	go test ./bench/queue -run '^$' -bench Flows -benchtime 1x
func BenchmarkFlows(b *testing.B) {
	const flows = 1 << 20
	p, err := policy.Load(b.Context(), policy.Source{Path: "../../policy.rego.example"})
	if err != nil {
		b.Fatal(err)
	}
	for range b.N {
		heap, resident := memory(b)
		e := engine.New(engine.Config{Flows: flows, Now: func() int64 { return 1 }})
		e.Publish(engine.Snapshot{Policy: p, Generation: 1, Hash: p.Hash(), Mode: engine.Enforce})
		ring := logsink.NewRing(1 << 12)
		w := e.NewWorker(ring)
		empty, _ := memory(b)
		datagram := udp()
		for i := range uint32(flows) {
			m := packet.Meta{ID: i, Hook: packet.Forward, EtherType: packet.EtherTypeIPv4, In: 1, Out: 2, Time: 1, Length: uint32(len(datagram))}
			binary.BigEndian.PutUint32(datagram[12:], 10<<24|i) // source address
			if w.Handle(&m, datagram).Action != packet.Accept {
				b.Fatal("the policy does not accept port 53")
			}
			if i%1024 == 0 {
				ring.Drain(func(*logsink.Event) {})
			}
		}
		w.Tick(1 + time.Second.Nanoseconds()) // makes the counts known
		full, fullResident := memory(b)
		const mb = 1e6
		b.ReportMetric((empty-heap)/mb, "MB-empty")
		b.ReportMetric((full-heap)/mb, "MB-full")
		b.ReportMetric((fullResident-resident)/mb, "MB-resident")
		b.ReportMetric(float64(e.Stats().Flows), "flows")
		runtime.KeepAlive(w)
	}
}

// udp returns a datagram to port 53 without payload.
func udp() []byte {
	d := make([]byte, 28)
	d[0], d[8], d[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(d[2:], uint16(len(d)))
	copy(d[16:], []byte{10, 99, 2, 2})
	binary.BigEndian.PutUint16(d[20:], 40000)
	binary.BigEndian.PutUint16(d[22:], 53)
	binary.BigEndian.PutUint16(d[24:], 8)
	return d
}

// memory returns the live heap and what of the process is resident, in bytes.
func memory(b *testing.B) (heap, resident float64) {
	b.Helper()
	debug.FreeOSMemory() // collects garbage first
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	var total, pages int
	if _, err := fmt.Sscan(string(text), &total, &pages); err != nil {
		b.Fatal(err)
	}
	return float64(m.HeapAlloc), float64(pages * os.Getpagesize())
}
