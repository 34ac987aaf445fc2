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
// The chains have type filter, policy accept and priority 10, just after the
// users' filter chains (0). What those drop does not come up; what they accept
// does, as an accept in nf_tables ends one chain only. A verdict can therefore
// only narrow what the host's own rules allow. Each chain says, in this order:
//
//  1. loopback passes (unless Config.Loopback);
//  2. verdictd's own packets, known by a mark, pass (if Config.OwnMark);
//  3. IPv6 neighbour discovery passes (unless Config.StrictNeighbour);
//  4. jump to the chain verdictd_offload, where decided flows can be let
//     through; it reads conntrack, which also makes the kernel put fragments
//     together before they reach the queue;
//  5. count the packet and queue it.
//
// # Deleting chains drops queued packets
//
// When any base chain of a network namespace is deleted, the kernel drops the
// packets that wait in every nfqueue of that namespace, also in the queues of
// other programs, and no kernel counter shows them (nf_queue_nf_hook_drop,
// net/netfilter/core.c). Deleting the last rule that reads conntrack does the
// same, as conntrack's own hooks go with it. So a second Install flushes and
// refills the chains in one transaction, [Ruleset.Stop] empties the base chains
// but leaves the conntrack rule, and only [Ruleset.Close] and [Remove] delete.
// That last deletion cannot be avoided if nothing shall stay behind. A second
// Install with fewer hooks or another priority has to delete chains too.
//
// # Fragments
//
// While a rule reads conntrack, the kernel puts fragments together at priority
// -400, for IPv4 and IPv6 alike: the queue gets one packet. When it is forwarded,
// the kernel cuts it again where it was cut. Fragments still reach the queue from
// a local program that has CAP_NET_RAW and sets IP_NODEFRAG on its socket.
package hook
