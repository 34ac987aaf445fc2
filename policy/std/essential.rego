# METADATA
# title: What a host needs to stay on its network
# description: |
#   Neighbour discovery, group membership, address leases, and answers to
#   questions that this host asked by multicast. Forwarded packets are none of
#   it. name is the name of the kind that a packet is of, and undefined for all
#   others.
#
#   One line of a policy lets it pass:
#
#     verdict := "accept" if data.std.essential.name
package std.essential

name := "neighbours" if {
	here
	input.ip.protocol == "icmpv6"
	input.icmp.type in {133, 134, 135, 136, 137}
	input.ip.ttl == 255 # no router has passed it on (RFC 4861, 3.1)
} else := "mld" if {
	here
	input.ip.protocol == "icmpv6"
	input.icmp.type in {130, 131, 132, 143} # RFC 2710, RFC 3810
	input.ip.ttl == 1
} else := "igmp" if {
	here
	input.ip.protocol == "igmp"
	net.cidr_contains("224.0.0.0/4", input.ip.dst)
	input.ip.ttl == 1
} else := "dhcp" if {
	dhcp
} else := "multicast-question" if {
	question
} else := "multicast-answer" if {
	input.direction == "in"
	input.ip.protocol == "udp"
	input.answers_multicast
}

here if input.direction in {"in", "out"}

# RFC 2131: broadcast to find a server and to rebind, unicast to renew.
dhcp if {
	input.direction == "out"
	input.udp.src_port == 68
	input.udp.dst_port == 67
}

dhcp if {
	input.direction == "in"
	input.udp.src_port == 67
	input.udp.dst_port == 68
}

# RFC 8415: servers and relays are asked by multicast, and answer from their
# link-local address.
dhcp if {
	input.direction == "out"
	input.udp.src_port == 546
	input.udp.dst_port == 547
	input.ip.dst == "ff02::1:2"
}

dhcp if {
	input.direction == "in"
	input.udp.src_port == 547
	input.udp.dst_port == 546
	net.cidr_contains("fe80::/10", input.ip.src)
}

# mDNS (RFC 6762) and SSDP.
question if {
	input.direction == "out"
	input.udp.dst_port == 5353
	input.ip.dst in {"224.0.0.251", "ff02::fb"}
}

question if {
	input.direction == "out"
	input.udp.dst_port == 1900
	input.ip.dst in {"239.255.255.250", "ff02::c", "ff05::c"}
}
