package main_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/internal/control"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabEnforces starts verdictd where nothing feeds the queue, where a rule of
// the user's does, and without a policy: what is enforced is said at the start and
// in the status, and --require-rules refuses what enforces nothing.
func TestLabEnforces(t *testing.T) {
	setup(t)
	ns := namespace(t, "enforces")
	v := newVerdictdAt(t, ns)
	policy := filepath.Join(t.TempDir(), "policy.rego")
	writeFile(t, policy, acceptAll)
	ctl := policy + ".ctl"
	const noRule, noPolicy = "no rule sends packets to queue 0", "there is no policy"
	tests := []struct {
		name, args, rule string
		state, reason    string
		refused          int // exit code with --require-rules
	}{
		{"no rule", "--policy " + policy, "", "no", noRule, 1},
		{"no policy", "--mode enforce", "", "no", noPolicy, 2},
		{"rules of its own", "--hook output --on-stop open --policy " + policy, "", "yes", "", 0},
		{"monitor, no rule", "--mode monitor --policy " + policy, "", "monitor", "", 1},
		{"a rule for another queue", "--policy " + policy, "-A OUTPUT -j NFQUEUE --queue-num 5", "no", noRule, 1},
		{"a rule of the user's", "--policy " + policy, "-A OUTPUT -j NFQUEUE --queue-num 0", "yes", "", 0},
	}
	for _, tt := range tests {
		if tt.rule != "" {
			labtest.IPTables(t, ns, strings.Fields(tt.rule)...)
		}
		args := append(strings.Fields(tt.args), "--control", ctl)
		if tt.refused != 0 {
			exit := v.command(append([]string{"run", "--require-rules"}, args...)...)
			if exit.Code != tt.refused || !strings.Contains(exit.Stderr, "--require-rules: ") {
				t.Errorf("%s: got %+v with --require-rules, want code %d", tt.name, exit, tt.refused)
			}
		} else {
			args = append(args, "--require-rules")
		}
		d := v.daemon(args...)
		var st struct {
			Enforced struct{ State, Reason string }
		}
		if err := control.Call(t.Context(), ctl, "status", &st); err != nil {
			t.Fatal(err)
		}
		if e := st.Enforced; e.State != tt.state || !strings.HasPrefix(e.Reason, tt.reason) || (e.Reason == "") != (tt.reason == "") {
			t.Errorf("%s: got %+v, want %s, %s", tt.name, e, tt.state, tt.reason)
		}
		if exit := v.command("status", "--control", ctl); strings.Contains(exit.Stdout, "nothing is enforced: "+tt.reason) != (tt.state == "no") {
			t.Errorf("%s: got status %s", tt.name, exit.Stdout)
		}
		if code := d.Stop(); code != 0 {
			t.Errorf("%s: got exit code %d: %s", tt.name, code, d.Stderr())
		}
		if told := strings.Contains(d.Stderr(), `msg="nothing is enforced" reason="`+tt.reason); told != (tt.state == "no") {
			t.Errorf("%s: got %s", tt.name, d.Stderr())
		}
	}
}
