package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/bench/measure"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestMain lets the test binary be the measured peer, as the program is.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == childArg {
		exit(runChild(os.Args[2], os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}

// tiny is just enough to see every peer answer.
func tiny() *options {
	o := defaults()
	o.Rounds, o.Packets, o.Cycles, o.Flood, o.RoundTrips, o.TCP = 1, 300, 1, 300, 20, 20*time.Millisecond
	o.Policy = "../../policy.rego.example"
	return o
}

// TestPeersAnswerEverything runs every measurement with next to no packets. It
// looks at what was answered, never at how fast.
func TestPeersAnswerEverything(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	labtest.Leaks(t)
	o := tiny()
	b, _, left, err := newBench(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}()
	ms := choose(measurements(), o.Only, b.Peers)
	samples, err := b.measure(t.Context(), ms, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		for _, r := range m.rows {
			t.Run(m.name+"/"+r.label, func(t *testing.T) { checkRow(t, o, &m, r, samples) })
		}
	}
	if left != "" {
		t.Run("left out", func(t *testing.T) { labtest.Lacks(t, "programs to compare with", errors.New(left)) })
	}
}

func checkRow(t *testing.T, o *options, m *measurement, r row, samples []sample) {
	if got := figures(samples, m.name, r.label, m.key); len(got) != o.Rounds || got[0] <= 0 {
		t.Fatalf("%s: got %v, want %d figures above 0", m.key, got, o.Rounds)
	}
	for _, lost := range figures(samples, m.name, r.label, colLost) {
		if lost != 0 {
			t.Errorf("%v packets were lost", lost)
		}
	}
	for _, answered := range figures(samples, m.name, r.label, colAnswered) {
		if want := float64(o.Cycles * o.Packets); answered != want {
			t.Errorf("answered: got %v packets, want %v", answered, want)
		}
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string // error, or "" with got
		got  func(*options) string
	}{
		{name: "quick", args: []string{"--policy", ".", "--rounds", "2", "--quick"}, got: func(o *options) string {
			return map[bool]string{false: fmt.Sprintf("%d rounds, %d packets", o.Rounds, o.Packets)}[o.Rounds == 2 && o.Packets == 5000]
		}},
		{name: "only", args: []string{"--policy", ".", "--only", "drain,tcp"}, got: func(o *options) string {
			return cmp.Diff([]string{"drain", "tcp"}, o.Only)
		}},
		{name: "unknown measurement", args: []string{"--only", "drain,speed"}, want: `"speed" is none of drain, flood, latency, scaling, tcp`},
		{name: "unknown peer", args: []string{"--peers", "x"}, want: `"x" is none of no queue, conntrack only, C batched,`},
		{name: "too many packets", args: []string{"--packets", "65537"}, want: "--packets 65537: want 1 to 65536"},
		{name: "argument", args: []string{"drain"}, want: `unexpected argument "drain"`},
		{name: "no policy", args: []string{"--policy", "missing.rego"}, want: "missing.rego: no such file or directory (run from the root"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, _, err := parse(tt.args, io.Discard)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got error %v, want %s", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := tt.got(o); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestChildRefusesUnknownPeer(t *testing.T) {
	for _, arg := range []string{"{", `{"peer":"x"}`, `{"peer":"go-nfqueue","queues":2}`} {
		if err := runChild(arg, strings.NewReader(""), io.Discard); err == nil {
			t.Errorf("%s: got no error", arg)
		}
	}
}

func TestMeasureRotates(t *testing.T) {
	var order []string
	m := measurement{name: "m", rows: plainRows([]string{"a", "b", "c"}), run: func(_ *bench, _ context.Context, r row) (values, error) {
		order = append(order, r.label)
		return values{}, nil
	}}
	b := &bench{options: options{Rounds: 2}}
	if _, err := b.measure(t.Context(), []measurement{m}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(order, ""), "abcbca"; got != want {
		t.Errorf("order of measurement: got %s, want %s", got, want)
	}
}

func TestWriteTables(t *testing.T) {
	m := measurement{name: "drain", title: "drain: title", columns: []string{colCPU, colAllocs}, key: colCPU,
		rows: plainRows([]string{cBatched, verdictd})}
	var samples []sample
	for round, cpu := range [][2]float64{{2000, 3000}, {4000, 4400}, {3000, 3600}} {
		samples = append(samples,
			sample{m.name, cBatched, 1, round + 1, values{colCPU: cpu[0]}, cBatched},
			sample{m.name, verdictd, 1, round + 1, values{colCPU: cpu[1], colAllocs: 0.001}, verdictd},
		)
	}
	o := &options{Rounds: 3, Packets: 20000, Cycles: 2, Flood: 300000, RoundTrips: 5000, PeerCPU: 1, CopyRange: 256}
	mach := &measure.Machine{Kernel: "Linux 6.18", CPU: "X", CPUs: 2, Go: "go1.26", Load: "0.1 0.1 0.1"}
	var out strings.Builder
	if err := writeTables(&out, mach, o, []measurement{m}, samples, "left out: C batched: no gcc\n"); err != nil {
		t.Fatal(err)
	}
	const want = `Linux 6.18, 2 CPUs X, go1.26, load 0.1 0.1 0.1
3 rounds; 2 × 20000 packets drained, 300000 flooded, 5000 round trips; peers on CPU 1, sender on CPU 0; 256 bytes copied of each packet
median (least–most) of the rounds; ×C, ×none: median of the ratios to C batched (of
those that spin: to C spinning) and to no queue in the same round;
waited: how long its threads waited for a CPU; much of it means a disturbed figure
left out: C batched: no gcc

drain: title
                    ns/packet    ×C  allocs
  C batched  3000 (2000–4000)  1.00       –
  verdictd   3600 (3000–4400)  1.20    0.00
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
