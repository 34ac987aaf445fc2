package hook

import (
	"fmt"
	"io"
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
# An accepted packet skips the rules after the call in the same table.
# Removing the rules may drop packets that still wait in a queue.
set -eu
ipv4=${IPTABLES:-iptables}
ipv6=${IP6TABLES:-ip6tables}

# call PROGRAM TABLE HOOK CHAIN
call() {
	"$1" -w -t "$2" -C "$3" -j "$4" 2>/dev/null || "$1" -w -t "$2" -A "$3" -j "$4"
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
{{- range .}}
	"{{.Program}}-restore" -w --noflush <<'RULES'
*{{.Table}}
:{{.Chain}} - [0:0]
{{- range .Rules}}
-A {{.}}
{{- end}}
COMMIT
RULES
	call "{{.Program}}" {{.Table}} {{.Hook}} {{.Chain}}
{{- end}}
}

remove() {
{{- range .}}
	uncall "{{.Program}}" {{.Table}} {{.Hook}} {{.Chain}}
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

// iptablesPart is what one program has to do for one hook.
type iptablesPart struct {
	Program, Table, Hook, Chain string
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
	for _, h := range c.Hooks {
		chain := c.Table + "-" + h.String()
		if len(chain) > maxIptablesChain {
			return fmt.Errorf("print iptables rules: chain name %q has more than %d letters: choose a shorter table name", chain, maxIptablesChain)
		}
		if c.Family != IPv6 {
			parts = append(parts, c.iptables(IPv4, h, chain))
		}
		if c.Family != IPv4 {
			parts = append(parts, c.iptables(IPv6, h, chain))
		}
	}
	t, err := template.New("iptables").Parse(iptablesScript)
	if err != nil {
		return fmt.Errorf("print iptables rules: %w", err)
	}
	return t.Execute(w, parts)
}

func (c Config) iptables(f Family, h Hook, chain string) iptablesPart {
	p := iptablesPart{Program: "$ipv4", Table: "security", Hook: strings.ToUpper(h.String()), Chain: chain}
	if f == IPv6 {
		p.Program = "$ipv6"
	}
	if h == Prerouting || h == Postrouting {
		p.Table = "mangle"
	}
	out := h == Output || h == Postrouting
	if !c.Loopback && h != Forward {
		p.add("loopback", "%s lo -j RETURN", map[bool]string{false: "-i", true: "-o"}[out])
	}
	if c.OwnMark != 0 && out {
		p.add("verdictd's own packets", "-m mark --mark %#x/%#x -j RETURN", c.OwnMark, c.OwnMask)
	}
	for n := ndFirst; n <= ndLast && f == IPv6 && h != Forward && !c.StrictNeighbour; n++ {
		p.add("neighbour discovery", "-p icmpv6 -m icmp6 --icmpv6-type %d -m hl --hl-eq %d -j RETURN", n, ndHopLimit)
	}
	p.add("counts only: reading conntrack makes fragments arrive whole", "-m conntrack --ctstate INVALID")
	p.add("to verdictd", "-j NFQUEUE %s", c.iptablesQueue())
	return p
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
