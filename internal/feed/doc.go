// Package feed finds the rules of a network namespace that send packets to a
// queue, and those that use marks, whoever installed them.
//
// It owns the reading of other people's rulesets: those of nf_tables and of ip rule,
// by netlink, and those of iptables-legacy, by getsockopt(2). It changes nothing. It
// must not know what a queue is for, or which marks are wanted.
package feed
