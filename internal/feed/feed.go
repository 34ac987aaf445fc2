package feed

import (
	"errors"
	"fmt"
	"slices"

	"github.com/verdictd/verdictd/internal/nfnl"
)

// Rule is a rule that sends packets to a queue.
type Rule struct {
	Tables string // "nf_tables", "iptables" or "ip6tables"
	Table  string // its name
	Chain  string // of nf_tables; else empty
	First  uint16 // queues: from here
	Count  uint32 // so many; 0: which ones is decided for each packet
}

// feeds returns whether the rule may send packets to one of the queues.
func (r *Rule) feeds(queues []uint16) bool {
	return r.Count == 0 || slices.ContainsFunc(queues, func(q uint16) bool {
		return q >= r.First && uint32(q-r.First) < r.Count
	})
}

// String says where the rule is.
func (r *Rule) String() string {
	if r.Chain == "" {
		return fmt.Sprintf("%s, table %s", r.Tables, r.Table)
	}
	return fmt.Sprintf("%s, table %s, chain %s", r.Tables, r.Table, r.Chain)
}

// Find returns the rules that may send packets to one of the queues, in the
// network namespace behind a descriptor, 0 for that of the calling thread. That a
// packet reaches them is not looked at. An error says that not all rules could be
// read: what was found holds, what was not may be there. Needs CAP_NET_ADMIN, and
// CAP_SYS_ADMIN for another namespace.
func Find(netns int, queues []uint16) (rules []Rule, err error) {
	err = nfnl.InNetNS(netns, func() error {
		var nftErr, v4Err, v6Err error
		var all, more []Rule
		all, nftErr = readTables()
		more, v4Err = readLegacy(&ipv4)
		all = append(all, more...)
		more, v6Err = readLegacy(&ipv6)
		rules = slices.DeleteFunc(append(all, more...), func(r Rule) bool { return !r.feeds(queues) })
		return errors.Join(nftErr, v4Err, v6Err)
	})
	return rules, err
}
