package sockdiag_test

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/process/sockdiag"
)

// tcpPair connects a client to a listener of the namespace pair. remote is where
// the client connects to.
func tcpPair(t *testing.T, n *lab.Network, family int, listen, remote string) (listener, client int, server netip.AddrPort) {
	t.Helper()
	listener = socket(t, n.Server, family, unix.SOCK_STREAM, 0, listen, "")
	if err := unix.Listen(listener, 5); err != nil {
		t.Fatal(err)
	}
	server = netip.AddrPortFrom(netip.MustParseAddr(remote), localOf(t, listener).Port())
	family = unix.AF_INET
	if server.Addr().Is6() {
		family = unix.AF_INET6
	}
	client = socket(t, n.Client, family, unix.SOCK_STREAM, 0, "", server.String())
	return listener, client, server
}

func accept(t *testing.T, listener int) (fd int) {
	t.Helper()
	ok := lab.Poll(3*time.Second, func() bool {
		var err error
		fd, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return err == nil
	})
	if !ok {
		t.Fatal("nobody connected")
	}
	return fd
}

func findTCP(t *testing.T, c *sockdiag.Conn, src, dst netip.AddrPort, incoming bool) (s sockdiag.Socket) {
	t.Helper()
	found, err := c.Find(key(unix.IPPROTO_TCP, src, dst), incoming, &s)
	if err != nil || !found {
		t.Fatalf("%s to %s, incoming %v: got %v, error %v", src, dst, incoming, found, err)
	}
	return s
}

// shutDown closes the connection, first the client's side.
func shutDown(t *testing.T, atClient, atServer *sockdiag.Conn, client, accepted int, self, server netip.AddrPort) {
	t.Helper()
	if err := unix.Shutdown(client, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if !lab.Poll(3*time.Second, func() bool { return findTCP(t, atServer, self, server, true).State == sockdiag.CloseWait }) {
		t.Errorf("got state %s, want CLOSE-WAIT", findTCP(t, atServer, self, server, true).State)
	}
	if err := unix.Shutdown(accepted, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if !lab.Poll(3*time.Second, func() bool { return findTCP(t, atClient, self, server, false).State == sockdiag.TimeWait }) {
		t.Errorf("got state %s, want TIME-WAIT", findTCP(t, atClient, self, server, false).State)
	}
	if s := findTCP(t, atClient, self, server, false); s.Inode != 0 {
		t.Errorf("TIME-WAIT: got inode %d, want none", s.Inode)
	}
}

// TestLabFindTCP follows a connection from the listener to TIME-WAIT, by IPv4,
// IPv6, IPv4 to a dual-stack listener, and v4-mapped.
func TestLabFindTCP(t *testing.T) {
	labtest.Require(t, labtest.Root)
	tests := []struct {
		name, listen, remote string
		family               int
	}{
		{"IPv4", "0.0.0.0:0", "10.99.0.2", unix.AF_INET},
		{"IPv6", "[::]:0", "fd99::2", unix.AF_INET6},
		{"dual-stack", "[::]:0", "10.99.0.2", unix.AF_INET6},
		{"v4-mapped", "[::]:0", "::ffff:10.99.0.2", unix.AF_INET6},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := labtest.Pair(t)
			listener, client, server := tcpPair(t, n, tt.family, tt.listen, tt.remote)
			atServer, atClient := open(t, n.Server), open(t, n.Client)
			self := localOf(t, client)
			// A tuple that no connection has falls back to the listener.
			stranger := netip.AddrPortFrom(self.Addr(), self.Port()^1)
			s := findTCP(t, atServer, stranger, server, true)
			is(t, &s, listener)
			if s.State != sockdiag.Listen {
				t.Errorf("got state %s, want LISTEN", s.State)
			}
			accepted := accept(t, listener)
			defer unix.Close(accepted)
			for _, incoming := range []bool{false, true} {
				src, dst := self, server
				if incoming {
					src, dst = dst, src
				}
				s = findTCP(t, atClient, src, dst, incoming)
				is(t, &s, client)
				if s.State != sockdiag.Established {
					t.Errorf("client: got state %s, want ESTAB", s.State)
				}
				s = findTCP(t, atServer, src, dst, !incoming)
				is(t, &s, accepted)
			}
			shutDown(t, atClient, atServer, client, accepted, self, server)
		})
	}
}

// TestLabFindPending looks at both ends of a handshake whose SYN or SYN-ACK does
// not arrive.
func TestLabFindPending(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.IPTablesBinary)
	n := labtest.Pair(t)
	labtest.IPTables(t, n.Client, "-A", "INPUT", "-p", "tcp", "-j", "DROP")
	listener, client, server := tcpPair(t, n, unix.AF_INET, "0.0.0.0:0", "10.99.0.2")
	k := key(unix.IPPROTO_TCP, localOf(t, client), server)
	var s sockdiag.Socket
	if found, err := open(t, n.Client).Find(k, false, &s); !found || err != nil || s.State != sockdiag.SynSent {
		t.Errorf("client: got %v, state %s, error %v, want SYN-SENT", found, s.State, err)
	}
	is(t, &s, client)
	atServer := open(t, n.Server)
	pending := func() (n int) {
		if err := atServer.Dump(t.Context(), func(s *sockdiag.Socket) error {
			if s.State == sockdiag.SynRecv {
				n++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if !lab.Poll(3*time.Second, func() bool { return pending() == 1 }) {
		t.Fatal("the server has no connection in SYN-RECV")
	}
	for _, incoming := range []bool{true, false} {
		packetKey := *k
		if !incoming {
			packetKey = k.Reverse()
		}
		if found, err := atServer.Find(&packetKey, incoming, &s); !found || err != nil || s.State != sockdiag.Listen {
			t.Errorf("server, incoming %v: got %v, state %s, error %v, want the listener", incoming, found, s.State, err)
		}
		is(t, &s, listener)
	}
}
