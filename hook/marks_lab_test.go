package hook_test

import (
	"net/netip"
	"strings"
	"testing"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"github.com/google/nftables"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestRejectFailsClosed rejects packets that wait in the queue while the rules
// that know their mark go: none gets through.
func TestRejectFailsClosed(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	const count = 50
	marks, err := hook.NewMarks(hook.DefaultMask)
	if err != nil {
		t.Fatal(err)
	}
	table := &nftables.Table{Name: hook.DefaultTable, Family: nftables.TableFamilyINet}
	tests := []struct {
		name   string
		change func(ns *lab.Namespace, r *hook.Ruleset) error
	}{
		{"nothing", func(*lab.Namespace, *hook.Ruleset) error { return nil }},
		{"stop", func(_ *lab.Namespace, r *hook.Ruleset) error { return r.Stop() }},
		{"block", func(_ *lab.Namespace, r *hook.Ruleset) error { return r.Block() }},
		{"next generation", func(_ *lab.Namespace, r *hook.Ruleset) error { return r.SetMarks(r.Marks().Next()) }},
		{"restore", func(_ *lab.Namespace, r *hook.Ruleset) error { return r.Restore() }},
		{"rules flushed", func(ns *lab.Namespace, _ *hook.Ruleset) error {
			c := connect(t, ns)
			c.FlushTable(table)
			return c.Flush()
		}},
		{"table deleted", func(ns *lab.Namespace, _ *hook.Ruleset) error {
			c := connect(t, ns)
			c.DelTable(table)
			return c.Flush()
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			net := labtest.Pair(t)
			sink, err := net.Server.Sink(t.Context(), netip.MustParseAddrPort("10.99.0.2:0"))
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			r := receive(t, net.Server, 0)
			r.answer = func(nf *nfqueue.Nfqueue, id uint32) error {
				return nf.SetVerdictWithOption(id, nfqueue.NfRepeat, nfqueue.WithMark(marks.Reject))
			}
			r.holdBack()
			rules := install(t, net.Server, hook.Config{Hooks: []hook.Hook{hook.Input}, Mask: hook.DefaultMask, Offload: true})
			if _, err := net.Client.Flood(t.Context(), lab.Flood{To: sink.Addr(), Count: count, Rate: 10000}); err != nil {
				t.Fatal(err)
			}
			if !r.waitFor(count) {
				t.Fatalf("got %d packets in the queue, want %d", len(r.packets(nil)), count)
			}
			if err := tt.change(net.Server, rules); err != nil {
				t.Fatal(err)
			}
			r.release()
			if got := sink.Wait(1, wait/10).Distinct; got != 0 {
				t.Errorf("%d of %d rejected packets got through", got, count)
			}
		})
	}
}

// TestClearMarks clears one value in its mask, and nothing else.
func TestClearMarks(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.IPTablesBinary)
	net := labtest.Pair(t)
	port := echo(t, net.Server)
	marks := []string{"0x3000007", "0x3000000", "0x4000007", "0x30000"}
	want := []string{"mark=7 ", "mark=0 ", "mark=67108871 ", "mark=196608 "}
	for _, mark := range marks {
		labtest.BothTables(t, net.Client, "-t", "mangle", "-F", "OUTPUT")
		labtest.BothTables(t, net.Client, "-t", "mangle", "-A", "OUTPUT", "-j", "CONNMARK", "--set-mark", mark)
		for _, addr := range addrs("10.99.0.2", "fd99::2") {
			if got := probe(t, net.Client, lab.Probe{Proto: lab.UDP, To: netip.AddrPortFrom(addr, port)}); got != lab.Answered {
				t.Fatalf("%s: got %s", addr, got)
			}
		}
	}
	for _, round := range []int{2, 0} {
		if n, err := hook.ClearMarks(net.Client.FD(), hook.DefaultMask, 0x3000000); err != nil || n != 2*round {
			t.Errorf("got %d connections cleared, error %v, want %d", n, err, 2*round)
		}
	}
	table := labtest.Output(t, net.Client, "cat", "/proc/thread-self/net/nf_conntrack")
	for i, mark := range want {
		if got := strings.Count(table, " "+mark); got != 2 {
			t.Errorf("mark %s: got %d connections with %q, want 2, in\n%s", marks[i], got, mark, table)
		}
	}
}
