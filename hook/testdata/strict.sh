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
*mangle
:verdictd-prerouting - [0:0]
-A verdictd-prerouting -m comment --comment "counts only: reading conntrack makes fragments arrive whole" -m conntrack --ctstate INVALID
-A verdictd-prerouting -m comment --comment "tells a sender of a packet that began no connection; the kernel would not queue it" -i lo -m conntrack --ctstate RELATED ! --ctstatus EXPECTED,CONFIRMED -j RETURN
-A verdictd-prerouting -m comment --comment "to verdictd" -j NFQUEUE --queue-num 65535
COMMIT
RULES
	call "$ipv4" mangle PREROUTING verdictd-prerouting -A
	"$ipv4-restore" -w --noflush <<'RULES'
*security
:verdictd-output - [0:0]
-A verdictd-output -m comment --comment "verdictd's own packets" -m mark --mark 0x5/0xffffffff -j RETURN
-A verdictd-output -m comment --comment "counts only: reading conntrack makes fragments arrive whole" -m conntrack --ctstate INVALID
-A verdictd-output -m comment --comment "tells a sender of a packet that began no connection; the kernel would not queue it" -m conntrack --ctstate RELATED ! --ctstatus EXPECTED,CONFIRMED -j RETURN
-A verdictd-output -m comment --comment "to verdictd" -j NFQUEUE --queue-num 65535
COMMIT
RULES
	call "$ipv4" security OUTPUT verdictd-output -A
	"$ipv6-restore" -w --noflush <<'RULES'
*mangle
:verdictd-prerouting - [0:0]
-A verdictd-prerouting -m comment --comment "counts only: reading conntrack makes fragments arrive whole" -m conntrack --ctstate INVALID
-A verdictd-prerouting -m comment --comment "tells a sender of a packet that began no connection; the kernel would not queue it" -i lo -m conntrack --ctstate RELATED ! --ctstatus EXPECTED,CONFIRMED -j RETURN
-A verdictd-prerouting -m comment --comment "to verdictd" -j NFQUEUE --queue-num 65535
COMMIT
RULES
	call "$ipv6" mangle PREROUTING verdictd-prerouting -A
	"$ipv6-restore" -w --noflush <<'RULES'
*security
:verdictd-output - [0:0]
-A verdictd-output -m comment --comment "verdictd's own packets" -m mark --mark 0x5/0xffffffff -j RETURN
-A verdictd-output -m comment --comment "counts only: reading conntrack makes fragments arrive whole" -m conntrack --ctstate INVALID
-A verdictd-output -m comment --comment "tells a sender of a packet that began no connection; the kernel would not queue it" -m conntrack --ctstate RELATED ! --ctstatus EXPECTED,CONFIRMED -j RETURN
-A verdictd-output -m comment --comment "to verdictd" -j NFQUEUE --queue-num 65535
COMMIT
RULES
	call "$ipv6" security OUTPUT verdictd-output -A
}

remove() {
	uncall "$ipv6" security OUTPUT verdictd-output
	uncall "$ipv6" mangle PREROUTING verdictd-prerouting
	uncall "$ipv4" security OUTPUT verdictd-output
	uncall "$ipv4" mangle PREROUTING verdictd-prerouting
}

case ${1:-} in
install | remove) "$1" ;;
*)
	echo "usage: sh FILE install|remove" >&2
	exit 2
	;;
esac
