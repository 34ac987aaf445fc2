package logsink

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/verdictd/verdictd/internal/terminal"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/rules"
)

// longOwner is an owner all of whose texts are of one character, and long.
func longOwner(id uint32, char string) *process.Owner {
	long := strings.Repeat(char, 4096)
	p := &process.Process{
		PID: 1<<31 - 1, Start: 1<<63 - 1, Comm: long, Cmdline: long, TTY: long,
		Exe: process.Exe{Path: long, Inside: long, Inode: 1<<64 - 1, Device: 1<<64 - 1, SHA256: long, NoSHA256: long},
	}
	for range process.MaxParents {
		p.Parents = append(p.Parents, process.Parent{PID: 1<<32 - 1, Comm: long, Exe: long})
	}
	return &process.Owner{
		ID: id, Source: process.BPFCookie, UID: 1<<32 - 1, GID: 1<<32 - 1, HasUID: true, HasGID: true, User: long, Process: p,
		Cgroup: process.Cgroup{Path: long, Unit: long, UserUnit: long, Slice: long, ContainerID: long, Runtime: long, PodUID: long},
	}
}

// longEvent is an event all of whose texts that others can choose are long.
func longEvent(char string) Event {
	e := tcpEvent()
	long := strings.Repeat(char, 4096)
	d := *e.Decision
	d.Rule, d.Reason = long, long
	e.Decision, e.Text = &d, long
	e.Owner, e.OtherOwner = longOwner(1, char), longOwner(2, char)
	return e
}

// Nobody makes a record larger than MaxRecord, or a line for people than MaxPretty,
// whatever characters he takes; a record of one such process takes half of that.
func TestLargestRecord(t *testing.T) {
	for _, char := range []string{"a", "\x01", "\\", "\xff", "é", "\u0301", "\u200b", "𐀀", "\U000e0001"} {
		e := longEvent(char)
		line := NewEncoder(EncoderConfig{Host: strings.Repeat("h", 64), BootID: "b", Run: "r"}).Append(nil, &e)
		if !json.Valid(line) || !utf8.Valid(line) {
			t.Fatalf("%q: no JSON: %q", char, line)
		}
		if len(line) > MaxRecord {
			t.Errorf("%q: a record of two owners has %d bytes, want at most %d", char, len(line), MaxRecord)
		}
		if n := len(AppendPretty(nil, &e, true)); n > MaxPretty {
			t.Errorf("%q: a line for people has %d bytes, want at most %d", char, n, MaxPretty)
		}
		e.OtherOwner = nil
		if n := len(NewEncoder(EncoderConfig{}).Append(nil, &e)); n > MaxRecord/2+maxAside {
			t.Errorf("%q: a record of one owner has %d bytes", char, n)
		}
	}
}

// What was cut is unknown to who reads the record, and all else is known.
func TestCutIsUnknown(t *testing.T) {
	e := tcpEvent()
	e.Owner = longOwner(1, "\x01")
	e.Owner.Process.Comm, e.Owner.Process.Parents[1].Exe = "curl", "/usr/bin/bash"
	e.Owner.Cgroup.Unit = "ssh.service"
	e.Decision = &rules.Decision{Action: packet.Drop, Rule: strings.Repeat("r", 300)}
	r, err := ParseRecord(NewEncoder(EncoderConfig{}).Append(nil, &e))
	if err != nil {
		t.Fatal(err)
	}
	known := " process.comm process.unit process.parents.2.exe process.pid process.uid process.exe_inode process.exe_deleted "
	unknown := " process.exe process.exe_inside process.cmdline process.tty process.user process.cgroup process.parents.1.exe process.parents.1.comm process.parents.8.exe process.container.id "
	missing := r.Input.Unknown()
	for i, f := range rules.Fields() {
		switch has := missing.Has(i); {
		case has && strings.Contains(known, " "+f.Path+" "):
			t.Errorf("%s is unknown", f.Path)
		case !has && strings.Contains(unknown, " "+f.Path+" "):
			t.Errorf("%s is known, though it was cut", f.Path)
		}
	}
	if !r.RuleCut || !strings.HasPrefix(e.Decision.Rule, r.Rule) {
		t.Errorf("rule %q, cut %v", r.Rule, r.RuleCut)
	}
	p, err := ParsePretty(string(AppendPretty(nil, &e, false)))
	if err != nil || !p.RuleCut || !strings.HasPrefix(e.Decision.Rule, p.Rule) {
		t.Fatalf("of a line for people: %v, %+v", err, p)
	}
	missing = p.Input.Unknown()
	for i, f := range rules.Fields() {
		if f.Path == "process.exe" && !missing.Has(i) {
			t.Error("process.exe of a line for people is known, though it was cut")
		}
	}
}

// A text is cut at a character, and only if it does not fit.
func TestFits(t *testing.T) {
	for _, tt := range []struct {
		text string
		most int
		want string
	}{
		{"abc", 3, "abc"}, {"abc", 2, "ab"}, {"", 0, ""}, {"\x01\x01", 11, "\x01"}, {"\x01\x01", 12, "\x01\x01"},
		{`a\b`, 3, `a\`}, {`a\b`, 2, "a"}, {"é", 1, ""}, {"éé", 3, "é"}, {"𐀀", 3, ""}, {"\U000e0001", 11, ""},
		{"\xff\xff", 5, "\xff"},
	} {
		n := fits(tt.text, tt.most)
		if tt.text[:n] != tt.want {
			t.Errorf("%q in %d bytes: got %q, want %q", tt.text, tt.most, tt.text[:n], tt.want)
		}
		if got := len(quote(nil, tt.text[:n])) - 2; got > tt.most {
			t.Errorf("%q in %d bytes takes %d", tt.text, tt.most, got)
		}
	}
	if b := word(nil, "exe", strings.Repeat("x", maxValue+1)); !bytes.HasPrefix(b, []byte(" exe_cut="+terminal.Word("x"))) {
		t.Errorf("got %s", b)
	}
}
