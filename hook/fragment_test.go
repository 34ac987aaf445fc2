package hook_test

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestFragments injects a datagram in three fragments. With the installed
// ruleset it is queued in one piece, and a router sends it on in pieces of the
// same size as they came. Without the rule that reads conntrack each fragment
// is queued.
func TestFragments(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	tests := []struct {
		name      string
		conntrack bool
		queued    int
	}{
		{"installed", true, 1},
		{"without conntrack", false, 3},
	}
	ends := []struct{ from, to string }{{"10.99.1.2:7", "10.99.2.2:9"}, {"[fd99:1::2]:7", "[fd99:2::2]:9"}}
	for _, tt := range tests {
		for _, end := range ends {
			t.Run(tt.name+" "+end.from, func(t *testing.T) {
				net := labtest.Router(t)
				from, to := netip.MustParseAddrPort(end.from), netip.MustParseAddrPort(end.to)
				r := receive(t, net.Router, 0)
				install(t, net.Router, hook.Config{Hooks: []hook.Hook{hook.Forward}})
				if !tt.conntrack {
					dropOffload(t, net.Router)
				}
				arrived, err := net.Server.Capture(t.Context(), "eth0", 8, func(p []byte) bool { return bytes.Contains(p, bytes.Repeat([]byte{'x'}, 99)) })
				if err != nil {
					t.Fatal(err)
				}
				defer arrived.Close()
				whole, err := lab.UDPPacket(from, to, bytes.Repeat([]byte{'x'}, 3000))
				if err != nil {
					t.Fatal(err)
				}
				pieces, err := lab.Fragment(whole, 1208, 77)
				if err != nil {
					t.Fatal(err)
				}
				if err := net.Client.Inject("eth0", pieces...); err != nil {
					t.Fatal(err)
				}
				arrived.Wait(len(pieces), wait)
				// Nobody listens: the answer is an ICMP error, which is queued too.
				got := r.packets(func(p packet) bool { return p.proto() != unix.IPPROTO_ICMP && p.proto() != unix.IPPROTO_ICMPV6 })
				if len(got) != tt.queued {
					t.Fatalf("got %d packets in the queue, want %d", len(got), tt.queued)
				}
				if tt.queued == 1 && (got[0].proto() != unix.IPPROTO_UDP || len(got[0].data) != len(whole)) {
					t.Errorf("got protocol %d with %d bytes, want the whole datagram of %d", got[0].proto(), len(got[0].data), len(whole))
				}
				_, sent := arrived.Packets()
				if diff := cmp.Diff(sizes(pieces), sizes(sent)); diff != "" {
					t.Errorf("sizes of fragments (-in +out):\n%s", diff)
				}
			})
		}
	}
}

func sizes(packets [][]byte) (n []int) {
	for _, p := range packets {
		n = append(n, len(p))
	}
	return n
}

// dropOffload removes the jump to the offload chain and the chain.
func dropOffload(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	c := connect(t, ns)
	table := &nftables.Table{Name: hook.DefaultTable, Family: nftables.TableFamilyINet}
	c.FlushChain(&nftables.Chain{Name: "verdictd_offload", Table: table})
	flush(t, c)
}
