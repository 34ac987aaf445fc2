// Package attribution tells which process owns the local socket of a packet.
//
// It owns the order in which the ways of knowing are tried, what their answers
// mean together, and the caches between them. The ways themselves are packages of
// their own: record (what the kernel noted before the packet was queued),
// sockdiag (which socket has these ends), procfs (what /proc says of a process),
// connector (which processes are new). It must not know policies or queues.
//
// # Who is asked, in this order
//
//	sends (output, postrouting)      receives (input, prerouting)     from a namespace (forward)
//	flow recorded?    bpf-flow       socket by sock_diag; its owner    flow recorded?  bpf-flow
//	no socket?        kernel           recorded?  bpf-cookie           else            unknown
//	socket by sock_diag; its owner     held by one process?  diag
//	  recorded?       bpf-cookie       only its user?  uid-only
//	  held by one process?  diag       else  unknown
//	uid with the packet?  uid-only
//	else              unknown
//
// A connection that was accepted belongs to who owns the listener, unless the
// socket was used since.
//
// # Never a guess
//
// An answer names its source. Of a socket that several processes hold where nobody
// recorded its use, such as the listener of a server that forks, is said what is true
// of each of them, and no pid. A tuple that two network namespaces sent from, or that
// another program got hold of while a packet could still wait in a queue, is of no
// process. A process is named by its
// pid and the time it was started, so a pid that is used again is another one.
//
// # What it costs
//
// A known flow costs a load from memory (Attributor.Changes). A new one costs one
// lookup in a BPF map, or one question to sock_diag. What a process can slow, such as
// all that is read from /proc and the hash of a program, is looked up beside the
// packets, by pools, and Revision tells when there is more to know. The kernel's iterator makes the search 20 times faster than /proc does.
package attribution
