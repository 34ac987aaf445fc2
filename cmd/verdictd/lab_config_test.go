package main_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/control"
	"github.com/verdictd/verdictd/internal/lab"
)

// TestLabReloadConfig reloads with a changed and with a broken configuration, and
// with a broken policy: each time it is said what came of it, and a refused policy
// stays in the status until a good one comes.
func TestLabReloadConfig(t *testing.T) {
	setup(t)
	ns := namespace(t, "config")
	v := newVerdictdAt(t, ns)
	dir := t.TempDir()
	file, rego, ctl := filepath.Join(dir, "v.yaml"), filepath.Join(dir, "p.rego"), filepath.Join(dir, "ctl")
	configure := func(more string) {
		writeFile(t, file, fmt.Sprintf("policy: %s\ncontrol: %s\n%s", rego, ctl, more))
	}
	configure("")
	writeFile(t, rego, acceptAll)
	d := v.daemon("--config", file)
	type told struct {
		Policy struct {
			SHA256  string
			Refused *struct {
				At     time.Time
				Reason string
			}
		}
	}
	status := func() (st told) {
		t.Helper()
		if err := control.Call(t.Context(), ctl, "status", &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	const broken = "package verdictd\ndecision := {\n"
	steps := []struct {
		name, config, policy string
		code                 int
		says                 string
		refused              string // in the status afterwards
	}{
		{"nothing has changed", "", acceptAll, 0, "v.yaml: nothing has changed\npolicy loaded: ", ""},
		{"settings have changed", "flows: 100\nlog:\n  keep: 7\n", acceptAll, 0, "v.yaml: changed, and in effect now: log.keep; changed, and in effect after verdictd upgrade: flows\n", ""},
		{"those in effect are no news", "flows: 100\nlog:\n  keep: 7\n", acceptAll, 0, "v.yaml: changed, and in effect after verdictd upgrade: flows\n", ""},
		{"the configuration is broken", "flows: many\n", acceptAll, 2, "configuration refused, nothing is loaded: " + file + ":3:8: ", ""},
		{"a value is wrong", "flows: 1\n", acceptAll, 2, "flows: want 64 to ", ""},
		{"the policy is broken", "", broken, 2, "policy refused, generation ", "p.rego:"},
		{"and still is", "", broken, 2, "policy refused, generation ", "p.rego:"},
		{"all is well", "stats-interval: 1s\n", acceptAll, 0, "in effect now: stats-interval\npolicy loaded: ", ""},
	}
	first := status().Policy.SHA256
	for _, s := range steps {
		configure(s.config)
		writeFile(t, rego, s.policy)
		exit := v.command("reload", "--control", ctl)
		if exit.Code != s.code || !strings.Contains(exit.Stdout+exit.Stderr, s.says) {
			t.Errorf("%s: got %+v, want code %d and %q", s.name, exit, s.code, s.says)
		}
		st := status()
		if st.Policy.SHA256 != first {
			t.Errorf("%s: another policy is in use", s.name)
		}
		r := st.Policy.Refused
		if (r != nil) != (s.refused != "") || r != nil && (!strings.Contains(r.Reason, s.refused) || time.Since(r.At) > time.Minute) {
			t.Errorf("%s: got refused %+v, want %q", s.name, r, s.refused)
		}
		if r != nil {
			if exit := v.command("status", "--control", ctl); !strings.Contains(exit.Stdout, "another policy was refused ") {
				t.Errorf("%s: got status %s", s.name, exit.Stdout)
			}
		}
	}
	// What check warns of is taken, and with --strict refused.
	const suspicious = acceptAll + "\nunused if input.uid == 7\n"
	writeFile(t, rego, suspicious)
	if exit := v.command("reload", "--control", ctl); exit.Code != 0 {
		t.Errorf("a policy with a warning: got %+v", exit)
	}
	if exit := v.command("reload", "--control", ctl, "--strict"); exit.Code != 2 || !strings.Contains(exit.Stderr, "policy refused") || !strings.Contains(exit.Stderr, "p.rego:5:1: ") {
		t.Errorf("a policy with a warning, strictly: got %+v", exit)
	}
	// Settings that a reload brings into effect: records of counters each second, policies
	// that have to be confirmed, strictness also where the file alone changes.
	if !lab.Poll(wait, func() bool { return strings.Contains(d.Stdout(), `"event_type":"stats"`) }) {
		t.Error("no counters are recorded")
	}
	configure("strict: true\nconfirm-policy: 1m\n")
	writeFile(t, rego, acceptAll+"# anew\n")
	if exit := v.command("reload", "--control", ctl); exit.Code != 0 || !strings.Contains(exit.Stdout, "in effect now: strict, confirm-policy, stats-interval") {
		t.Errorf("with confirm-policy: got %+v", exit)
	}
	writeFile(t, rego, suspicious+"# anew\n")
	if !lab.Poll(wait, func() bool {
		r := status().Policy.Refused
		return r != nil && strings.Contains(r.Reason, "p.rego:5:1: ")
	}) {
		t.Error("a strict daemon takes a policy with a warning")
	}
	writeFile(t, rego, acceptAll+"# once more\n")
	if !lab.Poll(wait, func() bool { return trialOf(t, ctl) != nil }) {
		t.Error("a new policy need not be confirmed")
	}
	if code := d.Stop(); code != 0 {
		t.Errorf("got exit code %d: %s", code, d.Stderr())
	}
}
