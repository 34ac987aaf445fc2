package main_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

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

// listener listens at TCP port 9009 until its standard input ends; it says so by a
// line.
const listener = `
#include <netinet/in.h>
#include <unistd.h>
int main(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(9009) };
	int s = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(s, (void *)&at, sizeof at) || listen(s, 16)) return 1;
	write(1, "ready\n", 6);
	return read(0, &at, 1) < 0;
}`

// TestLabHostileNames: a program whose name holds sequences for the terminal, and
// lines and columns that look like another socket's, is one quoted word in every
// table and in the log.
func TestLabHostileNames(t *testing.T) {
	setup(t, labtest.GCC, labtest.BPF)
	lan := labtest.Pair(t)
	dir, control := t.TempDir(), filepath.Join(t.TempDir(), "control")
	name := filepath.Join(dir, "x\t1\t-\taccept\tall\ntcp    LISTEN  0.0.0.0:22  *  sshd\x1b]0;owned\x07\x1b[31m\u202e\u0085")
	compile(t, listener, name)
	d := startDaemon(t, lan.Client, acceptAll, "--hook", "input", "--control", control)
	cmd := exec.Command(name)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := lan.Client.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	table := labtest.Run(t, lan.Client, "sockets", "--control", control)
	if want := `"` + dir + `/x\t1\t-\taccept\tall\ntcp    LISTEN  0.0.0.0:22  *  sshd\x1b]0;owned\x07\x1b[31m\u202e\u0085"`; table.Code != 0 ||
		!strings.Contains(table.Stdout, want) || strings.Count(table.Stdout, "\n") != 2 {
		t.Errorf("got %q, %q, want one row with %s", table.Stdout, table.Stderr, want)
	}
	if got := sockets(t, lan.Client, "--control", control)[9009]; got.Owner.Process == nil || got.Owner.Process.Exe.Path != name {
		t.Errorf("JSON: got %+v, want %q", got.Owner.Process, name)
	}
	for _, line := range []struct{ what, text string }{
		{"table", table.Stdout}, {"JSON", labtest.Run(t, lan.Client, "sockets", "--json", "--control", control).Stdout}, {"log", d.Stdout()},
	} {
		if i := strings.IndexFunc(line.text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%s: got %q", line.what, line.text[i:min(len(line.text), i+40)])
		}
	}
	d.Stop()
}

// compile makes a static program of C.
func compile(t *testing.T, source, path string) {
	t.Helper()
	cmd := exec.Command("gcc", "-O1", "-static", "-pthread", "-w", "-o", path, "-xc", "-")
	cmd.Stdin = strings.NewReader(source)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s", err, text)
	}
}
