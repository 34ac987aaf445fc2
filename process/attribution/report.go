package attribution

import (
	"slices"
	"strings"

	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/record"
)

// Report says by which ways a Resolver finds owners, and what came of it so far.
type Report struct {
	Mode string `json:"mode"` // auto, proc or off

	// Recording: the kernel records who uses sockets; else Reason says why not.
	Recording bool   `json:"recording"`
	Reason    string `json:"reason,omitempty"`
	// Programs that record, in order of their names.
	Programs []Program `json:"programs,omitempty"`
	// Missing names what is not recorded or cannot be read, and why.
	Missing []string `json:"missing,omitempty"`
	// Unrecorded counts the records that the kernel did not take; 0 in normal
	// operation.
	Unrecorded uint64 `json:"unrecorded"`

	// SockDiag: the kernel can be asked for the socket of a packet; else NoSockDiag
	// says why not.
	SockDiag   bool   `json:"sock_diag"`
	NoSockDiag string `json:"no_sock_diag,omitempty"`

	// Sources counts the owners that were looked for, by process.Source: each of
	// them has its key.
	Sources map[string]uint64 `json:"sources"`

	Searches uint64 `json:"searches"`  // through /proc for who holds which socket
	Failed   uint64 `json:"failed"`    // questions to the kernel that ended in an error
	Unhashed uint64 `json:"unhashed"`  // programs whose file could not be hashed
	TooLarge uint64 `json:"too_large"` // of them, because it is too large
	TooSlow  uint64 `json:"too_slow"`  // of them, because it took too long

	Hung   int    `json:"hung"`    // look-ups that hang now: a process lets who looks wait
	GaveUp uint64 `json:"gave_up"` // look-ups that took too long
}

// Program is the state of one BPF program.
type Program struct {
	Name     string `json:"name"`
	Attached bool   `json:"attached"` // the one named flow: loaded, a rule calls it
	Reason   string `json:"reason,omitempty"`
}

// Nothing is the Report where nobody looks for owners.
func Nothing() Report {
	return Report{Mode: Off.String(), Reason: "switched off (--attribution off)", Sources: sources(nil)}
}

// Report tells how owners are found. It reads a map of the kernel and opens a
// sock_diag socket to see whether that works now: some 100 microseconds.
func (r *Resolver) Report() Report {
	report := Report{
		Mode: r.cfg.Mode.String(), Recording: r.rec != nil,
		Sources:  sources(&r.counts),
		Searches: r.searches.Load(), Failed: r.counts.failed.Load(), Unhashed: r.counts.unhashed.Load(),
	}
	report.TooLarge, report.TooSlow = r.counts.tooLarge.Load(), r.counts.tooSlow.Load()
	for _, p := range []*pool{r.lookers, r.hashers} {
		hung, lost := p.stats()
		report.Hung += hung
		report.GaveUp += lost
	}
	if r.noRec != nil {
		report.Reason = r.noRec.Error()
	}
	if r.rec != nil {
		report.recorded(r.rec.Stats())
	}
	report.Missing = append(report.Missing, r.fs.Missing()...)
	diag, err := r.openDiag()
	if err != nil {
		report.NoSockDiag = err.Error()
		return report
	}
	report.SockDiag = true
	_ = diag.Close() // nothing was asked that could be lost
	return report
}

// recorded takes over what a Recorder says of itself.
func (r *Report) recorded(s record.Stats) {
	for _, p := range s.Programs {
		r.Programs = append(r.Programs, Program{Name: p.Name, Attached: p.Attached, Reason: p.Reason})
	}
	slices.SortFunc(r.Programs, func(a, b Program) int { return strings.Compare(a.Name, b.Name) })
	r.Missing = s.Missing
	r.Unrecorded = s.OwnersFailed + s.FlowsFailed + s.ProcessesFailed
}

// sources names the counts; nil stands for none.
func sources(c *counts) map[string]uint64 {
	named := make(map[string]uint64, len(process.Sources()))
	for i, name := range process.Sources() {
		named[name] = 0
		if c != nil {
			named[name] = c.sources[i].Load()
		}
	}
	return named
}

// String returns the mode as ParseMode reads it.
func (m Mode) String() string {
	switch m {
	case Auto:
		return "auto"
	case Proc:
		return "proc"
	}
	return "off"
}
