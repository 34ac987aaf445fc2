// Package ledger keeps the books of packets: of all that the kernel's rules
// sent to the queues, how many passed, were dropped, or got lost, and why.
//
// It owns the arithmetic over what the rules, the kernel's queues and our
// readers count, the answer to whether it comes out even, and the warnings
// about what went wrong. It must not know how packets are judged, nor who asks.
//
// # What is exact
//
// The kernel numbers the packets of a queue, and counts those that it has no
// room for, so under "fail closed" every account is exact, from the queue on.
// Under "fail open" the kernel counts the packets nowhere that pass because
// there is no room. What the receive buffer had no room for shows as a gap in
// the numbers. What the queue had no room for is the difference to the counters
// of the rules, which are known only if the rules are verdictd's own; else it is
// not known at all.
package ledger
