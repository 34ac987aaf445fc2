package policy_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/verdictd/verdictd/policy"
)

const (
	accepting = "package verdictd\n\nverdict := \"accept\"\n"
	dropping  = "package verdictd\n\nverdict := \"drop\"\n"
	broken    = "package verdictd\n\nverdict := \"drop\" if input.tcp.dprot == 1\n"
)

// change is one call of OnChange.
type change struct {
	policy *policy.Policy
	err    error
}

// startWatch watches path until the test ends and returns the changes it
// reports and the channel that asks for a reload.
func startWatch(t *testing.T, path, hash string) (<-chan change, chan<- struct{}) {
	t.Helper()
	changes, reload := make(chan change, 16), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- policy.Watch(ctx, policy.WatchConfig{
			Source: policy.Source{Path: path}, Hash: hash, Reload: reload, Settle: 5 * time.Millisecond,
			OnChange: func(p *policy.Policy, err error) { changes <- change{p, err} },
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch ended with %v", err)
		}
	})
	return changes, reload
}

// next returns the next change.
func next(t *testing.T, changes <-chan change) change {
	t.Helper()
	select {
	case c := <-changes:
		return c
	case <-time.After(30 * time.Second):
		t.Fatal("no change was reported within 30 s")
		return change{}
	}
}

// hashOf returns the hash of the policy at path, which must be good.
func hashOf(t *testing.T, path string) string {
	t.Helper()
	return load(t, policy.Source{Path: path}).Hash()
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// watchCase makes an accepting policy, changes it to a dropping one and, if
// next is not nil, back again.
type watchCase struct {
	name                string
	path                string // below the test's directory
	setup, change, next func(t *testing.T, dir string)
}

// fileCases change what a path to a file or a link holds.
func fileCases() []watchCase {
	return []watchCase{
		{name: "write in place", path: "p.rego",
			setup:  func(t *testing.T, dir string) { write(t, dir+"/p.rego", accepting) },
			change: func(t *testing.T, dir string) { write(t, dir+"/p.rego", dropping) }},
		{name: "rename over", path: "p.rego",
			setup: func(t *testing.T, dir string) { write(t, dir+"/p.rego", accepting) },
			change: func(t *testing.T, dir string) {
				write(t, dir+"/p.rego.new", dropping)
				must(t, os.Rename(dir+"/p.rego.new", dir+"/p.rego"))
			},
			next: func(t *testing.T, dir string) {
				write(t, dir+"/p.rego.new", accepting)
				must(t, os.Rename(dir+"/p.rego.new", dir+"/p.rego"))
			}},
		{name: "link to a file elsewhere", path: "p.rego",
			setup: func(t *testing.T, dir string) {
				write(t, dir+"/else/where.rego", accepting)
				must(t, os.Symlink("else/where.rego", dir+"/p.rego"))
			},
			change: func(t *testing.T, dir string) { write(t, dir+"/else/where.rego", dropping) }},
		{name: "ConfigMap", path: "volume",
			setup: func(t *testing.T, dir string) {
				write(t, dir+"/volume/..2025_01/p.rego", accepting)
				must(t, os.Symlink("..2025_01", dir+"/volume/..data"))
				must(t, os.Symlink("..data/p.rego", dir+"/volume/p.rego"))
			},
			change: func(t *testing.T, dir string) { swap(t, dir, "..2025_02", "..2025_01", dropping) },
			next:   func(t *testing.T, dir string) { swap(t, dir, "..2025_03", "..2025_02", accepting) }},
	}
}

// directoryCases change what a directory holds.
func directoryCases() []watchCase {
	return []watchCase{
		{name: "new file in a directory", path: "d",
			setup: func(t *testing.T, dir string) {
				write(t, dir+"/d/p.rego", "package verdictd\n\nverdict := \"accept\" if not object.get(data.flags, \"stop\", false)\n")
				write(t, dir+"/d/data.json", `{"flags": {}}`)
			},
			change: func(t *testing.T, dir string) { write(t, dir+"/d/stop.json", `{"flags": {"stop": true}}`) },
			next:   func(t *testing.T, dir string) { must(t, os.Remove(dir+"/d/stop.json")) }},
		{name: "new subdirectory", path: "d",
			setup: func(t *testing.T, dir string) {
				write(t, dir+"/d/p.rego", "package verdictd\n\nverdict := \"accept\" if not object.get(data.sub, \"stop\", false)\n")
				write(t, dir+"/d/data.json", `{"sub": {}}`)
			},
			change: func(t *testing.T, dir string) { write(t, dir+"/d/sub/stop.json", `{"stop": true}`) },
			next:   func(t *testing.T, dir string) { write(t, dir+"/d/sub/stop.json", `{"stop": false}`) }},
		{name: "directory replaced", path: "d",
			setup: func(t *testing.T, dir string) { write(t, dir+"/d/p.rego", accepting) },
			change: func(t *testing.T, dir string) {
				write(t, dir+"/d2/p.rego", dropping)
				must(t, os.Rename(dir+"/d", dir+"/d1"))
				must(t, os.Rename(dir+"/d2", dir+"/d"))
			},
			next: func(t *testing.T, dir string) { write(t, dir+"/d/p.rego", accepting) }},
		{name: "link to a directory turned", path: "d",
			setup: func(t *testing.T, dir string) {
				write(t, dir+"/one/p.rego", accepting)
				must(t, os.Symlink("one", dir+"/d"))
			},
			change: func(t *testing.T, dir string) {
				write(t, dir+"/two/p.rego", dropping)
				must(t, os.Symlink("two", dir+"/d.new"))
				must(t, os.Rename(dir+"/d.new", dir+"/d"))
			},
			next: func(t *testing.T, dir string) { write(t, dir+"/two/p.rego", accepting) }},
	}
}

// TestWatch changes a policy in the ways that editors and deployments do.
func TestWatch(t *testing.T) {
	for _, tt := range append(fileCases(), directoryCases()...) {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.setup(t, dir)
			path := filepath.Join(dir, tt.path)
			changes, _ := startWatch(t, path, hashOf(t, path))
			for _, step := range []func(*testing.T, string){tt.change, tt.next} {
				if step == nil {
					continue
				}
				step(t, dir)
				awaitHash(t, changes, hashOf(t, path))
			}
		})
	}
}

// swap does what Kubernetes does to give a ConfigMap's volume new content.
func swap(t *testing.T, dir, now, old, content string) {
	t.Helper()
	volume := filepath.Join(dir, "volume")
	write(t, filepath.Join(volume, now, "p.rego"), content)
	must(t, os.Symlink(now, volume+"/..data_tmp"))
	must(t, os.Rename(volume+"/..data_tmp", volume+"/..data"))
	must(t, os.RemoveAll(filepath.Join(volume, old)))
}

// awaitHash waits for the policy of that hash. States in between may be seen:
// a file that is being written, a directory that is being replaced.
func awaitHash(t *testing.T, changes <-chan change, hash string) {
	t.Helper()
	for range 8 {
		if c := next(t, changes); c.err == nil && c.policy.Hash() == hash {
			return
		}
	}
	t.Fatalf("policy %s was never reported", hash)
}

func TestWatchBadPolicy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.rego")
	write(t, path, accepting)
	good := hashOf(t, path)
	changes, reload := startWatch(t, path, good)

	replace := func(content string) {
		t.Helper()
		write(t, path+".new", content)
		must(t, os.Rename(path+".new", path))
	}
	replace(broken)
	if c := next(t, changes); c.policy != nil || c.err == nil || !strings.Contains(c.err.Error(), "p.rego:3:22: input.tcp.dprot does not exist") {
		t.Fatalf("got %v, %v, want the error with its place", c.policy, c.err)
	}
	replace(broken) // the same again is not reported: what comes next is the mended policy
	time.Sleep(10 * time.Millisecond)
	replace(accepting)
	if c := next(t, changes); c.err != nil || c.policy.Hash() != good {
		t.Fatalf("got %v, want the mended policy", c.err)
	}
	must(t, os.Remove(path))
	if c := next(t, changes); c.err == nil || !strings.Contains(c.err.Error(), "no such file") {
		t.Fatalf("got %v, want that the file is gone", c.err)
	}
	replace(dropping)
	if c := next(t, changes); c.err != nil {
		t.Fatalf("got %v, want the policy that came back", c.err)
	}
	reload <- struct{}{} // an explicit reload reports what has not changed, too
	if c := next(t, changes); c.err != nil || c.policy.Hash() != hashOf(t, path) {
		t.Fatalf("got %v after a reload, want the same policy", c.err)
	}
}

// TestWatchSeesEarlierChange starts a watch with the hash of a policy that was
// changed since.
func TestWatchSeesEarlierChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.rego")
	write(t, path, accepting)
	old := hashOf(t, path)
	write(t, path, dropping)
	changes, _ := startWatch(t, path, old)
	if c := next(t, changes); c.err != nil || c.policy.Hash() == old {
		t.Fatalf("got %v, want the policy as it is now", c.err)
	}
}

func TestWatchBuiltinPolicy(t *testing.T) {
	changes, reload := startWatch(t, "", "")
	reload <- struct{}{}
	if c := next(t, changes); c.err != nil || c.policy == nil {
		t.Fatalf("got %v, want the built-in policy", c.err)
	}
}
