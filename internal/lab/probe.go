package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Proto is the protocol of a probe.
type Proto uint8

// The protocols of a probe. ICMP is ICMPv6 for an IPv6 destination.
const (
	TCP Proto = iota
	UDP
	ICMP
)

// String returns the name in lower case.
func (p Proto) String() string { return [...]string{"tcp", "udp", "icmp"}[min(p, ICMP)] }

// Outcome is what a probe saw.
type Outcome uint8

// The outcomes of a probe.
const (
	Silent      Outcome = iota // nothing came back in time: dropped, or nobody there
	Answered                   // connected (TCP), or the same payload came back
	Refused                    // TCP reset, or ICMP port unreachable
	Unreachable                // another ICMP unreachable, such as administratively prohibited
	Denied                     // the local kernel refused to send: dropped in OUTPUT
)

// String returns the name in lower case.
func (o Outcome) String() string {
	return [...]string{"silent", "answered", "refused", "unreachable", "denied"}[min(o, Denied)]
}

// Probe is one question to one destination.
type Probe struct {
	Proto   Proto
	To      netip.AddrPort // the port counts for TCP and UDP only
	From    netip.AddrPort // source; the zero value lets the kernel choose
	Timeout time.Duration  // for the whole probe; 0 means 1 s
	// Payload is sent and must come back unchanged, as from Echo. Empty means
	// that a TCP probe ends when connected, and that UDP and ICMP send "probe".
	Payload []byte
}

// Probe asks once, without retry by the lab (TCP itself repeats its SYN after
// 1 s), and says what came back. The error is about the lab, not about the
// network: a probe that is dropped or rejected is an Outcome.
func (n *Namespace) Probe(p Probe) (Outcome, error) {
	if p.Timeout == 0 {
		p.Timeout = time.Second
	}
	if len(p.Payload) == 0 && p.Proto != TCP {
		p.Payload = []byte("probe")
	}
	err := n.ask(p)
	out, known := classify(err)
	if !known {
		return out, fmt.Errorf("probe %s %s from %s: %w", p.Proto, p.To, n.name, err)
	}
	return out, nil
}

func (n *Namespace) ask(p Probe) error {
	deadline := time.Now().Add(p.Timeout)
	conn, err := n.connect(p, deadline)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if p.Proto == ICMP {
		return echo(conn, p)
	}
	if len(p.Payload) == 0 {
		return nil
	}
	if _, err := conn.Write(p.Payload); err != nil {
		return err
	}
	got := make([]byte, len(p.Payload))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, p.Payload) {
		return fmt.Errorf("answer %q, want the payload %q", got, p.Payload)
	}
	return nil
}

// connect opens the socket inside the namespace. UDP and ICMP sockets are
// connected too, so that ICMP errors reach them.
func (n *Namespace) connect(p Probe, deadline time.Time) (conn net.Conn, err error) {
	if p.Proto == ICMP {
		return n.pingSocket(p)
	}
	d := net.Dialer{Deadline: deadline}
	d.SetMultipathTCP(false)
	if p.From.IsValid() {
		d.LocalAddr = localAddr(p)
	}
	err = n.Do(func() error {
		conn, err = d.Dial(p.Proto.String(), p.To.String())
		return err
	})
	return conn, err
}

func localAddr(p Probe) net.Addr {
	if p.Proto == UDP {
		return net.UDPAddrFromAddrPort(p.From)
	}
	return net.TCPAddrFromAddrPort(p.From)
}

// pingSocket opens a ping socket (ping_group_range): the kernel chooses the
// identifier, computes the checksum and delivers only the matching replies.
func (n *Namespace) pingSocket(p Probe) (conn net.Conn, err error) {
	proto := unix.IPPROTO_ICMP
	if p.To.Addr().Is6() {
		proto = unix.IPPROTO_ICMPV6
	}
	err = n.Do(func() error {
		fd, err := unix.Socket(int(family(p.To.Addr())), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		f := os.NewFile(uintptr(fd), "ping")
		defer f.Close()
		if p.From.IsValid() {
			if err := unix.Bind(fd, sockaddr(p.From)); err != nil {
				return os.NewSyscallError("bind", err)
			}
		}
		if err := unix.Connect(fd, sockaddr(p.To)); err != nil {
			return os.NewSyscallError("connect", err)
		}
		conn, err = net.FileConn(f)
		return err
	})
	return conn, err
}

const (
	icmpEchoRequest, icmpEchoReply     = 8, 0     // RFC 792
	icmpv6EchoRequest, icmpv6EchoReply = 128, 129 // RFC 4443
	icmpHeaderLen                      = 8
)

// echo sends one echo request with sequence number 1 and waits for its reply.
func echo(conn net.Conn, p Probe) error {
	request, reply := byte(icmpEchoRequest), byte(icmpEchoReply)
	if p.To.Addr().Is6() {
		request, reply = icmpv6EchoRequest, icmpv6EchoReply
	}
	msg := make([]byte, icmpHeaderLen, icmpHeaderLen+len(p.Payload))
	msg[0] = request
	binary.BigEndian.PutUint16(msg[6:], 1)
	if _, err := conn.Write(append(msg, p.Payload...)); err != nil {
		return err
	}
	buf := make([]byte, icmpHeaderLen+len(p.Payload)+1)
	for {
		got, err := conn.Read(buf)
		if err != nil {
			return err
		}
		if got >= icmpHeaderLen && buf[0] == reply && bytes.Equal(buf[icmpHeaderLen:got], p.Payload) {
			return nil
		}
	}
}

// classify turns the error of a socket into an outcome. It reports false for
// an error that says nothing about the network.
func classify(err error) (Outcome, bool) {
	switch {
	case err == nil:
		return Answered, true
	case errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err), errors.Is(err, unix.ETIMEDOUT):
		return Silent, true
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET), errors.Is(err, io.EOF):
		return Refused, true
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EACCES),
		errors.Is(err, unix.ENOPROTOOPT):
		return Unreachable, true
	case errors.Is(err, unix.EPERM):
		return Denied, true
	}
	return Silent, false
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
