// Command queue measures what answering the packets of a kernel queue costs,
// side by side:
//
//	no queue             no rules at all
//	conntrack only       no queue, and one rule that reads conntrack
//	C batched            recvmmsg and all verdicts of a batch in one send, in C
//	C simple             one recv and one send per packet, in C
//	C spinning           C batched, looking for more for 50 µs before it sleeps
//	go-nfqueue           the receive loop of github.com/florianl/go-nfqueue/v2
//	verdictd loop        this project's queue.Run, accepting without looking
//	verdictd             queue.Run with the whole engine, as the daemon runs it
//	verdictd spinning    the same with --spin 50us
//	verdictd offload     with the rules by which decided flows pass by the queue
//	verdictd no offload  with --offload off, which still has the rules for reject
//
// Run it as root from the root of the repository:
//
//	go run ./bench/queue
//
// It needs a kernel with nfnetlink_queue and nf_tables, and for the C columns
// gcc and libc6-dev, for conntrack only nft; what is missing is left out and named.
// All traffic stays in three network namespaces of its own (client, router,
// server) that go with the process.
//
// # How it measures
//
// Each peer is a child process in the router's namespace, pinned to one CPU;
// the traffic comes from another. All are measured in turn in every round, so
// that a change of the machine's mood hits all of them, and ratios are taken
// within a round. Copy range, queue length, receive buffer and flags are the
// same for all. CPU time is what all threads of the child ran, which includes
// the packet's way out of the machine, done by the kernel in the sender of the
// verdict.
//
//	drain    the child is stopped, the queue filled, the child continued: CPU
//	         time and memory allocations per packet without waiting for more
//	flood    packets as fast as one CPU can send: delivered, lost, CPU time
//	latency  UDP round trips through the queue, one in flight
//	scaling  drain over 1, 2 and 4 queues, 64 sources, not pinned
//	tcp      one TCP connection, both directions; its ends pinned, peers not
package main
