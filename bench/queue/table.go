package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// machine is where the figures come from.
type machine struct {
	Kernel   string `json:"kernel"`
	CPU      string `json:"cpu"`
	CPUs     int    `json:"cpus"`
	Go       string `json:"go"`
	Compiler string `json:"compiler"` // "" if there is none
	Load     string `json:"load"`     // average of 1, 5 and 15 minutes before the start
}

func describeMachine(compiler string) machine {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), Compiler: compiler}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	info, _ := os.ReadFile("/proc/cpuinfo") // without it the model is not named
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	load, _ := os.ReadFile("/proc/loadavg")
	m.Load = strings.Join(strings.Fields(string(load))[:min(3, len(strings.Fields(string(load))))], " ")
	return m
}

// spread is what the rounds gave for one figure.
type spread struct {
	median, least, most float64
}

// spreadOf summarises; ok is false if there is nothing to.
func spreadOf(v []float64) (s spread, ok bool) {
	if len(v) == 0 {
		return s, false
	}
	slices.Sort(v)
	n := len(v)
	return spread{(v[(n-1)/2] + v[n/2]) / 2, v[0], v[n-1]}, true
}

// format writes the spread as the column's figures are written.
func (s spread) format(col string) string {
	digits := map[string]int{colAllocs: 2, colP50: 1, colP99: 1, colGigabits: 1}[col]
	text := func(f float64) string { return fmt.Sprintf("%.*f", digits, f) }
	if text(s.least) == text(s.most) {
		return text(s.median)
	}
	return fmt.Sprintf("%s (%s–%s)", text(s.median), text(s.least), text(s.most))
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
func writeTables(w io.Writer, mach *machine, o *options, ms []measurement, samples []sample, left string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d CPUs %s, %s", mach.Kernel, mach.CPUs, mach.CPU, mach.Go)
	if mach.Compiler != "" {
		fmt.Fprintf(&b, ", %s", mach.Compiler)
	}
	fmt.Fprintf(&b, ", load %s\n", mach.Load)
	fmt.Fprintf(&b, "%d rounds; %d × %d packets drained, %d flooded, %d round trips; %s; %d bytes copied of each packet\n",
		o.Rounds, o.Cycles, o.Packets, o.Flood, o.RoundTrips, o.pinning(), o.CopyRange)
	fmt.Fprintf(&b, "median (least–most) of the rounds; ×C, ×none: median of the ratios to C batched (of\nthose that spin: to C spinning) and to no queue in the same round;\nwaited: how long its threads waited for a CPU; much of it means a disturbed figure\n")
	b.WriteString(left)
	for i := range ms {
		fmt.Fprintf(&b, "\n%s\n", ms[i].title)
		writeGrid(&b, grid(&ms[i], samples))
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
			line = append(line, cell(figures(samples, m.name, r.label, col), func(s spread) string { return s.format(col) }))
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
	return cell(ratios(samples, m, r, label), func(s spread) string { return fmt.Sprintf("%.2f", s.median) })
}

func cell(v []float64, format func(spread) string) string {
	s, ok := spreadOf(v)
	if !ok {
		return "–"
	}
	return format(s)
}

// writeGrid aligns the first column left and all others right.
func writeGrid(b *strings.Builder, cells [][]string) {
	widths := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, text := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
		}
	}
	for _, line := range cells {
		fmt.Fprintf(b, "  %-*s", widths[0], line[0])
		for i, text := range line[1:] {
			fmt.Fprintf(b, "  %*s", widths[i+1], text)
		}
		b.WriteByte('\n')
	}
}
