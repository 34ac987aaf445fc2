package measure_test

import (
	"strings"
	"testing"

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
