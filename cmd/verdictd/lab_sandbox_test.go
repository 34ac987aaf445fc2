package main_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// unit are the settings of a systemd unit's section Service.
type unit map[string][]string

// shippedUnit reads contrib/systemd/verdictd.service.
func shippedUnit(t *testing.T) unit {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(labtest.Repository(t), "contrib", "systemd", "verdictd.service"))
	if err != nil {
		t.Fatal(err)
	}
	u, section := unit{}, ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "["):
			section = line
		case ok && !strings.HasPrefix(line, "#") && section == "[Service]":
			u[key] = append(u[key], value)
		}
	}
	return u
}

// words are those of all lines of a setting.
func (u unit) words(key string) []string { return strings.Fields(strings.Join(u[key], " ")) }

// reproduced are the settings that the sandbox below is made by, or that change
// nothing for a process without their capabilities and system calls (the last
// two lines). A unit that says anything else about rights is not what is tested.
func reproduced() map[string]string {
	return map[string]string{
		"AmbientCapabilities": "", "NoNewPrivileges": "yes", "RestrictNamespaces": "yes", "MemoryDenyWriteExecute": "yes",
		"SystemCallArchitectures": "native", "SystemCallErrorNumber": "EPERM",
		"ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "PrivateDevices": "yes", "ProtectProc": "invisible",
		"ProtectKernelTunables": "yes", "ProtectKernelModules": "yes", "ProtectControlGroups": "yes",
		"ProtectClock": "yes", "ProtectHostname": "yes", "ProtectKernelLogs": "yes", "DevicePolicy": "closed", "LimitMEMLOCK": "infinity",
		"LockPersonality": "yes", "RestrictRealtime": "yes", "RestrictSUIDSGID": "yes", "RemoveIPC": "yes",
	}
}

// check fails the test if the unit says more or less about rights than reproduced.
func (u unit) check(t *testing.T) {
	t.Helper()
	known := reproduced()
	// By lines of their own, or not about rights.
	others := []string{
		"CapabilityBoundingSet", "SystemCallFilter", "RestrictAddressFamilies",
		"Type", "ExecStartPre", "ExecStart", "ExecReload", "WatchdogSignal", "Restart", "RestartSec", "RestartPreventExitStatus", "FileDescriptorStoreMax",
		"RuntimeDirectory", "LogsDirectory", "LogsDirectoryMode", "StateDirectory", "StateDirectoryMode", "UMask",
	}
	for key, lines := range u {
		if want, ok := known[key]; ok && (len(lines) != 1 || lines[0] != want) {
			t.Errorf("%s=%q, the sandbox of the test has %q", key, lines, want)
		} else if !ok && !slices.Contains(others, key) {
			t.Errorf("%s=%q is not in the sandbox of the test", key, lines)
		}
	}
	for key := range known {
		if len(u[key]) == 0 {
			t.Errorf("%s= is not in the unit", key)
		}
	}
}

// constants are the numbers that a header of C gives to names with a prefix.
func constants(t *testing.T, header, prefix string) map[string]int {
	t.Helper()
	out, err := exec.Command("gcc", "-dM", "-E", "-include", header, "-x", "c", "/dev/null").Output()
	if err != nil {
		t.Fatalf("read %s: %v", header, err)
	}
	numbers := map[string]int{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 3 || !strings.HasPrefix(f[1], prefix) {
			continue
		}
		if n, err := strconv.Atoi(f[2]); err == nil {
			numbers[f[1]] = n
		}
	}
	return numbers
}

// numbersOf translates names; one that is not known is an error of the test.
func numbersOf(t *testing.T, names []string, numbers map[string]int) (list []int) {
	t.Helper()
	for _, name := range names {
		n, ok := numbers[name]
		if !ok {
			t.Errorf("%s is not known", name)
		}
		list = append(list, n)
	}
	return list
}

// calls are the system calls that the unit allows, by name: the first line says
// which, each further one takes some away or adds some, as systemd.exec(5) has it.
func (u unit) calls(t *testing.T) []string {
	t.Helper()
	allowed := map[string]bool{}
	for _, line := range u["SystemCallFilter"] {
		line, denied := strings.CutPrefix(line, "~")
		for _, word := range strings.Fields(line) {
			for _, name := range expand(t, word) {
				allowed[name] = !denied
			}
		}
	}
	maps.DeleteFunc(allowed, func(_ string, ok bool) bool { return !ok })
	return slices.Sorted(maps.Keys(allowed))
}

// expand returns the system calls of a group; a name that is none stands for
// itself.
func expand(t *testing.T, word string) []string {
	t.Helper()
	if !strings.HasPrefix(word, "@") {
		return []string{word}
	}
	out, err := exec.Command("systemd-analyze", "syscall-filter", word).Output()
	if err != nil {
		t.Fatalf("systemd-analyze syscall-filter %s: %v", word, err)
	}
	var all []string
	for line := range strings.Lines(string(out)) {
		if name := strings.TrimSpace(line); name != "" && name != word && name[0] != '#' {
			all = append(all, expand(t, name)...)
		}
	}
	return all
}

// sandbox is what a service manager makes of the unit, for TestSandboxHelper.
type sandbox struct {
	Capabilities []int
	Calls        []int // all others are refused; none: none is
	Families     []int
	Init         int // process that stands for process 1, if not 0
	Path         string
	Args         []string
}

// newSandbox takes over what the unit says.
func newSandbox(t *testing.T, u unit, capabilities []string) *sandbox {
	t.Helper()
	u.check(t)
	s := &sandbox{
		Capabilities: numbersOf(t, capabilities, constants(t, "linux/capability.h", "CAP_")),
		Families: numbersOf(t, u.words("RestrictAddressFamilies"),
			map[string]int{"AF_UNIX": unix.AF_UNIX, "AF_NETLINK": unix.AF_NETLINK}),
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Log("system calls are not restricted: missing the program systemd-analyze")
	} else {
		numbers := constants(t, "sys/syscall.h", "__NR_")
		for _, name := range u.calls(t) {
			if n, ok := numbers["__NR_"+name]; ok { // others are of other machines
				s.Calls = append(s.Calls, n)
			}
		}
	}
	// Machines that run tests may not show their process 1 to anybody.
	if fd, err := unix.Open("/proc/1/root", unix.O_PATH, 0); err == nil {
		unix.Close(fd)
	} else {
		t.Logf("the test stands for process 1: %v", err)
		s.Init = os.Getpid()
	}
	return s
}

// start runs verdictd in the sandbox, with its files where that can see them.
func (s *sandbox) start(t *testing.T, ns *lab.Namespace, policy string, args ...string) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "verdictd-sandbox-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary, err := os.ReadFile(labtest.Binary(t))
	if err != nil {
		t.Fatal(err)
	}
	s.Path = filepath.Join(dir, "verdictd")
	if err := os.WriteFile(s.Path, binary, 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	if err := os.MkdirAll(runtimeDir, 0o755); err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, ns: ns, policy: filepath.Join(dir, "policy.rego")}
	writeFile(t, d.policy, policy)
	s.Args = append([]string{"verdictd", "run", "--policy", d.policy}, args...)
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d.Process = labtest.StartDaemon(t, labtest.DaemonConfig{
		NS: ns, Path: self, Args: []string{"-test.run=^TestSandboxHelper$"}, Env: []string{sandboxEnv + "=" + string(text)},
	})
	s.verify(t, d.PID())
	return d
}

// verify looks whether the process is confined as it should be.
func (s *sandbox) verify(t *testing.T, pid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var set uint64
	for _, c := range s.Capabilities {
		set |= 1 << c
	}
	want := []string{"NoNewPrivs:\t1", "CapAmb:\t0000000000000000"}
	for _, name := range []string{"CapPrm", "CapEff", "CapBnd"} {
		want = append(want, fmt.Sprintf("%s:\t%016x", name, set))
	}
	if len(s.Calls) > 0 {
		want = append(want, "Seccomp:\t2")
	}
	for _, line := range want {
		if !strings.Contains(string(status), line+"\n") {
			t.Errorf("no %q in the status of verdictd:\n%s", line, status)
		}
	}
	for _, dir := range []string{"/tmp", "/home"} {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/root%s", pid, dir))
		if err != nil || len(list) > 0 {
			t.Errorf("verdictd sees %v in %s, %v", list, dir, err)
		}
	}
}

// known is a score with the number of owners whose control group is named.
type known struct {
	score
	groups int
}

// burst sends from a sandboxed verdictd's host and returns what it knew.
func (s *sandbox) burst(t *testing.T, count int) (known, *daemon) {
	t.Helper()
	lan, b := labtest.Pair(t), newSenders(t)
	d := s.start(t, lan.Client, acceptAll, "--hook", "output", "--queue-length", "60000")
	path := newCgroup(t)
	group := filepath.Join("/", filepath.Base(path))
	truth := b.run(lan.Client, count, 20000, "10.99.0.2", "fd99::2", path)
	d.Stop()
	got := known{score: d.score(truth, filepath.Join(b.dir, "plain"), group)}
	for _, list := range ownersOf(t, d.Stdout()) {
		for _, o := range list {
			if o.Own.Process.Cgroup == group {
				got.groups++
			}
		}
	}
	t.Logf("%d programs, %d in the log, %d known, %d parents, %d control groups, %d wrong",
		count, got.seen, got.known, got.parents, got.groups, got.wrong)
	if got.seen != count || got.wrong > 0 {
		t.Errorf("%d programs: %d in the log, %d wrong", count, got.seen, got.wrong)
	}
	return got, d
}

// TestLabSandbox: with the rights of the unit, and behind its mounts, verdictd
// knows programs that send once and end, also those that run from where it cannot
// look, and those that are deleted while they run.
func TestLabSandbox(t *testing.T) {
	count := fewer(3000)
	for _, dir := range []string{"/tmp", "/home"} {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			setup(t, labtest.GCC)
			t.Setenv("TMPDIR", dir) // of the programs
			u := shippedUnit(t)
			got, d := newSandbox(t, u, u.words("CapabilityBoundingSet")).burst(t, count)
			if least := min(got.known, got.parents, got.groups); least*1000 < count*999 {
				t.Errorf("%d of %d known", least, count)
			}
			if strings.Contains(d.Stderr(), "known") {
				t.Errorf("a warning: %s", d.Stderr())
			}
		})
	}
}

// TestLabSandboxWithoutRights: without one of the capabilities that the unit gives
// for attribution, or all of them, verdictd judges all the same, names what is
// missing, and says nothing wrong of programs.
func TestLabSandboxWithoutRights(t *testing.T) {
	count := fewer(400)
	run := func(name string, has, missing []string) {
		t.Run(name, func(t *testing.T) {
			setup(t, labtest.GCC)
			got, d := newSandbox(t, shippedUnit(t), has).burst(t, count)
			for _, c := range missing {
				if !strings.Contains(d.Stderr(), c) {
					t.Errorf("%s is not named: %s", c, d.Stderr())
				}
			}
			if min(got.known, got.parents, got.groups) == count {
				t.Error("all is known without it: is it needed?")
			}
		})
	}
	netfilter := []string{"CAP_NET_ADMIN"}
	more := slices.DeleteFunc(shippedUnit(t).words("CapabilityBoundingSet"), func(c string) bool { return c == netfilter[0] })
	run("all", netfilter, more)
	for i, c := range more {
		run(c, slices.Concat(netfilter, more[:i], more[i+1:]), []string{c})
	}
}
