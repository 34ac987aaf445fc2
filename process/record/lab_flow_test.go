package record_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process/record"
)

// TestLabKernelPackets: what the kernel sends by itself is of nobody, whoever
// provoked it.
func TestLabKernelPackets(t *testing.T) {
	requireBPF(t)
	labtest.Require(t, labtest.IPTablesBinary)
	net := labtest.Pair(t)
	r := open(t, record.Config{})
	rule(t, r, net.Server)
	for _, test := range []struct {
		name  string
		proto lab.Proto
		to    string
		from  string
		key   *packet.Key
	}{
		{"reset", lab.TCP, "10.99.0.2:9", "10.99.0.1:7001", key(6, "10.99.0.2:9", "10.99.0.1:7001")},
		{"reset v6", lab.TCP, "[fd99::2]:9", "[fd99::1]:7001", key(6, "[fd99::2]:9", "[fd99::1]:7001")},
		{"unreachable", lab.UDP, "10.99.0.2:9", "10.99.0.1:7001", key(1, "10.99.0.2:0", "10.99.0.1:0")},
		{"unreachable v6", lab.UDP, "[fd99::2]:9", "[fd99::1]:7001", key(58, "[fd99::2]:0", "[fd99::1]:0")},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, err := net.Client.Probe(lab.Probe{Proto: test.proto, To: netip.MustParseAddrPort(test.to), From: netip.MustParseAddrPort(test.from)})
			if err != nil || out != lab.Refused {
				t.Fatal(out, err)
			}
			var f record.Flow
			if !r.Flow(test.key, 0, record.NoUser, &f) || f.HasOwner || f.Cookie != 0 {
				t.Errorf("got %+v, want cookie 0 and no owner", f)
			}
		})
	}
}

// talker is a helper that does what it is told, line by line.
type talker struct {
	t   *testing.T
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Reader
}

// talk starts a helper that listens or sends on command.
func talk(t *testing.T, ns *lab.Namespace, extra []*os.File, words string) *talker {
	t.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*settle)
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = environment(words)
	cmd.Stdin, cmd.Stderr, cmd.ExtraFiles = in, os.Stderr, extra
	answers, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	in.Close()
	h := &talker{t: t, cmd: cmd, in: out, out: bufio.NewReader(answers)}
	t.Cleanup(func() {
		defer cancel()
		out.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	h.answer()
	return h
}

// tell writes a line and waits for the answer.
func (h *talker) tell(line string) string {
	h.t.Helper()
	if _, err := fmt.Fprintln(h.in, line); err != nil {
		h.t.Fatal(err)
	}
	return h.answer()
}

func (h *talker) answer() string {
	h.t.Helper()
	line, err := h.out.ReadString('\n')
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func (h *talker) pid() uint32 { return uint32(h.cmd.Process.Pid) }

// ownUser is the user that the kernel names with what this process and its children send.
func ownUser() record.User { return record.UserOf(uint32(os.Getuid())) }

// flowOf reads the record of client4 to server4 over UDP, with the number that
// says when it has changed.
func flowOf(t *testing.T, r *record.Recorder) (record.Flow, uint32) {
	t.Helper()
	k := key(17, client4, server4)
	n := r.Changes(k)
	var f record.Flow
	if !r.Flow(k, 0, ownUser(), &f) {
		t.Fatal("not recorded")
	}
	return f, n
}

// TestLabPassedSocket: two processes send by one socket that has no connection.
func TestLabPassedSocket(t *testing.T) {
	b := newBench(t)
	socket := boundUDP(t, b.net.Client, netip.MustParseAddrPort("0.0.0.0:7001"))
	first, second := talk(t, b.net.Client, []*os.File{socket}, "sender"), talk(t, b.net.Client, []*os.File{socket}, "sender")
	first.tell(server4)
	f1, n1 := flowOf(t, b.rec)
	if f1.Owner.PID != first.pid() || f1.Owner.Hook != record.HookSend {
		t.Fatalf("got %+v, want pid %d", f1, first.pid())
	}
	first.tell(server4)
	if f, n := flowOf(t, b.rec); f != f1 || n != n1 {
		t.Errorf("second packet: got %+v (%d), want %+v (%d)", f, n, f1, n1)
	}
	second.tell(server4)
	f2, n2 := flowOf(t, b.rec)
	if f2.Owner.PID != second.pid() || f2.Cookie != f1.Cookie || n2 == n1 {
		t.Errorf("got %+v (%d) after %d, want pid %d by the same socket", f2, n2, n1, second.pid())
	}
	first.tell(server4)
	if f, n := flowOf(t, b.rec); f.Owner.PID != first.pid() || n == n2 {
		t.Errorf("got %+v, want pid %d again", f, first.pid())
	}
}

// TestLabPortReuse: another socket sends by the same tuple.
func TestLabPortReuse(t *testing.T) {
	b := newBench(t)
	o1, _ := b.sender(t, command{words: strings.Fields(sendUDP)})
	_, n1 := flowOf(t, b.rec)
	o2, _ := b.sender(t, command{words: strings.Fields(sendUDP)})
	_, n2 := flowOf(t, b.rec)
	if o1.Cookie == o2.Cookie || o1.PID == o2.PID || n1 == n2 {
		t.Errorf("got %+v (%d), then %+v (%d)", o1, n1, o2, n2)
	}
}

// TestLabTakenOver: a packet that waits in the queue is not taken for that of a
// program that gets hold of its tuple meanwhile.
func TestLabTakenOver(t *testing.T) {
	requireBPF(t)
	labtest.Require(t, labtest.IPTablesBinary)
	net := labtest.Pair(t)
	first, second := copyOf(t, filepath.Join(t.TempDir(), "first")), copyOf(t, filepath.Join(t.TempDir(), "second"))
	began := time.Now()
	command{ns: net.Client, path: first, words: strings.Fields(sendUDP)}.run(t)
	window := max(300*time.Millisecond, 8*time.Since(began)) // two programs start and send within it
	r := open(t, record.Config{}.Within(window))
	rule(t, r, net.Client)
	send := func(path string) record.Flow {
		t.Helper()
		command{ns: net.Client, path: path, words: strings.Fields(sendUDP)}.run(t)
		f, _ := flowOf(t, r)
		return f
	}
	for _, step := range []struct {
		path  string
		wait  time.Duration
		taken bool
	}{
		{first, 0, false}, {first, 0, false}, // another process, the same program
		{second, 0, true}, {second, 0, true}, // the packet of the first may still wait
		{first, 0, true}, {second, 2 * window, false}, // what waited has been judged
	} {
		time.Sleep(step.wait)
		if f := send(step.path); f.Ambiguous != step.taken || !f.HasOwner {
			t.Errorf("%s after %v: got %+v, want ambiguous %v", filepath.Base(step.path), step.wait, f, step.taken)
		}
	}
	// Of two users the kernel names the one whose packet it is.
	const other = 65534
	before, _ := flowOf(t, r)
	pid := command{ns: net.Client, words: strings.Fields(sendUDP), attr: &syscall.SysProcAttr{Credential: credential(other, other)}}.run(t)
	var f record.Flow
	if !r.Flow(key(17, client4, server4), 0, record.UserOf(other), &f) || f.Owner.PID != pid || f.Ambiguous {
		t.Errorf("got %+v, want process %d", f, pid)
	}
	if after, _ := flowOf(t, r); after != before {
		t.Errorf("another user's packet: got %+v, want %+v as before", after, before)
	}
	if f := send(second); f.Ambiguous || !f.HasOwner {
		t.Errorf("after another user's packet: got %+v", f)
	}
}

// TestLabOlderProcess: a process and its socket are older than the recorder. Who it is
// the kernel can say, but not any more what it has executed.
func TestLabOlderProcess(t *testing.T) {
	requireBPF(t)
	labtest.Require(t, labtest.IPTablesBinary)
	net := labtest.Pair(t)
	socket := boundUDP(t, net.Client, netip.MustParseAddrPort("0.0.0.0:7001"))
	old := talk(t, net.Client, []*os.File{socket}, "sender")
	r := open(t, record.Config{})
	rule(t, r, net.Client)
	old.tell(server4)
	f, _ := flowOf(t, r)
	var p record.Process
	if f.Owner.PID != old.pid() || f.Owner.Start == 0 || f.Owner.UID != uint32(os.Getuid()) {
		t.Fatalf("got flow %+v, want pid %d", f, old.pid())
	}
	if r.Process(old.pid(), f.Owner.ExecID, &p) || r.Running(old.pid(), &p) {
		t.Errorf("got %+v: what it runs was recorded when it could have been changed", p)
	}
}

// TestLabSeed: an owner found by other means holds until the socket is used, and
// comes into the flow.
func TestLabSeed(t *testing.T) {
	requireBPF(t)
	labtest.Require(t, labtest.IPTablesBinary)
	net := labtest.Pair(t)
	socket := boundUDP(t, net.Client, netip.MustParseAddrPort("0.0.0.0:7001"))
	connectUDP(t, socket, netip.MustParseAddrPort(server4))
	r := open(t, record.Config{})
	rule(t, r, net.Client)
	write(t, socket)
	f, n := flowOf(t, r)
	if f.HasOwner || f.Cookie == 0 || f.NetNS == 0 {
		t.Fatalf("got %+v, want a socket without owner", f)
	}
	seed := record.Owner{Cookie: f.Cookie, PID: 1, UID: 2, GID: 3, CgroupID: 4, NetNS: f.NetNS, Start: 5}
	if err := r.Seed(&seed); err != nil {
		t.Fatal(err)
	}
	if err := r.Seed(&record.Owner{Cookie: f.Cookie, PID: 9}); err != nil {
		t.Fatal(err)
	}
	write(t, socket)
	seed.Seeded = true
	if got, after := flowOf(t, r); !got.HasOwner || got.Owner != seed || after == n {
		t.Errorf("got %+v (%d), want %+v", got, after, seed)
	}
	connectUDP(t, socket, netip.MustParseAddrPort(server4))
	var o record.Owner
	if !r.Owner(f.Cookie, &o) || o.PID != uint32(os.Getpid()) || o.Seeded || o.Hook != record.HookConnect {
		t.Errorf("got %+v, want pid %d", o, os.Getpid())
	}
}

// TestLabAccepted: an accepted socket has the owner of its listener, from the
// answer to the SYN on.
func TestLabAccepted(t *testing.T) {
	requireBPF(t)
	labtest.Require(t, labtest.IPTablesBinary)
	net := labtest.Pair(t)
	r := open(t, record.Config{})
	rule(t, r, net.Server)
	for i, listen := range []string{"tcp 10.99.0.2:80", "tcp [fd99::2]:80", "mptcp 10.99.0.2:81"} {
		proto, local, _ := strings.Cut(listen, " ")
		host := "10.99.0.1"
		if strings.HasPrefix(local, "[") {
			host = "[fd99::1]"
		}
		from := fmt.Sprintf("%s:%d", host, 7100+i)
		server := talk(t, net.Server, nil, "listen "+proto+" "+local)
		command{ns: net.Client, words: []string{proto, local, fmt.Sprint(7100 + i)}}.run(t)
		k := key(6, local, from)
		var f record.Flow
		if !r.Flow(k, 0, record.NoUser, &f) || !f.HasOwner || f.Owner.PID != server.pid() || f.Owner.Hook != record.HookAccept {
			t.Errorf("%s: SYN-ACK: got %+v, want pid %d", listen, f, server.pid())
		}
		cookie := server.tell("accept")
		if !r.Flow(k, 0, ownUser(), &f) || !f.HasOwner || f.Owner.PID != server.pid() {
			t.Errorf("%s: data: got %+v, want pid %d", listen, f, server.pid())
		}
		if proto == "tcp" && fmt.Sprint(f.Cookie) != cookie {
			t.Errorf("%s: got cookie %d, want %s", listen, f.Cookie, cookie)
		}
	}
}

// TestLabForward: a host that forwards knows who sent in another namespace, of packets
// that came in by the interface that leads there, and of no others.
func TestLabForward(t *testing.T) {
	requireBPF(t)
	labtest.Require(t, labtest.IPTablesBinary)
	lan := labtest.Router(t)
	var r *record.Recorder
	err := lan.Router.Do(func() (err error) {
		r, err = record.Open(record.Config{Forward: true})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	pin := filepath.Join(filesystem(t), "flow")
	if err := r.Pin(pin); err != nil {
		t.Fatal(err)
	}
	labtest.BothTables(t, lan.Router, "-t", "mangle", "-A", "POSTROUTING", "-m", "bpf", "--object-pinned", pin, "-j", "DROP")
	const from, to = "10.99.1.2:7001", "10.99.2.2:9"
	pid := command{ns: lan.Client, words: []string{"udp", to, "7001"}}.run(t)
	rules := labtest.Counters(t, lan.Router, "mangle", "POSTROUTING")
	if len(rules) != 1 || rules[0].Packets != 0 {
		t.Errorf("the flow program has matched: %+v", rules)
	}
	in, out := interfaceOf(t, lan.Router, "10.99.1.1"), interfaceOf(t, lan.Router, "10.99.2.1")
	var f record.Flow
	if !r.Flow(key(17, from, to), in, record.NoUser, &f) || !f.HasOwner || f.Owner.PID != pid || f.Ambiguous {
		t.Errorf("got %+v, want pid %d", f, pid)
	}
	if r.Flow(key(17, from, to), 0, ownUser(), &f) || r.Flow(key(17, from, to), out, record.NoUser, &f) {
		t.Errorf("got %+v of another way in", f)
	}
	// The router itself is left to the rule: it has none here.
	command{ns: lan.Router, words: []string{"udp", to, "7002"}}.run(t)
	// Another namespace with the address of the client, which leads elsewhere.
	twin := labtest.Router(t)
	command{ns: twin.Client, words: []string{"udp", to, "7001"}}.run(t)
	if !r.Flow(key(17, from, to), in, record.NoUser, &f) || f.Owner.PID != pid || f.Ambiguous {
		t.Errorf("got %+v after another namespace sent by the same tuple, want pid %d", f, pid)
	}
	// Who sends by a packet socket there has no record, and is not taken for the other.
	forged, err := lab.UDPPacket(netip.MustParseAddrPort(from), netip.MustParseAddrPort(to), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	links, err := lan.Client.Links()
	if err != nil {
		t.Fatal(err)
	}
	if err := lan.Client.Inject(links[len(links)-1].Name, forged); err != nil {
		t.Fatal(err)
	}
	if !lab.Poll(settle, func() bool { return r.Flow(key(17, from, to), in, record.NoUser, &f) && !f.HasOwner }) {
		t.Errorf("got %+v after a forged packet, want nobody", f)
	}
}

// interfaceOf returns the index of the interface that has an address.
func interfaceOf(t *testing.T, ns *lab.Namespace, address string) (index uint32) {
	t.Helper()
	err := ns.Do(func() error {
		all, err := net.Interfaces()
		if err != nil {
			return err
		}
		for i := range all {
			addrs, err := all[i].Addrs()
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if ip, ok := a.(*net.IPNet); ok && ip.IP.String() == address {
					index = uint32(all[i].Index)
				}
			}
		}
		return nil
	})
	if err != nil || index == 0 {
		t.Fatalf("no interface has %s: %v", address, err)
	}
	return index
}
