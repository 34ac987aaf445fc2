package procfs

import (
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabStorm looks at short processes while they come and go: the program
// and the arguments of an answer must be of one process. Each program is given
// its own path as argument.
func TestLabStorm(t *testing.T) {
	labtest.Require(t, labtest.Root)
	labtest.Leaks(t)
	fs, err := Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	const span = time.Second
	end := time.Now().Add(span)
	var wg sync.WaitGroup
	defer wg.Wait()
	dir := t.TempDir()
	names := []string{"one", "two", "three"}
	latest := make([]atomic.Uint32, len(names)) // pid of each
	for i, name := range names {
		path := program(t, filepath.Join(dir, name), name)
		wg.Go(func() {
			for time.Now().Before(end) {
				cmd := exec.Command(path, path) // without input it ends at once
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				latest[i].Store(uint32(cmd.Process.Pid))
				cmd.Wait() // how it ended says nothing
			}
		})
	}
	whole, partly := 0, 0
	for time.Now().Before(end) {
		for i := range latest {
			p, err := fs.Process(latest[i].Load())
			if err != nil || !strings.HasPrefix(p.Exe.Path, dir) {
				continue
			}
			if p.Cmdline == "" { // it ended between
				partly++
				continue
			}
			whole++
			if want := p.Exe.Path + " " + p.Exe.Path; p.Cmdline != want {
				t.Errorf("program %s, arguments %q", p.Exe.Path, p.Cmdline)
			}
			for _, parent := range p.Parents {
				if parent.Start > p.Start {
					t.Errorf("%+v has a younger parent %+v", p, parent)
				}
			}
		}
	}
	if whole == 0 {
		t.Error("no short process was seen")
	}
	t.Logf("%d answers, %d of processes that ended meanwhile", whole, partly)
}

// TestExecLoop looks at a process that executes one program after the other:
// program and arguments must be those of one of them.
func TestExecLoop(t *testing.T) {
	fs := open(t)
	one := program(t, filepath.Join(t.TempDir(), "one"), "1")
	two := program(t, filepath.Join(t.TempDir(), "two"), "2")
	c := start(t, one, nil, "CHILD=loop", "THIS="+one, "OTHER="+two)
	defer c.cmd.Process.Kill()
	seen := map[string]int{}
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		p, err := fs.Process(c.pid)
		if err != nil {
			t.Fatal(err)
		}
		path, _, _ := strings.Cut(p.Cmdline, " ")
		if path != "" && p.Exe.Path != "" && path != p.Exe.Path {
			t.Errorf("program %s, arguments %q", p.Exe.Path, p.Cmdline)
		}
		seen[p.Exe.Path]++
	}
	if seen[one] == 0 || seen[two] == 0 {
		t.Errorf("seen: %v", seen)
	}
}
