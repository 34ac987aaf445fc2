package hook

import (
	"fmt"

	"github.com/google/nftables/expr"
)

// Abilities says what the kernel can do of what rulesets need.
type Abilities struct {
	NativeQueue bool // the queue expression of nf_tables
	XTQueue     bool // the xt target NFQUEUE, through nft_compat
	Conntrack   bool // states of connections
	Marks       bool // connection marks, for Config.Offload
	Reject      bool // resets and ICMP messages to the sender
	// Record: a rule can run the program that Probe was given; else NoRecord says
	// why not. It is nil if none was given.
	Record   bool
	NoRecord error
}

// Probe finds out by trying: each rule is made in a throw-away table that no
// packet reaches, and that goes in the same transaction. Nothing stays behind,
// but for modules that the kernel loads. Of c, NetNS, Family and Record matter.
//
// Errors: no nf_tables, or no CAP_NET_ADMIN.
func Probe(c Config) (Abilities, error) { return probe(c, dial) }

func probe(c Config, dial dialer) (a Abilities, err error) {
	const what = "try rules"
	c.Hooks = []Hook{Output}
	if c, err = c.withDefaults(); err != nil {
		return a, fmt.Errorf("%s: %w", what, err)
	}
	k, err := dial(c.NetNS)
	if err != nil {
		return a, explain(what, err)
	}
	// Asked first: a kernel without nf_tables answers it as no rule is answered.
	if _, err := k.conn.ListTablesOfFamily(c.Family.kernel()); err != nil {
		return a, explain(what, noTables(err))
	}
	for _, try := range []struct {
		can   *bool
		exprs []expr.Any
	}{
		{&a.NativeQueue, []expr.Any{nativeQueue(c)}},
		{&a.XTQueue, []expr.Any{xtQueue(c)}},
		{&a.Conntrack, invalidState()},
		{&a.Marks, setCtMark(DefaultMask, 0)},
		{&a.Reject, []expr.Any{rejectICMP(c.Family)}},
	} {
		if *try.can, err = k.accepts(c, try.exprs); err != nil {
			return a, explain(what, err)
		}
	}
	p := &plan{Config: c}
	k.probeRecord(p)
	a.Record, a.NoRecord = p.records, p.noRecord
	return a, nil
}
