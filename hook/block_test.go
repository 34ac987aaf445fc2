package hook_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestBlock takes rules out of use and in again during traffic, with nobody at
// the queue: not one packet gets through, whatever the order.
func TestBlock(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	for _, mask := range []uint32{0, hook.DefaultMask} {
		net := labtest.Pair(t)
		sink, err := net.Server.Sink(t.Context(), netip.MustParseAddrPort("10.99.0.2:0"))
		if err != nil {
			t.Fatal(err)
		}
		defer sink.Close()
		c := hook.Config{Hooks: []hook.Hook{hook.Input}, Mask: mask, Offload: mask != 0, NetNS: net.Server.FD()}
		state := func(want hook.State) {
			t.Helper()
			if got, err := hook.Inspect(hook.Config{NetNS: net.Server.FD()}); err != nil || got != want {
				t.Errorf("got state %+v, %v, want %+v", got, err, want)
			}
		}
		state(hook.State{})
		if err := hook.Block(c); !errors.Is(err, hook.ErrNotInstalled) {
			t.Errorf("got %v without a table, want %v", err, hook.ErrNotInstalled)
		}
		rules := install(t, net.Server, c)
		state(hook.State{Installed: true, Queues: true})
		done := make(chan error, 1)
		go func() {
			_, err := net.Client.Flood(t.Context(), lab.Flood{To: sink.Addr(), Count: 4000, Rate: 8000})
			done <- err
		}()
		rounds := 0
		for running := true; running; rounds++ {
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
				running = false
			default:
				if err := rules.Block(); err != nil {
					t.Fatal(err)
				}
				state(hook.State{Installed: true, Blocked: true})
				install(t, net.Server, c)
				// Whoever cleans up after a crash may have other settings.
				left := c
				left.Hooks, left.Bypass, left.Mask, left.Offload = []hook.Hook{hook.Output}, true, 0, false
				if err := hook.Block(left); err != nil {
					t.Fatal(err)
				}
				state(hook.State{Installed: true, Blocked: true})
				rules = install(t, net.Server, c)
			}
		}
		if got := sink.Received().Distinct; got != 0 {
			t.Errorf("mask %#x: %d packets got through in %d rounds, want none", mask, got, rounds)
		}
		bypass := c
		bypass.Bypass = true
		install(t, net.Server, bypass)
		state(hook.State{Installed: true, Queues: true, Bypass: true})
		if err := rules.Stop(); err != nil {
			t.Fatal(err)
		}
		state(hook.State{Installed: true})
		t.Logf("mask %#x: %d rounds", mask, rounds)
	}
}
