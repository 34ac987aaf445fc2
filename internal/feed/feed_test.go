package feed_test

import (
	"strings"
	"testing"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/feed"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestFind looks for rules of all kinds, each in a namespace of its own.
func TestFind(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFTables, labtest.NFTBinary, labtest.IPTablesBinary)
	nft := func(rule string) string {
		return "nft add table inet mine; nft add chain inet mine out '{ type filter hook output priority 0; }'; nft add rule inet mine out " + rule
	}
	tests := []struct {
		name, script string
		queues       []uint16
		want         string // empty: nothing
	}{
		{"no rules", "true", []uint16{0}, ""},
		{"nft", nft("tcp dport 80 queue num 3"), []uint16{3}, "nf_tables, table mine, chain out"},
		{"nft, another queue", nft("queue num 3"), []uint16{0, 1, 2, 4}, ""},
		{"nft, range", nft("queue flags bypass to 2-5"), []uint16{5}, "nf_tables, table mine, chain out"},
		{"nft, by a map", nft("queue to tcp dport map { 80 : 7 }"), []uint16{0}, "nf_tables, table mine, chain out"},
		{"nft, other rules", nft("tcp dport 80 counter accept"), []uint16{0}, ""},
		{"iptables-legacy", "iptables-legacy -A OUTPUT -p tcp -m multiport --dports 80,443 -j NFQUEUE --queue-num 9", []uint16{9}, "iptables, table filter"},
		{"iptables-legacy, mangle, several queues", "iptables-legacy -t mangle -A FORWARD -j NFQUEUE --queue-balance 4:7 --queue-bypass", []uint16{6}, "iptables, table mangle"},
		{"iptables-legacy, another queue", "iptables-legacy -A OUTPUT -j NFQUEUE --queue-balance 4:7", []uint16{8, 3}, ""},
		{"iptables-legacy, -j QUEUE", "iptables-legacy -A INPUT -j QUEUE", []uint16{0}, "iptables, table filter"},
		{"iptables-legacy, other rules", "iptables-legacy -A INPUT -j DROP; iptables-legacy -N x; iptables-legacy -A INPUT -j x", []uint16{0, 3}, ""},
		{"ip6tables-legacy", "ip6tables-legacy -A INPUT -p udp -j NFQUEUE --queue-num 65535", []uint16{65535}, "ip6tables, table filter"},
		{"iptables-nft", "iptables-nft -A OUTPUT -j NFQUEUE --queue-num 2", []uint16{2}, "nf_tables, table filter, chain OUTPUT"},
		{"iptables-nft, range", "iptables-nft -A INPUT -j NFQUEUE --queue-balance 2:5 --queue-bypass", []uint16{5}, "nf_tables, table filter, chain INPUT"},
		{"iptables-nft, another queue", "iptables-nft -A INPUT -j NFQUEUE --queue-balance 2:5", []uint16{0, 1, 6}, ""},
	}
	native := labtest.Has(t, labtest.NFTQueue)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Contains(tt.script, " queue ") && !native {
				refused(t, tt.script)
				return
			}
			ns, err := lab.NewNamespace("feed")
			if err != nil {
				t.Fatal(err)
			}
			defer ns.Close()
			labtest.Output(t, ns, "sh", "-ec", tt.script)
			got, err := feed.Find(ns.FD(), tt.queues)
			if err != nil {
				t.Fatal(err)
			}
			var places []string
			for i := range got {
				places = append(places, got[i].String())
			}
			if s := strings.Join(places, "; "); s != tt.want {
				t.Errorf("got %q, want %q", s, tt.want)
			}
		})
	}
	t.Run("own table", func(t *testing.T) {
		ns, err := lab.NewNamespace("feed")
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		if _, err := hook.Install(hook.Config{Hooks: []hook.Hook{hook.Input, hook.Output}, QueueLast: 3, NetNS: ns.FD()}); err != nil {
			t.Fatal(err)
		}
		if got, err := feed.Find(ns.FD(), []uint16{2}); err != nil || len(got) != 2 {
			t.Errorf("got %v, %v, want a rule at each hook", got, err)
		}
	})
}

// refused runs a script with the queue expression on a kernel without it: nft must
// say so, and then there is nothing to find. TestRead reads what such a rule is.
func refused(t *testing.T, script string) {
	t.Helper()
	ns, err := lab.NewNamespace("feed")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	labtest.Output(t, ns, "sh", "-c", script+" && exit 1 || exit 0")
	if got, err := feed.Find(ns.FD(), []uint16{0, 3, 5, 7}); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v, want nothing", got, err)
	}
}
