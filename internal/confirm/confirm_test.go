package confirm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDir(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "a", "b"))
	if got, err := d.Load(); got != nil || err != nil {
		t.Fatalf("got %+v, %v, want no trial", got, err)
	}
	until := time.Now().Add(time.Minute)
	want := Trial{Until: until, Policy: "1234", Before: "5678"}
	if err := d.Save(&want); err != nil {
		t.Fatal(err)
	}
	got, err := d.Load()
	if err != nil {
		t.Fatal(err)
	}
	if !got.Until.Equal(until) || got.Policy != want.Policy || got.Before != want.Before || got.Start || got.Undone {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for path, mode := range map[string]fs.FileMode{string(d): fs.ModeDir | 0o700, filepath.Join(string(d), recordName): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: got mode %v, %v, want %v", path, info.Mode(), err, mode)
		}
	}
	if err := d.Clear(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(string(d)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that nothing is left", err)
	}
	if err := d.Clear(); err != nil {
		t.Errorf("nothing to clear: %v", err)
	}
}

func TestDirDamaged(t *testing.T) {
	d := Dir(t.TempDir())
	if err := os.WriteFile(filepath.Join(string(d), recordName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Load(); err == nil || !strings.HasPrefix(err.Error(), "read what is to be confirmed: ") {
		t.Errorf("got %v, want what could not be read", err)
	}
	file := filepath.Join(string(d), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Dir(file).Save(&Trial{}); err == nil || !strings.HasPrefix(err.Error(), "note what is to be confirmed: ") {
		t.Errorf("got %v, want what could not be noted", err)
	}
}

func TestOver(t *testing.T) {
	now := time.Now()
	tests := []struct {
		name  string
		trial Trial
		want  bool
	}{
		{"before its end", Trial{Until: now.Add(time.Nanosecond)}, false},
		{"at its end", Trial{Until: now}, true},
		{"undone", Trial{Until: now.Add(time.Hour), Undone: true}, true},
	}
	for _, tt := range tests {
		if got := tt.trial.Over(now); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestCheckLimit(t *testing.T) {
	for d, ok := range map[time.Duration]bool{0: false, Shortest - 1: false, Shortest: true, Longest: true, Longest + 1: false, -time.Second: false} {
		if err := CheckLimit(d); (err == nil) != ok {
			t.Errorf("%s: got %v, want ok %v", d, err, ok)
		}
	}
}
