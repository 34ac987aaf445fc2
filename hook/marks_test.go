package hook

import (
	"slices"
	"strings"
	"testing"
)

func TestNewMarks(t *testing.T) {
	tests := []struct {
		mask uint32
		want Marks // zero: refused
	}{
		{DefaultMask, Marks{0xff000000, 0x1000000, 0x2000000, 0x3000000, 0x4000000, 0xff000000}},
		{0xf, Marks{0xf, 1, 2, 3, 4, 0xf}},
		{0xffffffff, Marks{0xffffffff, 1, 2, 3, 4, 0xffffffff}},
		{0, Marks{}},
		{7, Marks{}},
		{0xf0f, Marks{}},
		{0xff0000ff, Marks{}},
	}
	for _, tt := range tests {
		got, err := NewMarks(tt.mask)
		if got != tt.want || (err != nil) != (tt.want == Marks{}) {
			t.Errorf("mask %#x: got %#x, error %v, want %#x", tt.mask, got, err, tt.want)
		}
	}
}

// TestNext goes through all generations: each number comes once before the
// first comes again, and never one that has another meaning.
func TestNext(t *testing.T) {
	for mask, want := range map[uint32]int{DefaultMask: 252, 0xf0: 12} {
		m, err := NewMarks(mask)
		if err != nil {
			t.Fatal(err)
		}
		var seen []uint32
		for !slices.Contains(seen, m.Accept) {
			if m.Accept&^mask != 0 || m.Accept == 0 || m.Accept == m.Reject || m.Accept == m.Reply || m.Accept == m.Related {
				t.Fatalf("mask %#x: got accept %#x after %d generations", mask, m.Accept, len(seen))
			}
			seen = append(seen, m.Accept)
			m = m.Next()
		}
		if len(seen) != want || m.Accept != seen[0] {
			t.Errorf("mask %#x: got %d generations, then %#x, want %d, then %#x", mask, len(seen), m.Accept, want, seen[0])
		}
	}
}

// TestAvoiding goes through all generations: none has the number of somebody else.
func TestAvoiding(t *testing.T) {
	const mullvad, wgQuick = 0x6d6f6c65, 51820
	for _, tt := range []struct {
		mask, value uint32
		want        int // generations, 0: too few
	}{
		{DefaultMask, mullvad, 0x6d - firstAccept}, {DefaultMask, wgQuick, 252}, {DefaultMask, 0x3000000, 0}, {DefaultMask, 0xf000000, 0},
		{DefaultMask, 0x10000000, 12}, {0xff0000, 0xff0000, 251}, {0xf0, 0xf0, 0}, {0xf0, 0xf, 12},
	} {
		m, err := NewMarks(tt.mask)
		if err != nil {
			t.Fatal(err)
		}
		m, ok := m.Avoiding(tt.value)
		var seen []uint32
		for ok && !slices.Contains(seen, m.Accept) {
			if used := []uint32{m.Reject, m.Reply, m.Related, m.Accept}; slices.Contains(used, tt.value&tt.mask) {
				t.Fatalf("mask %#x: got the value of mark %#x", tt.mask, tt.value)
			}
			seen = append(seen, m.Accept)
			m = m.Next()
		}
		if len(seen) != tt.want {
			t.Errorf("mask %#x beside mark %#x: got %d generations, want %d", tt.mask, tt.value, len(seen), tt.want)
		}
	}
}

func TestCanOffload(t *testing.T) {
	tests := []struct {
		hooks    []Hook
		loopback bool
		want     string // part of the error, "" for none
	}{
		{[]Hook{Output}, true, ""},
		{[]Hook{Input, Output, Forward}, false, ""},
		{[]Hook{Prerouting}, true, ""},
		{[]Hook{Input, Output}, true, "loopback"},
		{[]Hook{Prerouting, Forward}, false, "prerouting"},
		{[]Hook{Forward, Postrouting}, false, "postrouting"},
	}
	for _, tt := range tests {
		c := Config{Hooks: tt.hooks, Loopback: tt.loopback, Mask: DefaultMask, Offload: true}
		_, planErr := Plan(c)
		for _, err := range []error{c.CanOffload(), planErr} {
			if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, loopback %v: got error %v, want %q", tt.hooks, tt.loopback, err, tt.want)
			}
		}
	}
}

// TestNoReject checks that a kernel that cannot reject drops.
func TestNoReject(t *testing.T) {
	k := fakeKernel{refuse: refuseRules("reject")}
	r, err := install(Config{Hooks: []Hook{Output}, Mask: DefaultMask}, k.dial)
	if err != nil {
		t.Fatal(err)
	}
	if r.Rejects() {
		t.Error("it says that it rejects")
	}
	text := r.plan.build().text(false)
	if strings.Contains(text, "reject with") || !strings.Contains(text, "drop comment \"nft_reject is missing\"") {
		t.Errorf("got rules\n%s", text)
	}
}

func TestSetForeignMarks(t *testing.T) {
	var k fakeKernel
	r, err := install(Config{Hooks: []Hook{Output}, Mask: 0xf0, Offload: true}, k.dial)
	if err != nil {
		t.Fatal(err)
	}
	before := r.Marks()
	m, err := NewMarks(0xf00)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []Marks{m, {}, {Mask: 0xf0, Reject: 0x10, Reply: 0x20, Accept: 0x100}} {
		if err := r.SetMarks(m); err == nil || r.Marks() != before {
			t.Errorf("%#x: got error %v and marks %#x, want a refusal", m, err, r.Marks())
		}
	}
	if err := r.SetMarks(before.Next()); err != nil || r.Marks() != before.Next() {
		t.Errorf("got error %v and marks %#x, want %#x", err, r.Marks(), before.Next())
	}
}
