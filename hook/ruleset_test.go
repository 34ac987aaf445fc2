package hook_test

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

func connect(t *testing.T, ns *lab.Namespace) *nftables.Conn {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func flush(t *testing.T, c *nftables.Conn) {
	t.Helper()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// addForeign makes a table that is not verdictd's, with a base chain and a rule
// that reads conntrack.
func addForeign(t *testing.T, ns *lab.Namespace, name string, at *nftables.ChainHook, verdict expr.VerdictKind) {
	t.Helper()
	c := connect(t, ns)
	table := c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
	c.AddObj(&nftables.NamedObj{Table: table, Name: "queued_output", Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	chain := c.AddChain(&nftables.Chain{
		Name: "chain", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: at, Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, &expr.Verdict{Kind: verdict},
	}})
	flush(t, c)
}

// ruleset returns the whole ruleset of the namespace as nft prints it.
func ruleset(t *testing.T, ns *lab.Namespace) string {
	t.Helper()
	return labtest.Output(t, ns, "nft", "list", "ruleset")
}

// TestNothingLeft installs and removes beside a table of somebody else.
func TestNothingLeft(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFTables, labtest.NFTBinary)
	ns := labtest.Pair(t).Client
	addForeign(t, ns, "foreign", nftables.ChainHookOutput, expr.VerdictAccept)
	before := ruleset(t, ns)
	foreign := func() string { return labtest.Output(t, ns, "nft", "list", "table", "inet", "foreign") }
	foreignBefore := foreign()
	for _, family := range []hook.Family{hook.Inet, hook.IPv4, hook.IPv6} {
		c := hook.Config{Hooks: []hook.Hook{hook.Output, hook.Forward}, Family: family, NetNS: ns.FD()}
		r, err := hook.Install(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Verify(); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(foreignBefore, foreign()); diff != "" {
			t.Errorf("%s: the foreign table has changed (-before +installed):\n%s", family, diff)
		}
		if err := errors.Join(r.Stop(), r.Close()); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, ruleset(t, ns)); diff != "" {
			t.Errorf("%s: something is left (-before +after):\n%s", family, diff)
		}
		if err := errors.Join(r.Stop(), r.Close()); err != nil {
			t.Errorf("%s: a second time: %v", family, err)
		}
	}
}

// TestShow compares what the kernel has with the plan.
func TestShow(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFTables, labtest.IPTablesBinary)
	ns := labtest.Pair(t).Client
	labtest.IP6Tables(t, ns, "-t", "raw", "-A", "OUTPUT", "-p", "ipv6-icmp", "-j", "DROP") // listener reports would count
	c := hook.Config{
		Hooks: []hook.Hook{hook.Postrouting, hook.Output, hook.Input}, QueueFirst: 2, QueueLast: 9,
		Bypass: true, Fanout: true, OwnMark: 0x10, OwnMask: 0xf0, Priority: -20, NetNS: ns.FD(),
	}
	if _, err := hook.Show(c); !errors.Is(err, hook.ErrNotInstalled) {
		t.Errorf("before: got error %v, want %v", err, hook.ErrNotInstalled)
	}
	install(t, ns, c)
	got, err := hook.Show(hook.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	var inside string // the same from a thread in the namespace, without a descriptor
	if err := ns.Do(func() (err error) { inside, err = hook.Show(hook.Config{}); return err }); err != nil || inside != got {
		t.Errorf("from inside the namespace: got %q, error %v", inside, err)
	}
	head, table, _ := strings.Cut(got, "\n")
	if !strings.HasPrefix(head, "# queued by the ") {
		t.Errorf("got first line %q, want one that says what queues", head)
	}
	want, err := hook.Plan(c)
	if err != nil {
		t.Fatal(err)
	}
	want = strings.ReplaceAll(want, "{}", "{ packets 0 bytes 0 }")
	want = strings.ReplaceAll(want, "counter comment", "counter packets 0 bytes 0 comment")
	if diff := cmp.Diff(want, table); diff != "" {
		t.Errorf("the kernel's table differs from the plan (-plan +kernel):\n%s", diff)
	}
}

// TestNotOurs meets a table of the same name that somebody else made.
func TestNotOurs(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFTables, labtest.NFTBinary)
	ns := labtest.Pair(t).Client
	addForeign(t, ns, hook.DefaultTable, nftables.ChainHookOutput, expr.VerdictAccept)
	before := ruleset(t, ns)
	c := hook.Config{Hooks: []hook.Hook{hook.Output}, NetNS: ns.FD()}
	calls := map[string]func() error{
		"install": func() error { _, err := hook.Install(c); return err },
		"show":    func() error { _, err := hook.Show(c); return err },
		"remove":  func() error { return hook.Remove(c) },
	}
	for name, call := range calls {
		if err := call(); err == nil || !strings.Contains(err.Error(), name+" table inet verdictd: there is a table of that name that is not verdictd's") {
			t.Errorf("%s: got error %v, want a refusal", name, err)
		}
	}
	if diff := cmp.Diff(before, ruleset(t, ns)); diff != "" {
		t.Errorf("the foreign table has changed (-before +after):\n%s", diff)
	}
}

// TestVerify changes the table behind verdictd's back.
func TestVerify(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFTables)
	ns := labtest.Pair(t).Client
	c := hook.Config{Hooks: []hook.Hook{hook.Output}}
	r := install(t, ns, c)
	table := &nftables.Table{Name: hook.DefaultTable, Family: nftables.TableFamilyINet}
	conn := connect(t, ns)

	conn.FlushTable(table)
	flush(t, conn)
	if err := r.Verify(); !errors.Is(err, hook.ErrChanged) {
		t.Errorf("rules flushed: got error %v, want %v", err, hook.ErrChanged)
	}
	r = install(t, ns, c)
	if err := r.Verify(); err != nil {
		t.Errorf("installed again: %v", err)
	}
	conn.DelTable(table)
	flush(t, conn)
	if err := r.Verify(); !errors.Is(err, hook.ErrNotInstalled) {
		t.Errorf("table deleted: got error %v, want %v", err, hook.ErrNotInstalled)
	}
	if err := hook.Remove(hook.Config{NetNS: ns.FD()}); !errors.Is(err, hook.ErrNotInstalled) {
		t.Errorf("remove: got error %v, want %v", err, hook.ErrNotInstalled)
	}
}

// TestKeepsQueuedPackets holds packets in the queue while the ruleset changes:
// what keeps the chains loses none, and the counters are exact.
func TestKeepsQueuedPackets(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	const count = 200
	hooks := hook.Config{Hooks: []hook.Hook{hook.Input, hook.Output}}
	moreHooks := hook.Config{Hooks: []hook.Hook{hook.Input, hook.Output, hook.Forward}, Bypass: true}
	fewerHooks := hook.Config{Hooks: []hook.Hook{hook.Input}}
	otherPriority := hook.Config{Hooks: hooks.Hooks, Priority: 20}
	again := func(c hook.Config) func(t *testing.T, ns *lab.Namespace, r *hook.Ruleset) {
		return func(t *testing.T, ns *lab.Namespace, r *hook.Ruleset) { // as after a crash: r is forgotten
			if err := install(t, ns, c).Verify(); err != nil {
				t.Error(err)
			}
		}
	}
	tests := []struct {
		name   string
		change func(t *testing.T, ns *lab.Namespace, r *hook.Ruleset)
		want   int
	}{
		{"nothing", func(*testing.T, *lab.Namespace, *hook.Ruleset) {}, count},
		{"install again", again(hooks), count},
		{"install with more hooks", again(moreHooks), count},
		{"stop", stop, count},
		// The kernel drops what is queued when a base chain goes.
		{"install with fewer hooks", again(fewerHooks), 0},
		{"install with another priority", again(otherPriority), 0},
		{"close", func(t *testing.T, _ *lab.Namespace, r *hook.Ruleset) {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}, 0},
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
			r.holdBack()
			rules := install(t, net.Server, hooks)
			if _, err := net.Client.Flood(t.Context(), lab.Flood{To: sink.Addr(), Count: count, Rate: 10000}); err != nil {
				t.Fatal(err)
			}
			if !r.waitFor(count) {
				t.Fatalf("got %d packets in the queue, want %d", len(r.packets(nil)), count)
			}
			tt.change(t, net.Server, rules)
			r.release()
			timeout := wait
			if tt.want == 0 {
				timeout /= 10
			}
			if got := sink.Wait(count, timeout).Distinct; got != tt.want {
				t.Errorf("got %d of %d packets, want %d", got, count, tt.want)
			}
		})
	}
}

// TestNoGap installs over and over during traffic: no packet passes by the
// queue, none is lost.
func TestNoGap(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	const count = 3000
	net := labtest.Pair(t)
	sink, err := net.Server.Sink(t.Context(), netip.MustParseAddrPort("10.99.0.2:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	r := receive(t, net.Server, 0)
	c := hook.Config{Hooks: []hook.Hook{hook.Input}}
	install(t, net.Server, c)
	done := make(chan error, 1)
	go func() {
		_, err := net.Client.Flood(t.Context(), lab.Flood{To: sink.Addr(), Count: count, Rate: 6000})
		done <- err
	}()
	installs := 0
	for running := true; running; installs++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
			install(t, net.Server, c)
		}
	}
	if got := sink.Wait(count, wait).Distinct; got != count {
		t.Errorf("got %d of %d datagrams", got, count)
	}
	if got := len(r.packets(nil)); got != count {
		t.Errorf("got %d packets in the queue during %d installs, want %d", got, installs, count)
	}
	t.Logf("%d installs during %d packets", installs, count)
}

// stop stops the ruleset; its counters go on.
func stop(t *testing.T, ns *lab.Namespace, r *hook.Ruleset) {
	before, err := r.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	after, err := r.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" || before[0].Packets == 0 {
		t.Errorf("counters (-before +after stop):\n%s%v", diff, before)
	}
	if got, err := hook.Show(hook.Config{NetNS: ns.FD()}); err != nil || !strings.HasPrefix(got, "# queued by nothing") {
		t.Errorf("after stop: got %q, error %v", got, err)
	}
}

// TestNoRights calls Install without CAP_NET_ADMIN, in a namespace and on a
// thread of its own.
func TestNoRights(t *testing.T) {
	labtest.Require(t, labtest.Root)
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		result <- installWithoutRights()
	}()
	err := <-result
	if !errors.Is(err, os.ErrPermission) || !strings.HasSuffix(err.Error(), "(needs CAP_NET_ADMIN)") {
		t.Errorf("got error %v, want one that names CAP_NET_ADMIN", err)
	}
}

func installWithoutRights() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return err
	}
	caps[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return err
	}
	_, err := hook.Install(hook.Config{Hooks: []hook.Hook{hook.Output}})
	return err
}
