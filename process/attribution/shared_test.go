package attribution

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/process"
)

// TestAgreed: what several holders of a socket have in common, and nothing of one.
func TestAgreed(t *testing.T) {
	exe := process.Exe{Path: "/usr/sbin/a", Inside: "/usr/sbin/a", Inode: 7, Device: 8}
	hashed, gone, other := exe, exe, exe
	hashed.SHA256, gone.Deleted, other.Device = "x", true, 9
	p := func(pid uint32, comm string, e process.Exe) *process.Process {
		return &process.Process{
			PID: pid, Start: int64(pid), Comm: comm, Cmdline: "a " + comm, TTY: "pts/1", Exe: e,
			Parents: []process.Parent{{PID: 1}},
		}
	}
	for _, tt := range []struct {
		name string
		all  []*process.Process
		want *process.Process
	}{
		{"master and worker", []*process.Process{p(10, "a", exe), p(11, "a", exe)}, &process.Process{Comm: "a", TTY: "pts/1", Exe: exe}},
		{"other names", []*process.Process{p(10, "a", exe), p(11, "b", exe), p(12, "a", exe)}, &process.Process{TTY: "pts/1", Exe: exe}},
		{"a hash of one", []*process.Process{p(10, "a", hashed), p(11, "a", exe)}, &process.Process{Comm: "a", TTY: "pts/1", Exe: exe}},
		{"hashes", []*process.Process{p(10, "a", hashed), p(11, "a", hashed)}, &process.Process{Comm: "a", TTY: "pts/1", Exe: hashed}},
		{"replaced meanwhile", []*process.Process{p(10, "a", exe), p(11, "a", gone)}, nil},
		{"another file", []*process.Process{p(10, "a", exe), p(11, "a", other)}, nil},
		{"files not known", []*process.Process{p(10, "a", process.Exe{}), p(11, "a", process.Exe{})}, nil},
		{"none", nil, nil},
	} {
		if diff := cmp.Diff(tt.want, agreed(tt.all)); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", tt.name, diff)
		}
	}
}

// TestNote: each holder once, and no more than are compared.
func TestNote(t *testing.T) {
	found := map[uint32]holder{}
	for pid := range uint32(mostHolders) {
		note(found, 1, holder{pid: pid, fd: 3, start: 9})
		note(found, 1, holder{pid: pid, fd: 4, start: 9})
	}
	h := found[1]
	if got := h.holders(); len(got) != mostHolders || !h.many() || !h.same(found[1]) {
		t.Errorf("got %d holders, want %d", len(got), mostHolders)
	}
	if note(found, 1, holder{pid: 1000, start: 9}); len(ptr(found[1]).holders()) != 0 || !ptr(found[1]).many() || h.same(found[1]) {
		t.Errorf("got %+v, want none of too many", found[1])
	}
}

func ptr(h holder) *holder { return &h }
