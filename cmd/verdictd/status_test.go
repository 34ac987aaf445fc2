package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/ledger"
	"github.com/verdictd/verdictd/process/attribution"
)

// sampleStatus is a status with something in every place.
func sampleStatus() *status {
	start := time.Date(2026, 11, 23, 16, 20, 0, 0, time.UTC)
	first := ledger.Account{
		Queued: 1000, Received: 940, Accepted: 700, Dropped: 200, Rejected: 30,
		Lost:     ledger.Losses{QueueFull: 20, ReceiveBuffer: 10, HookFlush: 6, Unsent: 4},
		Unjudged: ledger.Passes{ReceiveBuffer: 25}, Waiting: 5, LateDrops: 2, Refused: 1, Overruns: 3,
	}
	second := ledger.Account{Queued: 50, Received: 50, Accepted: 50}
	total := ledger.Account{
		Queued: 1065, Received: 990, Accepted: 750, Dropped: 200, Rejected: 30,
		Lost:     ledger.Losses{QueueFull: 20, ReceiveBuffer: 10, HookFlush: 6, Unsent: 4},
		Unjudged: ledger.Passes{QueueFull: 15, ReceiveBuffer: 25}, Waiting: 5, LateDrops: 2, Foreign: 7, Refused: 1, Overruns: 3,
	}
	return &status{
		Version: "v1.2.3", PID: 4711, State: "ready", Started: start, Mode: "monitor", Fail: "open", Hook: "output,input",
		Enforced: enforcement{State: enforceNo, Reason: "no rule sends packets to queue 0"},
		Policy: policyStatus{
			Source: "policy.rego", Generation: 3, SHA256: "0dc8f2ee55c58db84f88da5496c66fefc793a5f18b7fc31cec8968f3bf7b9759",
			Loaded: start.Add(time.Hour), Evaluations: 44, Errors: 5, Overruns: 2, Engine: "compiled", Compared: 3,
			Refused:  &refusedPolicy{At: start.Add(2 * time.Hour), Reason: "policy.rego:3:1: rego_parse_error: \x1b[2Jno\nsecond line"},
			ErrorsAt: map[string]uint64{"policy.rego:12:1": 3, "over budget": 2},
		},
		Packets: ledger.Ledger{Settled: true, Closes: true, Rules: true, Total: total, Queues: []ledger.QueueAccount{
			{Queue: 0, Length: 8192, Account: first}, {Queue: 1, Length: 8192, Account: second},
		}},
		Judged: judgedStatus{Known: 900, Established: 30, Related: 2, Malformed: 1, WouldDrop: 12},
		Flows: flowStatus{Now: 40, Limit: 131072, New: 60, Evicted: 3, NoRoom: 1, Offloaded: 8, OffloadedPackets: 9000,
			Marks: markStatus{Mask: "0xff0000", Last: 0xff0000, Chosen: "others use 0xff000000: ip rule 7", Overwrit: []string{"nf_tables, table w, chain c"}}},
		Audit: auditStatus{Events: 123, Lost: 4, Unwritten: 6, WriteErrors: 2, Rotations: 1},
		Watchdog: watchdogStatus{Limit: "1s", Hanging: []uint16{1}, hangs: hangs{
			Count: 2, Replaced: 1, Last: &hang{At: start.Add(time.Hour), PID: 4700, Queue: 1, What: "main.f < main.g"},
		}},
		Attribution: attributionStatus{Holding: 2, Held: 70, Lacking: 9, RuleReason: "the kernel has no bpf match", Report: attribution.Report{
			Mode: "auto", Recording: true, SockDiag: true, Searches: 2, Failed: 1, Unhashed: 4, TooLarge: 2, TooSlow: 1, Hung: 1, GaveUp: 6, Unrecorded: 3,
			Programs: []attribution.Program{{Name: "exec", Reason: "no BTF"}, {Name: "flow", Attached: true}},
			Missing:  []string{"start times of processes: no BTF"},
			Sources:  map[string]uint64{"unknown": 5, "kernel": 6, "uid-only": 7, "diag": 8, "looked-up": 11, "bpf-cookie": 9, "bpf-flow": 10},
		}},
	}
}

// TestStatusGolden fixes what people and machines read of a status: names of
// metrics, counters and JSON keys do not change. VERDICTD_UPDATE=1 writes them
// anew.
func TestStatusGolden(t *testing.T) {
	st := sampleStatus()
	if !st.Packets.Total.Closes() {
		t.Fatalf("the sample does not close: %+v", st.Packets.Total)
	}
	now := st.Started.Add(2*time.Hour + 3*time.Minute)
	var text, record bytes.Buffer
	if err := st.write(&text, now); err != nil {
		t.Fatal(err)
	}
	for _, c := range st.counters(now) {
		fmt.Fprintln(&record, c.Name, c.Value)
	}
	object, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{
		"status.txt": text.Bytes(), "status.json": append(object, '\n'), "stats.txt": record.Bytes(), "metrics.txt": st.appendMetrics(nil),
	} {
		golden(t, filepath.Join("testdata", "status", name), got)
	}
}

// golden compares with a file. With VERDICTD_UPDATE set it writes it.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if os.Getenv("VERDICTD_UPDATE") != "" {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, got, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// TestStatusVerdict looks at the line that says whether the books close.
func TestStatusVerdict(t *testing.T) {
	tests := []struct {
		name   string
		change func(*status)
		want   string
	}{
		{"closes", func(*status) {}, "the books close: every packet is accounted for"},
		{"moving", func(s *status) { s.Packets.Settled, s.Packets.Closes = false, false }, "packets move while they are counted: those under way are shown as waiting"},
		{"missing", func(s *status) { s.Packets.Closes, s.Packets.Total.Unexplained = false, 3 }, "the books do not close: 3 packets are unexplained"},
		{"evened out", func(s *status) { s.Packets.Closes = false }, "the books do not close: see unexplained in --json"},
		{"user's rules", func(s *status) { s.Packets.Rules = false }, "the books close from the queue on; what a full queue let pass nobody counts (use --hook)"},
		{"user's rules, closed", func(s *status) { s.Packets.Rules, s.Fail = false, "closed" }, "the books close: every packet is accounted for"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st := sampleStatus()
			tt.change(st)
			if got := st.verdict(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
