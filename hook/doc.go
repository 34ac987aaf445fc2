// Package hook puts verdictd's own ruleset into the kernel: the nf_tables rules
// that send packets to the queue.
//
// It owns one table and nothing else: it refuses a table of the same name that
// it did not make, and never reads or changes another one. It speaks nf_tables
// netlink itself, so neither nft nor iptables has to be installed. Where the
// kernel has no native queue expression it uses the xt NFQUEUE target through
// nft_compat. For people who keep their own iptables rules it prints a script.
//
// It must not know queues' sockets, packets or policy, and imports nothing of
// this module.
//
// # Where the rules stand
//
// The chains have type filter and priority 10, just after the users' filter
// chains (0). What those drop does not come up; what they accept
// does, as an accept in nf_tables ends one chain only. A verdict can therefore
// only narrow what the host's own rules allow. Each chain says, in this order:
//
//  0. after Config.Until everything passes;
//  1. what stays on this host passes (unless Config.Loopback): at OUTPUT the
//     kernel's interface is "lo" though a NAT has turned the packet elsewhere, so
//     the rule asks for the absence of a destination NAT, or a local destination;
//  2. verdictd's own packets, known by a mark, pass (if Config.OwnMark);
//  3. IPv6 neighbour discovery passes (unless Config.StrictNeighbour);
//  4. what verdictd has rejected is rejected (if Config.Mask);
//     then what the kernel would not queue passes, see below;
//  5. jump to the chain verdictd_offload, where decided flows are let through
//     (if Config.Offload); it reads conntrack, which also makes the kernel put
//     fragments together before they reach the queue;
//  6. mark an answer, in the eyes of conntrack, as one (if Config.Mask);
//  7. at output and postrouting, run a BPF program that notes who sends the
//     packet (if Config.Record, and the kernel has the bpf match of iptables);
//  8. count the packet and queue it.
//
// # Marks
//
// verdictd rejects a packet, or accepts it with all the rest of its flow, by the
// verdict NF_REPEAT and a packet mark (see [Marks]): the packet goes through the
// same hook once more, where the rules above find the mark. An accepted flow
// gets a connection mark, and its later packets, of both directions, are
// accepted by that. A SYN is judged whatever the connection mark is, and so are
// connections that a conntrack helper expects, as they inherit marks, and ICMP
// errors, which carry the mark of the connection that they speak about.
//
// Each generation of decisions has a connection mark of its own.
// [Ruleset.SetMarks] exchanges it in one transaction: at that moment all flows
// that were accepted before come up again. [ClearMarks] takes a mark from all
// connections before its number is used a second time.
//
// Two more chains take the values in use from the mark of every packet that enters
// the host or is sent by it, at priority -149. So a mark counts only if it came
// with a verdict, and who copies whole connection marks to packets (CONNMARK
// --restore-mark without a mask) routes them as if our bits were not there. All
// other values stay: programs and rules mark packets to decide their route, with
// whole words too. Who copies whole packet marks to connections erases our bits:
// such flows come up again and again, but nothing passes unjudged.
//
// A mark that is another one after a queue at OUTPUT than before it, or after a
// chain of type route, makes the kernel route the packet again, without what its
// program asked for. So no chain of ours has that type, and what rule 6 sets at
// OUTPUT stays until a chain at POSTROUTING, before all others, takes it off.
//
// The kernel's message to the sender of a rejected packet belongs to the same
// connection, in state related, and passes by that: it is not judged, so it
// cannot be rejected in turn.
//
// With Config.Mask and without Config.Bypass the policy of the chains is drop:
// if somebody flushes their rules, a rejected packet that was under way does not
// pass, and nothing else does until the rules are put in again.
//
// # What the kernel does not queue
//
// A packet whose connection is not confirmed and belongs to another packet too is
// dropped instead of queued, and not counted (nf_ct_drop_unconfirmed, Linux 6.8).
// Two kinds are known. What this host's kernel answers to a packet that it could
// not forward, or that another rule refused, carries that packet's connection: it
// passes, counted in "errors", at output and postrouting. Nothing but the kernel
// sends such packets, but who sends packets that this host cannot forward, with a
// false source, makes it send what it quotes to that source (see rp_filter). And
// the copies of a broadcast or multicast that a bridge sends to several ports
// share a connection: with hooks forward and postrouting, a chain before
// conntrack lets such packets of bridges go untracked, so that each copy is
// judged. What remains are the first packets of flows to hosts that a bridge does
// not know yet (they are repeated by their senders, as after any loss), and of
// routed multicast.
//
// # Who sends
//
// Rule 7 runs as the packet is sent, mostly in the sender's own system call, so
// it sees sockets and processes that are gone when the packet is judged. Only
// packets that come up reach it: those of offloaded flows cost nothing. It gets
// no say: the program returns 0, so the rule does not match, and it has no
// verdict. The rules keep the program when the descriptor is closed, until they
// are replaced: a successor installs its own program in the same transaction as
// all else.
//
// # Deleting chains drops queued packets
//
// When any base chain of a network namespace is deleted, the kernel drops the
// packets that wait in every nfqueue of that namespace, also in the queues of
// other programs, and no kernel counter shows them (nf_queue_nf_hook_drop,
// net/netfilter/core.c). Deleting the last rule that reads conntrack does the
// same, as conntrack's own hooks go with it. So a second Install flushes and
// refills the chains in one transaction, [Ruleset.Stop] empties the base chains
// but leaves the conntrack rule, [Ruleset.Block] leaves all but the queue rule, for
// which a drop stands until the next Install, and only [Ruleset.Close] and [Remove]
// delete.
// That last deletion cannot be avoided if nothing shall stay behind. A second
// Install with fewer hooks or another priority has to delete chains too.
//
// # Who owns the table
//
// The table has no owner in the sense of nf_tables (NFT_TABLE_F_OWNER, Linux 5.12).
// Tried on Linux 6.18 with nft 1.0.6: while the owner's socket is open, "nft flush
// ruleset" of others leaves such a table alone, and delete, flush and new rules of
// others are refused with EPERM. But a file that was saved with the table in it is
// refused as a whole, with all that it says of other tables, also behind "flush
// ruleset"; and with the socket the table goes, at once and with what waits in the
// queues, unless it has NFT_TABLE_F_PERSIST (Linux 6.9), which leaves it to whomever
// comes first. The owner is the port of one netlink socket: a successor would have to
// be given that socket, a supervisor hold it through a crash, and a table without
// owner cannot be given one but by deleting it. So the rules are put in again as the
// kernel tells that they went ([Watch]): a flush lets out what comes in the 5 to 8 ms
// that this takes here, which the record of it says.
//
// # Fragments
//
// While a rule reads conntrack, the kernel puts fragments together at priority
// -400, for IPv4 and IPv6 alike: the queue gets one packet. When it is forwarded,
// the kernel cuts it again where it was cut. Fragments still reach the queue from
// a local program that has CAP_NET_RAW and sets IP_NODEFRAG on its socket.
package hook
