package hook

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// Plan returns the ruleset that Install would make, in the language of nft. It
// asks nothing of the kernel and needs no rights.
func Plan(cfg Config) (string, error) {
	c, err := cfg.withDefaults()
	if err != nil {
		return "", err
	}
	p := plan{Config: c, native: true, rejects: true, records: c.Record != 0, fib: true, bridges: c.fromBridges(), marks: c.marks()}
	return p.build().text(false), nil
}

// text writes the table in the language of nft; with counts, counters show
// their values. Chains come in the order of the packet path, plain chains first.
func (t *tree) text(counts bool) string {
	var w strings.Builder
	fmt.Fprintf(&w, "table %s %s {\n", familyName(t.table.Family), t.table.Name)
	for _, o := range t.counters {
		values := ""
		if n, ok := o.Obj.(*expr.Counter); ok && counts {
			values = fmt.Sprintf(" packets %d bytes %d ", n.Packets, n.Bytes)
		}
		fmt.Fprintf(&w, "\tcounter %s {%s}\n", o.Name, values)
	}
	for _, b := range t.inOrder() {
		b.write(&w, counts)
	}
	w.WriteString("}\n")
	return w.String()
}

func familyName(f nftables.TableFamily) string {
	for n := Inet; n <= IPv6; n++ {
		if n.kernel() == f {
			return n.String()
		}
	}
	return fmt.Sprint(byte(f))
}

// inOrder returns the chains in the order of the packet path, plain ones first.
func (t *tree) inOrder() []branch {
	chains := slices.Clone(t.chains)
	slices.SortStableFunc(chains, func(a, b branch) int { return a.order() - b.order() })
	return chains
}

func (b branch) order() int {
	if !b.base() {
		return -1
	}
	return int(*b.chain.Hooknum)<<16 + int(*b.chain.Priority) - guardPriority
}

func (b branch) write(w *strings.Builder, counts bool) {
	fmt.Fprintf(w, "\tchain %s {\n", b.chain.Name)
	if b.base() {
		fmt.Fprintf(w, "\t\ttype %s hook %s priority %d; policy %s;\n",
			b.chain.Type, Hook(*b.chain.Hooknum), *b.chain.Priority, policyName(b.chain.Policy))
	}
	for _, r := range b.rules {
		fmt.Fprintf(w, "\t\t%s\n", ruleText(r, counts))
	}
	w.WriteString("\t}\n")
}

func policyName(p *nftables.ChainPolicy) string {
	if p != nil && *p == nftables.ChainPolicyDrop {
		return "drop"
	}
	return "accept"
}

func ruleText(r *nftables.Rule, counts bool) string {
	p := printer{counts: counts}
	for _, e := range r.Exprs {
		p.add(e)
	}
	if c := comment(r.UserData); c != "" {
		p.word("comment %q", c)
	}
	return strings.Join(p.words, " ")
}

// comment returns the comment in a rule's user data, "" if there is none. User
// data is whatever the maker of the rule has written, so no length is trusted.
//
// Source: libnftnl's type, length, value records (one byte, one byte, bytes).
func comment(udata []byte) string {
	for len(udata) >= 2 && int(udata[1]) <= len(udata)-2 {
		end := 2 + int(udata[1])
		if userdata.Type(udata[0]) == userdata.TypeComment {
			return strings.TrimRight(string(udata[2:end]), "\x00")
		}
		udata = udata[end:]
	}
	return ""
}

// printer turns the expressions of a rule back into nft's language. It knows
// the expressions of our own rules; others it names in angle brackets.
type printer struct {
	counts bool
	words  []string
	loaded string // what register 1 holds
	mask   []byte // applied to it, nil if none
	xor    []byte // then applied to it
	low    []byte // lower bound, nil if none
}

func (p *printer) word(format string, args ...any) {
	p.words = append(p.words, fmt.Sprintf(format, args...))
}

func (p *printer) add(e expr.Any) {
	switch e := e.(type) {
	case *expr.Meta:
		p.access(metaName(e.Key), e.SourceRegister)
	case *expr.Ct:
		p.access(ctName(e.Key), e.SourceRegister || e.Register == 0) // the library does not read the source register
	case *expr.Payload:
		p.load(payloadName(e))
	case *expr.Bitwise:
		p.mask, p.xor = e.Mask, e.Xor
	case *expr.Byteorder: // of the time of day
	case *expr.Cmp:
		p.compare(e)
	case *expr.Counter:
		p.word("counter")
		if p.counts {
			p.word("packets %d bytes %d", e.Packets, e.Bytes)
		}
	case *expr.Objref:
		p.word("counter name %q", e.Name)
	case *expr.Verdict:
		p.word("%s", verdictName(e))
	case *expr.Reject:
		p.word("%s", rejectName(e))
	case *expr.Queue:
		p.queue(e.Num, e.Total, e.Flag&expr.QueueFlagBypass != 0, e.Flag&expr.QueueFlagFanout != 0)
	case *expr.Target:
		p.target(e)
	case *expr.Fib:
		p.load("fib daddr type")
	case *expr.Notrack:
		p.word("notrack")
	case *expr.Match:
		p.word("xt match %q", e.Name) // as nft writes it; the descriptor in it means nothing to a reader
	default:
		p.word("<%T>", e)
	}
}

// access writes what register 1 holds into name, or loads it from there.
func (p *printer) access(name string, set bool) {
	if !set {
		p.load(name)
		return
	}
	if len(p.mask) != 4 || len(p.xor) != 4 {
		p.word("<%s set>", name)
		return
	}
	p.word("%s set %s & %s", name, p.loaded, value(p.loaded, p.mask))
	if len(bytes.Trim(p.xor, "\x00")) > 0 {
		p.word("| %s", value(p.loaded, p.xor))
	}
}

func (p *printer) load(name string) {
	p.loaded, p.mask, p.xor, p.low = name, nil, nil, nil
}

func (p *printer) compare(e *expr.Cmp) {
	switch {
	case e.Op == expr.CmpOpGte && p.loaded == "meta time" && len(e.Data) == timeLen:
		p.word("%s >= %s", p.loaded, timeText(e.Data))
	case e.Op == expr.CmpOpGte:
		p.low = e.Data
	case e.Op == expr.CmpOpLte && p.low != nil:
		p.word("%s %s-%s", p.loaded, value(p.loaded, p.low), value(p.loaded, e.Data))
	case e.Op == expr.CmpOpNeq && p.mask != nil && len(bytes.Trim(e.Data, "\x00")) == 0:
		p.word(p.bitsFormat(), p.loaded, value(p.loaded, p.mask))
	case e.Op == expr.CmpOpEq && p.mask != nil:
		p.word("%s & %s == %s", p.loaded, value(p.loaded, p.mask), value(p.loaded, e.Data))
	case e.Op == expr.CmpOpEq:
		p.word("%s %s", p.loaded, value(p.loaded, e.Data))
	default:
		p.word("<%s op %d %x>", p.loaded, e.Op, e.Data)
	}
}

// bitsFormat is how "has any of the bits" is written.
func (p *printer) bitsFormat() string {
	if p.loaded == "meta mark" {
		return "%s & %s != 0x0"
	}
	return "%s %s"
}

// value writes the data that a register is compared with. Data of more than
// one byte is in host byte order in all our rules.
func value(of string, data []byte) string {
	if len(data) == 1 {
		if of == "ct direction" && data[0] == ctDirectionReply {
			return "reply"
		}
		if of == "tcp flags" {
			return fmt.Sprintf("%#x", data[0])
		}
		if of == "meta pkttype" && int(data[0]) < len(packetTypes) {
			return packetTypes[data[0]]
		}
		if of == "meta nfproto" && data[0] == byte(nftables.TableFamilyIPv6) {
			return "ipv6"
		}
		return fmt.Sprint(data[0])
	}
	if len(data) == ifNameSize {
		return fmt.Sprintf("%q", bytes.TrimRight(data, "\x00"))
	}
	if len(data) != 4 {
		return fmt.Sprintf("<%x>", data)
	}
	n := binary.NativeEndian.Uint32(data)
	switch {
	case of == "ct state" && n == expr.CtStateBitINVALID:
		return "invalid"
	case of == "ct state" && n == expr.CtStateBitRELATED:
		return "related"
	case (of == "iif" || of == "oif") && n == loopbackIndex:
		return `"lo"`
	case of == "fib daddr type" && n == unix.RTN_LOCAL:
		return "local"
	}
	return fmt.Sprintf("%#x", n)
}

// packetTypes are the kernel's kinds of packets (PACKET_HOST and so on,
// if_packet.h) as nft writes them.
var packetTypes = [...]string{"host", "broadcast", "multicast"}

func metaName(k expr.MetaKey) string {
	switch k {
	case expr.MetaKeyIIF:
		return "iif"
	case expr.MetaKeyOIF:
		return "oif"
	case expr.MetaKeyMARK:
		return "meta mark"
	case expr.MetaKeyNFPROTO:
		return "meta nfproto"
	case expr.MetaKeyL4PROTO:
		return "meta l4proto"
	case expr.MetaKeyPKTTYPE:
		return "meta pkttype"
	case metaIIFKind:
		return "meta iifkind"
	case metaTime:
		return "meta time"
	}
	return fmt.Sprintf("<meta %d>", k)
}

func ctName(k expr.CtKey) string {
	switch k {
	case expr.CtKeySTATE:
		return "ct state"
	case expr.CtKeyMARK:
		return "ct mark"
	case expr.CtKeyDIRECTION:
		return "ct direction"
	case expr.CtKeySTATUS:
		return "ct status"
	}
	return fmt.Sprintf("<ct %d>", k)
}

func payloadName(e *expr.Payload) string {
	switch {
	case e.Base == expr.PayloadBaseNetworkHeader && e.Offset == hopLimitOffset && e.Len == 1:
		return "ip6 hoplimit"
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 0 && e.Len == 1:
		return "icmpv6 type"
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == tcpFlagsOffset && e.Len == 1:
		return "tcp flags"
	}
	return fmt.Sprintf("@%d,%d,%d", e.Base, e.Offset*8, e.Len*8)
}

func verdictName(v *expr.Verdict) string {
	switch v.Kind {
	case expr.VerdictAccept:
		return "accept"
	case expr.VerdictDrop:
		return "drop"
	case expr.VerdictReturn:
		return "return"
	case expr.VerdictJump:
		return "jump " + v.Chain
	case expr.VerdictGoto:
		return "goto " + v.Chain
	}
	return fmt.Sprintf("<verdict %d>", v.Kind)
}

func rejectName(e *expr.Reject) string {
	switch *e {
	case expr.Reject{Type: unix.NFT_REJECT_TCP_RST}:
		return "reject with tcp reset"
	case expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: icmpxAdminProhibited}:
		return "reject with icmpx admin-prohibited"
	case expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpAdminProhibited4}:
		return "reject with icmp admin-prohibited"
	case expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpAdminProhibited6}:
		return "reject with icmpv6 admin-prohibited"
	}
	return fmt.Sprintf("<reject %d %d>", e.Type, e.Code)
}

// target writes the xt NFQUEUE target as the queue statement it stands for.
func (p *printer) target(e *expr.Target) {
	info, ok := e.Info.(*xt.Unknown)
	if e.Name != "NFQUEUE" || e.Rev != 3 || !ok || len(*info) < 6 {
		p.word("<xt target %s>", e.Name)
		return
	}
	flags := binary.NativeEndian.Uint16((*info)[4:])
	p.queue(binary.NativeEndian.Uint16((*info)[0:]), binary.NativeEndian.Uint16((*info)[2:]), flags&xtBypass != 0, flags&xtFanout != 0)
}

func (p *printer) queue(first, total uint16, bypass, fanout bool) {
	var flags []string
	if bypass {
		flags = append(flags, "bypass")
	}
	if fanout {
		flags = append(flags, "fanout")
	}
	if len(flags) > 0 {
		p.word("queue flags %s to %s", strings.Join(flags, ","), queueRange(first, total))
		return
	}
	p.word("queue to %s", queueRange(first, total))
}
