package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/bench/measure"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestPeersJudgeEverything opens a few connections in each way under each peer. It
// looks at what was judged and how, never at how fast.
func TestPeersJudgeEverything(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables, labtest.GCC)
	labtest.Leaks(t)
	for _, offload := range []bool{true, false} {
		t.Run(fmt.Sprintf("offload=%t", offload), func(t *testing.T) {
			o := defaults()
			o.Rounds, o.Time, o.Offload, o.Verdictd = 1, 20*time.Millisecond, offload, labtest.Binary(t)
			if !offload { // nothing is different about the others
				o.Only = []string{"loop1"}
			}
			b, err := newBench(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := b.close(); err != nil {
					t.Error(err)
				}
			}()
			samples, err := b.measure(t.Context(), func(string) {})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range samples {
				t.Run(s.Shape+"/"+s.Peer, func(t *testing.T) { check(t, s, offload) })
			}
		})
	}
}

func check(t *testing.T, s sample, offload bool) {
	if s.Values[colRate] <= 0 || s.Values[colFailed] != 0 {
		t.Errorf("got %v connections a second and %v failed, want some and none", s.Values[colRate], s.Values[colFailed])
	}
	// SYN, ACK and reset of each; a SYN that is sent again counts too.
	const all = 2.5
	queued := s.Values[colQueued]
	switch {
	case s.Peer == none || s.Peer == verdictdProc:
	case offload && (queued < 1 || queued > 1.5), !offload && queued < all:
		t.Errorf("%v packets of each connection were queued", queued)
	}
	if s.Peer == verdictdAuto && s.Values[colKnown] != 100 {
		t.Errorf("%v %% of the connections were judged by their process, want all", s.Values[colKnown])
	}
}

// TestPolicies lets the daemon itself look at the policies.
func TestPolicies(t *testing.T) {
	b := &bench{cClient: "/x/client"}
	for name, text := range b.policies() {
		if got := strings.Count(text, "verdict\":") - 1; got != rulesOfPolicy {
			t.Errorf("%s: got %d rules, want %d", name, got, rulesOfPolicy)
		}
		if got, want := strings.Count(text, "input.process."), map[string]int{"process.rego": 32}[name]; got != want {
			t.Errorf("%s: got %d questions about the process, want %d", name, got, want)
		}
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if exit := labtest.Run(t, nil, "check", file); exit.Code != 0 {
			t.Errorf("%s: %s", name, exit.Stderr)
		}
	}
}

func TestParse(t *testing.T) {
	o, _, err := parse([]string{"--rounds", "2", "--quick", "--only", "loop1,oneshot", "--peers", "none"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.Rounds != 2 || o.Time != 200*time.Millisecond {
		t.Errorf("got %d rounds of %s, want 2 quick ones", o.Rounds, o.Time)
	}
	if diff := cmp.Diff([]string{"loop1", "oneshot"}, o.Only) + cmp.Diff([]string{none}, o.Peers); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for args, want := range map[string]string{
		"--only x":      `"x" is none of loop1, loop16, oneshot`,
		"--peers x":     `"x" is none of none, C accept-all,`,
		"--time 2m":     "--time 2m0s: want 1ms to 1m",
		"--peer-cpu -2": "--peer-cpu -2: want -1 to",
		"loop1":         `unexpected argument "loop1"`,
	} {
		if _, _, err := parse(strings.Fields(args), io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got error %v, want %s", args, err, want)
		}
	}
}

func TestWriteTables(t *testing.T) {
	var samples []sample
	for round, rate := range [][2]float64{{20000, 15000}, {10000, 9000}, {30000, 21000}} {
		samples = append(samples,
			sample{"loop1", cAccept, round + 1, values{colRate: rate[0]}},
			sample{"loop1", verdictdAuto, round + 1, values{colRate: rate[1], colCPU: 20, colKnown: 100}},
		)
	}
	o := defaults()
	o.Rounds, o.Only, o.Peers = 3, []string{"loop1"}, []string{none, cAccept, verdictdAuto}
	mach := &measure.Machine{Kernel: "Linux 6.18", CPU: "X", CPUs: 2, Go: "go1.26", Load: "0.1 0.1 0.1"}
	var out strings.Builder
	if err := writeTables(&out, mach, o, samples); err != nil {
		t.Fatal(err)
	}
	const want = `
loop1: one process, one connection after the other
                              conn/s    ×C  p50 µs  p99 µs  CPU µs  queued  known %  failed  waited %
  none                             –     –       –       –       –       –        –       –         –
  C accept-all   20000 (10000–30000)  1.00       –       –       –       –        –       –         –
  verdictd auto   15000 (9000–21000)  0.75       –       –    20.0       –    100.0       –         –
`
	got := out.String()
	if at := strings.Index(got, "\nloop1"); at < 0 || got[at:] != want {
		t.Errorf("(-want +got):\n%s", cmp.Diff(want, got))
	}
}
