package main_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// listed is a line of verdictd sockets --json.
type listed struct {
	Protocol, State, Local, Direction string
	Owner                             struct {
		Source  string
		UID     uint32
		Process *struct {
			PID uint32
			Exe struct{ Path string }
		}
	}
	Verdict *struct {
		Verdict string
		Rule    string
		Depends []string `json:"depends_on"`
	}
	WhatIf *struct{ Verdict string } `json:"what_if"`
}

// sockets runs verdictd sockets in the namespace and returns what it lists, by
// port.
func sockets(t *testing.T, ns *lab.Namespace, args ...string) map[uint16]listed {
	t.Helper()
	got := labtest.Run(t, ns, append([]string{"sockets", "--json"}, args...)...)
	if got.Code != 0 {
		t.Fatalf("sockets: exit code %d: %s", got.Code, got.Stderr)
	}
	var answer struct{ Sockets []listed }
	if err := json.Unmarshal([]byte(got.Stdout), &answer); err != nil {
		t.Fatalf("sockets: %v in %s", err, got.Stdout)
	}
	all := map[uint16]listed{}
	for _, s := range answer.Sockets {
		var port uint16
		if _, err := fmt.Sscan(s.Local[strings.LastIndexByte(s.Local, ':')+1:], &port); err != nil {
			t.Fatalf("sockets: local %q: %v", s.Local, err)
		}
		all[port] = s
	}
	return all
}

// TestLabSockets lists programs that listen, some older than the daemon, and
// compares process and verdict with what is true; then asks another policy.
func TestLabSockets(t *testing.T) {
	setup(t, labtest.GCC, labtest.BPF)
	lan, b := labtest.Pair(t), newSenders(t)
	truth := b.serve(lan.Client, 16, 20000)
	plain := filepath.Join(b.dir, "plain")
	control := filepath.Join(t.TempDir(), "control")
	d := startDaemon(t, lan.Client, fmt.Sprintf(`package verdictd

decision := {"verdict": "accept", "rule": "plain"} if input.process.exe == %q
decision := {"verdict": "accept", "rule": "near"} if {
	input.process.exe != %[1]q
	net.cidr_contains("10.99.0.0/24", input.ip.src)
}
`, plain), "--hook", "input", "--control", control)
	truth = append(truth, b.serve(lan.Client, 16, 20016)...)

	got := sockets(t, lan.Client, "--control", control)
	for _, want := range truth {
		s, ok := got[want.port]
		if !ok || s.Owner.Process == nil || s.Verdict == nil {
			t.Errorf("port %d: got %+v, want it with process and verdict", want.port, s)
			continue
		}
		if p := s.Owner.Process; p.PID != want.pid || p.Exe.Path != want.exe || s.Owner.UID != want.uid || s.Direction != "in" {
			t.Errorf("port %d: got %+v %+v, want %+v", want.port, s, *p, want)
		}
		verdict, depends := "accept", 0
		if want.exe != plain {
			verdict, depends = "drop", 1 // who sends is not known
		}
		if s.Verdict.Verdict != verdict || len(s.Verdict.Depends) != depends {
			t.Errorf("port %d of %s: got %+v, want %s, depending on %d fields", want.port, want.exe, *s.Verdict, verdict, depends)
		}
	}

	other := filepath.Join(t.TempDir(), "other.rego")
	writeFile(t, other, "package verdictd\n\nverdict := \"drop\"\n")
	changed := sockets(t, lan.Client, "--control", control, "--policy", other, "--changed")
	for _, want := range truth {
		if s, listed := changed[want.port]; listed != (want.exe == plain) || listed && s.WhatIf.Verdict != "drop" {
			t.Errorf("what if: port %d of %s: listed %v", want.port, want.exe, listed)
		}
	}
	if code := d.Stop(); code != 0 {
		t.Errorf("got exit code %d, want 0", code)
	}
}
