package lab_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// quiet is how long a probe waits for an answer that must not come.
const quiet = 100 * time.Millisecond

func TestNamespacesAreSeparate(t *testing.T) {
	labtest.Require(t, labtest.Root)
	labtest.Leaks(t)
	home := readLink(t, "/proc/thread-self/ns/net")
	seen := map[string]bool{home: true}
	for range 2 {
		ns := newNamespace(t)
		var inside string
		err := ns.Do(func() error {
			inside = readLink(t, "/proc/thread-self/ns/net")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if seen[inside] {
			t.Errorf("namespace %s is not a new one", inside)
		}
		seen[inside] = true
		if got := readLink(t, ns.Path()); got != inside {
			t.Errorf("Path leads to %s, want %s", got, inside)
		}
		links, err := ns.Links()
		if err != nil {
			t.Fatal(err)
		}
		if len(links) != 1 || links[0].Name != "lo" || links[0].Flags&net.FlagUp == 0 {
			t.Errorf("links of a new namespace: %v, want lo, up", links)
		}
	}
	if got := readLink(t, "/proc/thread-self/ns/net"); got != home {
		t.Errorf("the test moved to %s", got)
	}
}

func TestDoReturnsTheThread(t *testing.T) {
	labtest.Require(t, labtest.Root)
	ns := newNamespace(t)
	home := readLink(t, "/proc/thread-self/ns/net")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	want := errors.New("from fn")
	if got := ns.Do(func() error { return want }); !errors.Is(got, want) {
		t.Errorf("error: got %v, want %v", got, want)
	}
	func() {
		defer func() { recover() }()
		ns.Do(func() error { panic("in fn") })
	}()
	if got := readLink(t, "/proc/thread-self/ns/net"); got != home {
		t.Errorf("the thread stayed in %s", got)
	}
}

func TestClosedNamespace(t *testing.T) {
	labtest.Require(t, labtest.Root)
	ns := newNamespace(t)
	for range 2 {
		if err := ns.Close(); err != nil {
			t.Fatal(err)
		}
	}
	err := ns.Do(func() error {
		t.Error("Do ran in a closed namespace")
		return nil
	})
	if err == nil {
		t.Error("Do in a closed namespace gave no error")
	}
}

func TestSysctlRefusesOtherKeys(t *testing.T) {
	labtest.Require(t, labtest.Root)
	ns := newNamespace(t)
	// None of these exists: a broken check changes nothing.
	for _, key := range []string{"kernel/no-such", "net/../kernel/no-such", "/net/no-such", "net/", ""} {
		if err := ns.Sysctl(key, "x"); err == nil || !strings.Contains(err.Error(), "below net/") {
			t.Errorf("Sysctl(%q): got %v, want a refusal", key, err)
		}
	}
}

// TestCloseDestroys closes one end and watches the other: its link goes only
// when the kernel destroys the closed namespace.
func TestCloseDestroys(t *testing.T) {
	labtest.Require(t, labtest.Root)
	labtest.Leaks(t)
	network, err := lab.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer network.Close()
	srv := echo(t, network.Server, "10.99.0.2:0")
	if got := ask(t, network.Client, lab.Probe{To: srv.Addr(), Payload: []byte("x")}); got != lab.Answered {
		t.Errorf("before close: %s", got)
	}
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if err := network.Server.Close(); err != nil {
		t.Error(err)
	}
	var links []net.Interface
	gone := lab.Poll(10*time.Second, func() bool {
		links, err = network.Client.Links()
		return err != nil || len(links) == 1
	})
	if err != nil || !gone {
		t.Errorf("the server's namespace still lives: links %v, error %v", links, err)
	}
}

func TestChildRunsInside(t *testing.T) {
	labtest.Require(t, labtest.Root)
	ns := newNamespace(t)
	got := strings.TrimSpace(labtest.Output(t, ns, "readlink", "/proc/self/ns/net"))
	if want := readLink(t, ns.Path()); got != want {
		t.Errorf("child in %s, want %s", got, want)
	}
}

func TestLinkErrors(t *testing.T) {
	labtest.Require(t, labtest.Root)
	a, b := newNamespace(t), newNamespace(t)
	tests := []struct {
		name string
		cfg  lab.LinkConfig
		want string
	}{
		{"name too long", lab.LinkConfig{NameA: "a-name-of-17-char"}, "link test:a-name-of-17-char"},
		{"no address", lab.LinkConfig{AddrsA: make([]netip.Prefix, 1)}, "not an address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := lab.Link(a, b, tt.cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
	if err := a.Inject("nowhere", []byte{0x45}); err == nil || !strings.Contains(err.Error(), `no link "nowhere"`) {
		t.Errorf("inject on a missing link: %v", err)
	}
}

func TestProbe(t *testing.T) {
	labtest.Leaks(t)
	p := labtest.Pair(t)
	for _, ip := range []string{"10.99.0.2", "fd99::2"} {
		srv := echo(t, p.Server, netip.AddrPortFrom(netip.MustParseAddr(ip), 7).String())
		closed := netip.AddrPortFrom(srv.Addr().Addr(), 9)
		nobody := netip.AddrPortFrom(srv.Addr().Addr().Next(), 7)
		from := netip.AddrPortFrom(srv.Addr().Addr().Prev(), 4444)
		tests := []struct {
			name  string
			probe lab.Probe
			want  lab.Outcome
		}{
			{"tcp connect", lab.Probe{To: srv.Addr()}, lab.Answered},
			{"tcp echo", lab.Probe{To: srv.Addr(), Payload: []byte("hello")}, lab.Answered},
			{"tcp from a port", lab.Probe{To: srv.Addr(), From: from}, lab.Answered},
			{"tcp closed", lab.Probe{To: closed}, lab.Refused},
			{"udp echo", lab.Probe{Proto: lab.UDP, To: srv.Addr()}, lab.Answered},
			{"udp from a port", lab.Probe{Proto: lab.UDP, To: srv.Addr(), From: from}, lab.Answered},
			{"udp closed", lab.Probe{Proto: lab.UDP, To: closed}, lab.Refused},
			{"icmp", lab.Probe{Proto: lab.ICMP, To: srv.Addr()}, lab.Answered},
			{"icmp with payload", lab.Probe{Proto: lab.ICMP, To: srv.Addr(), Payload: make([]byte, 3000)}, lab.Answered},
			{"icmp nobody", lab.Probe{Proto: lab.ICMP, To: nobody, Timeout: quiet}, lab.Silent},
		}
		for _, tt := range tests {
			t.Run(tt.name+" "+ip, func(t *testing.T) {
				if got := ask(t, p.Client, tt.probe); got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
			})
		}
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestProbeSeesRules checks that a drop, a reject and a local drop are told
// apart.
func TestProbeSeesRules(t *testing.T) {
	labtest.Require(t, labtest.IPTablesBinary)
	p := labtest.Pair(t)
	srv := echo(t, p.Server, "10.99.0.2:7")
	rule := []string{"INPUT", "-p", "icmp", "-j", "DROP"}
	labtest.IPTables(t, p.Server, append([]string{"-A"}, rule...)...)
	if got := ask(t, p.Client, lab.Probe{Proto: lab.ICMP, To: srv.Addr(), Timeout: quiet}); got != lab.Silent {
		t.Errorf("dropped: got %s, want silent", got)
	}
	if c := labtest.Counters(t, p.Server, "", "INPUT"); len(c) != 1 || c[0].Packets != 1 || c[0].Target != "DROP" {
		t.Errorf("counters: got %+v, want one DROP with 1 packet", c)
	}
	labtest.IPTables(t, p.Server, append([]string{"-D"}, rule...)...)
	labtest.IPTables(t, p.Server, "-A", "INPUT", "-p", "tcp", "-j", "REJECT", "--reject-with", "icmp-admin-prohibited")
	if got := ask(t, p.Client, lab.Probe{To: srv.Addr()}); got != lab.Unreachable {
		t.Errorf("rejected: got %s, want unreachable", got)
	}
	labtest.IPTables(t, p.Client, "-A", "OUTPUT", "-p", "udp", "-j", "DROP")
	if got := ask(t, p.Client, lab.Probe{Proto: lab.UDP, To: srv.Addr()}); got != lab.Denied {
		t.Errorf("dropped in OUTPUT: got %s, want denied", got)
	}
	sent, err := p.Client.Flood(t.Context(), lab.Flood{To: srv.Addr(), Count: 3})
	if want := (lab.Sent{Denied: 3}); err != nil || sent != want {
		t.Errorf("flood: got %+v, %v, want %+v", sent, err, want)
	}
}

func TestRouterForwards(t *testing.T) {
	labtest.Leaks(t)
	r := labtest.Router(t)
	for _, addr := range []string{"10.99.2.2:7", "[fd99:2::2]:7"} {
		srv := echo(t, r.Server, addr)
		for _, proto := range []lab.Proto{lab.TCP, lab.UDP, lab.ICMP} {
			p := lab.Probe{Proto: proto, To: srv.Addr(), Payload: []byte("through")}
			if got := ask(t, r.Client, p); got != lab.Answered {
				t.Errorf("%s to %s: got %s, want answered", proto, addr, got)
			}
		}
		if err := r.Router.SetForwarding(false); err != nil {
			t.Fatal(err)
		}
		p := lab.Probe{Proto: lab.ICMP, To: srv.Addr(), Timeout: quiet}
		if got := ask(t, r.Client, p); got == lab.Answered {
			t.Errorf("%s answered with forwarding off: not through the router", addr)
		}
		if err := r.Router.SetForwarding(true); err != nil {
			t.Fatal(err)
		}
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestEchoEndsWithClients closes the server while a client is connected.
func TestEchoEndsWithClients(t *testing.T) {
	labtest.Leaks(t)
	p := labtest.Pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	srv, err := p.Server.Echo(ctx, netip.MustParseAddrPort("10.99.0.2:0"))
	if err != nil {
		t.Fatal(err)
	}
	var conn net.Conn
	err = p.Client.Do(func() error {
		conn, err = net.Dial("tcp", srv.Addr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel()
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after the server closed: got %v, want %v or a reset", err, io.EOF)
	}
}

func newNamespace(t *testing.T) *lab.Namespace {
	t.Helper()
	ns, err := lab.NewNamespace("test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func echo(t *testing.T, ns *lab.Namespace, addr string) *lab.EchoServer {
	t.Helper()
	srv, err := ns.Echo(t.Context(), netip.MustParseAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	return srv
}

func ask(t *testing.T, ns *lab.Namespace, p lab.Probe) lab.Outcome {
	t.Helper()
	got, err := ns.Probe(p)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func readLink(t *testing.T, path string) string {
	t.Helper()
	link, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return link
}
