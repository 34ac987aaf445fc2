// Package feed finds the rules of a network namespace that send packets to a
// queue, whoever installed them.
//
// It owns the reading of other people's rulesets: those of nf_tables, by netlink,
// and those of iptables-legacy, by getsockopt(2). It changes nothing. It must not
// know what a queue is for.
package feed
