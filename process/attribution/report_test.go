package attribution

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/record"
)

// The keys are those that status --json prints: they do not change.
func TestReportKeys(t *testing.T) {
	r := Report{Mode: "auto", Sources: sources(nil)}
	r.recorded(record.Stats{
		Programs: []record.Program{{Name: "flow", Attached: true}, {Name: "exec", Reason: "no BTF"}},
		Missing:  []string{"start times: no BTF"}, OwnersFailed: 1, FlowsFailed: 2, ProcessesFailed: 4,
	})
	got, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"mode":"auto","recording":false,` +
		`"programs":[{"name":"exec","attached":false,"reason":"no BTF"},{"name":"flow","attached":true}],` +
		`"missing":["start times: no BTF"],"unrecorded":7,"sock_diag":false,` +
		`"sources":{"bpf-cookie":0,"bpf-flow":0,"diag":0,"kernel":0,"looked-up":0,"uid-only":0,"unknown":0},` +
		`"searches":0,"failed":0,"unhashed":0,"too_large":0,"too_slow":0,"hung":0,"gave_up":0}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A Resolver without a record says why, and counts under every source's name.
func TestReportProc(t *testing.T) {
	r, err := Open(Config{Mode: Proc})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.counts.sources[process.Diag].Add(3)
	r.searches.Add(2)
	got := r.Report()
	if got.Mode != "proc" || got.Recording || got.Reason != r.Recorded().Error() || got.Searches != 2 {
		t.Errorf("got %+v", got)
	}
	if got.SockDiag == (got.NoSockDiag != "") {
		t.Errorf("sock_diag: got %v and the reason %q, want one of them", got.SockDiag, got.NoSockDiag)
	}
	want := map[string]uint64{"unknown": 0, "kernel": 0, "uid-only": 0, "diag": 3, "looked-up": 0, "bpf-cookie": 0, "bpf-flow": 0}
	if diff := cmp.Diff(want, got.Sources); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
}

// Where recording failed the reason is the recorder's own.
func TestReportReason(t *testing.T) {
	r, err := Open(Config{Mode: Proc})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.noRec = errors.New("make map owners: operation not permitted")
	if got := r.Report().Reason; got != r.noRec.Error() {
		t.Errorf("got %q, want %q", got, r.noRec)
	}
	if got := Nothing(); got.Mode != "off" || got.Reason == "" || len(got.Sources) != len(process.Sources()) {
		t.Errorf("nobody looks: got %+v", got)
	}
}

func TestModeString(t *testing.T) {
	for _, m := range []Mode{Auto, Proc, Off} {
		if got, err := ParseMode(m.String()); got != m || err != nil {
			t.Errorf("%d: %q is read as %d, %v", m, m, got, err)
		}
	}
}
