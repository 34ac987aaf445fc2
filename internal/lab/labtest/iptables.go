package labtest

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/internal/lab"
)

const (
	iptables  = "iptables-legacy"
	ip6tables = "ip6tables-legacy"
)

// IPTables runs iptables-legacy for IPv4 inside the namespace and returns its
// output. A failure ends the test. Rules go with the namespace.
func IPTables(t testing.TB, ns *lab.Namespace, args ...string) string {
	t.Helper()
	return runIPTables(t, ns, iptables, args)
}

// IP6Tables is IPTables for IPv6.
func IP6Tables(t testing.TB, ns *lab.Namespace, args ...string) string {
	t.Helper()
	return runIPTables(t, ns, ip6tables, args)
}

// BothTables runs the same arguments with IPTables and IP6Tables.
func BothTables(t testing.TB, ns *lab.Namespace, args ...string) {
	t.Helper()
	IPTables(t, ns, args...)
	IP6Tables(t, ns, args...)
}

func runIPTables(t testing.TB, ns *lab.Namespace, name string, args []string) string {
	t.Helper()
	out, err := run(ns, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Output runs a program inside the namespace and returns what it printed to
// stdout. A failure ends the test.
func Output(t testing.TB, ns *lab.Namespace, name string, args ...string) string {
	t.Helper()
	out, err := run(ns, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// run starts a program inside the namespace and waits. iptables gets -w: it
// locks a file that all namespaces share.
func run(ns *lab.Namespace, name string, args ...string) (string, error) {
	if name == iptables || name == ip6tables {
		args = append([]string{"-w"}, args...)
	}
	cmd := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := ns.Do(cmd.Run); err != nil {
		return "", fmt.Errorf("run %s in %s: %w: %s", cmd, ns.Name(), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// Rule is one rule of a chain with its counters.
type Rule struct {
	Packets, Bytes uint64
	Target         string // "" when the rule has none
	Text           string // the whole line
}

// Counters returns the rules of an IPv4 chain of the table ("" means filter)
// in order, with exact counters.
func Counters(t testing.TB, ns *lab.Namespace, table, chain string) []Rule {
	t.Helper()
	return counters(t, ns, iptables, table, chain)
}

// Counters6 is Counters for IPv6.
func Counters6(t testing.TB, ns *lab.Namespace, table, chain string) []Rule {
	t.Helper()
	return counters(t, ns, ip6tables, table, chain)
}

func counters(t testing.TB, ns *lab.Namespace, name, table, chain string) []Rule {
	t.Helper()
	if table == "" {
		table = "filter"
	}
	out := runIPTables(t, ns, name, []string{"-t", table, "-v", "-S", chain})
	rules, err := parseCounters(out)
	if err != nil {
		t.Fatalf("read counters of %s %s: %v", table, chain, err)
	}
	return rules
}

// parseCounters reads the output of iptables -v -S: a line for the chain, then
// for each rule -A CHAIN matches -c PACKETS BYTES -j TARGET options.
func parseCounters(out string) ([]Rule, error) {
	var rules []Rule
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "-A ") {
			continue
		}
		words := strings.Fields(line)
		at := slices.Index(words, "-c")
		if at < 0 || at+2 >= len(words) {
			return nil, fmt.Errorf("no counters in %q", line)
		}
		packets, err1 := strconv.ParseUint(words[at+1], 10, 64)
		bytes, err2 := strconv.ParseUint(words[at+2], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("counters in %q: %w", line, err)
		}
		r := Rule{Packets: packets, Bytes: bytes, Text: line}
		if at+4 < len(words) && (words[at+3] == "-j" || words[at+3] == "-g") {
			r.Target = words[at+4]
		}
		rules = append(rules, r)
	}
	return rules, nil
}
