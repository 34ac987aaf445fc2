package measure_test

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/bench/measure"
)

func TestCompileWithoutCompiler(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, _, err := measure.CompilePeer(t.Context(), t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "apt install gcc") {
		t.Errorf("without gcc: got %v, want an error with the remedy", err)
	}
}

func TestLoopArgs(t *testing.T) {
	l := measure.Loop{Mode: "spin", Queues: 2, MaxLen: 8192, RecvBuffer: 65536, CopyRange: 256, Spin: 50 * time.Microsecond}
	if diff := cmp.Diff([]string{"spin", "2", "8192", "65536", "256", "50000"}, l.Args()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	l.Mark = 0x80000000
	if got := l.Args()[6:]; !cmp.Equal(got, []string{"2147483648"}) {
		t.Errorf("with a mark: got %v after the other arguments, want it", got)
	}
}

func TestFlags(t *testing.T) {
	var asJSON bool
	names := []string{"a", "b", "c"}
	args := []string{"--quick", "--json", "--names", "c,a"}
	if _, quick := measure.Flags("x", args[1:], io.Discard, &asJSON); quick {
		t.Error("quick without --quick")
	}
	fs, quick := measure.Flags("x", args, io.Discard, &asJSON)
	measure.List(fs, &names, "names", "some")
	if err := measure.Parse(fs, args); err != nil || !cmp.Equal(names, []string{"c", "a"}) {
		t.Errorf("got %v, %v, want the two names", names, err)
	}
	if !quick || !asJSON {
		t.Errorf("got quick %t and JSON %t, want both", quick, asJSON)
	}
	if err := measure.Parse(fs, []string{"--names", "d"}); err == nil || !strings.Contains(err.Error(), `"d" is none of a, b, c`) {
		t.Errorf("unknown name: got %v", err)
	}
	if err := measure.Parse(fs, []string{"more"}); err == nil {
		t.Error("an argument: got no error")
	}
	if measure.Within("n", 1, 1, 3) != nil || measure.Within("n", 3, 1, 3) != nil || measure.Within("n", 4, 1, 3) == nil {
		t.Error("got another range than 1 to 3")
	}
}

func TestSpread(t *testing.T) {
	for _, tt := range []struct {
		rounds []float64
		digits int
		want   string
	}{
		{nil, 0, "–"},
		{[]float64{2}, 0, "2"},
		{[]float64{3, 1, 2}, 0, "2 (1–3)"},
		{[]float64{4, 1, 2, 3}, 1, "2.5 (1.0–4.0)"},
		{[]float64{1.04, 1.01}, 1, "1.0"},
	} {
		got := measure.Cell(tt.rounds, func(s measure.Spread) string { return s.Format(tt.digits) })
		if got != tt.want {
			t.Errorf("%v: got %s, want %s", tt.rounds, got, tt.want)
		}
	}
}

func TestWriteGrid(t *testing.T) {
	var b strings.Builder
	measure.WriteGrid(&b, [][]string{{"", "µs"}, {"longer", "1"}, {"x", "100"}})
	if diff := cmp.Diff("           µs\n  longer    1\n  x       100\n", b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
