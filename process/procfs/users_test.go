package procfs

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestParseUsers(t *testing.T) {
	const text = "root:x:0:0:root:/root:/bin/bash\n" +
		"toor:x:0:0::/root:/bin/sh\n" +
		"# comment:x:7:7\n" +
		"+nis:x:8:8::/:\n-x:x:9:9::/:\n+::::::\n" +
		"caf\xe9:x:10:10::/:\n" +
		"short:x:11\n:x:12:12::/:\nneg:x:-1:0::/:\nbig:x:4294967296:0::/:\n\n" +
		"max:x:4294967294:0::/:/bin/false"
	want := map[uint32]string{0: "root", 10: `caf\xe9`, 4294967294: "max"}
	if got := parseUsers([]byte(text)); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestUsers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passwd")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+"+", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+"+", path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenUsers(path); err == nil {
		t.Error("a missing file is no error")
	}
	write("a:x:1:1::/:\n")
	u := must(OpenUsers(path))(t)
	if u.Name(1) != "a" || u.Name(2) != "" {
		t.Errorf("names %q, %q", u.Name(1), u.Name(2))
	}
	if changed, err := u.reload(); changed || err != nil {
		t.Errorf("unchanged: %v, %v", changed, err)
	}
	write("b:x:1:1::/:\n") // of the same length
	if changed, err := u.reload(); !changed || err != nil || u.Name(1) != "b" {
		t.Errorf("replaced: %v, %v, %q", changed, err, u.Name(1))
	}
	if err := os.Chtimes(path, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if changed, err := u.reload(); !changed || err != nil {
		t.Errorf("another time: %v, %v", changed, err)
	}
	remove(t, path)
	if changed, err := u.reload(); changed || err == nil || u.Name(1) != "b" {
		t.Errorf("missing: %v, %v, %q", changed, err, u.Name(1))
	}
	if n := testing.AllocsPerRun(100, func() { u.Name(1) }); n != 0 {
		t.Errorf("Name allocates %v times", n)
	}
}

func FuzzParseUsers(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/bash\n+\n#\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for uid, name := range parseUsers(b) {
			if name == "" {
				t.Errorf("%d has no name", uid)
			}
		}
	})
}
