package labtest

import (
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
)

// Leaks fails the test if at its end a goroutine runs or a descriptor is open
// that was not there when Leaks was called. Call it first, and not in a
// parallel test.
func Leaks(t testing.TB) {
	t.Helper()
	before, err := resources()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		const settle = 2 * time.Second
		var leaked []string
		var err error
		clean := lab.Poll(settle, func() bool {
			leaked, err = added(before)
			return err != nil || len(leaked) == 0
		})
		if err != nil || !clean {
			t.Errorf("leaked (error: %v):\n%s", err, strings.Join(leaked, "\n"))
		}
	})
}

// added returns what is there now but not in before.
func added(before map[string]string) ([]string, error) {
	now, err := resources()
	var leaked []string
	for _, key := range slices.Sorted(maps.Keys(now)) {
		if _, ok := before[key]; !ok {
			leaked = append(leaked, now[key])
		}
	}
	return leaked, err
}

// resources describes the goroutines and descriptors of the process, by what
// identifies each.
func resources() (map[string]string, error) {
	all := make(map[string]string)
	for stack := range strings.SplitSeq(stacks(), "\n\n") {
		// "goroutine 7 [running]:": numbers are never used again. The signal
		// package keeps a goroutine for the life of the process.
		id, _, _ := strings.Cut(stack, " [")
		if !strings.Contains(stack, "os/signal.") {
			all[id] = stack
		}
	}
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		// Gone is the one that read the list. The runtime keeps its poller.
		if err != nil || strings.Contains(target, "[eventpoll]") || strings.Contains(target, "[eventfd]") {
			continue
		}
		key := "descriptor " + e.Name() + " of " + target
		all[key] = key
	}
	return all, err
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}
