package hook

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"
)

// maxIptablesChain is the longest name of an iptables chain.
//
// Source: XT_EXTENSION_MAXNAMELEN, include/uapi/linux/netfilter/x_tables.h.
const maxIptablesChain = 28

// iptablesScript is a shell script. Its blocks for iptables-restore replace our
// own chains in one step each and leave everything else as it is (--noflush).
const iptablesScript = `#!/bin/sh
# Sends packets to verdictd, for hosts that keep their own iptables rules.
#
#   sh FILE install    add the rules; safe to repeat
#   sh FILE remove     take them away, leaving nothing
#
# IPTABLES and IP6TABLES name other programs, such as iptables-legacy.
#
# The chains are called from table security, which comes after table filter:
# what your filter rules drop does not come up, what they accept does.
# (Prerouting and postrouting have no such table: there it is mangle.)
{{- if .Marks}}
# Start verdictd run with --offload on{{.MaskFlag}}. REJECT works in table filter
# only, so here what the policy rejects is dropped.
{{- end}}
{{- if .RecordPin}}
# A program must be pinned at {{.RecordPin}} before install.
{{- end}}
# An accepted packet skips the rules after the call in the same table.
{{- if .Bridges}}
# Broadcast and multicast that a bridge sends on (br_netfilter) is lost: its
# copies share a connection, and the kernel does not queue those. Where that is
# wanted, keep them from conntrack: iptables -t raw -I PREROUTING -i BRIDGE
# -m pkttype ! --pkt-type unicast -j CT --notrack; ip6tables likewise.
{{- end}}
# Removing the rules may drop packets that still wait in a queue.
set -eu
ipv4=${IPTABLES:-iptables}
ipv6=${IP6TABLES:-ip6tables}

# call PROGRAM TABLE HOOK CHAIN -A|-I
call() {
	"$1" -w -t "$2" -C "$3" -j "$4" 2>/dev/null || "$1" -w -t "$2" "$5" "$3" -j "$4"
}

# uncall PROGRAM TABLE HOOK CHAIN
uncall() {
	while "$1" -w -t "$2" -D "$3" -j "$4" 2>/dev/null; do :; done
	if "$1" -w -t "$2" -n -L "$4" >/dev/null 2>&1; then
		"$1" -w -t "$2" -F "$4"
		"$1" -w -t "$2" -X "$4"
	fi
}

install() {
{{- range .Install}}
	"{{.Program}}-restore" -w --noflush <<'RULES'
*{{.Table}}
:{{.Chain}} - [0:0]
{{- range .Rules}}
-A {{.}}
{{- end}}
COMMIT
RULES
{{- if .Hook}}
	call "{{.Program}}" {{.Table}} {{.Hook}} {{.Chain}} {{if .First}}-I{{else}}-A{{end}}
{{- end}}
{{- end}}
}

remove() {
{{- range .Remove}}
	uncall "{{.Program}}" {{.Table}} {{or .Hook "none"}} {{.Chain}}
{{- end}}
}

case ${1:-} in
install | remove) "$1" ;;
*)
	echo "usage: sh FILE install|remove" >&2
	exit 2
	;;
esac
`

// iptablesPart is a chain for one program. Hook calls it, with First before all
// that is there; "" if other chains do.
type iptablesPart struct {
	Program, Table, Hook, Chain string
	First                       bool
	Rules                       []string
}

// PrintIptables writes a shell script that adds the same rules with iptables and
// ip6tables, and removes them again. It asks nothing of the kernel. The chains
// are named after Config.Table, which must be short enough for that; Priority
// and NetNS have no meaning here.
func PrintIptables(cfg Config, w io.Writer) error {
	c, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	var parts []iptablesPart
	for _, f := range []Family{IPv4, IPv6} {
		if c.Family == Inet || c.Family == f {
			parts = append(parts, c.iptables(f)...)
		}
	}
	for _, p := range parts {
		if len(p.Chain) > maxIptablesChain {
			return fmt.Errorf("print iptables rules: chain name %q has more than %d letters: choose a shorter table name", p.Chain, maxIptablesChain)
		}
	}
	removed := slices.Clone(parts)
	slices.Reverse(removed) // who calls a chain goes before it
	t, err := template.New("iptables").Parse(iptablesScript)
	if err != nil {
		return fmt.Errorf("print iptables rules: %w", err)
	}
	script := struct {
		Install, Remove []iptablesPart
		Marks           bool
		MaskFlag        string
		RecordPin       string
		Bridges         bool
	}{parts, removed, c.Mask != 0, "", c.RecordPin, c.fromBridges()}
	if c.Mask != DefaultMask {
		script.MaskFlag = fmt.Sprintf(" --offload-mask %#x", c.Mask)
	}
	return t.Execute(w, script)
}

// iptables returns the chains for one family.
func (c Config) iptables(f Family) []iptablesPart {
	parts := c.iptablesMarks(f)
	for _, h := range c.Hooks {
		parts = append(parts, c.iptablesHook(f, h))
	}
	return parts
}

func (c Config) iptablesChain(f Family, table, hook, name string) iptablesPart {
	p := iptablesPart{Program: "$ipv4", Table: table, Hook: hook, Chain: c.Table + "-" + name}
	if f == IPv6 {
		p.Program = "$ipv6"
	}
	return p
}

// iptablesTable is the table that the chain of a hook is called from.
func iptablesTable(h Hook) string {
	if h == Prerouting || h == Postrouting {
		return "mangle"
	}
	return "security"
}

func (c Config) iptablesHook(f Family, h Hook) iptablesPart {
	p := c.iptablesChain(f, iptablesTable(h), strings.ToUpper(h.String()), h.String())
	if h == Postrouting && c.Mask != 0 && c.cleanedAt(Postrouting) {
		p.add("an answer, marked at output", "-m mark --mark %#x/%#x -j MARK --set-xmark 0/%#x", c.marks().Reply, c.Mask, c.Mask)
	}
	c.iptablesLoopback(&p, h)
	if c.OwnMark != 0 && h.sends() {
		p.add("verdictd's own packets", "-m mark --mark %#x/%#x -j RETURN", c.OwnMark, c.OwnMask)
	}
	for n := ndFirst; n <= ndLast && f == IPv6 && !c.StrictNeighbour; n++ {
		p.add("neighbour discovery", "-p icmpv6 -m icmp6 --icmpv6-type %d -m hl --hl-eq %d -j RETURN", n, ndHopLimit)
	}
	p.add("counts only: reading conntrack makes fragments arrive whole", "-m conntrack --ctstate INVALID")
	if c.sendsErrors(h) {
		over := "-i lo "
		if h.sends() {
			over = ""
		}
		p.add("tells a sender of a packet that began no connection; the kernel would not queue it", "%s-m conntrack --ctstate RELATED ! --ctstatus EXPECTED,CONFIRMED -j RETURN", over)
	}
	m := c.marks()
	if m.Mask != 0 {
		p.add("rejected by verdictd; REJECT works in table filter only", "-m mark --mark %#x/%#x -j DROP", m.Reject, m.Mask)
	}
	if m.Accept != 0 {
		accepted := fmt.Sprintf("-m connmark --mark %#x/%#x -m conntrack ! --ctstatus EXPECTED -j RETURN", m.Accept, m.Mask)
		p.add("accepted by verdictd, and the rest of the flow", "-m mark --mark %#x/%#x -g %s-accept", m.Accept, m.Mask, c.Table)
		p.add("for verdictd: an error about a flow that it accepted", "-m connmark --mark %#x/%#x -m conntrack --ctstate RELATED ! --ctstatus EXPECTED -m mark --mark 0/%#x -j MARK --set-xmark %#x/%#x",
			m.Accept, m.Mask, m.Mask, m.Related, m.Mask)
		accepted = fmt.Sprintf("-m mark --mark 0/%#x %s", m.Mask, accepted)
		p.add("flow accepted by verdictd; a new connection is judged anew", "-p tcp -m tcp ! --syn %s", accepted)
		p.add("flow accepted by verdictd", "! -p tcp %s", accepted)
	}
	if m.Mask != 0 && c.seesBoth(h) {
		p.add("for verdictd: an answer", "-m mark --mark 0/%#x -m conntrack --ctdir REPLY -j MARK --set-xmark %#x/%#x", m.Mask, m.Reply, m.Mask)
	}
	if c.RecordPin != "" && h.sends() {
		p.add(recordComment, "-m bpf --object-pinned %s", c.RecordPin)
	}
	p.add("to verdictd", "-j NFQUEUE %s", c.iptablesQueue())
	return p
}

// iptablesLoopback adds the rules for packets that stay on this host, see
// plan.loopback.
func (c Config) iptablesLoopback(p *iptablesPart, h Hook) {
	if c.Loopback || h == Forward {
		return
	}
	over := "-i lo"
	if h.sends() {
		over = "-o lo"
	}
	if h != Output && h != Prerouting {
		p.add("loopback", "%s -j RETURN", over)
		return
	}
	p.add("loopback", "%s -m conntrack ! --ctstate DNAT -j RETURN", over)
	p.add("loopback", "%s -m addrtype --dst-type LOCAL -j RETURN", over)
}

// iptablesMarks returns the chains that the marks need, see plan.cleaners. Table
// mangle is where others restore marks. Only where our own chain for prerouting
// is called from it too, the mark must be cleared before. At OUTPUT a mark that
// changes in table mangle makes the kernel route again, in table filter not.
func (c Config) iptablesMarks(f Family) []iptablesPart {
	m := c.marks()
	if m.Mask == 0 {
		return nil
	}
	var parts []iptablesPart
	for _, h := range []Hook{Prerouting, Output, Postrouting} {
		if !c.cleanedAt(h) || h == Postrouting && slices.Contains(c.Hooks, h) {
			continue // at postrouting there is one table only: the chain of that hook does it
		}
		table := "mangle"
		switch {
		case h == Prerouting && slices.Contains(c.Hooks, Prerouting):
			table = "raw"
		case h == Output:
			table = "filter"
		}
		clean := c.iptablesChain(f, table, strings.ToUpper(h.String()), "clean-"+h.String())
		clean.First = h != Prerouting
		for _, v := range []uint32{m.Reject, m.Reply, m.Related, m.Accept} {
			if v != 0 {
				clean.add("a value of verdictd's", "-m mark --mark %#x/%#x -j MARK --set-xmark 0/%#x", v, m.Mask, m.Mask)
			}
		}
		parts = append(parts, clean)
	}
	if m.Accept != 0 { // then there are hooks of one table only
		accept := c.iptablesChain(f, iptablesTable(c.Hooks[0]), "", "accept")
		accept.add("the rest of the flow", "-j CONNMARK --set-xmark %#x/%#x", m.Accept, m.Mask)
		accept.add("these bits are verdictd's", "-j MARK --set-xmark 0/%#x", m.Mask)
		parts = append(parts, accept)
	}
	return parts
}

func (p *iptablesPart) add(comment, format string, args ...any) {
	p.Rules = append(p.Rules, fmt.Sprintf("%s -m comment --comment %q %s", p.Chain, comment, fmt.Sprintf(format, args...)))
}

func (c Config) iptablesQueue() string {
	words := fmt.Sprintf("--queue-num %d", c.QueueFirst)
	if c.QueueLast > c.QueueFirst {
		words = fmt.Sprintf("--queue-balance %d:%d", c.QueueFirst, c.QueueLast)
	}
	if c.Bypass {
		words += " --queue-bypass"
	}
	if c.Fanout {
		words += " --queue-cpu-fanout"
	}
	return words
}
