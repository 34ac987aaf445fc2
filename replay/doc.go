// Package replay judges the packets of captures: it reads pcap and pcapng,
// takes the link layer off, hands each IP packet to a Judge and writes one
// line per packet.
//
// It must not know how packets are judged; it imports packet only.
//
// # Determinism
//
// The clock is the capture's: Meta.Time is the timestamp of the packet, also
// where timestamps run backwards. Two runs over the same captures with the
// same judge write the same bytes. Wall time appears in the Summary only.
//
// # Captures
//
// pcap with microseconds or nanoseconds and pcapng with any number of sections
// and interfaces, in both byte orders, plain or compressed with gzip or zstd
// (told by content, not by name). Frames are numbered from 1 in each capture,
// as Wireshark numbers them.
//
// The readers are this package's own. Those of gopacket/pcapgo keep the link
// type in 8 bits, so that SLL2 (276) reads as 20; refuse pcap files of minor
// version 1; index into empty pcapng options, which panics; drop epb_flags,
// the direction of a packet; and tell no byte offset. Working around all of it
// takes more code than reading the two formats. pcapgo is the oracle and the
// writer of the tests.
//
// # Hooks
//
// A capture does not say at which netfilter hook a packet would be judged
// (NFLOG captures do, and are believed). Options.FixHook fixes the hook.
// Otherwise, with Options.Local given, a packet from a local address is judged
// at output, any other packet to a local address at input, the rest at
// forward. Without Local, direction marks of the capture decide (packet type
// of SLL and SLL2, epb_flags of pcapng): outgoing is output, incoming is
// input. Without those, too, every packet is judged at forward.
package replay
