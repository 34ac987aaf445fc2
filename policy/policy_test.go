package policy_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/policy"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// The engine judges by policies.
var _ engine.Evaluator = (*policy.Policy)(nil)

// golden calls got with the files of each archive below testdata/dir and
// compares what it returns with the archive's file "want".
func golden(t *testing.T, dir string, got func(t *testing.T, files fs.FS) string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", dir, "*.txtar"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no archives in testdata/%s: %v", dir, err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files, want := fstest.MapFS{}, ""
			var rest []txtar.File
			for _, f := range archive.Files {
				if f.Name == "want" {
					want = string(f.Data)
					continue
				}
				rest = append(rest, f)
				files[f.Name] = &fstest.MapFile{Data: []byte(strings.ReplaceAll(string(f.Data), "{BIG}", bigObject(2000)))}
			}
			text := got(t, files)
			if *update {
				archive.Files = append(rest, txtar.File{Name: "want", Data: []byte(text)})
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, text); diff != "" {
				t.Errorf("(-want +got), go test ./policy -update rewrites it:\n%s", diff)
			}
		})
	}
}

// bigObject returns a JSON object of n keys.
func bigObject(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"192.0.%d.%d":%d`, i/256, i%256, i)
	}
	return "{" + b.String()[1:] + "}"
}

func TestBadPolicies(t *testing.T) {
	golden(t, "bad", func(t *testing.T, files fs.FS) string {
		p, err := policy.Load(context.Background(), policy.Source{FS: files})
		if err == nil {
			t.Fatalf("loaded as %s, want an error", p.Hash())
		}
		var errs policy.Errors
		if !errors.As(err, &errs) || len(errs) == 0 {
			t.Fatalf("error is a %T, want policy.Errors", err)
		}
		return err.Error() + "\n"
	})
}

func TestCheckReports(t *testing.T) {
	durations := regexp.MustCompile(`\([0-9.]+[mµ]?s\)`)
	golden(t, "check", func(t *testing.T, files fs.FS) string {
		report, err := policy.CheckConfig{ProbeTime: time.Minute}.Check(context.Background(), policy.Source{FS: files})
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := errors.Join(report.WriteText(&b), report.WriteNotes(&b)); err != nil {
			t.Fatal(err)
		}
		return durations.ReplaceAllString(b.String(), "(TIME)")
	})
}

func TestLoadBadFiles(t *testing.T) {
	const good = "package verdictd\n\nverdict := \"drop\"\n"
	write := func(t *testing.T, path, content string) string {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name string
		path func(t *testing.T, dir string) string
		want string
	}{
		{"absent", func(_ *testing.T, dir string) string { return dir + "/none.rego" },
			"DIR/none.rego: read policy: no such file or directory (give the path of a .rego file, of a rules file, or of a directory that holds one)"},
		{"data file", func(t *testing.T, dir string) string { return write(t, dir+"/lists.json", "{}") },
			"DIR/lists.json: is a data file, not a policy (give the directory that holds it and the .rego file)"},
		{"too large", func(t *testing.T, dir string) string {
			return write(t, dir+"/p.rego", good+strings.Repeat("#", policy.MaxRegoSize))
		}, "DIR/p.rego: is larger than 4 MiB (move large lists to .json or .yaml files, of up to 64 MiB each)"},
		{"not UTF-8", func(t *testing.T, dir string) string { return write(t, dir+"/p.rego", good+"# caf\xe9\n") },
			"DIR/p.rego:4:6: not UTF-8 text (save the file as UTF-8)"},
		{"fifo", func(t *testing.T, dir string) string {
			if err := syscall.Mkfifo(dir+"/p.rego", 0o600); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "DIR/p.rego: is not a regular file"},
		{"dangling link", func(t *testing.T, dir string) string {
			if err := os.Symlink(dir+"/gone", dir+"/p.rego"); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "DIR/p.rego: read policy: no such file or directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := policy.Load(context.Background(), policy.Source{Path: tt.path(t, dir)})
			if err == nil {
				t.Fatal("loaded, want an error")
			}
			if diff := cmp.Diff(tt.want, strings.ReplaceAll(err.Error(), dir, "DIR")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestManyErrorsAreBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString("package verdictd\n")
	for i := range 200 {
		fmt.Fprintf(&b, "verdict := \"drop\" if input.no%d == 1\n", i)
	}
	_, err := policy.Load(context.Background(), source(b.String()))
	errs, ok := errors.AsType[policy.Errors](err)
	if !ok {
		t.Fatalf("error is %v, want policy.Errors", err)
	}
	if len(errs) != 50 || !strings.Contains(errs[49].Msg, "more errors") {
		t.Errorf("%d errors, the last is %v, want 50 and the last to say that there are more", len(errs), errs[len(errs)-1])
	}
}

// source is the policy of one file.
func source(rego string) policy.Source {
	return policy.Source{FS: fstest.MapFS{"policy.rego": {Data: []byte(rego)}}}
}

func TestHash(t *testing.T) {
	load := func(files fstest.MapFS) string {
		t.Helper()
		p, err := policy.Load(context.Background(), policy.Source{FS: files})
		if err != nil {
			t.Fatal(err)
		}
		return p.Hash()
	}
	one := &fstest.MapFile{Data: []byte("package verdictd\n\nverdict := \"drop\"\n")}
	same := load(fstest.MapFS{"a.rego": one})
	seen := map[string]string{}
	for name, files := range map[string]fstest.MapFS{
		"one file":          {"a.rego": one},
		"another name":      {"b.rego": one},
		"with data":         {"a.rego": one, "d.json": {Data: []byte(`{"x":1}`)}},
		"with other data":   {"a.rego": one, "d.json": {Data: []byte(`{"x":2}`)}},
		"in a subdirectory": {"x/a.rego": one},
	} {
		h := load(files)
		if len(h) != 64 {
			t.Errorf("%s: hash is %q, want 64 hex digits", name, h)
		}
		if other, ok := seen[h]; ok {
			t.Errorf("%s and %s have the same hash", name, other)
		}
		seen[h] = name
	}
	if again := load(fstest.MapFS{"a.rego": one, "README": {Data: []byte("not a part of it")}, ".hidden.rego": {Data: []byte("nor this")}}); again != same {
		t.Errorf("files that are no part of the policy change its hash")
	}
}
