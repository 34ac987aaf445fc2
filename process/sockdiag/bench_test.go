package sockdiag_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process/sockdiag"
)

// busy fills the namespace with n UDP sockets and returns the key of one.
func busy(t testing.TB, ns *lab.Namespace, n int) *packet.Key {
	t.Helper()
	var fd int
	for range n {
		fd = socket(t, ns, unix.AF_INET, unix.SOCK_DGRAM, 0, "", "10.99.0.2:9")
	}
	return key(unix.IPPROTO_UDP, localOf(t, fd), netip.MustParseAddrPort("10.99.0.2:9"))
}

// TestLabFindAllocs finds, and misses, without a single allocation.
func TestLabFindAllocs(t *testing.T) {
	labtest.Require(t, labtest.Root)
	n := labtest.Pair(t)
	udp := *busy(t, n.Client, 1)
	c := open(t, n.Client)
	_, client, server := tcpPair(t, n, unix.AF_INET, "0.0.0.0:0", "10.99.0.2")
	tcp := *key(unix.IPPROTO_TCP, localOf(t, client), server)
	miss := udp
	miss.SrcPort++
	var s sockdiag.Socket
	for name, k := range map[string]*packet.Key{"udp": &udp, "tcp": &tcp, "miss": &miss} {
		if got := testing.AllocsPerRun(100, func() {
			if found, err := c.Find(k, false, &s); found == (name == "miss") || err != nil {
				t.Errorf("%s: got %v, error %v", name, found, err)
			}
		}); got != 0 {
			t.Errorf("%s: got %v allocations, want 0", name, got)
		}
	}
}

// BenchmarkFind looks up one of 1 and of 1000 sockets, and one that is not there.
func BenchmarkFind(b *testing.B) {
	labtest.Require(b, labtest.Root)
	for _, size := range []int{1, 1000} {
		for _, hit := range []bool{true, false} {
			b.Run(fmt.Sprintf("sockets=%d/hit=%v", size, hit), func(b *testing.B) {
				ns := labtest.Pair(b).Client
				k := busy(b, ns, size)
				c := open(b, ns)
				if !hit {
					k.DstPort = 10
				}
				var s sockdiag.Socket
				took := make([]time.Duration, 0, 1<<16)
				b.ReportAllocs()
				for b.Loop() {
					begin := time.Now()
					found, err := c.Find(k, false, &s)
					if found != hit || err != nil {
						b.Fatalf("got %v, error %v", found, err)
					}
					if len(took) < cap(took) {
						took = append(took, time.Since(begin))
					}
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2]), "p50-ns")
				b.ReportMetric(float64(took[len(took)*99/100]), "p99-ns")
			})
		}
	}
}
