package hook_test

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestIptables runs the printed script with iptables-legacy.
func TestIptables(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.IPTablesBinary)
	net := labtest.Pair(t)
	port := echo(t, net.Server)
	r := receive(t, net.Server, 4, 5)
	c := hook.Config{
		Hooks:      []hook.Hook{hook.Prerouting, hook.Input, hook.Forward, hook.Output, hook.Postrouting},
		QueueFirst: 4, QueueLast: 5, OwnMark: 1,
	}
	script := func(args ...string) {
		t.Helper()
		runScript(t, net.Server, c, args...)
	}
	for _, table := range []string{"security", "mangle"} {
		labtest.BothTables(t, net.Server, "-t", table, "-A", "INPUT", "-p", "udp", "--dport", "7", "-j", "DROP")
	}
	before := saved(t, net.Server)
	for round := range 2 {
		for range round + 1 { // twice in the second round: safe to repeat
			script("install")
		}
		for _, addr := range addrs("10.99.0.2", "fd99::2") {
			queued := len(r.packets(nil))
			if got := probe(t, net.Client, lab.Probe{Proto: lab.UDP, To: netip.AddrPortFrom(addr, port)}); got != lab.Answered {
				t.Errorf("%s: got %s, want %s", addr, got, lab.Answered)
			}
			// Question: prerouting, input. Answer: output, postrouting.
			if got := len(r.packets(nil)) - queued; got != 4 {
				t.Errorf("%s: got %d packets in the queue, want 4", addr, got)
			}
		}
		script("remove")
		script("remove")
		if diff := cmp.Diff(before, saved(t, net.Server)); diff != "" {
			t.Errorf("something is left (-before +after):\n%s", diff)
		}
	}
}

func runScript(t *testing.T, ns *lab.Namespace, c hook.Config, args ...string) {
	t.Helper()
	var script bytes.Buffer
	if err := hook.PrintIptables(c, &script); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "rules.sh")
	if err := os.WriteFile(path, script.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", append([]string{path}, args...)...)
	cmd.Env = append(os.Environ(), "IPTABLES=iptables-legacy", "IP6TABLES=ip6tables-legacy")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || out.Len() > 0 {
		t.Errorf("sh rules.sh %v: %v\n%s", args, err, out.Bytes())
	}
}

// saved returns all rules and chains without counters and comments.
func saved(t *testing.T, ns *lab.Namespace) string {
	t.Helper()
	var w strings.Builder
	for _, program := range []string{"iptables-legacy-save", "ip6tables-legacy-save"} {
		for line := range strings.Lines(labtest.Output(t, ns, program)) {
			if !strings.HasPrefix(line, "#") {
				rule, _, _ := strings.Cut(line, " [")
				w.WriteString(strings.TrimSpace(rule) + "\n")
			}
		}
	}
	return w.String()
}
