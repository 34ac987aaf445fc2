package logsink

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/internal/nfnl"
)

// The groups change their reader under load: every event is read once, and a
// reader that knows where the last one stopped counts what was lost between.
func TestLabNFLogHandOver(t *testing.T) {
	net := nflogLab(t)
	const count, rate, rounds = 10_000, 10_000, 5
	labtest.IPTables(t, net.Server, "-A", "INPUT", "-p", "udp", "-j", "NFLOG", "--nflog-group", "5")
	labtest.IPTables(t, net.Server, "-A", "INPUT", "-p", "udp", "-j", "DROP")
	cfg := NFLogConfig{Groups: []uint16{5}, NetNS: net.Server.FD()}
	l := newLog(t, Config{RingEvents: 1 << 16})
	stopLog := start(t, l)
	n, err := OpenNFLog(cfg, l)
	if err != nil {
		t.Fatal(err)
	}
	var flood sync.WaitGroup
	flood.Go(func() {
		if _, err := net.Client.Flood(t.Context(), lab.Flood{To: netip.AddrPortFrom(serverAddr, 53), Count: count, Rate: rate}); err != nil {
			t.Error(err)
		}
	})
	var events, lost uint64
	for round := range rounds {
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() { done <- n.Run(ctx) }()
		target := uint64((round + 1) * count / rounds)
		lab.Poll(10*time.Second, func() bool { return events+n.Stats().Events >= target })
		cancel(nfnl.ErrHandOver)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		events, lost = events+n.Stats().Events, lost+n.Stats().Lost
		f, err := n.File()
		if err != nil {
			t.Fatal(err)
		}
		at := n.Position()
		if round%2 == 1 {
			at = nil // as after a crash
		}
		n.Close()
		if n, err = AttachNFLog(cfg, l, f, at); err != nil {
			t.Fatal(err)
		}
	}
	flood.Wait()
	n.Close()
	if err := stopLog(); err != nil {
		t.Error(err)
	}
	if events != count || lost != 0 {
		t.Errorf("got %d events and %d lost, want %d and none", events, lost, count)
	}
}
