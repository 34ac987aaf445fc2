package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabWhyEndpoint asks why about HOST:PORT: the running daemon says which policy it
// has and where its log is, and the last record to or from there is explained.
func TestLabWhyEndpoint(t *testing.T) {
	setup(t)
	net := labtest.Pair(t)
	quiet(t, net.Client)
	v := newVerdictdAt(t, net.Client)
	dir := t.TempDir()
	rego, log, ctl := filepath.Join(dir, "p.rego"), filepath.Join(dir, "eve.json"), filepath.Join(dir, "ctl")
	file := filepath.Join(dir, "v.yaml")
	writeFile(t, rego, portsPolicy)
	writeFile(t, file, fmt.Sprintf("policy: %s\nhook: output\non-stop: open\ncontrol: %s\nlog:\n  file: %s\n", rego, ctl, log))
	d := v.daemon("--config", file)
	manyFlows(t, net, 10_000, 3, 0)
	why := func(end string, more ...string) labtest.Exit {
		return v.command(append([]string{"why", "--control", ctl, end}, more...)...)
	}
	const end = "10.99.0.2:9"
	if !lab.Poll(wait, func() bool {
		text, _ := os.ReadFile(log)
		return strings.Count(string(text), `"dest_port":`+fmt.Sprint(sinkPort)) == 3
	}) {
		t.Fatal("no records")
	}
	place := func(port int) string { // of the record with this source
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		before, _, _ := strings.Cut(string(text), fmt.Sprintf(`"src_port":%d,`, port))
		return fmt.Sprintf("%s:%d\n", log, strings.Count(before, "\n")+1)
	}
	exit := why(fmt.Sprintf("10.99.0.2:%d", sinkPort))
	for _, want := range []string{place(10_002), "accept by rule ", "decided by " + rego, ": the same\n"} {
		if exit.Code != 0 || !strings.Contains(exit.Stdout, want) {
			t.Errorf("got %+v, want %q", exit, want)
		}
	}
	if exit := why("10.99.0.1:10001"); exit.Code != 0 || !strings.HasPrefix(exit.Stdout, place(10_001)) {
		t.Errorf("by its source: got %+v", exit)
	}
	if exit := why(end); exit.Code != 2 || !strings.Contains(exit.Stderr, "no record to or from "+end+" in "+log) {
		t.Errorf("nobody was asked there: got %+v", exit)
	}
	// Another policy than the daemon's.
	other := filepath.Join(dir, "other.rego")
	writeFile(t, other, "package verdictd\n\ndecision := {\"verdict\": \"drop\", \"rule\": \"none\"}\n")
	exit = why(fmt.Sprintf("10.99.0.2:%d", sinkPort), "--policy", other)
	if exit.Code != 1 || !strings.Contains(exit.Stdout, "drop by rule none") || !strings.Contains(exit.Stdout, "not the same, but by another policy") {
		t.Errorf("by another policy: got %+v", exit)
	}
	if code := d.Stop(); code != 0 {
		t.Errorf("got exit code %d: %s", code, d.Stderr())
	}
}
