package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/verdictd/verdictd/bench/measure"
)

// format writes the spread as the column's figures are written.
func format(s measure.Spread, col string) string {
	return s.Format(map[string]int{colAllocs: 2, colP50: 1, colP99: 1, colGigabits: 1}[col])
}

// figures returns what all rounds gave for one column of one row.
func figures(samples []sample, measurement, label, col string) []float64 {
	var v []float64
	for _, s := range samples {
		if f, ok := s.Values[col]; ok && s.Measurement == measurement && s.label == label {
			v = append(v, f)
		}
	}
	return v
}

// ratios returns row / base of each round.
func ratios(samples []sample, m *measurement, r row) []float64 {
	base := map[int]float64{}
	for _, s := range samples {
		if s.Measurement == m.name && s.label == r.base {
			base[s.Round] = s.Values[m.key]
		}
	}
	var v []float64
	for _, s := range samples {
		f, ok := s.Values[m.key]
		if ok && s.Measurement == m.name && s.label == r.label && base[s.Round] > 0 {
			v = append(v, f/base[s.Round])
		}
	}
	return v
}

// writeTables writes all results for people.
func writeTables(w io.Writer, mach *measure.Machine, o *options, ms []measurement, samples []sample, left string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", mach)
	fmt.Fprintf(&b, "%d rounds; %d × %d packets drained, %d flooded, %d round trips; %s; %d bytes copied of each packet\n",
		o.Rounds, o.Cycles, o.Packets, o.Flood, o.RoundTrips, o.pinning(), o.CopyRange)
	fmt.Fprintf(&b, "median (least–most) of the rounds; ×C: median of the ratios to C batched in the same round;\nwaited: how long its threads waited for a CPU; much of it means a disturbed figure\n")
	if left != "" {
		fmt.Fprintf(&b, "left out: %s: %s\n", strings.Join([]string{cBatched, cSimple}, ", "), left)
	}
	for i := range ms {
		fmt.Fprintf(&b, "\n%s\n", ms[i].title)
		measure.WriteGrid(&b, grid(&ms[i], samples))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (o *options) pinning() string {
	if o.PeerCPU < 0 || o.SenderCPU < 0 {
		return "not pinned"
	}
	return fmt.Sprintf("peers on CPU %d, sender on CPU %d", o.PeerCPU, o.SenderCPU)
}

// grid returns the cells of a table, its heading first.
func grid(m *measurement, samples []sample) [][]string {
	heading := []string{""}
	for _, col := range m.columns {
		heading = append(heading, col)
		if col == m.key {
			heading = append(heading, "×C")
		}
	}
	cells := [][]string{heading}
	for _, r := range m.rows {
		line := []string{r.label}
		for _, col := range m.columns {
			line = append(line, measure.Cell(figures(samples, m.name, r.label, col), func(s measure.Spread) string { return format(s, col) }))
			if col == m.key {
				line = append(line, measure.Cell(ratios(samples, m, r), func(s measure.Spread) string { return fmt.Sprintf("%.2f", s.Median) }))
			}
		}
		cells = append(cells, line)
	}
	return cells
}
