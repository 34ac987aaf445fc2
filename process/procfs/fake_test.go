package procfs

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/process"
)

// statLine makes a line of /proc/PID/stat.
func statLine(pid int, comm string, state byte, parent, tty, flags, threads, start, exitSignal int) string {
	f := strings.Fields(strings.Repeat("0 ", 50))
	f[0], f[1], f[4], f[6] = string(state), strconv.Itoa(parent), strconv.Itoa(tty), strconv.Itoa(flags)
	f[17], f[19], f[35] = strconv.Itoa(threads), strconv.Itoa(start), strconv.Itoa(exitSignal)
	return strconv.Itoa(pid) + " (" + comm + ") " + strings.Join(f, " ") + "\n"
}

// fake opens a tree of files in place of /proc: what no process can be made to
// show.
func fake(t *testing.T, files map[string]string) *FS {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/proc/self", filepath.Join(dir, "self")); err != nil {
		t.Fatal(err)
	}
	fs, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fs.Close() })
	return fs
}

func TestOpenErrors(t *testing.T) {
	for _, root := range []string{filepath.Join(t.TempDir(), "none"), t.TempDir()} {
		if fs, err := Open(root); err == nil {
			fs.Close()
			t.Errorf("%s was opened", root)
		}
	}
}

func TestFakeProcess(t *testing.T) {
	const sigchld, kthread = 17, 0x00200000
	fs := fake(t, map[string]string{
		"1/stat":     statLine(1, "init", 'S', 0, 0, 0, 1, 100, sigchld),
		"10/stat":    statLine(10, "parent younger than child", 'S', 1, 0, 0, 1, 900, sigchld),
		"11/stat":    statLine(11, "child", 'S', 10, 34816+3, 0, 1, 800, sigchld),
		"11/cmdline": "child\x00\x00\x00",
		"12/stat":    statLine(12, "of itself", 'S', 12, 0, 0, 1, 800, sigchld),
		"13/stat":    statLine(13, "kworker/0:1", 'I', 2, 0, kthread, 1, 5, 0),
		"13/cmdline": "lies",
		"13/exe":     "-> /bin/sh",
		"14/stat":    statLine(14, "thread", 'S', 1, 0, 0, 2, 5, -1),
		"15/stat":    "15 (cut) S 1",
		"16/stat":    strings.Replace(statLine(16, "x", 'S', 1, 0, 0, 1, 5, sigchld), " 5 ", " five ", 1),
		"17/stat":    statLine(17, "no file", 'S', 1, 0, 0, 1, 800, sigchld),
		"17/exe":     "-> /nowhere/x",
		"18/cmdline": "no stat",
		"19/stat":    statLine(19, "orphan", 'S', 4000, 0, 0, 1, 800, sigchld),
		"20/stat":    "",
	})
	tests := []struct {
		pid     uint32
		err     error // nil: no error; errStat, ErrGone
		comm    string
		cmdline string
		tty     string
		parents int
	}{
		{pid: 1, comm: "init"},
		{pid: 10, comm: "parent younger than child", parents: 1},
		{pid: 11, comm: "child", cmdline: "child", tty: "pts/3", parents: 0},
		{pid: 12, comm: "of itself", parents: process.MaxParents},
		{pid: 13, comm: "kworker/0:1"},
		{pid: 14, err: ErrGone},
		{pid: 15, err: errStat},
		{pid: 16, err: errStat},
		{pid: 17, comm: "no file", parents: 1},
		{pid: 18, err: ErrGone},
		{pid: 19, comm: "orphan"},
		{pid: 20, err: errStat},
		{pid: 21, err: ErrGone},
	}
	for _, tt := range tests {
		p, err := fs.Process(tt.pid)
		if !errors.Is(err, tt.err) || (tt.err == nil) != (err == nil) {
			t.Errorf("%d: error %v, want %v", tt.pid, err, tt.err)
			continue
		}
		if err != nil {
			continue
		}
		if p.Comm != tt.comm || p.Cmdline != tt.cmdline || p.TTY != tt.tty || len(p.Parents) != tt.parents || p.Exe != (process.Exe{}) {
			t.Errorf("%d: got %+v, want %+v", tt.pid, p, tt)
		}
	}
	if ns := must(fs.StartBoot(10))(t); ns != 900*tick {
		t.Errorf("start %d, want %d", ns, 900*tick)
	}
}

func TestFakeCgroup(t *testing.T) {
	fs := fake(t, map[string]string{
		"1/cgroup": "12:cpu:/old\n1:name=systemd:/user.slice\n0::/nowhere.slice/x.service\n",
		"2/cgroup": "12:cpu:/old\n",
		"3/cgroup": "0::/../x.slice\n",
		"4/cgroup": "",
		"5/cgroup": "0::/nowhere.slice/x.service (deleted)\n",
		"6/cgroup": "0::/" + strings.Repeat("nowhere/", 4000) + "x\n",
	})
	nowhere := process.ParseCgroup("/nowhere.slice/x.service")
	want := []process.Cgroup{nowhere, {}, {Path: "/../x.slice"}, {}, nowhere, {Path: "/" + strings.Repeat("nowhere/", 4000) + "x"}}
	for i, want := range want {
		if got := must(fs.CgroupOf(uint32(i + 1)))(t); got != want {
			t.Errorf("%d: got %+v, want %+v", i+1, got, want)
		}
	}
	if _, err := fs.CgroupOf(7); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}

func TestFakeHolders(t *testing.T) {
	fs := fake(t, map[string]string{
		"5/stat": statLine(5, "a", 'S', 1, 0, 0, 1, 5, 17),
		"5/fd/0": "-> socket:[4294967295]",
		"5/fd/1": "-> socket:[4294967296]",
		"5/fd/2": "-> socket:[12",
		"5/fd/3": "-> /tmp/socket:[12]",
		"5/fd/x": "-> socket:[12]",
		"5/fd/4": "-> socket:[]",
		"5/fd/6": "-> socket:[12]" + strings.Repeat("x", 60) + "]",
		"x/fd/0": "-> socket:[12]",
		"6/fd":   "no directory",
	})
	var got []uint32
	err := fs.Holders(t.Context(), func(inode, _ uint32, _ int) error { got = append(got, inode); return nil })
	if err != nil || len(got) != 1 || got[0] != 4294967295 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestTTYName(t *testing.T) {
	for device, want := range map[uint32]string{
		0: "", 136 << 8: "pts/0", 136<<8 | 255: "pts/255", 137<<8 | 1: "pts/257", 143<<8 | 255: "pts/2047",
		4<<8 | 1: "tty1", 4<<8 | 64: "ttyS0", 5<<8 | 1: "console", 229 << 8: "hvc0", 204<<8 | 64: "ttyAMA0",
		204<<8 | 5: "", 188<<8 | 2: "ttyUSB2", 166 << 8: "ttyACM0", 7 << 8: "", 136<<8 | 1<<20: "pts/256",
	} {
		if got := ttyName(device); got != want {
			t.Errorf("%x: got %q, want %q", device, got, want)
		}
	}
}

func TestParseMount(t *testing.T) {
	tests := []struct {
		line string
		want mount
		ok   bool
	}{
		{"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n", mount{41, 38, "/", "/sys/fs/cgroup/unified", "cgroup2"}, true},
		{`9 1 8:17 /a\040b /c\134d\012 rw shared:1 master:2 - ext4 /dev/sdb1 rw`, mount{9, 8<<8 | 17, "/a b", "/c\\d\n", "ext4"}, true},
		{`9 1 8:1 / /a\ rw - ext4 x rw`, mount{9, 8<<8 | 1, "/", `/a\`, "ext4"}, true},
		{`9 1 8:1 / /a\777 rw - ext4 x rw`, mount{9, 8<<8 | 1, "/", `/a\777`, "ext4"}, true},
		{"9 1 8:1 / /a rw ext4 x rw", mount{}, false},
		{"x 1 8:1 / /a rw - ext4 x rw", mount{}, false},
		{"9 1 8 / /a rw - ext4 x rw", mount{}, false},
		{"9 1 - ", mount{}, false},
		{"", mount{}, false},
	}
	for _, tt := range tests {
		if got, ok := parseMount(tt.line); got != tt.want || ok != tt.ok {
			t.Errorf("%q: got %+v, %v, want %+v", tt.line, got, ok, tt.want)
		}
	}
}

func TestSameStart(t *testing.T) {
	fs := &FS{boot: 1_700_000_000_123_456_789}
	for _, tt := range []struct {
		a, b uint64
		want bool
	}{
		{0, 0, true}, {5 * tick, 5*tick + tick - 1, true}, {5 * tick, 6 * tick, false}, {5*tick - 1, 5 * tick, false},
	} {
		if got := SameStartBoot(tt.a, tt.b); got != tt.want {
			t.Errorf("%d, %d: %v", tt.a, tt.b, got)
		}
		if got := fs.SameStart(fs.UnixOf(tt.a), fs.UnixOf(tt.b)); got != tt.want {
			t.Errorf("Unix %d, %d: %v", tt.a, tt.b, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte(statLine(5, "a) R (b\n", 'S', 1, 34816, 0x00200000, 2, 700, -1)))
	f.Add([]byte("5 () Z"))
	f.Add([]byte(")("))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseStat(b)
		if err != nil && st.comm != nil {
			t.Errorf("half an answer: %+v", st)
		}
		if err == nil && st.start%tick != 0 {
			t.Errorf("start %d", st.start)
		}
	})
}

func FuzzParseMount(f *testing.F) {
	f.Add(`9 1 8:17 /a\040b /c\134d\012 rw shared:1 - ext4 /dev/sdb1 rw`)
	f.Fuzz(func(t *testing.T, line string) {
		if m, ok := parseMount(line); ok && (m.point == "" || m.fsType == "" || len(m.point) > len(line)) {
			t.Errorf("%q: %+v", line, m)
		}
	})
}
