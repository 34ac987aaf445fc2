package hook_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// recording checks that the rules record, if the kernel can.
func recording(t *testing.T, r *hook.Ruleset) {
	t.Helper()
	on, err := r.Recording()
	if err != nil && strings.Contains(err.Error(), "modprobe") {
		labtest.Lacks(t, "xt_bpf and nft_compat", err)
	}
	if !on || err != nil {
		t.Fatalf("recording: got %v, error %v, want true", on, err)
	}
	if err := r.Verify(); err != nil {
		t.Error(err)
	}
}

// udpIn opens a connected UDP socket in the namespace and returns its cookie too.
func udpIn(t *testing.T, ns *lab.Namespace, to netip.AddrPort) (net.Conn, uint64) {
	t.Helper()
	var c net.Conn
	if err := ns.Do(func() (err error) { c, err = net.Dial("udp", to.String()); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cookie uint64
	var inner error
	err = raw.Control(func(fd uintptr) { cookie, inner = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) })
	if err := errors.Join(err, inner); err != nil {
		t.Fatal(err)
	}
	return c, cookie
}

// send sends n numbered datagrams. An error that tells of an earlier one, which
// nobody received, takes the place of a datagram.
func send(t *testing.T, c net.Conn, n int) {
	t.Helper()
	for i := 0; i < n; {
		_, err := c.Write([]byte{0, 0, 0, byte(i)})
		if err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatal(err)
		}
		if err == nil {
			i++
		}
	}
}

// TestLabRecord sends by each family and hook: the program runs once for every
// packet that is queued at output and postrouting, knows the sending socket, and
// never runs at the other hooks.
func TestLabRecord(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	const each = 20
	for _, family := range []hook.Family{hook.Inet, hook.IPv4, hook.IPv6} {
		for h := hook.Prerouting; h <= hook.Postrouting; h++ {
			t.Run(family.String()+" "+h.String(), func(t *testing.T) {
				net := labtest.Pair(t)
				f := loadSockFilter(t)
				r := receive(t, net.Client, 0)
				rules := install(t, net.Client, hook.Config{Hooks: []hook.Hook{h}, Family: family, Record: f.prog})
				sends := h == hook.Output || h == hook.Postrouting
				if sends {
					recording(t, rules)
				}
				to := addrs("10.99.0.2", "fd99::2")[0]
				if family == hook.IPv6 {
					to = addrs("10.99.0.2", "fd99::2")[1]
				}
				if !sends { // answered, so that packets come in too
					if on, err := rules.Recording(); on || err != nil {
						t.Errorf("recording: got %v, error %v, want false", on, err)
					}
					port := echo(t, net.Server)
					if got := probe(t, net.Client, lab.Probe{Proto: lab.UDP, To: netip.AddrPortFrom(to, port)}); got != lab.Answered {
						t.Fatalf("got %s, want answered", got)
					}
					if got := f.seen(t); got.Packets != 0 {
						t.Errorf("got %d runs at %s, want none", got.Packets, h)
					}
					return
				}
				c, cookie := udpIn(t, net.Client, netip.AddrPortFrom(to, 9))
				send(t, c, each)
				udp := func(p packet) bool { return p.is(h, unix.IPPROTO_UDP) }
				if !lab.Poll(wait, func() bool { return len(r.packets(udp)) >= each }) {
					t.Fatalf("got %d packets, want %d", len(r.packets(udp)), each)
				}
				// Listener reports may be among them: compare with all that were queued.
				if !lab.Poll(wait, func() bool { return f.seen(t).Packets == uint64(len(r.packets(nil))) }) {
					t.Errorf("got %d runs, want %d: one for each packet queued", f.seen(t).Packets, len(r.packets(nil)))
				}
				if got := f.seen(t).Cookie; got != cookie && len(r.packets(nil)) == each {
					t.Errorf("got cookie %#x, want %#x: that of the sender", got, cookie)
				}
			})
		}
	}
}

// TestLabRecordOffload accepts a flow for good: its other packets never meet the
// program.
func TestLabRecordOffload(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	const more = 100
	net := labtest.Pair(t)
	f := loadSockFilter(t)
	r := receive(t, net.Client, 0)
	rules := install(t, net.Client, hook.Config{
		Hooks: []hook.Hook{hook.Output}, Family: hook.IPv4, Mask: hook.DefaultMask, Offload: true, Record: f.prog,
	})
	recording(t, rules)
	mark := rules.Marks().Accept
	r.mu.Lock()
	r.answer = func(nf *nfqueue.Nfqueue, id uint32) error {
		return nf.SetVerdictWithOption(id, nfqueue.NfRepeat, nfqueue.WithMark(mark))
	}
	r.mu.Unlock()
	sink, err := net.Server.Sink(t.Context(), netip.MustParseAddrPort("10.99.0.2:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	c, _ := udpIn(t, net.Client, sink.Addr())
	send(t, c, 1)
	// When it is there, the rules have marked its connection.
	if got := sink.Wait(1, wait).Distinct; got != 1 {
		t.Fatal("the accepted packet did not arrive")
	}
	send(t, c, more)
	offloaded := func() uint64 {
		n, _, err := rules.Offloaded()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if got, queued := offloaded(), len(r.packets(nil)); got != more || queued != 1 {
		t.Errorf("got %d packets offloaded and %d queued, want %d and 1", got, queued, more)
	}
	if got := f.seen(t).Packets; got != 1 {
		t.Errorf("got %d runs, want 1: for the packet that was queued", got)
	}
}

// TestLabRecordRestore takes the rules away, lets a successor install its own
// program, and looks for what is left at the end.
func TestLabRecordRestore(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables, labtest.NFTBinary)
	net := labtest.Pair(t)
	before := ruleset(t, net.Client)
	first, second := loadSockFilter(t), loadSockFilter(t)
	receive(t, net.Client, 0)
	config := hook.Config{Hooks: []hook.Hook{hook.Output}, Family: hook.IPv4, Record: first.prog, NetNS: net.Client.FD()}
	rules, err := hook.Install(config)
	if err != nil {
		t.Fatal(err)
	}
	recording(t, rules)
	c, _ := udpIn(t, net.Client, netip.MustParseAddrPort("10.99.0.2:9"))
	check := func(when string, firstWant, secondWant uint64) {
		t.Helper()
		send(t, c, 1)
		if got := [2]uint64{first.seen(t).Packets, second.seen(t).Packets}; got != [2]uint64{firstWant, secondWant} {
			t.Errorf("%s: got %v runs of the two programs, want %d and %d", when, got, firstWant, secondWant)
		}
	}
	check("installed", 1, 0)

	conn := connect(t, net.Client)
	conn.FlushTable(&nftables.Table{Name: hook.DefaultTable, Family: nftables.TableFamilyIPv4})
	flush(t, conn)
	if err := rules.Verify(); !errors.Is(err, hook.ErrChanged) {
		t.Errorf("rules flushed: got error %v, want %v", err, hook.ErrChanged)
	}
	check("flushed", 1, 0)
	if err := rules.Restore(); err != nil {
		t.Fatal(err)
	}
	recording(t, rules)
	check("restored", 2, 0)

	config.Record = second.prog
	successor, err := hook.Install(config)
	if err != nil {
		t.Fatal(err)
	}
	recording(t, successor)
	check("replaced", 2, 1)
	second.close()
	check("descriptor closed", 2, 2)
	if err := successor.Verify(); err != nil {
		t.Errorf("descriptor closed: %v", err)
	}

	if err := successor.Stop(); err != nil {
		t.Fatal(err)
	}
	check("stopped", 2, 2)
	withoutProgram(t, successor)
	if err := successor.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, ruleset(t, net.Client)); diff != "" {
		t.Errorf("something is left (-before +after):\n%s", diff)
	}
}

// withoutProgram restores rules whose program's descriptor is no more.
func withoutProgram(t *testing.T, r *hook.Ruleset) {
	t.Helper()
	if err := r.Restore(); err != nil {
		t.Fatal(err)
	}
	if on, err := r.Recording(); on || err == nil || !strings.Contains(err.Error(), "no BPF program") {
		t.Errorf("restored without a program: got recording %v, error %v", on, err)
	}
	if err := r.Verify(); err != nil {
		t.Error(err)
	}
}

// TestLabRecordOtherDescriptor gives a descriptor that is no program.
func TestLabRecordOtherDescriptor(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFTables)
	ns := labtest.Pair(t).Client
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, fd := range []int{int(file.Fd()), 1 << 20} {
		rules := install(t, ns, hook.Config{Hooks: []hook.Hook{hook.Output}, Record: fd})
		if on, err := rules.Recording(); on || err == nil || !strings.Contains(err.Error(), "is no BPF program") {
			t.Errorf("descriptor %d: got recording %v, error %v", fd, on, err)
		}
		if err := rules.Verify(); err != nil {
			t.Error(err)
		}
	}
}

// TestLabRecordScript runs the script for users with rules of their own.
func TestLabRecordScript(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.IPTablesBinary)
	const each = 5
	net := labtest.Pair(t)
	f := loadSockFilter(t)
	dir := bpffs(t)
	config := hook.Config{Hooks: []hook.Hook{hook.Input, hook.Output}, RecordPin: filepath.Join(dir, "sender")}
	f.pin(t, config.RecordPin)
	labtest.BothTables(t, net.Client, "-t", "security", "-A", "INPUT", "-p", "udp", "--dport", "7", "-j", "DROP")
	before := saved(t, net.Client)
	r := receive(t, net.Client, 0)
	runScript(t, net.Client, config, "install")
	runScript(t, net.Client, config, "install")
	udp := func(p packet) bool { return p.is(hook.Output, unix.IPPROTO_UDP) }
	for i, to := range addrs("10.99.0.2", "fd99::2") {
		c, _ := udpIn(t, net.Client, netip.AddrPortFrom(to, 9))
		send(t, c, each)
		if want := (i + 1) * each; !lab.Poll(wait, func() bool { return len(r.packets(udp)) == want }) {
			t.Errorf("%s: got %d packets, want %d", to, len(r.packets(udp)), want)
		}
	}
	out := func(p packet) bool { return p.hook == uint8(hook.Output) }
	if got, want := f.seen(t).Packets, len(r.packets(out)); !lab.Poll(wait, func() bool { return f.seen(t).Packets == uint64(len(r.packets(out))) }) {
		t.Errorf("got %d runs, want %d", got, want)
	}
	runScript(t, net.Client, config, "remove")
	if diff := cmp.Diff(before, saved(t, net.Client)); diff != "" {
		t.Errorf("something is left (-before +after):\n%s", diff)
	}
}

// bpffs mounts a bpf file system for the test.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		labtest.Lacks(t, "to mount a bpf file system", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}
