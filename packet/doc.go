// Package packet says what a packet is: the metadata that came with it, the
// headers decoded from it, the flow it belongs to and the verdict it gets.
//
// It owns header decoding with the kernel's semantics: a packet that the
// kernel would deliver to port P is decoded as port P or not at all. It must
// not know where packets come from (queue, capture) or how they are judged
// (rules, policy).
package packet
