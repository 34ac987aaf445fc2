package main_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/ledger"
)

// remembering is a daemon whose process changes, and that can be asked.
type remembering struct {
	*upgradable
	asked *observed
}

func (r *remembering) status() told { return r.asked.status() }

func (r *remembering) books(received uint64) ledger.Ledger { return r.asked.books(received) }

func startRemembering(t *testing.T, ns *lab.Namespace, log string, args ...string) *remembering {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "sock")
	args = append([]string{"--hook", "output", "--offload", "off", "--control", socket}, args...)
	if log != "" {
		args = append(args, "--log", log) // the last one counts
	}
	u := startUpgradable(t, ns, portsPolicy, args...)
	if log != "" {
		u.log = log
	}
	return &remembering{u, &observed{u.daemon, socket}}
}

// crash kills the worker and waits for the next one.
func (r *remembering) crash() {
	r.t.Helper()
	n := len(r.pids())
	if err := unix.Kill(r.worker(), unix.SIGKILL); err != nil {
		r.t.Fatal(err)
	}
	r.waitProcesses(n + 1)
}

// written returns the records of the log file, whose seq must have no gap.
func (r *remembering) written() []record {
	t := r.t
	t.Helper()
	text, err := os.ReadFile(r.log)
	if err != nil {
		t.Fatal(err)
	}
	all := parse(t, string(text))
	for i := range all {
		if all[i].Seq != uint64(i+1) || all[i].Own.Run != all[0].Own.Run || all[0].Own.Run == "" {
			t.Fatalf("record %d has seq %d and run %q, want %d and %q", i+1, all[i].Seq, all[i].Own.Run, i+1, all[0].Own.Run)
		}
	}
	return all
}

// manyFlows sends a datagram of each of n new flows, from ports that no other call
// has: first, first + 1 and so on.
func manyFlows(t *testing.T, net *lab.Network, first uint16, n, rate int) {
	t.Helper()
	from := make([]netip.AddrPort, n)
	for i := range from {
		from[i] = to("10.99.0.1", first+uint16(i))
	}
	flood(t, net.Client, lab.Flood{To: to("10.99.0.2", sinkPort), Count: n, Rate: rate, From: from})
}

// TestLabLossToldOnce loses packets once. Every process after that counts them,
// and none tells of them again; what is lost later is told.
func TestLabLossToldOnce(t *testing.T) {
	setup(t)
	net := labtest.Pair(t)
	quiet(t, net.Client)
	r := startRemembering(t, net.Client, "", "--queue-length", "4")
	lose := func(first uint32) {
		if err := unix.Kill(r.worker(), unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		flood(t, net.Client, lab.Flood{To: to("10.99.0.2", sinkPort), Count: 54, First: first})
		if err := unix.Kill(r.worker(), unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	var lost uint64
	check := func(when string, more bool) {
		a := r.books(0).Total
		if a.Lost.QueueFull > lost != more || a.Lost.QueueFull < lost || a.Lost.Sum() != a.Lost.QueueFull || a.Accepted+a.Lost.Sum() != a.Queued {
			t.Errorf("%s: got %+v after %d lost before", when, a, lost)
		}
		lost = a.Lost.QueueFull
	}
	lose(0)
	r.WaitStderr("packets lost")
	check("first", true)
	r.upgrade()
	check("after an upgrade", false)
	time.Sleep(500 * time.Millisecond) // the new process has written down what has been told
	r.crash()
	check("after a crash", false)
	r.upgrade()
	lose(100)
	check("lost again", true)
	if code := r.Stop(); code != 0 {
		t.Errorf("got exit code %d: %s", code, r.Stderr())
	}
	var told, total uint64
	for _, x := range r.written() {
		if x.Type == "loss" && strings.HasPrefix(x.Own.Origin, "queue") {
			told, total = told+x.Own.Lost, x.Own.LostTotal
		}
	}
	if told != lost || total != lost {
		t.Errorf("the audit log tells of %d lost packets, in all %d, want %d:\n%s", told, total, lost, r.Stderr())
	}
}

// TestLabCrashCounts kills the worker again and again: the numbers of records,
// generations and packets go on, and what was not written is told exactly.
func TestLabCrashCounts(t *testing.T) {
	setup(t)
	const flows, crashes = 200, 3
	net := labtest.Pair(t)
	quiet(t, net.Client)
	got := sink(t, net.Server, sinkPort)
	r := startRemembering(t, net.Client, "")
	r.reload(portsPolicy+"# again\n", byHangup)
	counted := func(what func(*record) bool) (n int) {
		all := r.written()
		for i := range all {
			if what(&all[i]) {
				n++
			}
		}
		return n
	}
	starts := func() int { return counted(func(x *record) bool { return x.Own.Admin == "start" }) }
	for i := range crashes {
		if !lab.Poll(wait, func() bool { return starts() == i+1 }) { // what comes before is written then
			t.Fatalf("got %d records of starts, want %d", starts(), i+1)
		}
		time.Sleep(500 * time.Millisecond) // its counts are noted ten times a second
		st := r.status()
		manyFlows(t, net, uint16(10_000+1000*i), flows, 0)
		// Every packet has been answered, so none is judged again by the next process.
		if n := (i + 1) * flows; !lab.Poll(wait, func() bool { return got.Received().Datagrams == n }) {
			t.Fatalf("got %d datagrams, want %d", got.Received().Datagrams, n)
		}
		r.crash()
		if got := r.status(); got.Policy.Generation != st.Policy.Generation || got.Policy.Generation < 2 || got.Packets.Total.Accepted < st.Packets.Total.Accepted || got.Audit.Events < st.Audit.Events {
			t.Errorf("got %+v after the crash, want that it goes on from %+v", got, st)
		}
	}
	manyFlows(t, net, 20_000, flows, 0)
	r.books(0)
	if code := r.Stop(); code != 0 {
		t.Errorf("got exit code %d: %s", code, r.Stderr())
	}
	var decided, lost, recovered int
	ids := map[uint64]bool{}
	for _, x := range r.written() {
		switch {
		case x.Type == "verdict":
			decided++
			ids[x.FlowID] = true
		case x.Type == "loss" && strings.Contains(x.Own.Message, "died"):
			lost += int(x.Own.Lost)
			recovered++
		case x.Own.Admin == "log_recovered":
			recovered++
		}
	}
	if total := (crashes + 1) * flows; decided+lost != total || lost == 0 || len(ids) != decided || recovered != crashes {
		t.Errorf("got %d records of %d flows, and %d told as lost in %d records, want %d together in %d",
			decided, len(ids), lost, recovered, total, crashes)
	}
	t.Logf("%d of %d records died with the process", lost, crashes*flows)
}

// TestLabUpgradeFullDisk upgrades while the disk of the audit log is full: what the
// old process could not write, the new one does.
func TestLabUpgradeFullDisk(t *testing.T) {
	setup(t)
	dir := t.TempDir()
	if err := unix.Mount("verdictd-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		labtest.Lacks(t, "mounts (CAP_SYS_ADMIN)", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	net := labtest.Pair(t)
	quiet(t, net.Client)
	log, fill := filepath.Join(dir, "eve.json"), filepath.Join(dir, "fill")
	r := startRemembering(t, net.Client, log)
	manyFlows(t, net, 10_000, 50, 0)
	r.books(50)
	f, err := os.Create(fill)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 512); err == nil; {
		_, err = f.Write(block)
	}
	f.Close()
	manyFlows(t, net, 11_000, 200, 0)
	r.WaitStderr("audit log cannot be written")
	r.upgrade()
	manyFlows(t, net, 12_000, 30, 0)
	r.books(280)
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	if code := r.Stop(); code != 0 {
		t.Errorf("got exit code %d: %s", code, r.Stderr())
	}
	decided := 0
	for _, x := range r.written() {
		if x.Type == "loss" {
			t.Errorf("got a loss: %+v", x.Own)
		}
		if x.decided() {
			decided++
		}
	}
	if decided != 280 {
		t.Errorf("got %d records of 280 flows", decided)
	}
}

// TestLabStopWritesFlowEnds stops with more flows in the table than the rings hold
// events: each end is written.
func TestLabStopWritesFlowEnds(t *testing.T) {
	setup(t)
	const flows = 12_000
	net := labtest.Pair(t)
	quiet(t, net.Client)
	r := startRemembering(t, net.Client, "")
	manyFlows(t, net, 10_000, flows, 10_000)
	r.books(flows)
	r.stop(false)
	ends := 0
	for _, x := range r.written() {
		if x.Type == "flow" {
			ends++
		}
	}
	if ends != flows {
		t.Errorf("got %d records of ends, want %d", ends, flows)
	}
}

// TestLabInterfaceDown takes an interface down while packets wait for it: they are
// lost for that cause, and for no other.
func TestLabInterfaceDown(t *testing.T) {
	setup(t)
	const count = 50
	net := labtest.Pair(t)
	quiet(t, net.Client)
	d := observe(t, net.Client, portsPolicy, "--hook", "output")
	stopProcess(t, d.daemon)
	flood(t, net.Client, lab.Flood{To: to("10.99.0.2", sinkPort), Count: count})
	labtest.Output(t, net.Client, "ip", "link", "set", "eth0", "down")
	labtest.Output(t, net.Client, "ip", "link", "set", "eth0", "up") // that it is up again is no proof
	d.Signal(unix.SIGCONT)
	l := d.books(count)
	if a := l.Total; a.Lost.InterfaceDown != count || a.Lost.Sum() != count {
		t.Errorf("got %+v, want %d lost as the interface went down", a.Lost, count)
	}
	d.WaitStderr("cause=interface_down packets=50")
}
