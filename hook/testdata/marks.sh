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
# Start verdictd run with --offload on --offload-mask 0xff0. REJECT works in table filter
# only, so here what the policy rejects is dropped.
# An accepted packet skips the rules after the call in the same table.
# Broadcast and multicast that a bridge sends on (br_netfilter) is lost: its
# copies share a connection, and the kernel does not queue those. Where that is
# wanted, keep them from conntrack: iptables -t raw -I PREROUTING -i BRIDGE
# -m pkttype ! --pkt-type unicast -j CT --notrack; ip6tables likewise.
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
*mangle
:verdictd-clean-prerouting - [0:0]
-A verdictd-clean-prerouting -m comment --comment "a value of verdictd's" -m mark --mark 0x10/0xff0 -j MARK --set-xmark 0/0xff0
-A verdictd-clean-prerouting -m comment --comment "a value of verdictd's" -m mark --mark 0x20/0xff0 -j MARK --set-xmark 0/0xff0
-A verdictd-clean-prerouting -m comment --comment "a value of verdictd's" -m mark --mark 0x30/0xff0 -j MARK --set-xmark 0/0xff0
COMMIT
RULES
	call "$ipv4" mangle PREROUTING verdictd-clean-prerouting -A
	"$ipv4-restore" -w --noflush <<'RULES'
*filter
:verdictd-clean-output - [0:0]
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x10/0xff0 -j MARK --set-xmark 0/0xff0
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x20/0xff0 -j MARK --set-xmark 0/0xff0
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x30/0xff0 -j MARK --set-xmark 0/0xff0
COMMIT
RULES
	call "$ipv4" filter OUTPUT verdictd-clean-output -I
	"$ipv4-restore" -w --noflush <<'RULES'
*security
:verdictd-input - [0:0]
-A verdictd-input -m comment --comment "counts only: reading conntrack makes fragments arrive whole" -m conntrack --ctstate INVALID
-A verdictd-input -m comment --comment "tells a sender of a packet that began no connection; the kernel would not queue it" -i lo -m conntrack --ctstate RELATED ! --ctstatus EXPECTED,CONFIRMED -j RETURN
-A verdictd-input -m comment --comment "rejected by verdictd; REJECT works in table filter only" -m mark --mark 0x10/0xff0 -j DROP
-A verdictd-input -m comment --comment "for verdictd: an answer" -m mark --mark 0/0xff0 -m conntrack --ctdir REPLY -j MARK --set-xmark 0x20/0xff0
-A verdictd-input -m comment --comment "to verdictd" -j NFQUEUE --queue-num 0 --queue-bypass
COMMIT
RULES
	call "$ipv4" security INPUT verdictd-input -A
	"$ipv4-restore" -w --noflush <<'RULES'
*security
:verdictd-output - [0:0]
-A verdictd-output -m comment --comment "counts only: reading conntrack makes fragments arrive whole" -m conntrack --ctstate INVALID
-A verdictd-output -m comment --comment "tells a sender of a packet that began no connection; the kernel would not queue it" -m conntrack --ctstate RELATED ! --ctstatus EXPECTED,CONFIRMED -j RETURN
-A verdictd-output -m comment --comment "rejected by verdictd; REJECT works in table filter only" -m mark --mark 0x10/0xff0 -j DROP
-A verdictd-output -m comment --comment "for verdictd: an answer" -m mark --mark 0/0xff0 -m conntrack --ctdir REPLY -j MARK --set-xmark 0x20/0xff0
-A verdictd-output -m comment --comment "to verdictd" -j NFQUEUE --queue-num 0 --queue-bypass
COMMIT
RULES
	call "$ipv4" security OUTPUT verdictd-output -A
	"$ipv4-restore" -w --noflush <<'RULES'
*mangle
:verdictd-postrouting - [0:0]
-A verdictd-postrouting -m comment --comment "an answer, marked at output" -m mark --mark 0x20/0xff0 -j MARK --set-xmark 0/0xff0
-A verdictd-postrouting -m comment --comment "counts only: reading conntrack makes fragments arrive whole" -m conntrack --ctstate INVALID
-A verdictd-postrouting -m comment --comment "tells a sender of a packet that began no connection; the kernel would not queue it" -m conntrack --ctstate RELATED ! --ctstatus EXPECTED,CONFIRMED -j RETURN
-A verdictd-postrouting -m comment --comment "rejected by verdictd; REJECT works in table filter only" -m mark --mark 0x10/0xff0 -j DROP
-A verdictd-postrouting -m comment --comment "to verdictd" -j NFQUEUE --queue-num 0 --queue-bypass
COMMIT
RULES
	call "$ipv4" mangle POSTROUTING verdictd-postrouting -A
	"$ipv6-restore" -w --noflush <<'RULES'
*mangle
:verdictd-clean-prerouting - [0:0]
-A verdictd-clean-prerouting -m comment --comment "a value of verdictd's" -m mark --mark 0x10/0xff0 -j MARK --set-xmark 0/0xff0
-A verdictd-clean-prerouting -m comment --comment "a value of verdictd's" -m mark --mark 0x20/0xff0 -j MARK --set-xmark 0/0xff0
-A verdictd-clean-prerouting -m comment --comment "a value of verdictd's" -m mark --mark 0x30/0xff0 -j MARK --set-xmark 0/0xff0
COMMIT
RULES
	call "$ipv6" mangle PREROUTING verdictd-clean-prerouting -A
	"$ipv6-restore" -w --noflush <<'RULES'
*filter
:verdictd-clean-output - [0:0]
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x10/0xff0 -j MARK --set-xmark 0/0xff0
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x20/0xff0 -j MARK --set-xmark 0/0xff0
-A verdictd-clean-output -m comment --comment "a value of verdictd's" -m mark --mark 0x30/0xff0 -j MARK --set-xmark 0/0xff0
COMMIT
RULES
	call "$ipv6" filter OUTPUT verdictd-clean-output -I
	"$ipv6-restore" -w --noflush <<'RULES'
*security
:verdictd-input - [0:0]
-A verdictd-input -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 133 -m hl --hl-eq 255 -j RETURN
-A verdictd-input -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 134 -m hl --hl-eq 255 -j RETURN
-A verdictd-input -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j RETURN
-A verdictd-input -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 136 -m hl --hl-eq 255 -j RETURN
-A verdictd-input -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 137 -m hl --hl-eq 255 -j RETURN
-A verdictd-input -m comment --comment "counts only: reading conntrack makes fragments arrive whole" -m conntrack --ctstate INVALID
-A verdictd-input -m comment --comment "tells a sender of a packet that began no connection; the kernel would not queue it" -i lo -m conntrack --ctstate RELATED ! --ctstatus EXPECTED,CONFIRMED -j RETURN
-A verdictd-input -m comment --comment "rejected by verdictd; REJECT works in table filter only" -m mark --mark 0x10/0xff0 -j DROP
-A verdictd-input -m comment --comment "for verdictd: an answer" -m mark --mark 0/0xff0 -m conntrack --ctdir REPLY -j MARK --set-xmark 0x20/0xff0
-A verdictd-input -m comment --comment "to verdictd" -j NFQUEUE --queue-num 0 --queue-bypass
COMMIT
RULES
	call "$ipv6" security INPUT verdictd-input -A
	"$ipv6-restore" -w --noflush <<'RULES'
*security
:verdictd-output - [0:0]
-A verdictd-output -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 133 -m hl --hl-eq 255 -j RETURN
-A verdictd-output -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 134 -m hl --hl-eq 255 -j RETURN
-A verdictd-output -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j RETURN
-A verdictd-output -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 136 -m hl --hl-eq 255 -j RETURN
-A verdictd-output -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 137 -m hl --hl-eq 255 -j RETURN
-A verdictd-output -m comment --comment "counts only: reading conntrack makes fragments arrive whole" -m conntrack --ctstate INVALID
-A verdictd-output -m comment --comment "tells a sender of a packet that began no connection; the kernel would not queue it" -m conntrack --ctstate RELATED ! --ctstatus EXPECTED,CONFIRMED -j RETURN
-A verdictd-output -m comment --comment "rejected by verdictd; REJECT works in table filter only" -m mark --mark 0x10/0xff0 -j DROP
-A verdictd-output -m comment --comment "for verdictd: an answer" -m mark --mark 0/0xff0 -m conntrack --ctdir REPLY -j MARK --set-xmark 0x20/0xff0
-A verdictd-output -m comment --comment "to verdictd" -j NFQUEUE --queue-num 0 --queue-bypass
COMMIT
RULES
	call "$ipv6" security OUTPUT verdictd-output -A
	"$ipv6-restore" -w --noflush <<'RULES'
*mangle
:verdictd-postrouting - [0:0]
-A verdictd-postrouting -m comment --comment "an answer, marked at output" -m mark --mark 0x20/0xff0 -j MARK --set-xmark 0/0xff0
-A verdictd-postrouting -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 133 -m hl --hl-eq 255 -j RETURN
-A verdictd-postrouting -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 134 -m hl --hl-eq 255 -j RETURN
-A verdictd-postrouting -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j RETURN
-A verdictd-postrouting -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 136 -m hl --hl-eq 255 -j RETURN
-A verdictd-postrouting -m comment --comment "neighbour discovery" -p icmpv6 -m icmp6 --icmpv6-type 137 -m hl --hl-eq 255 -j RETURN
-A verdictd-postrouting -m comment --comment "counts only: reading conntrack makes fragments arrive whole" -m conntrack --ctstate INVALID
-A verdictd-postrouting -m comment --comment "tells a sender of a packet that began no connection; the kernel would not queue it" -m conntrack --ctstate RELATED ! --ctstatus EXPECTED,CONFIRMED -j RETURN
-A verdictd-postrouting -m comment --comment "rejected by verdictd; REJECT works in table filter only" -m mark --mark 0x10/0xff0 -j DROP
-A verdictd-postrouting -m comment --comment "to verdictd" -j NFQUEUE --queue-num 0 --queue-bypass
COMMIT
RULES
	call "$ipv6" mangle POSTROUTING verdictd-postrouting -A
}

remove() {
	uncall "$ipv6" mangle POSTROUTING verdictd-postrouting
	uncall "$ipv6" security OUTPUT verdictd-output
	uncall "$ipv6" security INPUT verdictd-input
	uncall "$ipv6" filter OUTPUT verdictd-clean-output
	uncall "$ipv6" mangle PREROUTING verdictd-clean-prerouting
	uncall "$ipv4" mangle POSTROUTING verdictd-postrouting
	uncall "$ipv4" security OUTPUT verdictd-output
	uncall "$ipv4" security INPUT verdictd-input
	uncall "$ipv4" filter OUTPUT verdictd-clean-output
	uncall "$ipv4" mangle PREROUTING verdictd-clean-prerouting
}

case ${1:-} in
install | remove) "$1" ;;
*)
	echo "usage: sh FILE install|remove" >&2
	exit 2
	;;
esac
