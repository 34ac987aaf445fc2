package labtest

import (
	"fmt"
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

// Leaks fails the test if at its end more goroutines run or other descriptors
// are open than now. Call it first, and not in a parallel test.
func Leaks(t testing.TB) {
	t.Helper()
	goroutines := runtime.NumGoroutine()
	files, err := openFiles()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var leaked []string
		const settle = 2 * time.Second
		if lab.Poll(settle, func() bool {
			leaked = leakedSince(goroutines, files)
			return len(leaked) == 0
		}) {
			return
		}
		t.Errorf("leaked: %s\n%s", strings.Join(leaked, ", "), stacks())
	})
}

func leakedSince(goroutines int, files map[string]string) []string {
	var leaked []string
	if now := runtime.NumGoroutine(); now > goroutines {
		leaked = append(leaked, fmt.Sprintf("%d goroutines", now-goroutines))
	}
	now, err := openFiles()
	if err != nil {
		return append(leaked, err.Error())
	}
	for _, fd := range slices.Sorted(maps.Keys(now)) {
		if files[fd] != now[fd] {
			leaked = append(leaked, fmt.Sprintf("descriptor %s %s", fd, now[fd]))
		}
	}
	return leaked
}

// openFiles maps the descriptors of the process to what they are. It leaves
// out those the runtime opens once and keeps, and the one that reads the list.
func openFiles() (map[string]string, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := make(map[string]string, len(entries))
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || strings.Contains(target, "[eventpoll]") || strings.Contains(target, "[eventfd]") {
			continue
		}
		files[e.Name()] = target
	}
	return files, nil
}

func stacks() []byte {
	buf := make([]byte, 1<<20)
	return buf[:runtime.Stack(buf, true)]
}
