package main_test

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// hang starts a program that keeps its memory map locked, as testdata/owner/hang.c
// says, and returns its pid. It ends with the test.
func hang(t *testing.T, ns *lab.Namespace, env ...string) int {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "hang")
	if out, err := exec.Command("gcc", "-O1", "-static", "-pthread", "-o", path, "testdata/owner/hang.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s", err, out)
	}
	cmd := exec.Command(path, t.TempDir(), strings.Repeat("x", 300))
	cmd.Env = env
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
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "hangs\n" {
		labtest.Lacks(t, labtest.FUSE, fmt.Errorf("%q, %w", line, err))
	}
	return cmd.Process.Pid
}

// TestLabDoctorHung: a process that lets everybody wait who reads its arguments is
// named by doctor, which goes on.
func TestLabDoctorHung(t *testing.T) {
	setup(t, labtest.GCC, labtest.FUSE)
	lan := labtest.Pair(t)
	labtest.Binary(t)
	pid := hang(t, lan.Client)
	begin := time.Now()
	exit := labtest.Run(t, lan.Client, "doctor", "--control", "none")
	took := time.Since(begin)
	if want := fmt.Sprintf("pid %d, called hang, of user 0, keeps its memory map locked", pid); !strings.Contains(exit.Stdout, want) ||
		!strings.Contains(exit.Stdout, "\nrights of this command\n") || took > wait {
		t.Errorf("got %s%s after %v, want all sections and %q", exit.Stdout, exit.Stderr, took, want)
	}
}

// TestLabSocketsHung: a process that lets everybody wait who looks at it delays verdictd
// sockets no longer than its share, and the sockets of others have their process.
func TestLabSocketsHung(t *testing.T) {
	for _, attribution := range []string{"auto", "proc"} {
		t.Run(attribution, func(t *testing.T) {
			setup(t, labtest.GCC, labtest.FUSE, labtest.BPF)
			const port, most = 7001, 5 * time.Second
			lan := labtest.Pair(t)
			hang(t, lan.Client, "ADDRESS=10.99.0.2", "PORT=9")
			control := filepath.Join(t.TempDir(), "control")
			startDaemon(t, lan.Client, acceptAll, "--hook", "output", "--attribution", attribution, "--control", control)
			echo, err := lan.Client.Echo(t.Context(), netip.MustParseAddrPort("10.99.0.1:7001"))
			if err != nil {
				t.Fatal(err)
			}
			defer echo.Close()
			begin := time.Now()
			got := sockets(t, lan.Client, "--control", control)
			if took := time.Since(begin); took > most {
				t.Errorf("took %v, want at most %v", took, most)
			}
			if o := got[port].Owner; o.Process == nil || int(o.Process.PID) != os.Getpid() {
				t.Errorf("got %+v, want that the socket is this process's, %d", got[port], os.Getpid())
			}
		})
	}
}

// TestLabHungProcess: a user's process that lets everybody wait who looks at it delays
// no packets but its own, and not the end of the daemon.
func TestLabHungProcess(t *testing.T) {
	const nobody, most, ends = "65534", 500 * time.Millisecond, 3 * time.Second
	for _, attribution := range []string{"auto", "proc"} {
		t.Run(attribution, func(t *testing.T) {
			setup(t, labtest.GCC, labtest.FUSE, labtest.BPF)
			lan := labtest.Pair(t)
			echo, err := lan.Server.Echo(t.Context(), netip.MustParseAddrPort("10.99.0.2:7001"))
			if err != nil {
				t.Fatal(err)
			}
			defer echo.Close()
			d := startDaemon(t, lan.Client, `package verdictd

decision := {"verdict": "accept", "rule": "quiet"} if not contains(object.get(input, ["process", "cmdline"], ""), "--loud")
`, "--hook", "output", "--attribution", attribution)
			pid := hang(t, lan.Client, "ADDRESS=10.99.0.2", "PORT=9", "OWNER="+nobody)
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
				begin := time.Now()
				got, err := lan.Client.Probe(lab.Probe{Proto: lab.UDP, To: echo.Addr(), Timeout: wait})
				if took := time.Since(begin); err != nil || got != lab.Answered || took > most {
					t.Fatalf("another flow: got %v, %v after %v, want an answer within %v", got, err, took, most)
				}
			}
			own := func(r *record) bool {
				return r.decided() && r.DstPort == 9 && r.Own.UID != nil && strconv.Itoa(int(*r.Own.UID)) == nobody
			}
			if len(d.records(own)) != 1 {
				t.Errorf("of the process that hangs, pid %d: got %+v, want one decision", pid, d.records(own))
			}
			begin := time.Now()
			if code, took := d.Stop(), time.Since(begin); code != 0 || took > ends {
				t.Errorf("the daemon ended with %d after %v, want 0 within %v: %s", code, took, ends, d.Stderr())
			}
		})
	}
}
