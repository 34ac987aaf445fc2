package policy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// Bounds of the probe.
const (
	probeNetworks = 4 // networks of the policy that packets are sent to and from
)

// prober asks a policy about packets that nobody thought of: of every
// protocol, whole and in fragments, with ports that no rule names.
type prober struct {
	a     *analyst
	links []link
	end   time.Time
	ports [2]int64
	holes []*hole
	cut   bool
}

// hole are protocols that a rule accepts without naming them.
type hole struct {
	rule      *ast.Rule
	name      string
	fragments bool // of these protocols, fragments get through
	protocols []uint8
	example   string
}

// protocols finds protocols that a rule accepts without naming them, in places
// where TCP and UDP are dropped whose ports no rule names: a default that
// drops, but not everything. complete is false if the policy is too slow for
// the whole probe.
func (a *analyst) protocols(ctx context.Context, links []link, end time.Time) (found Errors, complete bool) {
	p := &prober{a: a, links: links, end: end}
	p.ports = a.unnamedPorts()
	for _, way := range p.ways() {
		p.probe(ctx, way)
	}
	for _, h := range p.holes {
		found = append(found, h.finding())
	}
	return found, !p.cut
}

// known returns the protocols that people know best.
func known() []uint8 { return []uint8{packet.ProtoSCTP, packet.ProtoICMP, packet.ProtoICMPv6, 47, 50} }

func (h *hole) finding() *Error {
	const hint = "test input.ip.protocol there"
	if h.fragments {
		names := make([]string, len(h.protocols))
		for i, proto := range h.protocols {
			names[i] = rules.ProtocolName(proto)
		}
		return errorAt(h.rule.Location, fmt.Sprintf("%s accepts fragments of %s, whose whole packets are dropped where no rule names their ports: %s",
			h.name, strings.Join(names, " and "), h.example), "fragments but the first have no ports: "+hint)
	}
	var names []string
	for _, proto := range append(known(), h.protocols...) {
		if name := rules.ProtocolName(proto); len(names) < 3 && slices.Contains(h.protocols, proto) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	list := strings.Join(names, ", ")
	if more := len(h.protocols) - len(names); more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return errorAt(h.rule.Location, fmt.Sprintf("%s accepts protocols that it does not name (%s) where TCP and UDP are dropped unless a rule names their ports: %s",
		h.name, list, h.example), hint)
}

// way is a place and a direction that packets can take.
type way struct{ src, dst, hook string }

// ways returns the ways that the policy tells apart, by what it reads.
func (p *prober) ways() []way {
	reads := func(path string) bool {
		i := slices.IndexFunc(p.a.p.fields, func(f rules.Field) bool { return f.Path == path })
		return i >= 0 && p.a.p.reads.Has(i)
	}
	hooks := []string{packet.Output.String()}
	if reads("hook") || reads("direction") {
		hooks = append(hooks, packet.Input.String(), packet.Forward.String(), packet.Prerouting.String(), packet.Postrouting.String())
	}
	ends := [][2]string{{"192.0.2.77", "198.51.100.77"}, {"2001:db8:7::7", "2001:db8:8::8"}}
	if reads("ip.src") || reads("ip.dst") {
		ends = append(ends, p.a.inside()...)
	}
	var all []way
	for _, end := range ends {
		for _, hook := range hooks {
			all = append(all, way{end[0], end[1], hook})
		}
	}
	return all
}

// inside returns pairs of addresses of which one or both are in networks that
// the policy names.
func (a *analyst) inside() [][2]string {
	var named []netip.Addr
	for _, name := range sortedKeys(a.p.live) {
		ast.WalkTerms(a.p.compiler.Modules[name], func(t *ast.Term) bool {
			s, ok := t.Value.(ast.String)
			if !ok || len(named) == probeNetworks {
				return false
			}
			addr, err := netip.ParseAddr(string(s))
			if prefix, perr := netip.ParsePrefix(string(s)); perr == nil {
				addr, err = prefix.Masked().Addr(), nil
			}
			if err == nil && addr.Zone() == "" && !slices.Contains(named, addr) {
				named = append(named, addr)
			}
			return false
		})
	}
	var all [][2]string
	for _, addr := range named {
		other := "192.0.2.77"
		if addr.Is6() {
			other = "2001:db8:7::7"
		}
		s := addr.String()
		all = append(all, [2]string{s, other}, [2]string{other, s}, [2]string{s, s})
	}
	return all
}

// unnamedPorts returns a low and a high port that the policy does not mention.
func (a *analyst) unnamedPorts() [2]int64 {
	named := map[int64]bool{}
	for _, m := range a.p.compiler.Modules {
		ast.WalkTerms(m, func(t *ast.Term) bool {
			if n, ok := t.Value.(ast.Number); ok {
				i, _ := n.Int64()
				named[i] = true
			}
			return false
		})
	}
	ports := [2]int64{2, 61007}
	for i := range ports {
		for named[ports[i]] {
			ports[i]++
		}
	}
	return ports
}

// probe asks about packets of all protocols on one way.
func (p *prober) probe(ctx context.Context, w way) {
	for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
		for _, port := range p.ports {
			if p.ask(w.facts(proto, port, false)) {
				return // what no rule names is accepted: there is nothing to leave a hole in
			}
		}
	}
	for n := range 256 {
		proto := uint8(n)
		fragment := proto == packet.ProtoTCP || proto == packet.ProtoUDP
		p.hole(ctx, w, w.facts(proto, p.ports[1], fragment), fragment)
	}
}

// facts returns a packet on the way, or a fragment that is not the first.
func (w way) facts(proto uint8, port int64, fragment bool) *rules.Facts {
	f := &rules.Facts{Meta: &packet.Meta{}, Packet: &packet.Packet{
		Status: packet.OK, Version: 4, Src: netip.MustParseAddr(w.src), Dst: netip.MustParseAddr(w.dst), Protocol: proto,
		TTL: 64, TotalLength: 100, ICMPType: 200,
	}}
	f.Meta.Hook, _ = packet.ParseHook(w.hook)
	if f.Packet.Src.Is6() {
		f.Packet.Version = 6
	}
	if fragment {
		f.Packet.Status, f.Packet.FragmentOffset = packet.Fragment, 1480
		return f
	}
	f.Packet.HasPorts = slices.Contains(portProtocols(), int64(proto))
	f.Packet.SrcPort, f.Packet.DstPort = uint16(port), uint16(port)
	return f
}

// flow returns a packet of facts as rules.ParseFlow reads it.
func (w way) flow(p *packet.Packet) string {
	src, dst := w.src, w.dst
	if p.HasPorts {
		src, dst = netip.AddrPortFrom(p.Src, p.SrcPort).String(), netip.AddrPortFrom(p.Dst, p.DstPort).String()
	}
	return fmt.Sprintf("%s %s -> %s %s", rules.ProtocolName(p.Protocol), src, dst, w.hook)
}

// ask returns whether the policy accepts a packet.
func (p *prober) ask(f *rules.Facts) bool {
	if p.cut = p.cut || time.Now().After(p.end); p.cut {
		return false
	}
	var d rules.Decision
	err := p.a.run.run.evaluate(f, &d)
	return err == nil && d.Action == packet.Accept
}

// hole notes that the policy accepts a packet, unless the rule that does so
// names its protocol.
func (p *prober) hole(ctx context.Context, w way, f *rules.Facts, fragment bool) {
	if !p.ask(f) {
		return
	}
	in, proto := rules.InputOf(f), f.Packet.Protocol
	t := newTrace(p.a.run, in)
	if err := p.a.run.trace(ctx, in, t); err != nil {
		return // it accepted the packet, and now there is no time
	}
	for _, a := range t.root.asked {
		if !a.matched || p.names(a, proto, fragment) {
			continue
		}
		p.note(a.rule, w.flow(f.Packet), proto, fragment)
	}
}

// note adds a protocol to the hole that a rule makes.
func (p *prober) note(r *ast.Rule, flow string, proto uint8, fragment bool) {
	i := slices.IndexFunc(p.holes, func(h *hole) bool { return h.rule == r && h.fragments == fragment })
	if i < 0 {
		p.holes = append(p.holes, &hole{rule: r, name: p.a.run.label(r), fragments: fragment, example: flow})
		i = len(p.holes) - 1
	}
	h := p.holes[i]
	if slices.Contains(h.protocols, proto) {
		return
	}
	if slices.Contains(known(), proto) && !slices.ContainsFunc(h.protocols, func(q uint8) bool { return slices.Contains(known(), q) }) {
		h.example = flow
	}
	h.protocols = append(h.protocols, proto)
}

// names returns whether a rule that matched, or one that it asked and that
// matched, tests for the protocol, or for fragments, in so many words or in a
// way that is not understood.
func (p *prober) names(a *attempt, proto uint8, fragment bool) bool {
	i := slices.IndexFunc(p.links, func(l link) bool { return l.rule == a.rule })
	if i >= 0 && p.links[i].names(proto, fragment) {
		return true
	}
	if i < 0 || p.obscure(a.rule) {
		return true
	}
	return slices.ContainsFunc(a.asked, func(b *attempt) bool {
		return b.matched && len(b.rule.Body) > 0 && !trivial(b.rule.Body) && p.names(b, proto, fragment)
	})
}

// names returns whether the rule's conditions leave few protocols, this one
// among them, or fragments alone.
func (l *link) names(proto uint8, fragment bool) bool {
	for i := range l.regions {
		r := &l.regions[i]
		if r.clash != nil {
			continue
		}
		if s := r.fields["packet.status"].strings; fragment && len(s) == 1 && s[0] == packet.Fragment.String() {
			return true
		}
		if s := r.fields["ip.fragment"].spans; fragment && len(s) == 1 && s[0] == (span{1, 1}) {
			return true
		}
		count, in := int64(0), false
		for _, s := range r.fields["ip.protocol_number"].spans {
			count += s.high - s.low + 1
			in = in || s.low <= int64(proto) && int64(proto) <= s.high
		}
		if in && count <= maxNamed {
			return true
		}
	}
	return false
}

// obscure returns whether a rule's own conditions read the protocol in a way
// that the analysis does not follow: in a comprehension, or by a variable.
func (p *prober) obscure(r *ast.Rule) bool {
	found := false
	for _, e := range r.Body {
		if e.Negated {
			continue // "not" names what it does not accept
		}
		r := reader{fields: p.a.p.fields}
		r.visit(e)
		for i, f := range p.a.p.fields {
			protocol := strings.HasPrefix(f.Path, "ip.protocol") || strings.HasPrefix(f.Path, "icmp.")
			found = found || protocol && r.reads.Has(i) && !p.follows(e)
		}
	}
	return found
}

// follows returns whether the analysis understands a condition in full.
func (p *prober) follows(e *ast.Expr) bool {
	regions := p.a.expr(e, env{}, maxInline)
	return !slices.ContainsFunc(regions, func(r region) bool { return !r.exact })
}
