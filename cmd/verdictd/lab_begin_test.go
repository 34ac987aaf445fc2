package main_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// shared lets sockets share an address, as programs do that listen where they
// connect from.
func shared(_, _ string, c syscall.RawConn) (err error) {
	if e := c.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
	}); e != nil {
		return e
	}
	return err
}

// listenShared listens at an address that others may connect from.
func listenShared(t *testing.T, ns *lab.Namespace, at netip.AddrPort) net.Listener {
	t.Helper()
	var l net.Listener
	config := net.ListenConfig{Control: shared}
	config.SetMultipathTCP(false)
	err := ns.Do(func() (err error) { l, err = config.Listen(context.Background(), "tcp", at.String()); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// connect connects from one address to another.
func connect(ns *lab.Namespace, from, to netip.AddrPort) (conn net.Conn, err error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Timeout: silence, Control: shared}
	d.SetMultipathTCP(false)
	err = ns.Do(func() (err error) { conn, err = d.Dial("tcp", to.String()); return err })
	return conn, err
}

// synHeader returns the TCP header of a SYN.
func synHeader(from, to netip.AddrPort) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from.Port()), to.Port())
	return append(b, 1, 2, 3, 4, 0, 0, 0, 0, 5<<4, 2, 255, 255, 0, 0, 0, 0)
}

// TestLabConnectsBack: who was connected to may not connect back by the same ports,
// while the connection is open and after each way to end it, and the attempt is
// logged.
func TestLabConnectsBack(t *testing.T) {
	setup(t)
	const onlyOut = "package verdictd\n\ndecision := {\"verdict\": \"accept\", \"rule\": \"out\"} if input.direction == \"out\"\n"
	for _, offload := range []string{"on", "off"} {
		lan := labtest.Router(t)
		d := startDaemon(t, lan.Client, onlyOut, "--hook", "output,input", "--offload", offload)
		answers := capture(t, lan.Server, func(p []byte) bool {
			return isTo(p, server4) && len(p) > 33 && p[9] == unix.IPPROTO_TCP && p[33]&0x12 == 0x12
		})
		for i, end := range []string{"open", "reset by the server", "server first", "client first"} {
			client := to(client4, uint16(41000+i))
			server := to(server4, 7003)
			listener := listenShared(t, lan.Server, server)
			c, err := connect(lan.Client, client, server)
			if err != nil {
				t.Fatal(err)
			}
			s, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			say(t, c, s)
			say(t, s, c)
			listener.Close()
			listenShared(t, lan.Client, client)
			switch end {
			case "open":
			case "reset by the server":
				if err := s.(*net.TCPConn).SetLinger(0); err != nil {
					t.Fatal(err)
				}
				s.Close()
			case "server first":
				s.Close()
				c.Close()
			default:
				c.Close()
				s.Close()
			}
			for range 2 {
				if err := lan.Server.Inject("eth0", ipPacket(t, server4, client4, unix.IPPROTO_TCP, synHeader(server, client))); err != nil {
					t.Fatal(err)
				}
			}
			denied := func() []record {
				return d.records(func(r *record) bool {
					return r.Type == "drop" && r.SrcPort == server.Port() && r.DstPort == client.Port()
				})
			}
			for until := time.Now().Add(wait); len(denied()) == 0; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(until) {
					t.Fatalf("offload %s, %s: no record of the denied connection", offload, end)
				}
			}
			if end == "open" {
				say(t, s, c)
				say(t, c, s)
			}
			c.Close()
			s.Close()
		}
		if n, _ := answers.Packets(); n > 0 {
			t.Errorf("offload %s: %d of the server's SYNs are answered", offload, n)
		}
		d.Stop()
	}
}
