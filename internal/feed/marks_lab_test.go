package feed_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/feed"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestMarks looks for uses of marks of all kinds, each in a namespace of its own.
func TestMarks(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFTables, labtest.NFTBinary, labtest.IPTablesBinary)
	nft := func(rule string) string {
		return "nft add table inet mine; nft add chain inet mine out '{ type filter hook output priority 0; }'; nft 'add rule inet mine out " + rule + "'"
	}
	const out, mangle = "nf_tables, table mine, chain out", "iptables, table mangle"
	for _, tt := range []struct {
		name, script string
		want         []feed.Mark
	}{
		{"none", "true", nil},
		{"ip rule", "ip rule add fwmark 0x1 priority 7 lookup 9; ip -6 rule add not fwmark 51820 priority 8 lookup 9; ip rule add priority 9 lookup 9",
			[]feed.Mark{{Where: "ip rule 7", Value: 1}, {Where: "ip -6 rule 8", Value: 51820}}},
		{"Tailscale", "ip rule add fwmark 0x80000/0xff0000 priority 5210 lookup 52", []feed.Mark{{Where: "ip rule 5210", Bits: 0xff0000}}},
		{"nft, compares", nft("mark 0x6d6f6c65 counter"), []feed.Mark{{Where: out, Value: 0x6d6f6c65}}},
		{"nft, compares bits", nft("ct mark and 0xf0000 == 0x10000 counter"), []feed.Mark{{Where: out, Bits: 0xf0000}}},
		{"nft, sets bits", nft("meta mark set mark and 0xffff00ff or 0x100"), []feed.Mark{{Where: out, Bits: 0xff00}}},
		{"nft, sets", nft("ct mark set 0x5"), []feed.Mark{{Where: out, Value: 5, Overwrites: true}}},
		{"nft, clears", nft("meta mark set 0"), nil},
		{"nft, a set", nft("meta mark { 1, 2 } counter"), []feed.Mark{{Where: out, Unread: true}}},
		{"nft, another than", nft("meta mark != 0x5 counter"), []feed.Mark{{Where: out, Value: 5}}},
		{"nft, greater", nft("meta mark > 0x5 counter"), []feed.Mark{{Where: out, Unread: true}}},
		{"nft, something else", nft("meta skuid 0 ct state new ip daddr 1.2.3.4 counter"), nil},
		{"wg-quick", "nft add table inet wg; nft add chain inet wg post '{ type filter hook postrouting priority -150; }'; nft 'add rule inet wg post meta l4proto udp mark 51820 ct mark set mark'; " +
			"nft add chain inet wg pre '{ type filter hook prerouting priority -150; }'; nft 'add rule inet wg pre meta l4proto udp meta mark set ct mark'",
			[]feed.Mark{{Where: "nf_tables, table wg, chain post", Value: 51820}, {Where: "nf_tables, table wg, chain post", Overwrites: true}}},
		{"kube-proxy, legacy", "iptables-legacy -t nat -N KUBE-MARK-MASQ; iptables-legacy -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000; " +
			"iptables-legacy -t nat -N KUBE-POSTROUTING; iptables-legacy -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
			[]feed.Mark{{Where: "iptables, table nat, chain KUBE-MARK-MASQ", Bits: 0x4000}, {Where: "iptables, table nat, chain KUBE-POSTROUTING", Bits: 0x4000}}},
		{"kube-proxy, nft", "iptables-nft -t nat -N KUBE-MARK-MASQ; iptables-nft -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
			[]feed.Mark{{Where: "nf_tables, table nat, chain KUBE-MARK-MASQ", Bits: 0x4000}}},
		{"multi-uplink", "iptables-legacy -t mangle -A PREROUTING -m connmark --mark 0/0xffffff -j CONNMARK --set-xmark 0x70007/0xffffff; " +
			"iptables-legacy -t mangle -A PREROUTING -j CONNMARK --restore-mark; iptables-legacy -t mangle -A POSTROUTING -j CONNMARK --save-mark",
			[]feed.Mark{{Where: mangle, Bits: 0xffffff}, {Where: mangle, Overwrites: true}}},
		{"ip6tables", "ip6tables-legacy -A INPUT -p tcp -m tcp --dport 1 -m mark --mark 9 -j DROP", []feed.Mark{{Where: "ip6tables, table filter", Value: 9}}},
		{"Cilium", "ip link add cilium_host type veth", []feed.Mark{{Where: "Cilium (interface cilium_host)", Bits: 0xffff0f00}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ns, err := lab.NewNamespace("marks")
			if err != nil {
				t.Fatal(err)
			}
			defer ns.Close()
			labtest.Output(t, ns, "sh", "-ec", tt.script)
			got, err := feed.Marks(ns.FD())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	t.Run("own rules", func(t *testing.T) {
		ns, err := lab.NewNamespace("marks")
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		c := hook.Config{Hooks: []hook.Hook{hook.Input, hook.Output}, Mask: hook.DefaultMask, Offload: true}
		var script strings.Builder
		if err := hook.PrintIptables(c, &script); err != nil {
			t.Fatal(err)
		}
		labtest.Output(t, ns, "sh", "-c", script.String(), "rules", "install")
		c.NetNS, c.Table = ns.FD(), "other"
		if _, err := hook.Install(c); err != nil {
			t.Fatal(err)
		}
		if got, err := feed.Marks(ns.FD()); err != nil || len(got) != 0 {
			t.Errorf("got %v, %v, want nothing", got, err)
		}
	})
}
