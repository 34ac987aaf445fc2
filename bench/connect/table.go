package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/verdictd/verdictd/bench/measure"
)

// values are the figures of one measurement of one peer, by column.
type values map[string]float64

// Columns.
const (
	colRate   = "conn/s"
	colRatio  = "×C"
	colP50    = "p50 µs"
	colP99    = "p99 µs"
	colCPU    = "CPU µs"
	colQueued = "queued"
	colKnown  = "known %"
	colFailed = "failed"
	colWaited = "waited %"
)

func columns() []string {
	return []string{colRate, colRatio, colP50, colP99, colCPU, colQueued, colKnown, colFailed, colWaited}
}

// fill takes what the client said, what the peer needed for it and how many
// packets were queued.
func (v values) fill(o *outcome, s measure.Schedule, queued float64) {
	n := float64(o.Connected)
	v[colRate] = n / float64(o.Took) * 1e9
	v[colP50], v[colP99] = float64(o.P50)/1e3, float64(o.P99)/1e3
	v[colFailed] = float64(o.Failed)
	if s.Ran > 0 {
		v[colCPU] = float64(s.Ran.Microseconds()) / n
		v[colWaited] = 100 * float64(s.Waited) / float64(o.Took)
		v[colQueued] = queued / n
	}
}

func digits(col string) int {
	return map[string]int{colRatio: 2, colP50: 1, colP99: 1, colCPU: 1, colQueued: 2, colKnown: 1}[col]
}

// figures returns what all rounds gave for one column of one row. Ratios are
// those within each round.
func figures(samples []sample, shape, peer, col string) []float64 {
	base := map[int]float64{}
	var v []float64
	for _, s := range samples {
		if s.Shape == shape && s.Peer == cAccept {
			base[s.Round] = s.Values[colRate]
		}
	}
	for _, s := range samples {
		if s.Shape != shape || s.Peer != peer {
			continue
		}
		f, ok := s.Values[col]
		if c := base[s.Round]; col == colRatio && c > 0 {
			f, ok = s.Values[colRate]/c, true
		}
		if ok {
			v = append(v, f)
		}
	}
	return v
}

// writeTables writes all results for people.
func writeTables(w io.Writer, mach *measure.Machine, o *options, samples []sample) error {
	var b strings.Builder
	which := "the first packet of each connection is queued, if all is known by then"
	if !o.Offload {
		which = "all packets of the client are queued"
	}
	fmt.Fprintf(&b, "%s\n%d rounds of %s; %s; %s\n", mach, o.Rounds, o.Time, which, o.pinning())
	fmt.Fprintf(&b, "median (least–most) of the rounds; ×C: median of the ratios to C accept-all in the same round;\n"+
		"CPU and queued: the peer's CPU time and the packets queued for each connection; known: connections judged by\n"+
		"their process; waited: how long the peer's threads waited for a CPU, much of it means a disturbed figure\n")
	for _, s := range shapes() {
		if !slices.Contains(o.Only, s.name) {
			continue
		}
		fmt.Fprintf(&b, "\n%s\n", s.title)
		cells := [][]string{append([]string{""}, columns()...)}
		for _, peer := range o.Peers {
			line := []string{peer}
			for _, col := range columns() {
				line = append(line, measure.Cell(figures(samples, s.name, peer, col), func(s measure.Spread) string {
					if col == colRatio {
						return fmt.Sprintf("%.2f", s.Median)
					}
					return s.Format(digits(col))
				}))
			}
			cells = append(cells, line)
		}
		measure.WriteGrid(&b, cells)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (o *options) pinning() string {
	if o.PeerCPU < 0 && o.ClientCPU < 0 {
		return "not pinned"
	}
	return fmt.Sprintf("peers on CPU %d, client and server on CPU %d (-1: any)", o.PeerCPU, o.ClientCPU)
}
