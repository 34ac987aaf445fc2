package main_test

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/internal/cgroup2"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabOlderContainer: a connection of a container, which this host forwards, goes on
// though it is older than the daemon: it is known whose it is. Of a socket that two
// processes hold is said what is true of both.
func TestLabOlderContainer(t *testing.T) {
	setup(t, labtest.BPF)
	lan := labtest.Router(t)
	echo, err := lan.Server.Echo(t.Context(), netip.MustParseAddrPort("10.99.2.2:7010"))
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	id := strings.Repeat("0123456789abcdef", 4)
	root, path, err := cgroup2.Root()
	if err != nil {
		labtest.Lacks(t, labtest.Cgroup2, err)
	}
	root.Close()
	group := filepath.Join(path, fmt.Sprintf("docker-%s.scope", id))
	if err := os.Mkdir(group, 0o755); err != nil {
		labtest.Lacks(t, labtest.Cgroup2, err)
	}
	t.Cleanup(func() {
		if !lab.Poll(wait, func() bool { return os.Remove(group) == nil }) {
			t.Errorf("%s stays", group)
		}
	})
	one, two := containerTalk(t, lan.Client, group, ""), containerTalk(t, lan.Client, group, "sleep 60 & trap 'kill $!' EXIT")
	policy := fmt.Sprintf("package verdictd\n\ndecision := {\"verdict\": \"accept\"} if input.process.container.id == %q\n", id)
	d := startDaemon(t, lan.Router, policy, "--hook", "output,input,forward")
	one("once more")
	two("once more")
	d.Stop()
	sources := map[string]bool{}
	for _, o := range ownersOf(t, d.Stdout())[7010] {
		sources[fmt.Sprintf("%s %t", o.Own.Process.Source, o.Own.Process.PID != 0)] = true
	}
	if len(sources) != 2 || !sources["diag true"] || !sources["uid-only false"] {
		t.Errorf("got %v; want one by its process, and one by its user and control group", sources)
	}
}

// containerTalk starts a shell in the control group that has a connection, and returns
// what sends a line by it and waits for it to come back.
func containerTalk(t *testing.T, ns *lab.Namespace, group, also string) func(line string) {
	t.Helper()
	cmd := exec.Command("bash", "-c", "echo $$ >"+group+`/cgroup.procs; exec 3<>/dev/tcp/10.99.2.2/7010; `+also+`
		while read -r line; do echo "$line" >&3; read -r -t 5 answer <&3 || answer=nothing; echo "$answer"; done`)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	answers := bufio.NewReader(out)
	say := func(line string) {
		t.Helper()
		if _, err := io.WriteString(in, line+"\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := answers.ReadString('\n'); err != nil || got != line+"\n" {
			t.Errorf("got %q, %v; want %q", got, err, line)
		}
	}
	say("first")
	return say
}
