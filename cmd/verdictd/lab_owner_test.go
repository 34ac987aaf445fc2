package main_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// senders is a set of programs that send one packet each, and where they are.
type senders struct {
	t   *testing.T
	dir string
}

// sent is what is true of one of them.
type sent struct {
	port     uint16
	pid, uid uint32
	exe      string
}

// newSenders builds the programs, in a directory that every user may enter.
func newSenders(t *testing.T) *senders {
	t.Helper()
	dir, err := os.MkdirTemp("", "verdictd-burst-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plain", "renamed"} { // two files, not one with two names
		out, err := exec.Command("gcc", "-O2", "-static", "-o", filepath.Join(dir, name), "testdata/owner/burst.c").CombinedOutput()
		if err != nil {
			t.Fatalf("build burst.c: %v: %s", err, out)
		}
	}
	return &senders{t, dir}
}

// run sends count packets from the namespace to addresses of another one, and
// returns the truth. cgroup, if not empty, is the directory of a control group
// that the programs run in.
func (b *senders) run(ns *lab.Namespace, count int, firstPort uint16, to4, to6, cgroup string) []sent {
	b.t.Helper()
	script := `exec "$0" "$@"`
	if cgroup != "" {
		script = fmt.Sprintf("echo $$ > %s/cgroup.procs && %s", cgroup, script)
	}
	cmd := exec.Command("sh", "-c", script, filepath.Join(b.dir, "plain"), "run", fmt.Sprint(count), "8", fmt.Sprint(firstPort), to4, to6, b.dir)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := ns.Do(cmd.Run); err != nil {
		b.t.Fatalf("burst: %v: %s", err, stderr.String())
	}
	all := b.truth(stdout.String())
	if len(all) != count {
		b.t.Fatalf("burst: %d programs, want %d", len(all), count)
	}
	return all
}

func (b *senders) truth(text string) (all []sent) {
	b.t.Helper()
	for line := range strings.Lines(text) {
		var s sent
		if _, err := fmt.Sscan(line, &s.port, &s.pid, &s.uid, &s.exe); err != nil {
			b.t.Fatalf("burst: %q: %v", line, err)
		}
		all = append(all, s)
	}
	return all
}

// serve starts programs that listen in the namespace, until the test ends.
func (b *senders) serve(ns *lab.Namespace, count int, firstPort uint16) []sent {
	b.t.Helper()
	cmd := exec.Command(filepath.Join(b.dir, "plain"), "serve", fmt.Sprint(count), fmt.Sprint(firstPort), b.dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := ns.Do(cmd.Start); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	var text strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "ready" {
		text.WriteString(lines.Text() + "\n")
	}
	all := b.truth(text.String())
	if len(all) != count {
		b.t.Fatalf("%d programs listen, want %d", len(all), count)
	}
	return all
}

// owned is what the audit log says of the owner of a flow.
type owned struct {
	SrcPort uint16 `json:"src_port"`
	DstPort uint16 `json:"dest_port"`
	Type    string `json:"event_type"`
	Own     struct {
		Hook    string `json:"hook"`
		Process *struct {
			Source  string  `json:"source"`
			PID     uint32  `json:"pid"`
			Exe     string  `json:"exe"`
			UID     *uint32 `json:"uid"`
			User    string  `json:"user"`
			Comm    string  `json:"comm"`
			Cmdline string  `json:"cmdline"`
			Deleted bool    `json:"exe_deleted"`
			SHA256  string  `json:"exe_sha256"`
			Cgroup  string  `json:"cgroup"`
			Parents []struct {
				PID uint32 `json:"pid"`
				Exe string `json:"exe"`
			} `json:"parents"`
		} `json:"process"`
	} `json:"verdictd"`
}

// ownersOf returns the decisions about each destination port.
func ownersOf(t *testing.T, log string) map[uint16][]owned {
	t.Helper()
	all := map[uint16][]owned{}
	for line := range strings.Lines(log) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		var o owned
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatalf("audit log: %v in %s", err, line)
		}
		if o.Type == "verdict" && o.Own.Process != nil {
			all[o.DstPort] = append(all[o.DstPort], o)
		}
	}
	return all
}

// score is how many of the flows are in the log, how many of them name process
// and program, how many the program of its parent, and how many a wrong one.
type score struct{ seen, known, parents, wrong int }

func (s score) add(t score) score {
	return score{s.seen + t.seen, s.known + t.known, s.parents + t.parents, s.wrong + t.wrong}
}

// score compares the log with the truth: each flow to a port is of one program.
func (d *daemon) score(truth []sent, parent, cgroup string) (s score) {
	d.t.Helper()
	owners := ownersOf(d.t, d.Stdout())
	for _, want := range truth {
		for _, o := range owners[want.port] {
			s.seen++
			if p := o.Own.Process; p.PID != 0 && p.Exe != "" {
				s.known++
			}
			if o.parent() != "" {
				s.parents++
			}
			if text := o.differs(want, parent, cgroup); text != "" {
				if s.wrong++; s.wrong <= 5 {
					d.t.Errorf("port %d: %s(%+v)", want.port, text, *o.Own.Process)
				}
			}
		}
	}
	return s
}

// differs says what of the owner is not true. What is not known is not wrong.
func (o *owned) differs(want sent, parent, cgroup string) (text string) {
	p := o.Own.Process
	check := func(known bool, what string, got, want any) {
		if known && got != want {
			text += fmt.Sprintf("%s %v, want %v; ", what, got, want)
		}
	}
	check(p.PID != 0, "pid", p.PID, want.pid)
	check(p.Exe != "", "exe", p.Exe, want.exe)
	check(p.UID != nil, "uid", value(p.UID), want.uid)
	check(p.Exe != "" && !strings.Contains(want.exe, "/gone-"), "deleted", p.Deleted, false)
	check(o.parent() != "", "parent", o.parent(), parent)
	check(p.Cgroup != "" && cgroup != "", "cgroup", p.Cgroup, cgroup)
	return text
}

// parent is the program of the owner's parent, "" if it is not known.
func (o *owned) parent() string {
	if p := o.Own.Process; len(p.Parents) > 0 {
		return p.Parents[0].Exe
	}
	return ""
}

// sum returns the SHA-256 of a file, in hex.
func sum(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(content))
}

func value(p *uint32) uint32 {
	if p == nil {
		return 0
	}
	return *p
}

// TestLabOwnerOneShot: programs that send one packet and end, by UDP and TCP, IPv4
// and IPv6, eight at a time, of two users, renamed, under a false name, deleted
// while they run, in a control group of their own.
func TestLabOwnerOneShot(t *testing.T) {
	for _, tt := range []struct {
		mode  string
		count int
		least float64 // part that must be known
	}{{"auto", 10_000, 0.999}, {"proc", 2_000, 0}} {
		t.Run(tt.mode, func(t *testing.T) {
			setup(t, labtest.GCC, labtest.BPF)
			tt.count = fewer(tt.count)
			lan, b := labtest.Pair(t), newSenders(t)
			d := startDaemon(t, lan.Client, acceptAll, "--hook", "output", "--attribution", tt.mode, "--queue-length", "60000")
			group := newCgroup(t)
			truth := b.run(lan.Client, tt.count/2, 20000, "10.99.0.2", "fd99::2", "")
			inside := b.run(lan.Client, tt.count/2, 40000, "10.99.0.2", "fd99::2", group)
			d.Stop()
			s := d.score(truth, filepath.Join(b.dir, "plain"), "")
			s = s.add(d.score(inside, filepath.Join(b.dir, "plain"), filepath.Join("/", filepath.Base(group))))
			t.Logf("%d programs, %d in the log, %d known, %d wrong", tt.count, s.seen, s.known, s.wrong)
			if s.seen != tt.count || s.wrong > 0 || float64(min(s.known, s.parents)) < tt.least*float64(tt.count) {
				t.Errorf("%d programs: %d in the log, %d known, %d with a parent, %d wrong", tt.count, s.seen, s.known, s.parents, s.wrong)
			}
		})
	}
}

// TestLabOwnerInput: who listens where a packet comes in, for programs that were
// there before verdictd and for programs that came later.
func TestLabOwnerInput(t *testing.T) {
	const servers = 80
	rounds := fewer(12)
	for _, mode := range []string{"auto", "proc"} {
		t.Run(mode, func(t *testing.T) {
			setup(t, labtest.GCC, labtest.BPF)
			lan, b := labtest.Pair(t), newSenders(t)
			truth := b.serve(lan.Client, servers/2, 20000)
			d := startDaemon(t, lan.Client, acceptAll, "--hook", "input", "--attribution", mode)
			truth = append(truth, b.serve(lan.Client, servers/2, 20000+servers/2)...)
			for range rounds {
				b.run(lan.Server, servers, 20000, "10.99.0.1", "fd99::1", "")
			}
			d.Stop()
			s := d.score(truth, filepath.Join(b.dir, "plain"), "")
			t.Logf("%d flows to %d programs, %d in the log, %d known, %d wrong", servers*rounds, servers, s.seen, s.known, s.wrong)
			least := servers * rounds
			if mode == "proc" { // what began listening later is known after a search
				least = servers * rounds / 2
			}
			if s.seen != servers*rounds || s.wrong > 0 || s.known < least {
				t.Errorf("%d flows: %d in the log, %d known, %d wrong", servers*rounds, s.seen, s.known, s.wrong)
			}
		})
	}
}

// TestLabOwnerForward: programs in a network namespace of their own, whose packets
// this host forwards.
func TestLabOwnerForward(t *testing.T) {
	const count = 2000
	setup(t, labtest.GCC, labtest.BPF)
	lan, b := labtest.Router(t), newSenders(t)
	d := startDaemon(t, lan.Router, acceptAll, "--hook", "forward", "--queue-length", "60000")
	group := newCgroup(t)
	truth := b.run(lan.Client, count, 20000, server4, server6, group)
	d.Stop()
	s := d.score(truth, filepath.Join(b.dir, "plain"), filepath.Join("/", filepath.Base(group)))
	t.Logf("%d programs, %d in the log, %d known, %d wrong", count, s.seen, s.known, s.wrong)
	if s.seen != count || s.wrong > 0 || s.known*1000 < count*999 {
		t.Errorf("%d programs: %d in the log, %d known, %d wrong", count, s.seen, s.known, s.wrong)
	}
}

// newCgroup makes a control group of version 2.
func newCgroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if _, after, ok := strings.Cut(line, " - cgroup2 "); !ok || after == "" || len(fields) < 5 {
			continue
		}
		dir, err := os.MkdirTemp(fields[4], "verdictd-test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			lab.Poll(wait, func() bool { return os.Remove(dir) == nil }) // when its processes are gone
		})
		return dir
	}
	t.Fatal("cgroup2 is not mounted")
	return ""
}
