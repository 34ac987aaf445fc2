// Package nfnl reads and writes nfnetlink messages at the kernel's own speed.
//
// It owns the batched receive loop, the in-place walk over messages and
// attributes, the message writer, requests with acknowledgement and the count
// of what the socket lost. It serves the packet queue and the packet log and
// must not know either: subsystem numbers, attribute types and verdicts are
// theirs.
//
// Netlink headers are in host byte order. Integers inside nfnetlink messages
// are in network byte order on the wire and in host byte order here.
//
// Sources: include/uapi/linux/netlink.h,
// include/uapi/linux/netfilter/nfnetlink.h, net/netlink/af_netlink.c.
package nfnl
