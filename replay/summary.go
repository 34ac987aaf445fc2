package replay

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/verdictd/verdictd/packet"
)

const (
	maxRules   = 4096      // names of rules that a Summary tells apart
	otherRules = "(other)" // all rules beyond them
	topRules   = 10        // rules that String prints
)

// Summary holds the figures of a run.
type Summary struct {
	Captures uint64 // captures that were read, at least in part
	Packets  uint64 // packets judged
	Skipped  uint64 // frames that were not: unsupported link types, blocks that are no packets
	Bytes    uint64 // of the packets judged, on the wire without link layer

	Actions [3]uint64         // packets by packet.Action
	Hooks   [5]uint64         // packets by packet.Hook
	Assumed uint64            // packets judged at forward as nothing says where else
	Reasons map[string]uint64 // packets by reason
	Rules   map[string]uint64 // packets by rule, those of no rule left out

	Traffic time.Duration // captured time: the sum over captures of last minus first timestamp
	Elapsed time.Duration // wall time of the run; differs from run to run

	seen        bool  // a packet of this capture has been counted
	first, last int64 // timestamps of this capture
}

func (s *Summary) beginCapture() {
	s.Captures++
	s.seen = false
}

// endCapture closes a capture that gave out frames numbers; before is Packets
// at its start.
func (s *Summary) endCapture(frames, before uint64) {
	s.Skipped += frames - (s.Packets - before)
	if !s.seen {
		return
	}
	d := s.last - s.first
	if d < 0 || d > math.MaxInt64-int64(s.Traffic) { // timestamps centuries apart
		s.Traffic = math.MaxInt64
		return
	}
	s.Traffic += time.Duration(d)
}

func (s *Summary) add(r *record) {
	s.Packets++
	s.Bytes += uint64(r.link.Length)
	s.Actions[min(r.Verdict.Action, packet.Reject)]++
	s.Hooks[min(r.link.Hook, packet.Postrouting)]++
	if r.link.assumed {
		s.Assumed++
	}
	s.Reasons[r.Reason]++
	if r.Rule != "" {
		s.addRule(r.Rule)
	}
	if !s.seen {
		s.seen, s.first, s.last = true, r.link.Time, r.link.Time
		return
	}
	s.first, s.last = min(s.first, r.link.Time), max(s.last, r.link.Time)
}

// addRule bounds the memory of policies that make up names.
func (s *Summary) addRule(name string) {
	if _, ok := s.Rules[name]; !ok && len(s.Rules) >= maxRules {
		name = otherRules
	}
	s.Rules[name]++
}

// Rate returns packets judged per second of wall time.
func (s *Summary) Rate() float64 {
	if s.Elapsed <= 0 {
		return 0
	}
	return float64(s.Packets) / s.Elapsed.Seconds()
}

// String returns the summary in a few lines for people.
func (s *Summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "captures %d, packets %d, bytes %d, skipped frames %d, traffic of %v\n",
		s.Captures, s.Packets, s.Bytes, s.Skipped, s.Traffic.Round(time.Microsecond))
	fmt.Fprintf(&b, "verdicts accept %d, drop %d, reject %d\n",
		s.Actions[packet.Accept], s.Actions[packet.Drop], s.Actions[packet.Reject])
	fmt.Fprintf(&b, "hooks    %s\n", s.hooks())
	fmt.Fprintf(&b, "reasons  %s\n", counts(s.Reasons, len(s.Reasons)))
	fmt.Fprintf(&b, "rules    %s\n", counts(s.Rules, topRules))
	fmt.Fprintf(&b, "speed    %.0f packets/s (%v)\n", s.Rate(), s.Elapsed.Round(time.Millisecond))
	return b.String()
}

// hooks says where the packets were judged, and of how many that was a guess.
func (s *Summary) hooks() string {
	at := map[string]uint64{}
	for i, n := range s.Hooks {
		if n > 0 {
			at[packet.Hook(i).String()] = n
		}
	}
	text := counts(at, len(at))
	if s.Assumed > 0 {
		text += fmt.Sprintf(" (%d of them assumed, as nothing says which way they went: name the host that judges with --local, or the hook with --hook)", s.Assumed)
	}
	return text
}

// counts lists the n greatest counts, greatest first, equal ones by name.
func counts(m map[string]uint64, n int) string {
	type entry struct {
		name  string
		count uint64
	}
	all := make([]entry, 0, len(m))
	for name, count := range m {
		all = append(all, entry{name, count})
	}
	slices.SortFunc(all, func(a, b entry) int {
		return cmp.Or(cmp.Compare(b.count, a.count), cmp.Compare(a.name, b.name))
	})
	parts := make([]string, 0, n+1)
	for i, e := range all {
		if i == n {
			parts = append(parts, fmt.Sprintf("%d more", len(all)-n))
			break
		}
		parts = append(parts, string(appendPrintable(nil, orDash(e.name)))+" "+fmt.Sprint(e.count))
	}
	return orDash(strings.Join(parts, ", "))
}
