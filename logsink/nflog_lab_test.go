package logsink

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	nflog "github.com/florianl/go-nflog/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
)

var (
	clientAddr = netip.MustParseAddr("10.99.0.1")
	serverAddr = netip.MustParseAddr("10.99.0.2")
)

// nflogLab returns two linked namespaces.
func nflogLab(t *testing.T) *lab.Network {
	t.Helper()
	labtest.Require(t, labtest.Root, labtest.NFLog, labtest.IPTablesBinary)
	labtest.Leaks(t)
	return labtest.Pair(t)
}

// reading is a log and an NFLOG reader that run.
type reading struct {
	*NFLogReader
	buf      bytes.Buffer
	stopLog  func() error
	cancel   context.CancelFunc
	finished chan error
}

// open binds the groups in ns; nothing is read yet.
func open(t *testing.T, ns *lab.Namespace, cfg NFLogConfig) *reading {
	t.Helper()
	r := &reading{finished: make(chan error, 1)}
	l := newLog(t, Config{Outputs: []Output{{Path: "buffer", Writer: &r.buf}}, RingEvents: 1 << 16})
	cfg.NetNS = ns.FD()
	var err error
	if r.NFLogReader, err = OpenNFLog(cfg, l); err != nil {
		t.Fatal(err)
	}
	r.stopLog = start(t, l)
	return r
}

func (r *reading) run(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() { r.finished <- r.Run(ctx) }()
}

// stop stops the reader, then the log, and returns the log's lines.
func (r *reading) stop(t *testing.T) []nflogRecord {
	t.Helper()
	r.cancel()
	if err := <-r.finished; err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := r.stopLog(); err != nil {
		t.Error(err)
	}
	var all []nflogRecord
	for line := range bytes.Lines(r.buf.Bytes()) {
		var rec nflogRecord
		rec.Verdictd.UID = -1
		if err := json.Unmarshal(line, &rec); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, rec)
	}
	return all
}

// nflogRecord is what the tests read of a record.
type nflogRecord struct {
	Timestamp string
	Type      string `json:"event_type"`
	In        string `json:"in_iface"`
	Src       string `json:"src_ip"`
	Dst       string `json:"dest_ip"`
	DestPort  uint16 `json:"dest_port"`
	Proto     string
	Verdictd  struct {
		Group        uint16
		Prefix, Hook string
		Out          string `json:"out_iface"`
		Mark         uint32
		UID          int64 // -1 if there is none
		Lost         uint64
		Header       struct{ Len uint32 }
	}
}

func flood(t *testing.T, from *lab.Namespace, to netip.AddrPort, count, size int) {
	t.Helper()
	sent, err := from.Flood(t.Context(), lab.Flood{To: to, Count: count, Size: size})
	if err != nil || sent.OK != count {
		t.Fatalf("flood: got %+v, %v, want %d", sent, err, count)
	}
}

func TestLabNFLog(t *testing.T) {
	net := nflogLab(t)
	const in, out, size = 300, 50, 700
	labtest.IPTables(t, net.Server, "-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-mark", "7")
	labtest.IPTables(t, net.Server, "-A", "INPUT", "-p", "udp", "-j", "NFLOG", "--nflog-group", "5", "--nflog-prefix", `in "udp": `)
	labtest.IPTables(t, net.Server, "-A", "OUTPUT", "-p", "udp", "-j", "NFLOG", "--nflog-group", "6", "--nflog-prefix", "out")
	labtest.IPTables(t, net.Client, "-A", "INPUT", "-p", "udp", "-j", "DROP") // no ICMP errors
	r := open(t, net.Server, NFLogConfig{Groups: []uint16{5, 6}, InterfaceName: func(uint32) string { return "if" }})
	r.run(t)
	sink, err := net.Server.Sink(t.Context(), netip.AddrPortFrom(serverAddr, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	flood(t, net.Client, sink.Addr(), in, size)
	flood(t, net.Server, netip.AddrPortFrom(clientAddr, 99), out, size)
	records := r.stop(t)

	got := map[nflogRecord]int{}
	for _, rec := range records {
		if rec.Type != "packet" {
			continue
		}
		if _, err := time.Parse("2006-01-02T15:04:05.000000-0700", rec.Timestamp); err != nil {
			t.Error(err)
		}
		rec.Timestamp = ""
		got[rec]++
	}
	// The copy is 256 bytes, the length that of the whole packet.
	udp := nflogRecord{Type: "packet", Src: clientAddr.String(), Dst: serverAddr.String(), DestPort: 53, Proto: "UDP", In: "if"}
	udp.Verdictd.Group, udp.Verdictd.Prefix, udp.Verdictd.Hook, udp.Verdictd.Mark = 5, `in "udp": `, "input", 7
	udp.Verdictd.UID, udp.Verdictd.Header.Len = -1, 28+size
	sent := nflogRecord{Type: "packet", Src: serverAddr.String(), Dst: clientAddr.String(), DestPort: 99, Proto: "UDP"}
	sent.Verdictd.Group, sent.Verdictd.Prefix, sent.Verdictd.Hook, sent.Verdictd.Out = 6, "out", "output", "if"
	sent.Verdictd.UID, sent.Verdictd.Header.Len = int64(os.Getuid()), 28+size
	if diff := cmp.Diff(map[nflogRecord]int{udp: in, sent: out}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if s := r.NFLogReader; s.events.Load() != in+out || s.lost.Load() != 0 || s.malformed.Load() != 0 {
		t.Errorf("got %d events, %d lost, %d malformed", s.events.Load(), s.lost.Load(), s.malformed.Load())
	}
}

// TestLabNFLogLoss: with a tiny receive buffer and nobody reading, most events
// are lost; those in the log and those counted as lost are together what the
// rule counted.
func TestLabNFLogLoss(t *testing.T) {
	net := nflogLab(t)
	labtest.IPTables(t, net.Server, "-A", "INPUT", "-p", "udp", "-j", "NFLOG", "--nflog-group", "5", "--nflog-prefix", "x")
	labtest.IPTables(t, net.Server, "-A", "INPUT", "-p", "udp", "-j", "DROP")
	r := open(t, net.Server, NFLogConfig{Groups: []uint16{5}, RecvBuffer: 50000})
	to := netip.AddrPortFrom(serverAddr, 53)
	const burst = 20000
	flood(t, net.Client, to, burst, 100)
	drops := r.Stats().Drops
	r.run(t)
	// One more datagram, until one is not lost: it shows the gap before it.
	ruled := func() uint64 { return labtest.Counters(t, net.Server, "", "INPUT")[0].Packets }
	if !lab.Poll(20*time.Second, func() bool {
		flood(t, net.Client, to, 1, 100)
		return lab.Poll(300*time.Millisecond, func() bool { return r.events.Load()+r.lost.Load() == ruled() })
	}) {
		t.Errorf("got %d events + %d lost, want %d", r.events.Load(), r.lost.Load(), ruled())
	}
	want := ruled()
	var logged, lost uint64
	for _, rec := range r.stop(t) {
		switch rec.Type {
		case "packet":
			logged++
		case "loss":
			lost += rec.Verdictd.Lost
		}
	}
	if logged+lost != want || lost == 0 || logged == 0 || drops == 0 {
		t.Errorf("got %d logged + %d lost (%d messages dropped), want %d in all", logged, lost, drops, want)
	}
	t.Logf("%d packets = %d logged + %d lost; %d messages dropped", want, logged, lost, drops)
}

// TestLabNFLogShutdown: what the kernel gathers at the end is not lost.
func TestLabNFLogShutdown(t *testing.T) {
	net := nflogLab(t)
	labtest.IPTables(t, net.Server, "-A", "INPUT", "-p", "udp", "-j", "NFLOG", "--nflog-group", "5")
	labtest.IPTables(t, net.Server, "-A", "INPUT", "-p", "udp", "-j", "DROP")
	r := open(t, net.Server, NFLogConfig{Groups: []uint16{5}, Threshold: 1000, Timeout: time.Minute})
	r.run(t)
	flood(t, net.Client, netip.AddrPortFrom(serverAddr, 53), 5, 100)
	if !lab.Poll(5*time.Second, func() bool { return labtest.Counters(t, net.Server, "", "INPUT")[0].Packets == 5 }) {
		t.Fatal("the packets did not arrive within 5 s")
	}
	if n := r.events.Load(); n != 0 {
		t.Errorf("before the end: got %d events, want 0", n)
	}
	packets := 0
	for _, rec := range r.stop(t) {
		packets += map[string]int{"packet": 1}[rec.Type]
	}
	if packets != 5 {
		t.Errorf("got %d packets, want 5", packets)
	}
}

// TestLabNFLogOracle: go-nflog's own reader sees the same packets.
func TestLabNFLogOracle(t *testing.T) {
	net := nflogLab(t)
	log, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := OpenNFLog(NFLogConfig{Groups: []uint16{7}, NetNS: net.Server.FD(), CopyRange: 65531, BufferSize: 131072}, log)
	if err != nil {
		t.Fatal(err)
	}
	oracle := startOracle(t, net.Server, 8)
	logToBoth(t, net.Server)
	sendVariety(t, net)
	for _, hook := range []string{"INPUT", "OUTPUT"} {
		labtest.BothTables(t, net.Server, "-D", hook, "-j", "log-"+hook)
	}

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	want := oracle.stop()
	lab.Poll(5*time.Second, func() bool { return n.events.Load() >= uint64(len(want)) })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	got := drained(n.ring)
	for i := range got {
		got[i].Queue, got[i].Time = 0, 0
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-go-nflog +own)\n%s", diff)
	}
	if len(got) < 100 {
		t.Errorf("only %d packets seen", len(got))
	}
}

// logToBoth makes rules that report packets to groups 7 and 8. A chain of both
// goes into force at once, so that no packet is reported to one group only.
func logToBoth(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	labtest.BothTables(t, ns, "-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-mark", "0xfffffff0")
	for _, hook := range []string{"INPUT", "OUTPUT"} {
		labtest.BothTables(t, ns, "-N", "log-"+hook)
		for _, group := range []string{"7", "8"} {
			labtest.BothTables(t, ns, "-A", "log-"+hook, "-j", "NFLOG", "--nflog-group", group, "--nflog-prefix", "at "+hook+":")
		}
		labtest.BothTables(t, ns, "-A", hook, "-j", "log-"+hook)
	}
}

// sendVariety sends UDP, TCP and ICMP over both IP versions.
func sendVariety(t *testing.T, net *lab.Network) {
	t.Helper()
	v6 := netip.MustParseAddr("fd99::2")
	for _, a := range []netip.Addr{serverAddr, v6} {
		flood(t, net.Client, netip.AddrPortFrom(a, 4), 60, 900) // answered by ICMP errors
		for _, proto := range []lab.Proto{lab.TCP, lab.UDP, lab.ICMP} {
			if _, err := net.Client.Probe(lab.Probe{Proto: proto, To: netip.AddrPortFrom(a, 5), Timeout: time.Second}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// oracle is go-nflog's reader. It makes of each packet the event that ours
// should make.
type oracle struct {
	mu      sync.Mutex
	events  []Event
	dec     *packet.Decoder
	closeIt func()
}

func startOracle(t *testing.T, ns *lab.Namespace, group uint16) *oracle {
	t.Helper()
	nf, err := nflog.Open(&nflog.Config{
		NetNS: ns.FD(), Group: group, Copymode: nflog.CopyPacket, Bufsize: 65531, Flags: nflog.FlagSeq, Timeout: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := nf.Con.SetReadBuffer(16 << 20); err != nil {
		t.Fatal(err)
	}
	o := &oracle{dec: packet.NewDecoder()}
	ctx, cancel := context.WithCancel(context.Background())
	err = nf.RegisterWithErrorFunc(ctx, o.add, func(error) int { return 0 })
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	o.closeIt = func() { cancel(); nf.Close() }
	return o
}

func (o *oracle) add(a nflog.Attribute) int {
	m := packet.Meta{EtherType: *a.HwProtocol, Hook: packet.Hook(*a.Hook)}
	if a.Mark != nil {
		m.Mark = *a.Mark
	}
	if a.UID != nil {
		m.UID, m.HasUID = *a.UID, true
	}
	if a.GID != nil {
		m.GID, m.HasGID = *a.GID, true
	}
	var p packet.Packet
	o.dec.Decode(&m, *a.Payload, &p)
	e := Event{Kind: NFLog, NFLogLabel: *a.Prefix}
	e.SetPacket(&m, &p)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, e)
	return 0
}

// stop waits until nothing more comes and returns what came.
func (o *oracle) stop() []Event {
	count := func() int { o.mu.Lock(); defer o.mu.Unlock(); return len(o.events) }
	for last := -1; last != count(); {
		last = count()
		lab.Poll(200*time.Millisecond, func() bool { return false })
	}
	o.closeIt()
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.events
}

func TestLabNFLogErrors(t *testing.T) {
	net := nflogLab(t)
	log, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := NFLogConfig{Groups: []uint16{5}, NetNS: net.Server.FD()}
	first, err := OpenNFLog(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := OpenNFLog(cfg, log); err == nil || !strings.Contains(err.Error(), "bind nflog group 5: another process reads it") {
		t.Errorf("second reader: got %v", err)
	}
	err = net.Client.Do(func() error {
		return withoutNetAdmin(func() error {
			_, err := OpenNFLog(NFLogConfig{Groups: []uint16{5}}, log)
			return err
		})
	})
	if err == nil || !strings.Contains(err.Error(), "(needs CAP_NET_ADMIN)") {
		t.Errorf("without the capability: got %v", err)
	}
}

// withoutNetAdmin runs fn on the calling thread, which must be locked, without
// CAP_NET_ADMIN in its effective set.
func withoutNetAdmin(fn func() error) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps, less [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return err
	}
	less = caps
	less[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&hdr, &less[0]); err != nil {
		return err
	}
	err := fn()
	if back := unix.Capset(&hdr, &caps[0]); back != nil {
		return back
	}
	return err
}
