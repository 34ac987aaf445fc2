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
	probeTime     = 3 * time.Second // a policy that is slow is not asked everything
	probeNetworks = 6               // networks of the policy that packets are sent to and from
)

// prober asks a policy about packets that nobody thought of: of every
// protocol, whole and in fragments, with ports that no rule names.
type prober struct {
	a     *analyst
	run   *Explainer
	links []link
	end   time.Time
	ports [2]int64
	holes map[*ast.Rule]*hole
	order []*ast.Rule
	cut   bool
}

// hole are protocols that a rule accepts without naming them.
type hole struct {
	example   string
	protocols []uint8
	fragments bool // of all of these, only fragments get through
}

// protocols finds protocols that a policy accepts though no rule names them,
// in places where it drops TCP and UDP that no rule names: a default that
// drops, but not everything. complete is false if the policy is too slow for
// the whole probe.
func (a *analyst) protocols(ctx context.Context, run *Explainer, links []link) (found Errors, complete bool) {
	p := &prober{a: a, run: run, links: links, end: time.Now().Add(probeTime), holes: map[*ast.Rule]*hole{}}
	p.ports = a.unnamedPorts()
	for _, way := range p.ways() {
		p.probe(ctx, way)
	}
	for _, r := range p.order {
		found = append(found, p.holes[r].finding(r))
	}
	return found, !p.cut
}

func (h *hole) finding(r *ast.Rule) *Error {
	slices.Sort(h.protocols)
	names := make([]string, 0, 4)
	for _, wanted := range []uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP, packet.ProtoICMP, 47, 50} {
		if slices.Contains(h.protocols, wanted) && len(names) < 3 {
			names = append(names, rules.ProtocolName(wanted))
		}
	}
	if len(names) == 0 {
		names = append(names, rules.ProtocolName(h.protocols[0]))
	}
	list := strings.Join(names, ", ")
	if more := len(h.protocols) - len(names); more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	what := "protocols"
	if h.fragments {
		what = "fragments of protocols"
	}
	return errorAt(r.Location, fmt.Sprintf("%s accepts %s that no rule names (%s) where TCP and UDP that no rule names are dropped: %s",
		label(r), what, list, h.example), "test input.ip.protocol there")
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
	for _, proto := range []string{"tcp", "udp"} {
		for _, port := range p.ports {
			if _, accepted := p.ask(p.ported(w, proto, port)); accepted {
				return // what no rule names is accepted: there is nothing to leave a hole in
			}
		}
	}
	for n := range 256 {
		proto := uint8(n)
		name := rules.ProtocolName(proto)
		whole := fmt.Sprintf("%s %s -> %s %s", name, w.src, w.dst, w.hook)
		if slices.Contains(portProtocols(), int64(proto)) {
			whole = p.ported(w, name, p.ports[1])
		}
		if p.hole(ctx, whole, proto, false) || proto != packet.ProtoTCP && proto != packet.ProtoUDP {
			continue
		}
		p.hole(ctx, fmt.Sprintf("%s %s -> %s %s", name, w.src, w.dst, w.hook), proto, true)
	}
}

func (p *prober) ported(w way, proto string, port int64) string {
	end := func(a string) string { return netip.AddrPortFrom(netip.MustParseAddr(a), uint16(port)).String() }
	return fmt.Sprintf("%s %s -> %s %s", proto, end(w.src), end(w.dst), w.hook)
}

// ask returns whether the policy accepts a packet.
func (p *prober) ask(flow string) (in *rules.Input, accepted bool) {
	if p.cut = p.cut || time.Now().After(p.end); p.cut {
		return nil, false
	}
	in, err := rules.ParseFlow(flow)
	if err != nil {
		return nil, false
	}
	everywhere := everything()
	if _, ok := everywhere.rest(in); !ok {
		return nil, false
	}
	out, _ := p.run.Decide(in)
	return in, out.Error == "" && out.Action() == packet.Accept
}

// hole notes that the policy accepts a packet, unless the rule that does so
// names its protocol.
func (p *prober) hole(ctx context.Context, flow string, proto uint8, fragment bool) bool {
	in, accepted := p.ask(flow)
	if !accepted {
		return false
	}
	t := newTrace(p.run, in)
	if err := p.run.trace(ctx, in, t); err != nil {
		return false
	}
	for _, a := range t.root.asked {
		if !a.matched || p.names(a, proto, fragment) {
			continue
		}
		h := p.holes[a.rule]
		if h == nil {
			h = &hole{example: flow, fragments: fragment}
			p.holes[a.rule] = h
			p.order = append(p.order, a.rule)
		}
		if !slices.Contains(h.protocols, proto) {
			h.protocols = append(h.protocols, proto)
		}
		h.fragments = h.fragments && fragment
	}
	return true
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
	const few = 32
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
		if in && count <= few {
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
		reads := readSet(map[string]*ast.Module{"": {Rules: []*ast.Rule{{Head: &ast.Head{}, Body: ast.Body{e}}}}}, p.a.p.fields)
		for i, f := range p.a.p.fields {
			protocol := strings.HasPrefix(f.Path, "ip.protocol") || strings.HasPrefix(f.Path, "icmp.")
			found = found || protocol && reads.Has(i) && !p.follows(e)
		}
	}
	return found
}

// follows returns whether the analysis understands a condition in full.
func (p *prober) follows(e *ast.Expr) bool {
	regions := p.a.expr(e, env{}, maxInline)
	return !slices.ContainsFunc(regions, func(r region) bool { return !r.exact })
}
