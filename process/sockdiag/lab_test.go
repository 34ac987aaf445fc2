package sockdiag_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process/sockdiag"
)

// open opens a Conn for the namespace until the test ends.
func open(t testing.TB, ns *lab.Namespace) *sockdiag.Conn {
	t.Helper()
	c, err := sockdiag.Open(ns.FD())
	if errors.Is(err, sockdiag.ErrUnsupported) {
		labtest.Lacks(t, "sock_diag", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// socket makes a socket in the namespace, bound to local and connected to remote
// where these are given. It returns at once.
func socket(t testing.TB, ns *lab.Namespace, family, kind, proto int, local, remote string) int {
	t.Helper()
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		return err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		labtest.Lacks(t, labtest.Cap(fmt.Sprintf("sockets of protocol %d", proto)), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if local != "" {
		if err := unix.Bind(fd, sockaddr(family, local)); err != nil {
			t.Fatal(err)
		}
	}
	if remote != "" {
		if err := unix.Connect(fd, sockaddr(family, remote)); err != nil && err != unix.EINPROGRESS {
			t.Fatal(err)
		}
	}
	return fd
}

func sockaddr(family int, text string) unix.Sockaddr {
	a := netip.MustParseAddrPort(text)
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	sa := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if a.Addr().Is4() && a.Addr().IsUnspecified() {
		sa.Addr = [16]byte{}
	}
	return sa
}

// localOf returns the socket's own end.
func localOf(t testing.TB, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	t.Fatalf("unexpected address %T", sa)
	return netip.AddrPort{}
}

func inodeOf(t testing.TB, fd int) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return uint32(st.Ino)
}

// key makes the key of a packet between two ends; IPv4 unless both are IPv6.
func key(proto uint8, src, dst netip.AddrPort) *packet.Key {
	k := &packet.Key{Protocol: proto, Version: 4, Src: src.Addr().As16(), Dst: dst.Addr().As16(), SrcPort: src.Port(), DstPort: dst.Port()}
	if src.Addr().Unmap().Is6() && dst.Addr().Unmap().Is6() {
		k.Version = 6
	}
	return k
}

// is checks that the socket found is that of fd: by inode, and by cookie, which
// the socket itself tells.
func is(t *testing.T, s *sockdiag.Socket, fd int) {
	t.Helper()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	if s.Cookie != cookie || s.Inode != inodeOf(t, fd) {
		t.Errorf("got cookie %#x, inode %d, want %#x, %d", s.Cookie, s.Inode, cookie, inodeOf(t, fd))
	}
	if s.UID != uint32(os.Getuid()) {
		t.Errorf("got user %d, want %d", s.UID, os.Getuid())
	}
	if !s.HasCgroup || s.CgroupID == 0 {
		t.Logf("no cgroup: %+v", s)
	}
}

// TestLabFindUDP looks up datagram sockets by packets in both directions.
func TestLabFindUDP(t *testing.T) {
	labtest.Require(t, labtest.Root)
	const v4, v6 = unix.AF_INET, unix.AF_INET6
	tests := []struct {
		name           string
		family         int
		local, remote  string // of the socket
		self, peer     string // of the packet, self without port
		state          sockdiag.State
		socketIsFamily uint8
	}{
		{"connected", v4, "", "10.99.0.2:9", "10.99.0.1", "10.99.0.2:9", sockdiag.Established, 4},
		{"bound", v4, "10.99.0.1:0", "", "10.99.0.1", "10.99.0.2:9", sockdiag.Close, 4},
		{"wildcard", v4, "0.0.0.0:0", "", "10.99.0.1", "10.99.0.2:9", sockdiag.Close, 4},
		{"IPv6 connected", v6, "", "[fd99::2]:9", "fd99::1", "[fd99::2]:9", sockdiag.Established, 6},
		{"IPv6 wildcard", v6, "[::]:0", "", "fd99::1", "[fd99::2]:9", sockdiag.Close, 6},
		{"dual-stack, IPv4 packet", v6, "[::]:0", "", "10.99.0.1", "10.99.0.2:9", sockdiag.Close, 6},
		{"v4-mapped", v6, "", "[::ffff:10.99.0.2]:9", "10.99.0.1", "10.99.0.2:9", sockdiag.Established, 6},
	}
	for _, proto := range []int{unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%d %s", proto, tt.name), func(t *testing.T) {
				ns := labtest.Pair(t).Client
				fd := socket(t, ns, tt.family, unix.SOCK_DGRAM, proto, tt.local, tt.remote)
				c := open(t, ns)
				self := netip.AddrPortFrom(netip.MustParseAddr(tt.self), localOf(t, fd).Port())
				peer := netip.MustParseAddrPort(tt.peer)
				for incoming, k := range map[bool]*packet.Key{false: key(uint8(proto), self, peer), true: key(uint8(proto), peer, self)} {
					var s sockdiag.Socket
					found, err := c.Find(k, incoming, &s)
					if err != nil || !found {
						t.Fatalf("incoming %v: got %v, error %v", incoming, found, err)
					}
					is(t, &s, fd)
					if s.State != tt.state || s.Family != tt.socketIsFamily || s.Protocol != uint8(proto) || s.Local != localOf(t, fd) {
						t.Errorf("incoming %v: got %+v, want state %s, family %d, protocol %d, local %s", incoming, s, tt.state, tt.socketIsFamily, proto, localOf(t, fd))
					}
				}
				var s sockdiag.Socket
				other := key(uint8(proto), netip.AddrPortFrom(self.Addr(), self.Port()+1), peer)
				if found, err := c.Find(other, false, &s); found || err != nil || s != (sockdiag.Socket{}) {
					t.Errorf("another port: got %v, %+v, error %v", found, s, err)
				}
			})
		}
	}
}

// TestLabFindBound finds sockets bound to an interface only by its index.
func TestLabFindBound(t *testing.T) {
	labtest.Require(t, labtest.Root)
	ns := labtest.Pair(t).Client
	var eth0 *net.Interface
	if err := ns.Do(func() (err error) { eth0, err = net.InterfaceByName("eth0"); return err }); err != nil {
		t.Fatal(err)
	}
	index := uint32(eth0.Index)
	fd := socket(t, ns, unix.AF_INET, unix.SOCK_DGRAM, 0, "0.0.0.0:0", "")
	if err := ns.Do(func() error { return unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "eth0") }); err != nil {
		t.Fatal(err)
	}
	c := open(t, ns)
	k := key(unix.IPPROTO_UDP, netip.AddrPortFrom(netip.MustParseAddr("10.99.0.1"), localOf(t, fd).Port()), netip.MustParseAddrPort("10.99.0.2:9"))
	for iface, want := range map[uint32]bool{0: false, index: true, index + 1: false} {
		var s sockdiag.Socket
		found, err := c.FindOn(k, iface, false, &s)
		if found != want || err != nil || found && s.Interface != index {
			t.Errorf("interface %d: got %v, %+v, error %v, want %v", iface, found, s, err, want)
		}
	}
}

// TestLabDump compares the list with that of ss.
func TestLabDump(t *testing.T) {
	labtest.Require(t, labtest.Root)
	n := labtest.Pair(t)
	if _, err := os.Stat("/usr/bin/ss"); err != nil {
		labtest.Lacks(t, "ss binary", err)
	}
	listener, _, _ := tcpPair(t, n, unix.AF_INET6, "[::]:0", "10.99.0.2")
	defer unix.Close(accept(t, listener))
	for i := range 100 { // more than one datagram holds
		socket(t, n.Server, unix.AF_INET, unix.SOCK_DGRAM, 0, fmt.Sprintf("127.0.0.1:%d", 2000+i), "")
	}
	socket(t, n.Server, unix.AF_INET6, unix.SOCK_DGRAM, 0, "[::]:0", "")
	socket(t, n.Server, unix.AF_INET6, unix.SOCK_DGRAM, 0, "", "[fd99::1]:9")
	var got []string
	if err := open(t, n.Server).Dump(t.Context(), func(s *sockdiag.Socket) error {
		name := map[uint8]string{sockdiag.ProtoTCP: "tcp", sockdiag.ProtoUDP: "udp"}[s.Protocol]
		got = append(got, fmt.Sprintf("%s %s ino:%d sk:%x", name, s.State, s.Inode, s.Cookie))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var want []string
	for line := range strings.Lines(labtest.Output(t, n.Server, "ss", "-H", "-n", "-e", "-a", "-t", "-u")) {
		f := strings.Fields(line)
		text := f[0] + " " + f[1]
		for _, word := range f {
			if strings.HasPrefix(word, "ino:") || strings.HasPrefix(word, "sk:") {
				text += " " + word
			}
		}
		want = append(want, text)
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sockets (-ss +got):\n%s", diff)
	}
	if len(got) < 104 {
		t.Errorf("got %d sockets, want 104 at least", len(got))
	}
}

// TestLabDestroy resets a connection and disconnects a UDP socket, and nothing
// else.
func TestLabDestroy(t *testing.T) {
	labtest.Require(t, labtest.Root)
	n := labtest.Pair(t)
	listener, client, server := tcpPair(t, n, unix.AF_INET, "0.0.0.0:0", "10.99.0.2")
	accepted := accept(t, listener)
	defer unix.Close(accepted)
	c := open(t, n.Client)
	udp := socket(t, n.Client, unix.AF_INET, unix.SOCK_DGRAM, 0, "", "10.99.0.2:9")
	udp6 := socket(t, n.Client, unix.AF_INET6, unix.SOCK_DGRAM, 0, "[::]:0", "")
	var tcp, u4, u6 sockdiag.Socket
	for fd, s := range map[int]*sockdiag.Socket{client: &tcp, udp: &u4, udp6: &u6} {
		if err := c.Dump(t.Context(), func(got *sockdiag.Socket) error {
			if got.Inode == inodeOf(t, fd) {
				*s = *got
			}
			return nil
		}); err != nil || s.Inode == 0 {
			t.Fatalf("not listed: %+v, error %v", s, err)
		}
	}
	wrong := tcp
	wrong.Cookie++
	if err := c.Destroy(&wrong); err == nil {
		t.Error("a socket with another cookie is destroyed")
	}
	for _, s := range []*sockdiag.Socket{&tcp, &u4, &u6} {
		if err := c.Destroy(s); errors.Is(err, sockdiag.ErrUnsupported) {
			labtest.Lacks(t, "CONFIG_INET_DIAG_DESTROY", err)
		} else if err != nil {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if _, err := unix.Read(client, make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("TCP: got error %v, want %v", err, unix.ECONNABORTED)
	}
	for _, fd := range []int{udp, udp6} {
		if _, err := unix.Read(fd, make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("UDP: got error %v, want %v", err, unix.ECONNABORTED)
		}
	}
	var s sockdiag.Socket
	if found, err := c.Find(key(unix.IPPROTO_TCP, tcp.Local, server), false, &s); found || err != nil {
		t.Errorf("destroyed: got %v, %+v, error %v", found, s, err)
	}
	if err := c.Destroy(&tcp); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a second time: got error %v, want ENOENT", err)
	}
}

// TestLabReadRaw compares with the sockets that were made.
func TestLabReadRaw(t *testing.T) {
	labtest.Require(t, labtest.Root)
	ns := labtest.Pair(t).Client
	if got, err := sockdiag.ReadRaw(ns.FD()); err != nil || len(got) != 0 {
		t.Fatalf("an empty namespace: got %v, error %v", got, err)
	}
	raw := socket(t, ns, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP, "10.99.0.1:0", "")
	raw6 := socket(t, ns, unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6, "", "[fd99::2]:0")
	ping := socket(t, ns, unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, "10.99.0.1:77", "")
	ping6 := socket(t, ns, unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, "[fd99::1]:78", "")
	uid := uint32(os.Getuid())
	a := netip.MustParseAddr
	want := []sockdiag.Raw{
		{Family: 4, ID: 1, Local: a("10.99.0.1"), Remote: a("0.0.0.0"), UID: uid, Inode: inodeOf(t, raw)},
		{Family: 6, ID: 58, Local: a("fd99::1"), Remote: a("fd99::2"), UID: uid, Inode: inodeOf(t, raw6)},
		{Family: 4, Ping: true, ID: 77, Local: a("10.99.0.1"), Remote: a("0.0.0.0"), UID: uid, Inode: inodeOf(t, ping)},
		{Family: 6, Ping: true, ID: 78, Local: a("fd99::1"), Remote: a("::"), UID: uid, Inode: inodeOf(t, ping6)},
	}
	got, err := sockdiag.ReadRaw(ns.FD())
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || diff != "" {
		t.Errorf("error %v, (-want +got):\n%s", err, diff)
	}
}

// TestLabLeaks opens and closes.
func TestLabLeaks(t *testing.T) {
	labtest.Require(t, labtest.Root)
	ns := labtest.Pair(t).Client
	labtest.Leaks(t)
	c, err := sockdiag.Open(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Dump(context.Background(), func(*sockdiag.Socket) error { return nil }), c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	if _, err := sockdiag.Open(1 << 20); !errors.Is(err, syscall.EBADF) {
		t.Errorf("no namespace: got error %v, want EBADF", err)
	}
}
