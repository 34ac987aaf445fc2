package measure

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Machine is where figures come from.
type Machine struct {
	Kernel   string `json:"kernel"`
	CPU      string `json:"cpu"`
	CPUs     int    `json:"cpus"`
	Go       string `json:"go"`
	Compiler string `json:"compiler"` // "" if there is none
	Load     string `json:"load"`     // average of 1, 5 and 15 minutes before the start
}

// DescribeMachine looks at the machine.
func DescribeMachine(compiler string) Machine {
	m := Machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), Compiler: compiler, Load: Load()}
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
	return m
}

// Load is the average load of 1, 5 and 15 minutes.
func Load() string {
	load, _ := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(load))
	return strings.Join(fields[:min(3, len(fields))], " ")
}

// String is the machine in one line.
func (m *Machine) String() string {
	text := fmt.Sprintf("%s, %d CPUs %s, %s", m.Kernel, m.CPUs, m.CPU, m.Go)
	if m.Compiler != "" {
		text += ", " + m.Compiler
	}
	return text + ", load " + m.Load
}

// Spread is what the rounds gave for one figure.
type Spread struct {
	Median, Least, Most float64
}

// SpreadOf summarises; ok is false if there is nothing to. It sorts v.
func SpreadOf(v []float64) (s Spread, ok bool) {
	if len(v) == 0 {
		return s, false
	}
	slices.Sort(v)
	n := len(v)
	return Spread{(v[(n-1)/2] + v[n/2]) / 2, v[0], v[n-1]}, true
}

// Format writes the spread with that many digits after the point.
func (s Spread) Format(digits int) string {
	text := func(f float64) string { return fmt.Sprintf("%.*f", digits, f) }
	if text(s.Least) == text(s.Most) {
		return text(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", text(s.Median), text(s.Least), text(s.Most))
}

// Cell is what stands in a table for what the rounds gave.
func Cell(v []float64, format func(Spread) string) string {
	s, ok := SpreadOf(v)
	if !ok {
		return "–"
	}
	return format(s)
}

// WriteGrid writes rows of equally many cells, the first column aligned left and
// all others right.
func WriteGrid(b *strings.Builder, cells [][]string) {
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
