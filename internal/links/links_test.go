package links_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/internal/links"
)

func TestLoopbackHasAName(t *testing.T) {
	table, err := links.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		labtest.Lacks(t, "loopback interface", err)
	}
	if got := table.Name(uint32(lo.Index)); got != "lo" {
		t.Errorf("index %d: got %q, want lo", lo.Index, got)
	}
	for _, index := range []uint32{0, 1 << 30} {
		if got := table.Name(index); got != "" {
			t.Errorf("index %d: got %q, want no name", index, got)
		}
	}
}

func TestLabFollowsChanges(t *testing.T) {
	labtest.Require(t, labtest.Root)
	labtest.Leaks(t)
	a, b := namespace(t, "a"), namespace(t, "b")
	table, err := links.Open(a.FD())
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()

	changed := make(chan struct{}, 64)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := table.Run(ctx, a.FD(), func() { changed <- struct{}{} }); err != nil {
			t.Errorf("follow: %v", err)
		}
	})
	defer wg.Wait()
	defer stop()

	if err := lab.Link(a, b, lab.LinkConfig{NameA: "wan7", NameB: "lan7"}); err != nil {
		t.Fatal(err)
	}
	index := indexOf(t, a, "wan7")
	if !lab.Poll(5*time.Second, func() bool { return table.Name(index) == "wan7" }) {
		t.Fatalf("a new interface got the name %q, want wan7", table.Name(index))
	}
	if len(changed) == 0 {
		t.Error("nobody was told of the new interface")
	}
	b.Close() // takes its end of the link, and so ours, with it
	if !lab.Poll(5*time.Second, func() bool { return table.Name(index) == "" }) {
		t.Errorf("a removed interface is still called %q", table.Name(index))
	}
}

func namespace(t *testing.T, name string) *lab.Namespace {
	t.Helper()
	ns, err := lab.NewNamespace(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func indexOf(t *testing.T, ns *lab.Namespace, name string) uint32 {
	t.Helper()
	list, err := ns.Links()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if l.Name == name {
			return uint32(l.Index)
		}
	}
	t.Fatalf("no interface %s in %v", name, list)
	return 0
}

// An interface that goes down was down a moment before, and only that one.
func TestLabWentDown(t *testing.T) {
	labtest.Require(t, labtest.Root)
	a, b := namespace(t, "a"), namespace(t, "b")
	if err := lab.Link(a, b, lab.LinkConfig{NameA: "wan7", NameB: "lan7"}); err != nil {
		t.Fatal(err)
	}
	table, err := links.Open(a.FD())
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = table.Run(ctx, a.FD(), func() {}) })
	defer wg.Wait()
	defer stop()
	index := indexOf(t, a, "wan7")
	if table.WentDown(index, time.Now()) {
		t.Error("down before it went down")
	}
	labtest.Output(t, a, "ip", "link", "set", "wan7", "down")
	at := time.Now()
	if !lab.Poll(5*time.Second, func() bool { return table.WentDown(index, at) }) {
		t.Error("it is not known that it went down")
	}
	labtest.Output(t, a, "ip", "link", "set", "wan7", "up")
	if !lab.Poll(5*time.Second, func() bool { return !table.WentDown(index, at.Add(time.Minute)) }) {
		t.Error("still down a minute later, though it went up")
	}
	if !table.WentDown(index, at) || table.WentDown(index+1, at) {
		t.Error("it went down and no other")
	}
}
