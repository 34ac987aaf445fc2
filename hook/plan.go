package hook

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// offloadChain is a plain chain in every table of ours. Decided flows are let
// through there by their connection mark, before the queue. Its name also tells
// our tables from others: nobody else's table has it.
const offloadChain = "verdictd_offload"

// Numbers that x/sys/unix lacks.
const (
	loopbackIndex = 1 // LOOPBACK_IFINDEX, include/net/flow.h

	ndFirst, ndLast = 133, 137 // router solicitation to redirect, RFC 4861 §4
	ndHopLimit      = 255      // RFC 4861 §6.1, §7.1, §8.1
	hopLimitOffset  = 7        // in the IPv6 header, RFC 8200 §3

	// Flags of struct xt_NFQ_info_v3, include/uapi/linux/netfilter/xt_NFQUEUE.h.
	xtBypass = 1
	xtFanout = 2
)

// tree is a table with everything in it: either planned or read from the kernel.
type tree struct {
	table    *nftables.Table
	counters []*nftables.NamedObj
	chains   []branch
}

// branch is a chain and its rules.
type branch struct {
	chain *nftables.Chain
	rules []*nftables.Rule
}

// base says whether packets enter the table by this chain.
func (b branch) base() bool { return b.chain.Hooknum != nil }

// counterName names the counter of the packets that a hook queued. It is an
// object of its own, so that it outlives the rule: packets are still counted
// after Stop.
func counterName(h Hook) string { return "queued_" + h.String() }

// plan is a configuration with its defaults filled in, and what the kernel at
// hand can do.
type plan struct {
	Config
	native  bool  // the kernel has the queue expression, else the xt NFQUEUE target
	rejects bool  // the kernel can reject
	records bool  // the kernel can run the program of Config.Record, and a hook has use for it
	fib     bool  // the kernel can tell whether an address is its own
	bridges bool  // packets of bridges come by a hook, and the kernel can tell them from others
	stopped bool  // nothing is queued any more, everything passes
	kept    bool  // Config.Until no longer counts
	blocked bool  // nothing is queued any more, and what was is dropped
	marks   Marks // of this generation
	former  Marks // of the one before

	noRecord error // why records is false though a program is given, else nil
}

// build plans the table.
func (p *plan) build() *tree {
	t := &tree{table: p.table()}
	t.chains = append(t.chains, p.plain(offloadChain, p.offload))
	if p.marks.Mask != 0 {
		t.chains = append(t.chains, p.plain(rejectChain, p.reject))
		t.chains = append(t.chains, p.plain(cleanChain, p.clean))
		t.counters = append(t.counters, newCounter(t.table, offloadedCounter))
	}
	t.chains = append(t.chains, p.cleaners()...)
	t.chains = append(t.chains, p.untracker()...)
	if slices.ContainsFunc(p.Hooks, p.sendsErrors) {
		t.counters = append(t.counters, newCounter(t.table, errorsCounter))
	}
	for _, h := range p.Hooks {
		t.chains = append(t.chains, p.base(h))
		t.counters = append(t.counters, newCounter(t.table, counterName(h)))
	}
	slices.SortFunc(t.counters, func(a, b *nftables.NamedObj) int { return counterOrder(a) - counterOrder(b) })
	t.chains = t.inOrder()
	return t
}

// plain makes a chain that others jump to.
func (p *plan) plain(name string, fill func(*branch)) branch {
	b := branch{chain: &nftables.Chain{Name: name, Table: p.table()}}
	fill(&b)
	return b
}

// base makes the chain of a hook.
func (p *plan) base(h Hook) branch {
	b := newBase(p.Config, p.table(), h)
	closed := p.marks.Mask != 0 && !p.Bypass
	if closed {
		policy := nftables.ChainPolicyDrop
		b.chain.Policy = &policy
	}
	if !p.Until.IsZero() && !p.kept {
		b.add("nobody has confirmed these rules", opened(p.Until), &expr.Verdict{Kind: expr.VerdictAccept})
	}
	if !p.stopped {
		p.loopback(&b, h)
		b.exclude(p.Config, h)
	}
	p.judged(&b, h)
	if !p.stopped {
		p.errors(&b, h)
	}
	if !p.stopped || p.marks.Accept != 0 {
		b.add("flows already decided", nil, &expr.Verdict{Kind: expr.VerdictJump, Chain: offloadChain})
	}
	if p.stopped && closed {
		// A rule, not another policy: rules change in one moment, and a policy
		// in another, between which packets would be dropped.
		b.add("stopped", nil, &expr.Verdict{Kind: expr.VerdictAccept})
	}
	switch {
	case p.stopped:
		return b
	case p.blocked:
		b.add(blockedComment, nil, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
		return b
	}
	p.answers(&b, h)
	queue := xtQueue(p.Config)
	if p.native {
		queue = nativeQueue(p.Config)
	}
	p.record(&b, h)
	count := &expr.Objref{Type: int(nftables.ObjTypeCounter), Name: counterName(h)}
	b.add("to verdictd", nil, count, queue)
	return b
}

func newBase(c Config, t *nftables.Table, h Hook) branch {
	policy := nftables.ChainPolicyAccept
	return branch{chain: &nftables.Chain{
		Name:     h.String(),
		Table:    t,
		Type:     nftables.ChainTypeFilter,
		Hooknum:  nftables.ChainHookRef(nftables.ChainHook(h)),
		Priority: nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority)),
		Policy:   &policy,
	}}
}

func newCounter(t *nftables.Table, name string) *nftables.NamedObj {
	return &nftables.NamedObj{Table: t, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}}
}

// exclude adds the rules for packets that never go to the queue. Neighbour
// discovery comes by the forward hook between the ports of a bridge only: a router
// has lowered the hop limit before.
func (b *branch) exclude(c Config, h Hook) {
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	if c.OwnMark != 0 && h.sends() {
		b.add("verdictd's own packets", ownMark(c), accept)
	}
	if !c.StrictNeighbour && c.Family != IPv4 {
		b.add("neighbour discovery", neighbour(c.Family), accept)
	}
}

// add appends a rule: first its matches, then what it does.
func (b *branch) add(comment string, match []expr.Any, do ...expr.Any) {
	b.rules = append(b.rules, &nftables.Rule{
		Table:    b.chain.Table,
		Chain:    b.chain,
		Exprs:    append(match, do...),
		UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
	})
}

func overLoopback(out bool) []expr.Any {
	key := expr.MetaKeyIIF
	if out {
		key = expr.MetaKeyOIF
	}
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, equal(binaryutil.NativeEndian.PutUint32(loopbackIndex))}
}

func ownMark(c Config) []expr.Any {
	match := []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}}
	if c.OwnMask != 0xffffffff {
		match = append(match, masked(c.OwnMask))
	}
	return append(match, equal(binaryutil.NativeEndian.PutUint32(c.OwnMark)))
}

// neighbour matches neighbour discovery. An inet table must ask for IPv6 first:
// an IPv4 packet may carry protocol 58 too.
func neighbour(f Family) []expr.Any {
	var match []expr.Any
	if f == Inet {
		match = append(match, &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{unix.NFPROTO_IPV6}))
	}
	return append(match,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: hopLimitOffset, Len: 1},
		equal([]byte{ndHopLimit}),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		equal([]byte{unix.IPPROTO_ICMPV6}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{ndFirst}},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{ndLast}},
	)
}

func invalidState() []expr.Any { return ctStateHas(expr.CtStateBitINVALID) }

func equal(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}
}

func masked(mask uint32) expr.Any {
	return &expr.Bitwise{
		SourceRegister: 1, DestRegister: 1, Len: 4,
		Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4),
	}
}

// nativeQueue is the kernel's own queue expression (nft_queue).
func nativeQueue(c Config) expr.Any {
	q := &expr.Queue{Num: c.QueueFirst, Total: c.QueueLast - c.QueueFirst + 1}
	if c.Bypass {
		q.Flag |= expr.QueueFlagBypass
	}
	if c.Fanout {
		q.Flag |= expr.QueueFlagFanout
	}
	return q
}

// xtQueue is the same as nativeQueue by the target that iptables uses
// (nft_compat and xt_NFQUEUE).
//
// Source: struct xt_NFQ_info_v3, include/uapi/linux/netfilter/xt_NFQUEUE.h:
// queuenum, queues_total and flags, 16 bits each in host byte order, padded to
// 8 bytes (XT_ALIGN).
func xtQueue(c Config) expr.Any {
	var flags uint16
	if c.Bypass {
		flags |= xtBypass
	}
	if c.Fanout {
		flags |= xtFanout
	}
	info := make(xt.Unknown, 8)
	binary.NativeEndian.PutUint16(info[0:], c.QueueFirst)
	binary.NativeEndian.PutUint16(info[2:], c.QueueLast-c.QueueFirst+1)
	binary.NativeEndian.PutUint16(info[4:], flags)
	return &expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}
}
