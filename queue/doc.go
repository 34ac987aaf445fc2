// Package queue answers the packets of a live netfilter queue.
//
// It owns one kernel queue: binding, receiving in batches, telling the handler
// what the kernel says about each packet, sending the verdicts and counting
// what was lost and why. It must not know how packets are judged, nor who puts
// the rules in place that queue them.
//
// IPv4 and IPv6 packets arrive on the same queue, in the order in which the
// kernel queued them. Rules reach it by -j QUEUE (queue 0), -j NFQUEUE
// --queue-num or --queue-balance, or nftables' queue statement; with
// --queue-bypass packets pass while nobody is bound.
//
// Sources: include/uapi/linux/netfilter/nfnetlink_queue.h,
// net/netfilter/nfnetlink_queue.c.
package queue
