package main_test

import (
	"bufio"
	"fmt"
	"os/exec"
	"path/filepath"
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
