package main_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
)

// channel is a flow between two sockets.
type channel struct {
	name           string
	client, server net.Conn
}

// channels opens a TCP and a UDP flow to port 7003 of each address and sends a
// byte both ways.
func channels(t *testing.T, client, server *lab.Namespace, to ...netip.Addr) []channel {
	t.Helper()
	var all []channel
	for _, addr := range to {
		at := netip.AddrPortFrom(addr, sinkPort)
		for _, c := range []channel{tcpChannel(t, client, server, at), udpChannel(t, client, server, at)} {
			t.Cleanup(func() { errors.Join(c.client.Close(), c.server.Close()) })
			for range 3 {
				say(t, c.client, c.server)
				say(t, c.server, c.client)
			}
			all = append(all, c)
		}
	}
	return all
}

func tcpChannel(t *testing.T, client, server *lab.Namespace, at netip.AddrPort) channel {
	t.Helper()
	c := channel{name: "tcp " + at.String()}
	var listener net.Listener
	err := server.Do(func() (err error) { listener, err = net.Listen("tcp", at.String()); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	d := net.Dialer{Timeout: wait}
	d.SetMultipathTCP(false)
	if err := client.Do(func() (err error) { c.client, err = d.Dial("tcp", at.String()); return err }); err != nil {
		t.Fatal(err)
	}
	if c.server, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	return c
}

func udpChannel(t *testing.T, client, server *lab.Namespace, at netip.AddrPort) channel {
	t.Helper()
	c := channel{name: "udp " + at.String()}
	dial := func(local, remote net.Addr) (conn net.Conn, err error) {
		d := net.Dialer{LocalAddr: local, Timeout: wait}
		return d.Dial("udp", remote.String())
	}
	err := client.Do(func() (err error) { c.client, err = dial(nil, net.UDPAddrFromAddrPort(at)); return err })
	if err != nil {
		t.Fatal(err)
	}
	err = server.Do(func() (err error) {
		c.server, err = dial(net.UDPAddrFromAddrPort(at), c.client.LocalAddr())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// say sends a byte that must arrive.
func say(t *testing.T, from, to net.Conn) {
	t.Helper()
	if err := hear(from, to, wait); err != nil {
		t.Fatalf("%s to %s: %v", from.LocalAddr(), to.LocalAddr(), err)
	}
}

// hear sends a byte and reads it at the other end.
func hear(from, to net.Conn, timeout time.Duration) error {
	if _, err := from.Write([]byte{1}); err != nil {
		return err
	}
	if err := to.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := io.ReadFull(to, make([]byte, 1))
	return err
}

// silent says something in every channel, both ways, three times; nothing may arrive.
func silent(t *testing.T, all []channel) {
	t.Helper()
	var channels sync.WaitGroup
	for _, c := range all {
		channels.Go(func() {
			for range 3 {
				for _, way := range [][2]net.Conn{{c.client, c.server}, {c.server, c.client}} {
					if err := hear(way[0], way[1], silence); !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("%s: %s to %s: got %v, want that nothing arrives", c.name, way[0].LocalAddr(), way[1].LocalAddr(), err)
					}
				}
			}
		})
	}
	channels.Wait()
}

// to7003 matches packets from or to port 7003, IP options aside.
func to7003(p []byte) bool {
	l4 := 20
	if p[0]>>4 == 6 {
		l4 = 40
	}
	port := func(i int) int { return int(p[l4+i])<<8 | int(p[l4+i+1]) }
	return len(p) >= l4+4 && (port(0) == sinkPort || port(2) == sinkPort)
}
