package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// doctorFindings is what doctor --json says.
type doctorFindings struct {
	Verdict     string `json:"verdict"`
	Daemon      *struct{ PID int }
	Queue       []doctorFinding `json:"queue"`
	Attribution []doctorFinding `json:"attribution"`
	Rights      []doctorFinding `json:"rights"`
	Families    []doctorFinding `json:"families"`
	Owners      struct {
		Recording bool              `json:"recording"`
		Rule      bool              `json:"rule"`
		Sources   map[string]uint64 `json:"sources"`
		Programs  []struct{ Attached bool }
	} `json:"owners"`
}

type doctorFinding struct{ Name, State, Found, Remedy string }

// find returns a finding by its name.
func (d *doctorFindings) find(t *testing.T, name string) doctorFinding {
	t.Helper()
	for _, list := range [][]doctorFinding{d.Queue, d.Attribution, d.Rights, d.Families} {
		for _, f := range list {
			if f.Name == name {
				return f
			}
		}
	}
	t.Errorf("nothing is said of %s", name)
	return doctorFinding{}
}

// states compares states with what they must be, given by name.
func (d *doctorFindings) states(t *testing.T, want map[string]string) {
	t.Helper()
	for name, state := range want {
		if f := d.find(t, name); f.State != state {
			t.Errorf("%s: got %s (%s), want %s", name, f.State, f.Found, state)
		}
	}
}

// doctor runs a command that ends in verdictd doctor --json, and returns its exit
// code too.
func doctor(t *testing.T, cmd *exec.Cmd) (d doctorFindings, code int) {
	t.Helper()
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code, err = exit.ExitCode(), nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(stdout.String()), &d); err != nil {
		t.Fatalf("%v: %q, %q", err, stdout.String(), stderr.String())
	}
	if (code == 0) != (stderr.Len() == 0) {
		t.Errorf("exit code %d with %q on standard error", code, stderr.String())
	}
	return d, code
}

// forEveryone returns the binary at a path that every user may run.
func forEveryone(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "verdictd-doctor-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary, err := os.ReadFile(labtest.Binary(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "verdictd")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, binary, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestLabDoctor runs doctor on the kernel at hand, with all rights and with some,
// and without a daemon.
func TestLabDoctor(t *testing.T) {
	setup(t)
	path := forEveryone(t)
	args := []string{"doctor", "--json", "--control", "none"}
	t.Run("root", func(t *testing.T) {
		d, code := doctor(t, exec.Command(path, args...))
		if d.Verdict != "complete" || code != 0 || d.Daemon != nil {
			t.Errorf("got %+v, exit code %d, want that all is there", d, code)
		}
		d.states(t, map[string]string{
			"nfnetlink_queue": "ok", "rule to the queue": "ok", "offload": "ok", "ctnetlink": "ok", "nfnetlink_log": "ok",
			"bpf-flow": "ok", "bpf-cookie": "ok", "diag": "ok", "CAP_BPF": "ok",
			"NETFILTER": "present", "SOCK_DIAG": "present", "ROUTE": "present", "FIREWALL": "absent", "IP6_FW": "absent", "NFLOG": "absent",
		})
		if f := d.find(t, "diag"); !strings.Contains(f.Found, "tcp, udp") || !strings.Contains(f.Found, "can close sockets") {
			t.Errorf("diag: got %s", f.Found)
		}
		if !d.Owners.Recording || !d.Owners.Rule || len(d.Owners.Programs) < 12 {
			t.Errorf("got %+v, want that it tried to record", d.Owners)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		cmd := exec.Command(path, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		d, code := doctor(t, cmd)
		if d.Verdict != "unknown" || code != 1 {
			t.Errorf("got %s, exit code %d, want that not all is known", d.Verdict, code)
		}
		d.states(t, map[string]string{
			"nfnetlink_queue": "unknown", "rule to the queue": "unknown", "bpf-flow": "unknown", "bpf-cookie": "unknown",
			"diag": "ok", "/proc": "limit", "CAP_NET_ADMIN": "missing", "NETFILTER": "present", "FIREWALL": "absent",
		})
		if f := d.find(t, "bpf-flow"); !strings.Contains(f.Found, "not known without root") {
			t.Errorf("bpf-flow: got %s", f.Found)
		}
	})
	t.Run("no CAP_BPF", func(t *testing.T) {
		drop := []string{"--bounding-set=-bpf,-perfmon,-sys_admin", "--inh-caps=-all", path}
		d, code := doctor(t, exec.Command("setpriv", append(drop, args...)...))
		if d.Verdict != "limited" || code != 1 {
			t.Errorf("got %s, exit code %d, want limits", d.Verdict, code)
		}
		d.states(t, map[string]string{
			"nfnetlink_queue": "ok", "rule to the queue": "ok", "bpf-flow": "missing", "bpf-cookie": "missing", "diag": "ok",
			"CAP_BPF": "missing", "CAP_PERFMON": "missing", "CAP_NET_ADMIN": "ok",
		})
		if f := d.find(t, "bpf-flow"); !strings.Contains(f.Remedy, "CAP_BPF") {
			t.Errorf("bpf-flow: got the remedy %q", f.Remedy)
		}
	})
	t.Run("container", func(t *testing.T) {
		d, code := doctor(t, exec.Command("unshare", append([]string{"--pid", "--fork", "--mount-proc", path}, args...)...))
		if d.Verdict != "limited" || code != 1 {
			t.Errorf("got %s, exit code %d, want limits", d.Verdict, code)
		}
		d.states(t, map[string]string{"pid namespace": "limit", "bpf-flow": "ok"})
	})
}

// TestLabDoctorDaemon asks a daemon that judges packets, from its own network
// namespace and from another one.
func TestLabDoctorDaemon(t *testing.T) {
	const datagrams = 20
	setup(t)
	net := labtest.Pair(t)
	got := sink(t, net.Server, sinkPort)
	d := observe(t, net.Client, acceptAll, "--hook", "output", "--offload", "off")
	for i := range datagrams { // each from another socket, so each is a new flow
		if sent, err := net.Client.Flood(t.Context(), lab.Flood{To: to("10.99.0.2", sinkPort), Count: 1, First: uint32(i)}); err != nil || sent.OK != 1 {
			t.Fatalf("got %+v, %v", sent, err)
		}
	}
	got.Wait(datagrams, wait)
	exit := labtest.Run(t, net.Client, "doctor", "--json", "--control", d.socket)
	var found doctorFindings
	if err := json.Unmarshal([]byte(exit.Stdout), &found); err != nil {
		t.Fatalf("%v: %+v", err, exit)
	}
	if found.Daemon == nil || found.Daemon.PID != d.PID() || found.Owners.Sources["looked-up"] < datagrams || !found.Owners.Rule {
		t.Errorf("got %+v of %+v, want %d owners looked up: the sender is older than the daemon", found.Owners, found.Daemon, datagrams)
	}
	found.states(t, map[string]string{"so far": "ok", "bpf-flow": "ok", "bpf-cookie": "ok", "CAP_BPF": "ok"})

	exit = labtest.Run(t, nil, "doctor", "--control", d.socket)
	for _, want := range []string{
		fmt.Sprintf(` runs, pid %d: asked it; rules tried here, not in its network namespace\n`, d.PID()),
		`\n  ok       so far +\d+ looked-up`,
		`\n  ok       bpf-flow +recorded before the packet is queued: \d+ of \d+ BPF programs, and the rule`,
		`\nrights of the daemon\n`,
	} {
		if !regexp.MustCompile(want).MatchString(exit.Stdout) {
			t.Errorf("got %s\nwant %s in it", exit.Stdout, want)
		}
	}
	exit = labtest.Run(t, nil, "status", "--control", d.socket)
	if !regexp.MustCompile(`\nowners     \d+ unknown, .*, [1-9]\d* looked-up, \d+ bpf-cookie, \d+ bpf-flow\n`).MatchString(exit.Stdout) {
		t.Errorf("status: got %s", exit.Stdout)
	}
}
