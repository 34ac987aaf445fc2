package main

import (
	"net/netip"
	"strings"
	"time"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/internal/terminal"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process/sockdiag"
	"github.com/verdictd/verdictd/rules"
)

// socketVerdict is what a policy says about a socket.
type socketVerdict struct {
	Verdict   string   `json:"verdict"` // accept, drop or reject; error if the policy ends in one
	Rule      string   `json:"rule,omitempty"`
	Reason    string   `json:"reason,omitempty"`
	DependsOn []string `json:"depends_on,omitempty"` // fields that it looked at and that a socket does not tell
}

// text returns verdict and rule for people.
func (v *socketVerdict) text() (verdict, rule string) {
	if v == nil {
		return "-", "-"
	}
	verdict, rule = v.Verdict, terminal.Line(v.Rule)
	if len(v.DependsOn) > 0 {
		verdict += "?"
		rule += " (depends on " + strings.Join(v.DependsOn, ", ") + ")"
	}
	return verdict, rule
}

// judge asks a policy about the first packet of the socket's connection, or about
// one that comes in if it has none.
func (l *socketLine) judge(e engine.Evaluator) *socketVerdict {
	return l.judgeFacts(e, l.facts(time.Now()))
}

// judgeEstablished asks a policy about a later packet of the connection, in its
// first direction.
func (l *socketLine) judgeEstablished(e engine.Evaluator) *socketVerdict {
	f := l.facts(time.Now())
	if f.Packet.Protocol == packet.ProtoTCP {
		f.Packet.TCPFlags = packet.ACK
	}
	return l.judgeFacts(e, f)
}

// established returns whether data can go by the connection.
func (l *socketLine) established() bool {
	switch l.State {
	case sockdiag.Established.String(), sockdiag.CloseWait.String(), sockdiag.FinWait1.String(), sockdiag.FinWait2.String():
		return true
	}
	return false
}

func (l *socketLine) judgeFacts(e engine.Evaluator, f *rules.Facts) *socketVerdict {
	var d rules.Decision
	if err := e.Evaluate(f, &d); err != nil {
		return &socketVerdict{Verdict: "error", Reason: err.Error()}
	}
	v := &socketVerdict{Verdict: d.Action.String(), Rule: d.Rule, Reason: d.Reason}
	for i, field := range rules.Fields() {
		if d.Reads.Has(i) && !l.tells(&field, f) {
			v.DependsOn = append(v.DependsOn, field.Path)
		}
	}
	return v
}

// facts makes the packet.
func (l *socketLine) facts(now time.Time) *rules.Facts {
	p := &packet.Packet{Status: packet.OK, Version: 4, HasPorts: true, TTL: 64}
	p.Protocol, _ = rules.ParseProtocol(l.Protocol)
	if p.Protocol == packet.ProtoTCP {
		p.TCPFlags = packet.SYN
	}
	m := &packet.Meta{Time: now.UnixNano(), Hook: packet.Output}
	if o := l.Owner; o != nil && o.HasUID {
		m.UID, m.HasUID = o.UID, true
	}
	from, to := l.Local, l.Remote
	switch l.Direction {
	case "in":
		from, to = to, from
		m.Hook = packet.Input
		m.HasUID = false // the kernel names the receiver of few packets only
	case "forward":
		m.Hook = packet.Forward
	}
	p.Src, p.SrcPort, p.Dst, p.DstPort = from.Addr(), from.Port(), to.Addr(), to.Port()
	if !l.hasPeer() {
		p.Src = netip.Addr{}
	}
	if l.Local.Addr().Is6() {
		p.Version = 6
	}
	return &rules.Facts{Meta: m, Packet: p, Owner: l.Owner}
}

// tells returns whether a socket tells the field, or that it is absent.
func (l *socketLine) tells(f *rules.Field, facts *rules.Facts) bool {
	switch f.Path {
	case "ip.src", "src_port", "tcp.src_port", "udp.src_port":
		return l.hasPeer()
	case "ip.dst", "ip.version": // of a socket that is bound to no address
		return l.hasPeer() || !l.Local.Addr().IsUnspecified()
	case "packet.status", "ip.fragment":
		return true
	}
	if strings.HasPrefix(f.Path, "tcp.flags.") || strings.HasPrefix(f.Path, "time.") {
		return true
	}
	return f.Scope != rules.PerPacket || f.Final(facts.Packet.Protocol, true)
}
