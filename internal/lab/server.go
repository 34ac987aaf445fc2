package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// MaxLife is after how long a server or capture stops by itself.
const MaxLife = 5 * time.Minute

// EchoServer answers TCP and UDP on one address and port with what it got.
type EchoServer struct {
	tcp  net.Listener
	udp  *net.UDPConn
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// Echo starts an echo server for TCP and UDP inside the namespace. Port 0 lets
// the kernel choose; an unspecified address ("::" takes IPv4 too) listens on
// all. It ends by Close, with ctx or after MaxLife.
func (n *Namespace) Echo(ctx context.Context, at netip.AddrPort) (*EchoServer, error) {
	s := &EchoServer{conns: make(map[net.Conn]struct{})}
	err := n.Do(func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		var err error
		if s.tcp, err = lc.Listen(ctx, "tcp", at.String()); err != nil {
			return err
		}
		s.udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(s.Addr()))
		return err
	})
	if err != nil {
		if s.tcp != nil {
			s.tcp.Close()
		}
		return nil, fmt.Errorf("start echo server on %s in %s: %w", at, n.name, err)
	}
	ctx, s.stop = context.WithTimeout(ctx, MaxLife)
	s.wg.Go(s.acceptAll)
	s.wg.Go(s.answerUDP)
	s.wg.Go(func() {
		<-ctx.Done()
		s.hangUp()
	})
	return s, nil
}

// Addr returns where the server listens.
func (s *EchoServer) Addr() netip.AddrPort {
	return s.tcp.Addr().(*net.TCPAddr).AddrPort()
}

// Close ends the server and its connections and waits for both.
func (s *EchoServer) Close() error {
	s.stop()
	s.wg.Wait()
	return nil
}

// hangUp ends every blocked call. A connection accepted afterwards finds conns
// nil.
func (s *EchoServer) hangUp() {
	s.tcp.Close()
	s.udp.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

func (s *EchoServer) acceptAll() {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return
		}
		if !s.add(c) {
			c.Close()
			return
		}
		s.wg.Go(func() {
			defer s.remove(c)
			// Ends with the client or with hangUp. The wrapper hides ReadFrom:
			// splicing would leave a pool of open pipes behind.
			io.Copy(struct{ io.Writer }{c}, c)
		})
	}
}

func (s *EchoServer) add(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *EchoServer) remove(c net.Conn) {
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

func (s *EchoServer) answerUDP() {
	buf := make([]byte, 65535)
	for {
		got, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		s.udp.WriteToUDPAddrPort(buf[:got], from) // a lost answer is the probe's result
	}
}
