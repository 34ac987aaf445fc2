package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/verdictd/verdictd/hook"
)

// row is a peer in a table.
type row struct {
	label  string
	peer   string
	queues int
	base   string // label of the row it is compared with
}

// measurement is one table.
type measurement struct {
	name    string
	title   string
	rows    []row
	columns []string
	key     string // the column that ratios are made of
	bare    string // label of a second row that all are compared with; "" for none
	run     func(b *bench, ctx context.Context, r row) (values, error)
}

// measurements returns all tables in their order.
func measurements() []measurement {
	return []measurement{{
		name: "drain", title: "drain: what a packet costs when there are always more",
		rows:    plainRows(sleepers()),
		columns: []string{colCPU, colRate, colAllocs, colAllocated, colLost, colWaited}, key: colCPU,
		run: func(b *bench, ctx context.Context, r row) (values, error) {
			return b.drain(ctx, r.settings(), b.PeerCPU, 1)
		},
	}, {
		name: "flood", title: "flood: packets as fast as one CPU sends them",
		rows:    plainRows(append([]string{noQueue}, append(sleepers(), cSpin, verdictdSpin)...)),
		columns: []string{colRate, colCPU, colLost, colSent, colWaited}, key: colRate,
		run: func(b *bench, ctx context.Context, r row) (values, error) {
			return b.flood(ctx, r.settings(), b.PeerCPU)
		},
	}, {
		name: "latency", title: "latency: UDP round trip, one in flight, both directions queued",
		rows:    plainRows(append([]string{noQueue}, append(sleepers(), cSpin, verdictdSpin)...)),
		columns: []string{colP50, colP99, colCPU, colLost}, key: colP50,
		run: func(b *bench, ctx context.Context, r row) (values, error) {
			return b.latency(ctx, r.settings(), b.PeerCPU)
		},
	}, {
		name: "scaling", title: "scaling: drain over several queues, 64 source addresses, not pinned",
		rows:    scalingRows(),
		columns: []string{colRate, colWall, colCPU, colLost}, key: colRate,
		run: func(b *bench, ctx context.Context, r row) (values, error) {
			return b.drain(ctx, r.settings(), -1, manySources)
		},
	}, {
		name: "tcp", title: "tcp: one connection, both directions, unsegmented (GSO), client and server pinned, peers not",
		rows:    plainRows([]string{noQueue, conntrack, verdictdOn, cBatched, verdictdOff}),
		columns: []string{colGigabits, colPerKiB}, key: colGigabits, bare: noQueue,
		run: func(b *bench, ctx context.Context, r row) (values, error) {
			return b.tcpRate(ctx, r.settings())
		},
	}}
}

func plainRows(peers []string) []row {
	var rows []row
	for _, p := range peers {
		r := row{label: p, peer: p, queues: 1, base: cBatched}
		if p == verdictdSpin {
			r.base = cSpin
		}
		rows = append(rows, r)
	}
	return rows
}

func scalingRows() []row {
	var rows []row
	for _, queues := range []int{1, 2, 4} {
		for _, p := range []string{cBatched, verdictd} {
			rows = append(rows, row{
				label: fmt.Sprintf("%s ×%d", p, queues), peer: p, queues: queues,
				base: fmt.Sprintf("%s ×%d", cBatched, queues),
			})
		}
	}
	return rows
}

func (r row) settings() settings {
	s := settings{Peer: r.peer, Queues: r.queues, Offload: r.peer == verdictdOn}
	if r.peer == verdictdOn || r.peer == verdictdOff {
		s.Mask = hook.DefaultMask
	}
	if r.peer == cSpin || r.peer == verdictdSpin {
		s.Spin = spinTime
	}
	return s
}

func (s *settings) json() (string, error) {
	text, err := json.Marshal(s)
	return string(text), err
}

// choose leaves of all measurements those that are wanted, with the peers that
// are wanted and available.
func choose(all []measurement, only, peers []string) []measurement {
	var chosen []measurement
	for _, m := range all {
		m.rows = slices.DeleteFunc(m.rows, func(r row) bool { return !slices.Contains(peers, r.peer) })
		if slices.Contains(only, m.name) && len(m.rows) > 0 {
			chosen = append(chosen, m)
		}
	}
	return chosen
}

// sample is one measurement of one peer.
type sample struct {
	Measurement string `json:"measurement"`
	Peer        string `json:"peer"`
	Queues      int    `json:"queues"`
	Round       int    `json:"round"`
	Values      values `json:"values"`
	label       string
}

// measure runs all rounds. Each begins with another peer, so that none is
// always measured after the same one.
func (b *bench) measure(ctx context.Context, ms []measurement, progress func(text string)) ([]sample, error) {
	var samples []sample
	for round := range b.Rounds {
		for _, m := range ms {
			for i := range m.rows {
				r := m.rows[(i+round)%len(m.rows)]
				progress(fmt.Sprintf("round %d of %d: %s, %s", round+1, b.Rounds, m.name, r.label))
				v, err := m.run(b, ctx, r)
				if err != nil {
					return nil, fmt.Errorf("measure %s of %s: %w", m.name, r.label, err)
				}
				samples = append(samples, sample{m.name, r.peer, r.queues, round + 1, v, r.label})
			}
		}
	}
	return samples, nil
}
