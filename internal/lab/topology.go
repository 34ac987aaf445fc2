package lab

import (
	"errors"
	"net/netip"
)

// Network is a small topology. Router is nil in a Pair.
type Network struct {
	Client, Router, Server *Namespace
}

// Close releases every namespace of the network.
func (n *Network) Close() error {
	return errors.Join(n.Client.Close(), n.Router.Close(), n.Server.Close())
}

// Pair makes a client linked to a server; addresses are in the package comment.
func Pair() (*Network, error) {
	return build(false, func(n *Network) error {
		return Link(n.Client, n.Server, LinkConfig{
			AddrsA: prefixes("10.99.0.1/24", "fd99::1/64"),
			AddrsB: prefixes("10.99.0.2/24", "fd99::2/64"),
		})
	})
}

// Router makes a client and a server with a forwarding router between them;
// addresses are in the package comment.
func Router() (*Network, error) {
	return build(true, func(n *Network) error {
		if err := n.Router.SetForwarding(true); err != nil {
			return err
		}
		err := Link(n.Client, n.Router, LinkConfig{
			AddrsA: prefixes("10.99.1.2/24", "fd99:1::2/64"),
			AddrsB: prefixes("10.99.1.1/24", "fd99:1::1/64"),
		})
		if err != nil {
			return err
		}
		err = Link(n.Router, n.Server, LinkConfig{
			NameA:  "eth1",
			AddrsA: prefixes("10.99.2.1/24", "fd99:2::1/64"),
			AddrsB: prefixes("10.99.2.2/24", "fd99:2::2/64"),
		})
		if err != nil {
			return err
		}
		return errors.Join(
			n.Client.defaultRoutes("10.99.1.1", "fd99:1::1"),
			n.Server.defaultRoutes("10.99.2.1", "fd99:2::1"),
		)
	})
}

// build makes the namespaces and wires them, or leaves nothing.
func build(router bool, wire func(*Network) error) (*Network, error) {
	n := &Network{}
	slots := map[string]**Namespace{"client": &n.Client, "server": &n.Server}
	if router {
		slots["router"] = &n.Router
	}
	for name, slot := range slots {
		ns, err := NewNamespace(name)
		if err != nil {
			return nil, errors.Join(err, n.Close())
		}
		*slot = ns
	}
	if err := wire(n); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Namespace) defaultRoutes(via4, via6 string) error {
	return errors.Join(
		n.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr(via4)),
		n.AddRoute(netip.MustParsePrefix("::/0"), netip.MustParseAddr(via6)),
	)
}

func prefixes(s ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(s))
	for i := range s {
		out[i] = netip.MustParsePrefix(s[i])
	}
	return out
}
