package attribution_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/attribution"
)

// dialEnv makes the test binary a program that opens a socket, says which and
// waits until its input ends. Its value is what to do.
const dialEnv = "VERDICTD_TEST_DIAL"

// TestMain lets the test binary be the programs that tests run.
func TestMain(m *testing.M) {
	for name, program := range map[string]func(what string) error{dialEnv: dial, senderEnv: send} {
		what := os.Getenv(name)
		if what == "" {
			continue
		}
		if err := program(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// dial opens a UDP socket that is connected to port 9 of an address.
func dial(to string) error {
	conn, err := net.Dial("udp", net.JoinHostPort(to, "9"))
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Println(conn.LocalAddr())
	os.Stdin.Read(make([]byte, 1)) // until its end
	return nil
}

// dialer starts such a program in the namespace and returns its socket.
func dialer(t *testing.T, ns *lab.Namespace, to string) (cmd *exec.Cmd, local netip.AddrPort) {
	t.Helper()
	return dialing(t, ns, exec.Command(os.Args[0]), to)
}

// dialing is dialer with a command that runs the test binary.
func dialing(t *testing.T, ns *lab.Namespace, run *exec.Cmd, to string) (cmd *exec.Cmd, local netip.AddrPort) {
	t.Helper()
	cmd = run
	cmd.Env = append(os.Environ(), dialEnv+"="+to)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	var text string
	if _, err := fmt.Fscan(out, &text); err != nil {
		t.Fatal(err)
	}
	if local, err = netip.ParseAddrPort(text); err != nil {
		t.Fatal(err)
	}
	return cmd, local
}

// working returns a Resolver for the namespace, at work.
func working(t *testing.T, ns *lab.Namespace, mode attribution.Mode) *attribution.Resolver {
	t.Helper()
	r, err := attribution.Open(attribution.Config{Mode: mode, NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Recorded(); mode == attribution.Auto && err != nil {
		t.Fatal(err)
	}
	r.Seed(t.Context())
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// sentBy makes the first packet of a socket.
func sentBy(local, remote netip.AddrPort) (*packet.Meta, *packet.Packet) {
	p := &packet.Packet{
		Status: packet.OK, Version: 4, Protocol: packet.ProtoUDP, HasPorts: true,
		Src: local.Addr(), SrcPort: local.Port(), Dst: remote.Addr(), DstPort: remote.Port(),
	}
	return &packet.Meta{Time: time.Now().UnixNano(), Hook: packet.Output, HasUID: true, HasGID: true}, p
}

// TestLabYoungProcess: without BPF, a program that begins, opens a socket and goes
// on is known at once, without a search through /proc.
func TestLabYoungProcess(t *testing.T) {
	labtest.Require(t, labtest.Root)
	lan := labtest.Pair(t)
	r := working(t, lan.Client, attribution.Proc)
	a := r.New()
	defer a.Close()
	time.Sleep(50 * time.Millisecond) // the connector begins to listen
	const programs = 10
	known, to := 0, netip.MustParseAddrPort("10.99.0.2:9")
	for range programs {
		cmd, local := dialer(t, lan.Client, to.Addr().String())
		searches := r.Searches()
		o := a.Settled(sentBy(local, to))
		if o.Process == nil {
			continue
		}
		if r.Searches() == searches {
			known++
		}
		if o.Source != process.Diag || int(o.Process.PID) != cmd.Process.Pid {
			t.Errorf("got %+v of %+v, want process %d", *o, o.Process, cmd.Process.Pid)
		}
	}
	t.Logf("%d of %d known without a search", known, programs)
	if known == 0 { // not all: on a busy machine others start processes too
		t.Error("none of them is known without a search")
	}
}

// TestLabSharedSocket: where nobody recorded who uses a socket, one that two
// processes hold is of no process.
func TestLabSharedSocket(t *testing.T) {
	labtest.Require(t, labtest.Root)
	lan := labtest.Pair(t)
	to := netip.MustParseAddrPort("10.99.0.2:9")
	var conn *net.UDPConn
	err := lan.Client.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	local := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	r := working(t, lan.Client, attribution.Proc)
	a := r.New()
	defer a.Close()
	if o := a.Settled(sentBy(local, to)); o.Process == nil || int(o.Process.PID) != os.Getpid() {
		t.Fatalf("got %+v, want this process", *o)
	}
	file, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	other := exec.Command("sleep", "60")
	other.ExtraFiles = []*os.File{file}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { errors.Join(other.Process.Kill(), other.Wait()) }()
	r.Seed(t.Context())
	if o := a.Settled(sentBy(local, to)); o.Process != nil || o.Source != process.UIDOnly {
		t.Errorf("got %+v, want only the user: two processes hold the socket", *o)
	}
}

// TestLabPing: without BPF, who holds a ping socket is known after a search.
func TestLabPing(t *testing.T) {
	labtest.Require(t, labtest.Root)
	lan := labtest.Pair(t)
	if err := lan.Client.Sysctl("net/ipv4/ping_group_range", "0 2147483647"); err != nil {
		t.Fatal(err)
	}
	const id = 4711
	var fd int
	err := lan.Client.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrInet4{Port: id})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r := working(t, lan.Client, attribution.Proc)
	a := r.New()
	defer a.Close()
	m, p := sentBy(netip.MustParseAddrPort("10.99.0.1:0"), netip.MustParseAddrPort("10.99.0.2:0"))
	p.Protocol, p.HasPorts, p.ICMPType, p.Echo, p.EchoID = packet.ProtoICMP, false, packet.ICMPEchoRequest, true, id
	var o *process.Owner
	found := lab.Poll(5*time.Second, func() bool { o = a.Settled(m, p); return o.Process != nil })
	if !found || int(o.Process.PID) != os.Getpid() || o.Source != process.Diag {
		t.Errorf("got %+v, want this process", *o)
	}
	m.UID = 7 // of somebody else
	if o := a.Settled(m, p); o.Process != nil {
		t.Errorf("got %+v, want only the user", *o)
	}
}

// TestLabSeeded: sockets that are older than the record are known by who holds
// them, and by who uses them as soon as somebody does.
func TestLabSeeded(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.BPF)
	lan := labtest.Pair(t)
	to := netip.MustParseAddrPort("10.99.0.2:9")
	cmd, local := dialer(t, lan.Client, to.Addr().String())
	r := working(t, lan.Client, attribution.Auto)
	a := r.New()
	defer a.Close()
	o := a.Settled(sentBy(local, to))
	if o.Process == nil || int(o.Process.PID) != cmd.Process.Pid || o.Source != process.Diag {
		t.Errorf("older: got %+v, want process %d by diag", *o, cmd.Process.Pid)
	}
	cmd, local = dialer(t, lan.Client, to.Addr().String())
	o = a.Settled(sentBy(local, to))
	if o.Process == nil || int(o.Process.PID) != cmd.Process.Pid || o.Source != process.BPFCookie {
		t.Errorf("younger: got %+v, want process %d by bpf-cookie", *o, cmd.Process.Pid)
	}
	if again := a.Settled(sentBy(local, to)); again != o {
		t.Errorf("asked twice: got %+v and %+v, want the same", *o, *again)
	}
	var own *net.UDPConn // of this process, which has executed nothing since the recording began
	err := lan.Client.Do(func() (err error) {
		own, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	o = a.Settled(sentBy(own.LocalAddr().(*net.UDPAddr).AddrPort(), to))
	if o.Process == nil || int(o.Process.PID) != os.Getpid() || o.Source != process.LookedUp {
		t.Errorf("an older process: got %+v, want %d, looked up", *o, os.Getpid())
	}
	m, p := sentBy(netip.MustParseAddrPort("10.99.0.1:1"), to)
	m.HasUID, m.HasGID = false, false
	if o := a.Settled(m, p); o.Source != process.Kernel {
		t.Errorf("no socket and no user: got %+v, want the kernel", *o)
	}
	p.Protocol, p.TCPFlags = packet.ProtoTCP, packet.ACK
	if o := a.Settled(m, p); o.Source != process.Unknown {
		t.Errorf("the rest of a connection: got %+v, want unknown", *o)
	}
	m.Hook = packet.Forward
	if o := a.Settled(m, p); o.Source != process.Unknown {
		t.Errorf("forwarded: got %+v, want unknown", *o)
	}
}

// TestLabHash: a hash is known after somebody wanted it, and Revision tells; to flows
// that lack nothing that is no change.
func TestLabHash(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.BPF)
	lan := labtest.Pair(t)
	to := netip.MustParseAddrPort("10.99.0.2:9")
	r := working(t, lan.Client, attribution.Auto)
	a := r.New()
	defer a.Close()
	_, local := dialer(t, lan.Client, to.Addr().String())
	m, p := sentBy(local, to)
	k := p.Key()
	o := a.Settled(m, p)
	changes, revision := a.Changes(&k), a.Revision()
	if o.Process == nil || o.Process.Exe.SHA256 != "" {
		t.Fatalf("got %+v, want a process without a hash", *o)
	}
	if !a.WantHash(o, 0) {
		t.Fatal("no hash will be known")
	}
	var later *process.Owner
	lab.Poll(10*time.Second, func() bool { later = a.Owned(m, p); return later.Process.Exe.SHA256 != "" })
	if a.Revision() == revision || a.Changes(&k) != changes {
		t.Error("only Revision is to tell of the hash")
	}
	if later.Process == nil || len(later.Process.Exe.SHA256) != 64 || later.ID == o.ID {
		t.Errorf("got %+v of %+v, want another owner with a hash", *later, later.Process)
	}
	if _, local := dialer(t, lan.Client, to.Addr().String()); true { // the same file, another process
		m, p := sentBy(local, to)
		a.WantHash(a.Settled(m, p), 0)
		if !lab.Poll(time.Second, func() bool { return a.Owned(m, p).Process.Exe.SHA256 == later.Process.Exe.SHA256 }) {
			t.Errorf("got %+v, want the hash", a.Owned(m, p).Process)
		}
	}
}

// TestLabRecordFull: what the kernel's record has forgotten for want of room is asked
// of sock_diag, while the socket is there.
func TestLabRecordFull(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.BPF)
	const room, sockets = 64, 1000
	lan := labtest.Pair(t)
	r, err := attribution.Open(attribution.Config{NetNS: lan.Client.FD(), Flows: room})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if err := r.Recorded(); err != nil {
		t.Fatal(err)
	}
	rules, err := hook.Install(hook.Config{Hooks: []hook.Hook{hook.Output}, Bypass: true, NetNS: lan.Client.FD(), Record: r.Program()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rules.Close() })
	a := r.New()
	t.Cleanup(func() { a.Close() })
	to := netip.MustParseAddrPort("10.99.0.2:9")
	var locals []netip.AddrPort
	for range sockets {
		var conn *net.UDPConn
		err := lan.Client.Do(func() (err error) {
			conn, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		locals = append(locals, conn.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	bySource := map[process.Source]int{}
	for _, local := range locals {
		o := a.Settled(sentBy(local, to))
		bySource[o.Source]++
		if o.Process == nil || int(o.Process.PID) != os.Getpid() {
			t.Fatalf("got %+v, want this process", *o)
		}
	}
	if bySource[process.LookedUp] != sockets { // the process is older than the record
		t.Errorf("got %v of %d, want all by the socket's record", bySource, sockets)
	}
}
