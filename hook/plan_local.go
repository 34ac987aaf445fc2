package hook

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	// errorsCounter counts the packets that rule errors lets pass.
	errorsCounter = "errors"

	ctConfirmed = 1 << 3 // IPS_CONFIRMED, nf_conntrack_common.h
	ctDstNAT    = 1 << 5 // IPS_DST_NAT

	metaIIFKind = expr.MetaKey(26) // NFT_META_IIFKIND, nf_tables.h, Linux 5.6
	ifNameSize  = 16               // IFNAMSIZ

	packetBroadcast = 1 // PACKET_BROADCAST, if_packet.h
	packetMulticast = 2 // PACKET_MULTICAST

	untrackPriority = -300 // NF_IP_PRI_RAW: after fragments were put together, before conntrack

	// guardPriority is before those who save packet marks to connections
	// (mangle, -150) and all others that might compare marks.
	guardPriority = -301
)

// loopback adds the rules for packets that stay on this host.
//
// At OUTPUT and PREROUTING the kernel's interface is that of the first route,
// though a destination NAT may have turned the packet elsewhere: "lo" is believed
// only of connections without such a NAT, and of packets to an address of this
// host.
func (p *plan) loopback(b *branch, h Hook) {
	if p.Loopback || h == Forward {
		return
	}
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	over := func() []expr.Any { return overLoopback(h.sends()) }
	if h != Output && h != Prerouting {
		b.add("loopback", over(), accept)
		return
	}
	b.add("loopback", append(over(), ctStatusNone(ctDstNAT)...), accept)
	if p.fib {
		b.add("loopback", append(over(), toLocal()...), accept)
	}
}

// errors adds the rule for what this host's kernel tells the sender of a packet
// that it did not forward or that another rule refused. Such a message carries
// the connection of that packet, which was never confirmed and is still in use:
// since Linux 6.8 the kernel does not queue it, but drops it without counting it
// (nf_ct_drop_unconfirmed, net/netfilter/nfnetlink_queue.c). Nobody can send one:
// what a program sends has a connection of its own, or one that is confirmed.
func (p *plan) errors(b *branch, h Hook) {
	if !p.sendsErrors(h) {
		return
	}
	match := append(ctStateHas(expr.CtStateBitRELATED), ctStatusNone(ctConfirmed|ctExpected)...)
	if !h.sends() {
		match = append(overLoopback(false), match...)
	}
	b.add("tells a sender of a packet that began no connection; the kernel would not queue it", match,
		&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: errorsCounter}, &expr.Verdict{Kind: expr.VerdictAccept})
}

// sendsErrors says whether messages of this host's kernel come by hook h.
func (c *Config) sendsErrors(h Hook) bool { return h.sends() || c.Loopback && h != Forward }

// fromBridges says whether packets that a bridge sends on come by one of the hooks.
func (c *Config) fromBridges() bool {
	return slices.Contains(c.Hooks, Forward) || slices.Contains(c.Hooks, Postrouting)
}

// untracker returns the chain that keeps conntrack from broadcast and multicast
// which a bridge may send out by several ports. The copies would share a
// connection that is not confirmed, and the kernel queues none of them (see
// errors). Without a connection each copy is queued and judged.
func (p *plan) untracker() []branch {
	if !p.bridges || p.stopped {
		return nil
	}
	b := newBase(p.Config, p.table(), Prerouting)
	b.chain.Name = "verdictd_untracked"
	b.chain.Priority = nftables.ChainPriorityRef(untrackPriority)
	for _, kind := range []byte{packetBroadcast, packetMulticast} {
		b.add("copies that share a connection are not queued", fromBridge(kind), &expr.Notrack{})
	}
	return []branch{b}
}

// fromBridge matches packets of a kind that come by a bridge.
func fromBridge(kind byte) []expr.Any {
	name := make([]byte, ifNameSize)
	copy(name, "bridge")
	return []expr.Any{
		&expr.Meta{Key: metaIIFKind, Register: 1}, equal(name),
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: 1}, equal([]byte{kind}),
	}
}

// toLocal matches packets to an address of this host.
func toLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		equal(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
	}
}

// ctStatusNone matches connections that have none of the bits in their status.
func ctStatusNone(bits uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}, masked(bits), equal(make([]byte, 4))}
}

// ctStateHas matches packets in one of the states.
func ctStateHas(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, masked(bits),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
