package record

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/packet"
)

// TestLabPorts says what counts as a change of who may receive at a port.
func TestLabPorts(t *testing.T) {
	r := requirePrograms(t)
	for _, loopback := range []string{"127.0.0.1", "::1"} {
		t.Run(loopback, func(t *testing.T) {
			at := netip.AddrPortFrom(netip.MustParseAddr(loopback), 0)
			first, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			port := first.LocalAddr().(*net.UDPAddr).Port
			k := packet.Key{SrcPort: uint16(port), Protocol: packet.ProtoUDP}
			tcp := k
			tcp.Protocol = packet.ProtoTCP
			counted := func(what string, want bool, do func() error) {
				t.Helper()
				before, beforeTCP := r.Changes(&k), r.Changes(&tcp)
				if err := do(); err != nil {
					t.Fatal(what, err)
				}
				if got := r.Changes(&k) != before; got != want {
					t.Errorf("%s: counted %v, want %v", what, got, want)
				}
				if r.Changes(&tcp) != beforeTCP {
					t.Errorf("%s: counted for TCP", what)
				}
			}
			family, to := sockaddr(netip.AddrPortFrom(at.Addr(), uint16(port)))
			var fd int
			counted("socket", false, func() (err error) { fd, err = unix.Socket(family, unix.SOCK_DGRAM, 0); return err })
			counted("connect without a port", false, func() error { return unix.Connect(fd, to) })
			unix.Close(fd)
			if fd, err = unix.Socket(family, unix.SOCK_STREAM, 0); err != nil {
				t.Fatal(err)
			}
			counted("bind of TCP", false, func() error { return unix.Bind(fd, to) })
			counted("close of TCP", false, func() error { return unix.Close(fd) })
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			if fd, err = unix.Socket(family, unix.SOCK_DGRAM, 0); err != nil {
				t.Fatal(err)
			}
			counted("bind", true, func() error { return unix.Bind(fd, to) })
			counted("connect", true, func() error { return unix.Connect(fd, to) })
			counted("close", true, func() error { return unix.Close(fd) })
		})
	}
}

// sockaddr returns an address as system calls want it.
func sockaddr(a netip.AddrPort) (family int, s unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
