package hook

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	rejectChain      = "verdictd_rejected"
	cleanChain       = "verdictd_marks"
	offloadedCounter = "offloaded"

	// cleanPriority is after those who restore packet marks from connection
	// marks (mangle, -150) and before the routing of incoming packets.
	cleanPriority = -149

	ctDirectionReply = 1 // IP_CT_DIR_REPLY, nf_conntrack_tuple_common.h
	ctExpected       = 1 // IPS_EXPECTED, nf_conntrack_common.h
	tcpFlagsOffset   = 13
	tcpSYN           = 0x02
	tcpFinSynRstAck  = 0x17

	icmpAdminProhibited4 = 13 // ICMP_PKT_FILTERED
	icmpAdminProhibited6 = 1  // ICMPV6_ADM_PROHIBITED
	icmpxAdminProhibited = 3  // NFT_REJECT_ICMPX_ADMIN_PROHIBITED
)

// offload fills the chain that packets pass before the queue: those that
// verdictd has accepted and sent round again, and those of flows whose
// connection mark says that all of it is accepted.
//
// A SYN is judged whatever the mark says: it may begin another connection with
// the ports of the old one. So is what a helper expects, such as the data
// connection of FTP, as the kernel gives it the mark of the connection that
// brought it about. And so is an ICMP error: it has the mark of the connection that
// it speaks about, and else carries what its sender likes.
func (p *plan) offload(b *branch) {
	b.add("counts only: reading conntrack makes fragments arrive whole", invalidState(), &expr.Counter{})
	m := p.marks
	if m.Accept == 0 {
		return
	}
	// Two rules: what is not tracked has no connection to mark, and passes alone.
	b.add("the rest of the flow is accepted by verdictd", append(markIs(m.Mask, m.Accept), setCtMark(m.Mask, m.Accept)...))
	b.add("accepted by verdictd", append(markIs(m.Mask, m.Accept), clearMark(m.Mask)...), &expr.Verdict{Kind: expr.VerdictAccept})
	b.add("a new connection is judged anew", tcpNew(), &expr.Verdict{Kind: expr.VerdictReturn})
	if !p.stopped {
		about := append(related(m.Mask, m.Accept), notExpected()...)
		b.add("for verdictd: an error about a flow that it accepted", append(append(markIs(m.Mask, 0), about...), setMark(m.Mask, m.Related)...))
		b.add("an error is judged", about, &expr.Verdict{Kind: expr.VerdictReturn})
	}
	b.add("flow accepted by verdictd", append(ctMarkIs(m.Mask, m.Accept), notExpected()...),
		&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: offloadedCounter}, &expr.Verdict{Kind: expr.VerdictAccept})
}

// reject fills the chain for packets that verdictd has rejected. The connection
// mark makes the kernel's message to the sender known: it belongs to the same
// connection.
func (p *plan) reject(b *branch) {
	b.add("makes the message below known", append(setCtMark(p.marks.Mask, p.marks.Reject), clearMark(p.marks.Mask)...))
	if !p.rejects {
		b.add("nft_reject is missing", nil, &expr.Verdict{Kind: expr.VerdictDrop})
		return
	}
	b.add("tell the sender", []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{unix.IPPROTO_TCP})}, rejectTCP())
	b.add("tell the sender", nil, rejectICMP(p.Family))
}

// judged adds the rules for packets that verdictd has judged already, and for
// the messages to senders of rejected packets.
func (p *plan) judged(b *branch, h Hook) {
	if p.marks.Mask == 0 {
		return
	}
	verdict := &expr.Verdict{Kind: expr.VerdictGoto, Chain: rejectChain}
	if h == Postrouting { // the kernel rejects nothing there
		verdict = &expr.Verdict{Kind: expr.VerdictDrop}
	}
	b.add("rejected by verdictd", markIs(p.marks.Mask, p.marks.Reject), verdict)
	out := h.sends()
	if !out && (!p.Loopback || h == Forward) {
		return
	}
	match := related(p.marks.Mask, p.marks.Reject)
	if !out {
		match = append(overLoopback(false), match...)
	}
	b.add("tells a sender of its rejected packet", match, &expr.Verdict{Kind: expr.VerdictAccept})
}

// answers marks the packets that answer. verdictd then knows the direction of
// flows that it has not seen from the beginning.
func (p *plan) answers(b *branch, h Hook) {
	m := p.marks
	if m.Mask == 0 || !p.seesBoth(h) {
		return
	}
	match := append(markIs(m.Mask, 0),
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, equal([]byte{ctDirectionReply}))
	b.add("for verdictd: an answer", append(match, setMark(m.Mask, m.Reply)...))
}

// clean fills the chain that takes the values in use from a packet's mark. All
// other values are somebody else's and stay. The next generation's is in it, as
// verdicts carry it before the rules know it, and the former's, as connections do.
func (p *plan) clean(b *branch) {
	m := p.marks
	values := []uint32{m.Reject, m.Reply, m.Related}
	if m.Accept != 0 {
		values = append(values, p.former.Accept, m.Accept, m.Next().Accept)
	}
	slices.Sort(values)
	for _, v := range slices.Compact(values) {
		if v != 0 {
			b.add("a value of verdictd's", append(markIs(m.Mask, v), clearMark(m.Mask)...))
		}
	}
}

// cleaners returns the chains that take verdictd's values from the mark of every
// packet that comes: such a mark counts only if it came with a verdict. They also
// undo what a rule does that copies a whole connection mark. The packets that
// verdictd sends round again do not pass them. At POSTROUTING they take off what
// an answer had to keep at OUTPUT.
//
// No chain is of type route: a mark that changes at OUTPUT would make the kernel
// route the packet again, and not by what its program asked for.
func (p *plan) cleaners() []branch {
	if p.marks.Mask == 0 {
		return nil
	}
	var list []branch
	for _, h := range []Hook{Prerouting, Output, Postrouting} {
		if !p.cleanedAt(h) {
			continue
		}
		b := newBase(p.Config, p.table(), h)
		b.chain.Name = "verdictd_clean_" + h.String()
		b.chain.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(min(cleanPriority, p.Priority-1)))
		if h == Postrouting {
			b.chain.Priority = nftables.ChainPriorityRef(guardPriority)
		}
		match := append(loadMark(), masked(p.marks.Mask), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)})
		b.add("values of verdictd's count only with a verdict", match, &expr.Verdict{Kind: expr.VerdictJump, Chain: cleanChain})
		list = append(list, b)
	}
	return list
}

// cleanedAt says whether packets for our hooks enter by hook h, or leave by it
// with our marks.
func (c *Config) cleanedAt(h Hook) bool {
	if h == Postrouting {
		return slices.Contains(c.Hooks, Output)
	}
	for _, ours := range c.Hooks {
		if ours == Postrouting || (ours == Output) == (h == Output) {
			return true
		}
	}
	return false
}

func loadMark() []expr.Any { return []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}} }

func markIs(mask, value uint32) []expr.Any {
	return append(loadMark(), masked(mask), equal(binaryutil.NativeEndian.PutUint32(value)))
}

func ctMarkIs(mask, value uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, masked(mask), equal(binaryutil.NativeEndian.PutUint32(value))}
}

// setMark sets the bits of mask in the packet's mark to value.
func setMark(mask, value uint32) []expr.Any {
	return append(loadMark(), replaced(mask, value), &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
}

func clearMark(mask uint32) []expr.Any { return setMark(mask, 0) }

func setCtMark(mask, value uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, replaced(mask, value),
		&expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: 1},
	}
}

// replaced sets the bits of mask in the register to value.
func replaced(mask, value uint32) expr.Any {
	return &expr.Bitwise{
		SourceRegister: 1, DestRegister: 1, Len: 4,
		Mask: binaryutil.NativeEndian.PutUint32(^mask), Xor: binaryutil.NativeEndian.PutUint32(value),
	}
}

// related matches packets that speak about a connection with that mark: ICMP
// errors, and the kernel's own answers to a packet that was rejected, which carry
// the connection of that packet (nf_ct_attach). Where verdictd rejects, and where
// this is asked for Marks.Reject, packets are sent by this host.
func related(mask, mark uint32) []expr.Any {
	return append(ctStateHas(expr.CtStateBitRELATED), ctMarkIs(mask, mark)...)
}

func tcpNew() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{unix.IPPROTO_TCP}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpFinSynRstAck}, Xor: []byte{0}},
		equal([]byte{tcpSYN}),
	}
}

func notExpected() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}, masked(ctExpected),
		equal(make([]byte, 4)),
	}
}

func rejectTCP() expr.Any { return &expr.Reject{Type: unix.NFT_REJECT_TCP_RST} }

// rejectICMP tells the sender "administratively prohibited". The expression for
// both families is known in inet tables only.
func rejectICMP(f Family) expr.Any {
	switch f {
	case IPv4:
		return &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpAdminProhibited4}
	case IPv6:
		return &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpAdminProhibited6}
	}
	return &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: icmpxAdminProhibited}
}
