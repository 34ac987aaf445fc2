#!/bin/sh
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
# Start verdictd run with --offload on. REJECT works in table filter
# only, so here what the policy rejects is dropped.
# An accepted packet skips the rules after the call in the same table.
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
	"$ipv4-restore" -w --noflush <<'RULES'
*filter
:verdictd-clean-output - [0:0]
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x1000000/0xff000000 -j MARK --set-xmark 0/0xff000000
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x2000000/0xff000000 -j MARK --set-xmark 0/0xff000000
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x3000000/0xff000000 -j MARK --set-xmark 0/0xff000000
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x4000000/0xff000000 -j MARK --set-xmark 0/0xff000000
COMMIT
RULES
	call "$ipv4" filter OUTPUT verdictd-clean-output -I
	"$ipv4-restore" -w --noflush <<'RULES'
*mangle
:verdictd-clean-postrouting - [0:0]
-A verdictd-clean-postrouting -m comment --comment "a value of verdictd's" -m mark --mark 0x1000000/0xff000000 -j MARK --set-xmark 0/0xff000000
-A verdictd-clean-postrouting -m comment --comment "a value of verdictd's" -m mark --mark 0x2000000/0xff000000 -j MARK --set-xmark 0/0xff000000
-A verdictd-clean-postrouting -m comment --comment "a value of verdictd's" -m mark --mark 0x3000000/0xff000000 -j MARK --set-xmark 0/0xff000000
-A verdictd-clean-postrouting -m comment --comment "a value of verdictd's" -m mark --mark 0x4000000/0xff000000 -j MARK --set-xmark 0/0xff000000
COMMIT
RULES
	call "$ipv4" mangle POSTROUTING verdictd-clean-postrouting -I
	"$ipv4-restore" -w --noflush <<'RULES'
*security
:verdictd-accept - [0:0]
-A verdictd-accept -m comment --comment "the rest of the flow" -j CONNMARK --set-xmark 0x4000000/0xff000000
-A verdictd-accept -m comment --comment "these bits are verdictd's" -j MARK --set-xmark 0/0xff000000
COMMIT
RULES
	"$ipv4-restore" -w --noflush <<'RULES'
*security
:verdictd-output - [0:0]
-A verdictd-output -m comment --comment "loopback" -o lo -m conntrack ! --ctstate DNAT -j RETURN
-A verdictd-output -m comment --comment "loopback" -o lo -m addrtype --dst-type LOCAL -j RETURN
-A verdictd-output -m comment --comment "counts only: reading conntrack makes fragments arrive whole" -m conntrack --ctstate INVALID
-A verdictd-output -m comment --comment "tells a sender of a packet that began no connection; the kernel would not queue it" -m conntrack --ctstate RELATED ! --ctstatus EXPECTED,CONFIRMED -j RETURN
-A verdictd-output -m comment --comment "rejected by verdictd; REJECT works in table filter only" -m mark --mark 0x1000000/0xff000000 -j DROP
-A verdictd-output -m comment --comment "accepted by verdictd, and the rest of the flow" -m mark --mark 0x4000000/0xff000000 -g verdictd-accept
-A verdictd-output -m comment --comment "for verdictd: an error about a flow that it accepted" -m connmark --mark 0x4000000/0xff000000 -m conntrack --ctstate RELATED ! --ctstatus EXPECTED -m mark --mark 0/0xff000000 -j MARK --set-xmark 0x3000000/0xff000000
-A verdictd-output -m comment --comment "flow accepted by verdictd; a new connection is judged anew" -p tcp -m tcp ! --syn -m mark --mark 0/0xff000000 -m connmark --mark 0x4000000/0xff000000 -m conntrack ! --ctstatus EXPECTED -j RETURN
-A verdictd-output -m comment --comment "flow accepted by verdictd" ! -p tcp -m mark --mark 0/0xff000000 -m connmark --mark 0x4000000/0xff000000 -m conntrack ! --ctstatus EXPECTED -j RETURN
-A verdictd-output -m comment --comment "to verdictd" -j NFQUEUE --queue-num 0
COMMIT
RULES
	call "$ipv4" security OUTPUT verdictd-output -A
	"$ipv6-restore" -w --noflush <<'RULES'
*filter
:verdictd-clean-output - [0:0]
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x1000000/0xff000000 -j MARK --set-xmark 0/0xff000000
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x2000000/0xff000000 -j MARK --set-xmark 0/0xff000000
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x3000000/0xff000000 -j MARK --set-xmark 0/0xff000000
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x4000000/0xff000000 -j MARK --set-xmark 0/0xff000000
COMMIT
RULES
	call "$ipv6" filter OUTPUT verdictd-clean-output -I
	"$ipv6-restore" -w --noflush <<'RULES'
*mangle
:verdictd-clean-postrouting - [0:0]
-A verdictd-clean-postrouting -m comment --comment "a value of verdictd's" -m mark --mark 0x1000000/0xff000000 -j MARK --set-xmark 0/0xff000000
-A verdictd-clean-postrouting -m comment --comment "a value of verdictd's" -m mark --mark 0x2000000/0xff000000 -j MARK --set-xmark 0/0xff000000
-A verdictd-clean-postrouting -m comment --comment "a value of verdictd's" -m mark --mark 0x3000000/0xff000000 -j MARK --set-xmark 0/0xff000000
-A verdictd-clean-postrouting -m comment --comment "a value of verdictd's" -m mark --mark 0x4000000/0xff000000 -j MARK --set-xmark 0/0xff000000
COMMIT
RULES
	call "$ipv6" mangle POSTROUTING verdictd-clean-postrouting -I
	"$ipv6-restore" -w --noflush <<'RULES'
*security
:verdictd-accept - [0:0]
-A verdictd-accept -m comment --comment "the rest of the flow" -j CONNMARK --set-xmark 0x4000000/0xff000000
-A verdictd-accept -m comment --comment "these bits are verdictd's" -j MARK --set-xmark 0/0xff000000
COMMIT
RULES
	"$ipv6-restore" -w --noflush <<'RULES'
*security
:verdictd-output - [0:0]
-A verdictd-output -m comment --comment "loopback" -o lo -m conntrack ! --ctstate DNAT -j RETURN
-A verdictd-output -m comment --comment "loopback" -o lo -m addrtype --dst-type LOCAL -j RETURN
-A verdictd-output -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 133 -m hl --hl-eq 255 -j RETURN
-A verdictd-output -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 134 -m hl --hl-eq 255 -j RETURN
-A verdictd-output -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j RETURN
-A verdictd-output -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 136 -m hl --hl-eq 255 -j RETURN
-A verdictd-output -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 137 -m hl --hl-eq 255 -j RETURN
-A verdictd-output -m comment --comment "counts only: reading conntrack makes fragments arrive whole" -m conntrack --ctstate INVALID
-A verdictd-output -m comment --comment "tells a sender of a packet that began no connection; the kernel would not queue it" -m conntrack --ctstate RELATED ! --ctstatus EXPECTED,CONFIRMED -j RETURN
-A verdictd-output -m comment --comment "rejected by verdictd; REJECT works in table filter only" -m mark --mark 0x1000000/0xff000000 -j DROP
-A verdictd-output -m comment --comment "accepted by verdictd, and the rest of the flow" -m mark --mark 0x4000000/0xff000000 -g verdictd-accept
-A verdictd-output -m comment --comment "for verdictd: an error about a flow that it accepted" -m connmark --mark 0x4000000/0xff000000 -m conntrack --ctstate RELATED ! --ctstatus EXPECTED -m mark --mark 0/0xff000000 -j MARK --set-xmark 0x3000000/0xff000000
-A verdictd-output -m comment --comment "flow accepted by verdictd; a new connection is judged anew" -p tcp -m tcp ! --syn -m mark --mark 0/0xff000000 -m connmark --mark 0x4000000/0xff000000 -m conntrack ! --ctstatus EXPECTED -j RETURN
-A verdictd-output -m comment --comment "flow accepted by verdictd" ! -p tcp -m mark --mark 0/0xff000000 -m connmark --mark 0x4000000/0xff000000 -m conntrack ! --ctstatus EXPECTED -j RETURN
-A verdictd-output -m comment --comment "to verdictd" -j NFQUEUE --queue-num 0
COMMIT
RULES
	call "$ipv6" security OUTPUT verdictd-output -A
}

remove() {
	uncall "$ipv6" security OUTPUT verdictd-output
	uncall "$ipv6" security none verdictd-accept
	uncall "$ipv6" mangle POSTROUTING verdictd-clean-postrouting
	uncall "$ipv6" filter OUTPUT verdictd-clean-output
	uncall "$ipv4" security OUTPUT verdictd-output
	uncall "$ipv4" security none verdictd-accept
	uncall "$ipv4" mangle POSTROUTING verdictd-clean-postrouting
	uncall "$ipv4" filter OUTPUT verdictd-clean-output
}

case ${1:-} in
install | remove) "$1" ;;
*)
	echo "usage: sh FILE install|remove" >&2
	exit 2
	;;
esac
