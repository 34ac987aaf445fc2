// Command connect measures how many TCP connections a second a local program can
// open under a firewall that judges each, side by side:
//
//	none          no rules at all
//	C accept-all  recvmmsg and all verdicts of a batch in one send, in C (the loop
//	              of bench/queue): the least that a firewall in user space costs
//	verdictd off  the daemon with 50 rules on addresses, ports and users, of which
//	              the last accepts; --attribution off
//	verdictd proc the same, but 31 of the rules ask for program, unit or user
//	              name of the process; --attribution proc
//	verdictd auto the same as proc; --attribution auto: recorded in the kernel
//
// Run it as root from the root of the repository:
//
//	go run ./bench/connect
//
// It needs a kernel with nfnetlink_queue and nf_tables, gcc and libc6-dev. All
// traffic stays in two network namespaces of its own, a client that runs the
// firewall at OUTPUT and a server, which go with the process.
//
// # What is the same for all
//
// The daemon is the one of this tree, and installs its own rules with --hook
// output. The loop in C gets the same rules, but for the one that records who
// sends, and accepts as verdictd does: with a mark, after which the kernel lets
// the rest of the connection pass by the queue. So one packet of each connection
// is queued, its SYN; "queued" in the tables shows it. With --offload=false all
// packets that the client sends are queued, for all peers.
//
// A policy that asks for the process is final only where the process is known.
// Where it is not, all packets of the connection are queued: "queued" shows that,
// too, and "known" how many connections were judged by their process. Without a
// record (proc) those are some of oneshot's, as processes that have just begun are
// looked at while the packet waits, and next to none of a process that opens one
// socket after the other: a search through /proc comes too late for them.
//
// # How it measures
//
// loop1 and loop16 are one process in C whose 1 or 16 threads open connections
// one after the other; oneshot starts a process for each, 8 at a time. The client
// resets each connection at once, the server accepts and closes. Destinations
// rotate over 64 addresses, so that no flow is known already. All peers are
// measured in turn in every round, so that a change of the machine's mood hits
// all of them, and ratios are taken within a round. CPU time is what all threads
// of the peer ran, which includes the packet's way to the server, as the kernel
// sends it on behalf of whoever answers; what the kernel records before it queues
// a packet is the client's time, and shows in the rate and the latency. Nothing
// is pinned unless flags say so.
package main
