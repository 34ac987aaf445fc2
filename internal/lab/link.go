package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/jsimonetti/rtnetlink/v2/driver"
	"golang.org/x/sys/unix"
)

// LinkConfig describes a veth pair.
type LinkConfig struct {
	NameA, NameB   string         // interface names; "" means eth0
	AddrsA, AddrsB []netip.Prefix // addresses with their prefix length; none is allowed
	MTU            uint32         // bytes; 0 means 1500
}

// linkWait bounds the wait for a carrier, which takes microseconds.
const linkWait = 5 * time.Second

// end is one side of a veth pair while it is built.
type end struct {
	ns    *Namespace
	name  string
	addrs []netip.Prefix
	index uint32
	mac   net.HardwareAddr
}

// Link connects a and b by a veth pair, gives both ends their addresses and
// each the other as permanent neighbour. On return packets pass. The pair goes
// with the first of the two namespaces. Needs CAP_NET_ADMIN.
func Link(a, b *Namespace, cfg LinkConfig) error {
	ea := &end{ns: a, name: cfg.NameA, addrs: cfg.AddrsA}
	eb := &end{ns: b, name: cfg.NameB, addrs: cfg.AddrsB}
	for _, e := range []*end{ea, eb} {
		if e.name == "" {
			e.name = "eth0"
		}
	}
	steps := []func() error{
		func() error { return createVeth(ea, eb, cfg.MTU) },
		ea.up, eb.up, ea.running, eb.running,
		func() error { return ea.address(eb) },
		func() error { return eb.address(ea) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("link %s:%s to %s:%s: %w%s",
				a.name, ea.name, b.name, eb.name, err, needs(err, "CAP_NET_ADMIN"))
		}
	}
	a.setPeer(ea.name, eb.mac)
	b.setPeer(eb.name, ea.mac)
	return nil
}

// AddRoute sends what goes to dst through the router via.
func (n *Namespace) AddRoute(dst netip.Prefix, via netip.Addr) error {
	err := n.route(func(c *rtnetlink.Conn) error {
		return c.Route.Add(&rtnetlink.RouteMessage{
			Family:    family(dst.Addr()),
			DstLength: uint8(dst.Bits()),
			Table:     unix.RT_TABLE_MAIN,
			Protocol:  unix.RTPROT_STATIC,
			Scope:     unix.RT_SCOPE_UNIVERSE,
			Type:      unix.RTN_UNICAST,
			Attributes: rtnetlink.RouteAttributes{
				Dst:     dst.Masked().Addr().AsSlice(),
				Gateway: via.AsSlice(),
			},
		})
	})
	if err != nil {
		return fmt.Errorf("add route %s via %s in %s: %w", dst, via, n.name, err)
	}
	return nil
}

// Links returns the interfaces of the namespace.
func (n *Namespace) Links() (links []net.Interface, err error) {
	err = n.Do(func() error {
		links, err = net.Interfaces()
		return err
	})
	return links, err
}

// peer returns the hardware address at the other end of a link.
func (n *Namespace) peer(iface string) (net.HardwareAddr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	mac, ok := n.peers[iface]
	if !ok {
		return nil, fmt.Errorf("namespace %s has no link %q: make one with Link", n.name, iface)
	}
	return mac, nil
}

func (n *Namespace) setPeer(iface string, mac net.HardwareAddr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.peers[iface] = mac
}

// createVeth makes the pair, each end in its namespace from the start.
func createVeth(a, b *end, mtu uint32) error {
	if mtu == 0 {
		mtu = 1500
	}
	return b.ns.withFD(func(fd int) error {
		peer := &rtnetlink.LinkMessage{Attributes: &rtnetlink.LinkAttributes{
			Name: b.name, MTU: mtu, NetNS: rtnetlink.NetNSForFD(uint32(fd)),
		}}
		return a.ns.route(func(c *rtnetlink.Conn) error {
			return c.Link.New(&rtnetlink.LinkMessage{Attributes: &rtnetlink.LinkAttributes{
				Name: a.name,
				MTU:  mtu,
				Info: &rtnetlink.LinkInfo{Kind: "veth", Data: &driver.Veth{PeerInfo: peer}},
			}})
		})
	})
}

// up finds the index and hardware address of the end and brings it up.
func (e *end) up() error {
	return e.ns.route(func(c *rtnetlink.Conn) error {
		ifi, err := net.InterfaceByName(e.name)
		if err != nil {
			return err
		}
		e.index, e.mac = uint32(ifi.Index), ifi.HardwareAddr
		return setUp(c, e.index)
	})
}

// running waits until the end has a carrier and the kernel has given it a
// queueing discipline, which it does later by itself. Until then, though the
// interface says it is up, packets to it vanish.
func (e *end) running() error {
	return e.ns.route(func(c *rtnetlink.Conn) error {
		var link rtnetlink.LinkMessage
		var err error
		up := Poll(linkWait, func() bool {
			link, err = c.Link.Get(e.index)
			return err != nil || link.Attributes.OperationalState == rtnetlink.OperStateUp &&
				link.Attributes.QueueDisc != "noop"
		})
		if err == nil && !up {
			err = fmt.Errorf("%s has no carrier after %s", e.name, linkWait)
		}
		return err
	})
}

// address gives the end its addresses, and the peer's as permanent neighbours.
func (e *end) address(peer *end) error {
	return e.ns.route(func(c *rtnetlink.Conn) error {
		for _, p := range e.addrs {
			if err := e.addAddress(c, p); err != nil {
				return fmt.Errorf("add address %s: %w", p, err)
			}
		}
		for _, p := range peer.addrs {
			if err := e.addNeighbour(c, p.Addr(), peer.mac); err != nil {
				return fmt.Errorf("add neighbour %s: %w", p.Addr(), err)
			}
		}
		return nil
	})
}

func (e *end) addAddress(c *rtnetlink.Conn, p netip.Prefix) error {
	if !p.IsValid() {
		return errors.New("not an address with prefix length")
	}
	ip := p.Addr().AsSlice()
	return c.Address.New(&rtnetlink.AddressMessage{
		Family:       family(p.Addr()),
		PrefixLength: uint8(p.Bits()),
		Scope:        unix.RT_SCOPE_UNIVERSE,
		Index:        e.index,
		Attributes:   &rtnetlink.AddressAttributes{Address: ip, Local: ip, Flags: unix.IFA_F_NODAD},
	})
}

func (e *end) addNeighbour(c *rtnetlink.Conn, addr netip.Addr, mac net.HardwareAddr) error {
	return c.Neigh.New(&rtnetlink.NeighMessage{
		Family: uint16(family(addr)),
		Index:  e.index,
		State:  unix.NUD_PERMANENT,
		Attributes: &rtnetlink.NeighAttributes{
			Address: addr.AsSlice(), LLAddress: mac, IfIndex: e.index,
		},
	})
}

func setUp(c *rtnetlink.Conn, index uint32) error {
	return c.Link.Set(&rtnetlink.LinkMessage{Index: index, Flags: unix.IFF_UP, Change: unix.IFF_UP})
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
