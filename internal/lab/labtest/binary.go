package labtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
)

// Repository returns the root of the repository: the first directory with a
// go.mod from the working directory upwards.
func Repository(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod in the working directory or above")
		}
		dir = up
	}
}

// Binary builds cmd/verdictd from the tree, with the race detector when the
// test itself has it, and returns the path of the executable.
func Binary(t testing.TB) string {
	t.Helper()
	return Build(t, "./cmd/verdictd")
}

// built has the path of each executable by package: to ask go again takes a second,
// and the tree does not change while its tests run.
var built sync.Map

// Build builds a main package, given relative to the root of the repository, once
// in each run of tests. The executable is kept, shared and cleaned up by the build
// cache of Go.
func Build(t testing.TB, pkg string) string {
	t.Helper()
	if path, ok := built.Load(pkg); ok {
		return path.(string)
	}
	args := []string{"run", "-exec", "echo"}
	if UnderRace() {
		args = append(args, "-race")
	}
	// `go run` names the executable in the cache, but the run that links it
	// names a temporary file, gone by now: ask again.
	const tries = 2
	for range tries {
		cmd := exec.Command("go", append(args, pkg)...)
		cmd.Dir = Repository(t)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, stderr.Bytes())
		}
		path := strings.TrimSpace(string(out))
		if _, err := os.Stat(path); err == nil {
			built.Store(pkg, path)
			return path
		}
	}
	t.Fatalf("build %s: go run did not leave the executable in the build cache (needs Go 1.24)", pkg)
	return ""
}

// UnderRace tells whether the test binary was built with the race detector.
func UnderRace() bool {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return false
	}
	for _, s := range info.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}
