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

// ratios returns row / base, a label, of each round.
func ratios(samples []sample, m *measurement, r row, label string) []float64 {
	base := map[int]float64{}
	for _, s := range samples {
		if s.Measurement == m.name && s.label == label {
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
	fmt.Fprintf(&b, "median (least–most) of the rounds; ×C, ×none: median of the ratios to C batched (of\nthose that spin: to C spinning) and to no queue in the same round;\nwaited: how long its threads waited for a CPU; much of it means a disturbed figure\n")
	b.WriteString(left)
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
			if m.bare != "" {
				heading = append(heading, "×none")
			}
		}
	}
	cells := [][]string{heading}
	for _, r := range m.rows {
		line := []string{r.label}
		for _, col := range m.columns {
			line = append(line, measure.Cell(figures(samples, m.name, r.label, col), func(s measure.Spread) string { return format(s, col) }))
			if col == m.key {
				line = append(line, ratio(samples, m, r, r.base))
				if m.bare != "" {
					line = append(line, ratio(samples, m, r, m.bare))
				}
			}
		}
		cells = append(cells, line)
	}
	return cells
}

func ratio(samples []sample, m *measurement, r row, label string) string {
	return measure.Cell(ratios(samples, m, r, label), func(s measure.Spread) string { return fmt.Sprintf("%.2f", s.Median) })
}
