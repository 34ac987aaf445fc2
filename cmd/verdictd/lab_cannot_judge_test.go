package main_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabCannotJudge takes the rows of the table in SECURITY.md in which
// verdictd runs but has no decision, failing closed and open. The other rows:
// TestLabKill, TestLabMalformed, TestLabLedger (stalled, queue full, hook
// flush), TestLabReloadCommand.
func TestLabCannotJudge(t *testing.T) {
	const conflict = `package verdictd

decision := {"verdict": "accept", "rule": "a"} if input.dst_port == 7003

decision := {"verdict": "drop", "rule": "b"} if input.src_port > 0
`
	const endless = `package verdictd

decision := {"verdict": "accept", "rule": "slow"} if {
	count([1 | some a in numbers.range(1, 1000); some b in numbers.range(1, 1000); a * b == input.dst_port]) > 0
}
`
	const silent = `package verdictd

decision := {"verdict": "accept", "rule": "other"} if input.dst_port == 1
`
	const count = 20 // of each family
	tests := []struct {
		name, policy    string
		closed, open    bool // passes
		reason, rule    string
		detail          string
		errors, overrun bool // are counted
	}{
		{"policy error", conflict, false, true, "policy_error", "", "conflicting values", true, false},
		{"policy too slow", endless, false, true, "policy_error", "", "took longer than 5ms", true, true},
		{"policy says nothing", silent, false, false, "policy", "default", "", false, false},
	}
	for _, tt := range tests {
		for fail, passes := range map[string]bool{"closed": tt.closed, "open": tt.open} {
			t.Run(tt.name+"/"+fail, func(t *testing.T) {
				setup(t)
				net := labtest.Pair(t)
				quiet(t, net.Client)
				got := sink(t, net.Server, sinkPort)
				d := observe(t, net.Client, tt.policy, "--hook", "output", "--fail", fail, "--policy-budget", "5ms")
				both(t, net, sinkPort, count, 0, lab.Flood{})
				a, st := d.balance(2*count, 0, got).Total, d.status()
				arrived := uint64(0)
				if passes {
					arrived = 2 * count
				}
				if a.Accepted != arrived || a.Dropped != 2*count-arrived {
					t.Errorf("got %+v, want %d accepted", a, arrived)
				}
				if !lab.Poll(wait, func() bool { st = d.status(); return (st.Policy.Errors > 0) == tt.errors }) || (st.Policy.Overruns > 0) != tt.overrun {
					t.Errorf("got %d errors, %d overruns", st.Policy.Errors, st.Policy.Overruns)
				}
				d.finish()
				for _, r := range d.records((*record).decided) {
					if r.Own.Reason != tt.reason || r.Own.Rule != tt.rule || !strings.Contains(r.Own.Detail, tt.detail) {
						t.Errorf("got reason %q, rule %q, detail %q, want %q, %q, %q", r.Own.Reason, r.Own.Rule, r.Own.Detail, tt.reason, tt.rule, tt.detail)
					}
				}
			})
		}
	}
}

// TestLabDiskFull writes the audit log to a full disk: verdicts go on, and what
// could not be written is counted.
func TestLabDiskFull(t *testing.T) {
	for _, fail := range []string{"closed", "open"} {
		t.Run(fail, func(t *testing.T) {
			setup(t)
			const flows = 600 // of each family and port: more records than are kept in memory
			net := labtest.Pair(t)
			quiet(t, net.Client)
			good, bad := sink(t, net.Server, sinkPort), sink(t, net.Server, deniedSinkPort)
			d := observe(t, net.Client, portsPolicy, "--hook", "output", "--fail", fail, "--log", "/dev/full")
			for _, port := range []uint16{deniedSinkPort, sinkPort} {
				both(t, net, port, flows, 0, lab.Flood{From: make([]netip.AddrPort, flows)})
			}
			a := d.balance(4*flows, 0, good, bad).Total
			if a.Accepted != 2*flows || a.Dropped != 2*flows {
				t.Errorf("got %+v, want %d accepted and dropped", a, 2*flows)
			}
			d.WaitStderr("audit log cannot be written")
			var st told
			if !lab.Poll(wait, func() bool { st = d.status(); return st.Audit.Unwritten > 0 && st.Audit.WriteErrors > 0 }) {
				t.Errorf("got %+v, want what was not written", st.Audit)
			}
			if code := d.Stop(); code != 1 || !strings.Contains(d.Stderr(), "could not be written: write /dev/full: no space left on device") {
				t.Errorf("got exit code %d and %s, want 1 and what is missing", code, d.Stderr())
			}
		})
	}
}
