package hook

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// Each answer is that of its own rule, and every table that was made goes.
func TestProbe(t *testing.T) {
	all := Abilities{NativeQueue: true, XTQueue: true, Conntrack: true, Marks: true, Reject: true, Record: true}
	tests := []struct {
		name   string
		lacks  []string
		change func(*Abilities)
	}{
		{"all", nil, func(*Abilities) {}},
		{"no queue expression", []string{"queue"}, func(a *Abilities) { a.NativeQueue = false }},
		{"no conntrack", []string{"\x00ct"}, func(a *Abilities) { a.Conntrack, a.Marks = false, false }},
		{"no reject", []string{"reject"}, func(a *Abilities) { a.Reject = false }},
		{"no target", []string{"NFQUEUE"}, func(a *Abilities) { a.XTQueue = false }},
		{"no bpf match", []string{"match"}, func(a *Abilities) { a.Record = false }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := fakeKernel{refuse: refuseRules(tt.lacks...)}
			got, err := probe(Config{Record: 9}, k.dial)
			if err != nil {
				t.Fatal(err)
			}
			if (got.NoRecord == nil) != got.Record {
				t.Errorf("record: got %v and the reason %v", got.Record, got.NoRecord)
			}
			got.NoRecord = nil
			want := all
			tt.change(&want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			left := 0
			for _, m := range k.got {
				switch m.Header.Type {
				case nftMessage(unix.NFT_MSG_NEWTABLE):
					left++
				case nftMessage(unix.NFT_MSG_DELTABLE):
					left--
				}
			}
			if left != 0 {
				t.Errorf("%d tables are left", left)
			}
		})
	}
}

// What is missing is named.
func TestProbeErrors(t *testing.T) {
	for _, tt := range []struct {
		errno unix.Errno
		want  string
	}{
		{unix.EINVAL, "the kernel has no nf_tables: load it with: modprobe nf_tables"},
		{unix.EPERM, "(needs CAP_NET_ADMIN)"},
	} {
		k := fakeKernel{refuse: func(netlink.Message) unix.Errno { return tt.errno }}
		if _, err := probe(Config{}, k.dial); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: got %v, want %q in it", tt.errno, err, tt.want)
		}
	}
}

// The kernel at hand answers, and nothing is left in it.
func TestLabProbe(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	ns := labtest.Pair(t).Client
	a, err := Probe(Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	if !a.Conntrack || !a.NativeQueue && !a.XTQueue {
		t.Errorf("got %+v", a)
	}
	k, err := dial(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	tables, err := k.conn.ListTables()
	if err != nil || len(tables) != 0 {
		t.Errorf("got %d tables and the error %v, want none", len(tables), err)
	}
}
