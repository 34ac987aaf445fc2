package logsink

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// contents returns what is in dir, by name.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, entry := range entries {
		b, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[entry.Name()] = string(b)
	}
	return all
}

func TestFileRepair(t *testing.T) {
	long := strings.Repeat("x", maxTorn)
	tests := []struct {
		name, before, want string
		repaired           int64
	}{
		{"empty", "", "", 0},
		{"whole", "{a}\n{b}\n", "{a}\n{b}\n", 0},
		{"torn", "{a}\n{b", "{a}\n", 2},
		{"torn first", "{a", "", 2},
		{"longest torn", "{a}\n" + long[1:], "{a}\n", maxTorn - 1},
		{"not a record", "{a}\n" + long, "{a}\n" + long + "\n", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "eve.json")
			if err := os.WriteFile(path, []byte(tt.before), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := openFile(path, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.f.Close()
			if f.repaired != tt.repaired {
				t.Errorf("repaired: got %d, want %d", f.repaired, tt.repaired)
			}
			if _, err := f.write([]byte("{c}\n"), true); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]string{"eve.json": tt.want + "{c}\n"}, contents(t, dir)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestFileTornAnywhere cuts a log at each byte: after opening it again, it
// holds exactly the records that were whole.
func TestFileTornAnywhere(t *testing.T) {
	const whole = "{\"a\":1}\n{\"b\":22}\n{}\n"
	path := filepath.Join(t.TempDir(), "eve.json")
	for cut := range len(whole) + 1 {
		if err := os.WriteFile(path, []byte(whole[:cut]), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := openFile(path, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.f.Close()
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := whole[:strings.LastIndexByte(whole[:cut], '\n')+1]; string(got) != want {
			t.Errorf("cut at %d: got %q, want %q", cut, got, want)
		}
	}
}

func TestFileRotation(t *testing.T) {
	tests := []struct {
		name   string
		keep   int
		writes []string
		want   map[string]string
	}{
		{"fits", 2, []string{"11111\n", "22\n"}, map[string]string{"l": "11111\n22\n"}},
		{"keep", 2, []string{"11111\n", "22222\n", "33333\n", "44444\n"},
			map[string]string{"l": "44444\n", "l.1": "33333\n", "l.2": "22222\n"}},
		{"keep none", 0, []string{"11111\n", "22222\n"}, map[string]string{"l": "22222\n"}},
		{"one write, many files", 5, []string{"11\n22\n33\n44\n55\n66\n77\n"},
			map[string]string{"l": "77\n", "l.1": "44\n55\n66\n", "l.2": "11\n22\n33\n"}},
		{"long records", 5, []string{"1\n222222222222\n3\n"}, map[string]string{"l": "3\n", "l.1": "222222222222\n", "l.2": "1\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			f, err := openFile(filepath.Join(dir, "l"), 10, tt.keep)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { f.f.Close() }()
			for _, s := range tt.writes {
				for b := []byte(s); len(b) > 0; {
					n, err := f.write(b, true)
					if err != nil || n == 0 {
						t.Fatalf("write: got %d, %v", n, err)
					}
					b = b[n:]
				}
			}
			if diff := cmp.Diff(tt.want, contents(t, dir)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestFileRotationFails puts a directory where the old file should go: the
// log grows and nothing is lost.
func TestFileRotationFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "l")
	if err := os.MkdirAll(filepath.Join(path+".1", "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := openFile(path, 10, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { f.f.Close() }()
	for range 5 {
		if _, err := f.write([]byte("1234567\n"), true); err != nil {
			t.Fatal(err)
		}
	}
	if f.rotateErr == nil {
		t.Error("rotateErr: got nil, want an error")
	}
	got, err := os.ReadFile(path)
	if want := strings.Repeat("1234567\n", 5); err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestOpenFileErrors(t *testing.T) {
	dir := t.TempDir()
	held, err := openFile(filepath.Join(dir, "held"), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.f.Close()
	tests := []struct{ name, path, want string }{
		{"no directory", filepath.Join(dir, "no/eve.json"), "create it: install -d -m 0750 " + dir + "/no"},
		{"a directory", dir, "is a directory"},
		{"second daemon", held.path, "in use by another process"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := openFile(tt.path, 0, 0)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
	info, err := os.Stat(held.path)
	if err != nil || info.Mode().Perm()&^0o640 != 0 {
		t.Errorf("mode: got %v, %v, want at most 0640", info.Mode(), err)
	}
}
