package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Inject puts IP packets on the wire of a link exactly as given, whatever is
// wrong with them. The peer sees them arrive (PREROUTING, then INPUT or
// FORWARD); the own OUTPUT hook does not see them. The Ethernet header is made
// from the link, its type from the packet's version: IPv6 for 6, else IPv4.
// Needs CAP_NET_RAW.
func (n *Namespace) Inject(iface string, packets ...[]byte) error {
	peer, err := n.peer(iface)
	if err != nil {
		return err
	}
	fd, ifi, err := n.packetSocket(iface, 0)
	if err != nil {
		return fmt.Errorf("inject on %s in %s: %w%s", iface, n.name, err, needs(err, "CAP_NET_RAW"))
	}
	defer unix.Close(fd)
	for i, p := range packets {
		to := &unix.SockaddrLinklayer{Protocol: htons(etherType(p)), Ifindex: ifi.Index, Halen: 6}
		copy(to.Addr[:], peer)
		if err := unix.Sendto(fd, p, 0, to); err != nil {
			return fmt.Errorf("inject packet %d (%d bytes) on %s in %s: %w", i, len(p), iface, n.name, err)
		}
	}
	return nil
}

// SendIP sends IP packets with headers of our own through the local stack, so
// that OUTPUT sees them. The kernel routes by their destination and, for IPv4
// only, fills in the total length, the checksum and a zero source or
// identification (raw(7)). A packet the kernel refuses with EPERM was dropped
// in OUTPUT: denied counts those. Needs CAP_NET_RAW.
func (n *Namespace) SendIP(packets ...[]byte) (denied int, err error) {
	err = n.Do(func() error {
		for i, p := range packets {
			err := sendIP(p)
			if errors.Is(err, unix.EPERM) {
				denied++
				continue
			}
			if err != nil {
				return fmt.Errorf("send packet %d (%d bytes) from %s: %w", i, len(p), n.name, err)
			}
		}
		return nil
	})
	return denied, err
}

func sendIP(p []byte) error {
	to, err := destination(p)
	if err != nil {
		return err
	}
	domain := unix.AF_INET
	if etherType(p) == unix.ETH_P_IPV6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		// Not wrapped: EPERM from here is no packet dropped in OUTPUT.
		return fmt.Errorf("open raw socket: %v%s", err, needs(err, "CAP_NET_RAW"))
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, p, 0, to)
}

// destination reads where an IP packet goes.
func destination(p []byte) (unix.Sockaddr, error) {
	if etherType(p) == unix.ETH_P_IPV6 {
		if len(p) < ipv6HeaderLen {
			return nil, fmt.Errorf("%d bytes are no IPv6 header", len(p))
		}
		return &unix.SockaddrInet6{Addr: [16]byte(p[24:40])}, nil
	}
	if len(p) < ipv4HeaderLen {
		return nil, fmt.Errorf("%d bytes are no IPv4 header", len(p))
	}
	return &unix.SockaddrInet4{Addr: [4]byte(p[16:20])}, nil
}

// packetSocket opens an AF_PACKET socket without link header, bound to the
// interface for packets of the given Ethernet type (0: none).
func (n *Namespace) packetSocket(iface string, proto uint16) (fd int, ifi *net.Interface, err error) {
	err = n.Do(func() error {
		if ifi, err = net.InterfaceByName(iface); err != nil {
			return err
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		bind := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(proto), Ifindex: ifi.Index})
		if bind != nil {
			unix.Close(fd)
		}
		return os.NewSyscallError("bind", bind)
	})
	return fd, ifi, err
}

// Capture counts the IP packets that arrive on an interface, before any hook
// of netfilter. Packets the namespace sends are not counted.
type Capture struct {
	file  *os.File
	match func(packet []byte) bool
	keep  int
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu    sync.Mutex
	count int
	kept  [][]byte
}

// Capture starts counting the packets that match accepts (nil: all) and keeps a
// copy of the first keep of them. match gets the packet from its IP header on,
// on another goroutine, and must not hold on to it. It ends by Close, with ctx
// or after MaxLife. Needs CAP_NET_RAW and CAP_NET_ADMIN.
func (n *Namespace) Capture(ctx context.Context, iface string, keep int, match func(packet []byte) bool) (*Capture, error) {
	fd, _, err := n.packetSocket(iface, unix.ETH_P_ALL)
	if err != nil {
		return nil, fmt.Errorf("capture on %s in %s: %w%s", iface, n.name, err, needs(err, "CAP_NET_RAW"))
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sinkBuffer); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("capture on %s in %s: set buffer: %w%s", iface, n.name, err, needs(err, "CAP_NET_ADMIN"))
	}
	c := &Capture{file: os.NewFile(uintptr(fd), "capture"), match: match, keep: keep}
	ctx, c.stop = context.WithTimeout(ctx, MaxLife)
	c.wg.Go(c.run)
	c.wg.Go(func() {
		<-ctx.Done()
		c.file.Close()
	})
	return c, nil
}

// Packets returns how many packets matched so far and the first of them.
func (c *Capture) Packets() (count int, kept [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count, slices.Clone(c.kept)
}

// Wait returns the count as soon as it reaches want, or when the time is over.
func (c *Capture) Wait(want int, timeout time.Duration) int {
	var count int
	Poll(timeout, func() bool {
		count, _ = c.Packets()
		return count >= want
	})
	return count
}

// Close ends the capture and waits for it. The count stays readable.
func (c *Capture) Close() error {
	c.stop()
	c.wg.Wait()
	return nil
}

func (c *Capture) run() {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 65535)
	for {
		var got int
		var from unix.Sockaddr
		var recv error
		err := raw.Read(func(fd uintptr) bool {
			got, from, recv = unix.Recvfrom(int(fd), buf, 0)
			return recv != unix.EAGAIN
		})
		if err != nil {
			return
		}
		if recv == nil && arriving(from) {
			c.add(buf[:got])
		}
	}
}

// arriving tells received packets from sent ones.
func arriving(from unix.Sockaddr) bool {
	ll, ok := from.(*unix.SockaddrLinklayer)
	if !ok || ll.Pkttype == unix.PACKET_OUTGOING {
		return false
	}
	return ll.Protocol == htons(unix.ETH_P_IP) || ll.Protocol == htons(unix.ETH_P_IPV6)
}

func (c *Capture) add(packet []byte) {
	if c.match != nil && !c.match(packet) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	if len(c.kept) < c.keep {
		c.kept = append(c.kept, bytes.Clone(packet))
	}
}

// etherType guesses the Ethernet type of an IP packet from its version.
func etherType(p []byte) uint16 {
	if len(p) > 0 && p[0]>>4 == 6 {
		return unix.ETH_P_IPV6
	}
	return unix.ETH_P_IP
}

// htons gives the value of a network-order field the kernel reads.
func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
