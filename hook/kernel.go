package hook

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// answerTime bounds each netlink exchange. A transaction waits for the kernel to
// load modules and for an RCU grace period, far less than this.
const answerTime = 20 * time.Second

// dialer opens a connection in a network namespace, given by a file descriptor
// or 0 for the calling thread's own.
type dialer func(netns int) (*kernel, error)

// kernel talks nf_tables. It opens a socket for each exchange.
type kernel struct {
	conn *nftables.Conn
}

func dial(netns int) (*kernel, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(netns), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetDeadline(time.Now().Add(answerTime))
	}))
	if err != nil {
		return nil, err
	}
	return &kernel{conn: conn}, nil
}

// chains returns the chains of our table. Errors: ErrNotInstalled, or a table of
// that name that is not ours.
func (k *kernel) chains(c Config) ([]*nftables.Chain, error) {
	tables, err := k.conn.ListTablesOfFamily(c.Family.kernel())
	if err != nil {
		return nil, noTables(err)
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == c.Table }) {
		return nil, ErrNotInstalled
	}
	all, err := k.conn.ListChainsOfTableFamily(c.Family.kernel())
	if err != nil {
		return nil, err
	}
	ours := slices.DeleteFunc(all, func(ch *nftables.Chain) bool { return ch.Table.Name != c.Table })
	marked := func(ch *nftables.Chain) bool { return ch.Name == offloadChain && ch.Hooknum == nil }
	if !slices.ContainsFunc(ours, marked) {
		return nil, fmt.Errorf("there is a table of that name that is not verdictd's (it has no chain %s): choose another name, or delete it with: nft delete table %s %s",
			offloadChain, c.Family, c.Table)
	}
	return ours, nil
}

// noTables names the kernel part that is missing when the first question fails:
// an nfnetlink without nf_tables answers EINVAL, no nfnetlink at all
// EPROTONOSUPPORT.
func noTables(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("the kernel has no nf_tables: load it with: modprobe nf_tables, or use iptables rules instead (%w)", err)
	}
	return err
}

// read returns our table with everything in it. Errors are those of chains.
func (k *kernel) read(c Config) (*tree, error) {
	chains, err := k.chains(c)
	if err != nil {
		return nil, err
	}
	t := &tree{table: c.table()}
	for _, ch := range chains {
		rules, err := k.conn.GetRules(t.table, ch)
		if err != nil {
			return nil, fmt.Errorf("read chain %s: %w", ch.Name, err)
		}
		t.chains = append(t.chains, branch{chain: ch, rules: rules})
	}
	objs, err := k.conn.GetNamedObjects(t.table)
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	for _, o := range objs {
		if n, ok := o.(*nftables.NamedObj); ok && n.Type == nftables.ObjTypeCounter {
			t.counters = append(t.counters, n)
		}
	}
	slices.SortFunc(t.counters, func(a, b *nftables.NamedObj) int { return counterOrder(a) - counterOrder(b) })
	return t, nil
}

// counterOrder puts counters in the order of their hooks, as build does.
func counterOrder(o *nftables.NamedObj) int {
	for h := Prerouting; h <= Postrouting; h++ {
		if o.Name == counterName(h) {
			return int(h)
		}
	}
	return int(Postrouting) + 2 + slices.Index([]string{offloadedCounter, errorsCounter}, o.Name)
}

func (k *kernel) counter(t *nftables.Table, name string) (*expr.Counter, error) {
	o, err := k.conn.GetObject(newCounter(t, name))
	if err != nil {
		return nil, fmt.Errorf("read counter %s: %w", name, err)
	}
	named, ok := o.(*nftables.NamedObj)
	if !ok {
		return nil, fmt.Errorf("read counter %s: the kernel returned no counter", name)
	}
	n, ok := named.Obj.(*expr.Counter)
	if !ok {
		return nil, fmt.Errorf("read counter %s: the kernel returned a %T", name, named.Obj)
	}
	return n, nil
}

// probe finds out by trying what the kernel can do of what the plan needs, and
// completes the plan.
func (k *kernel) probe(p *plan) error {
	switch ok, err := k.accepts(p.Config, invalidState()); {
	case err != nil:
		return err
	case !ok:
		return errors.New("the kernel has no conntrack expression: load it with: modprobe nft_ct")
	}
	switch ok, err := k.accepts(p.Config, setCtMark(p.Mask, 0)); {
	case err != nil:
		return err
	case !ok && p.Mask != 0:
		return errors.New("the kernel has no connection marks: it needs CONFIG_NF_CONNTRACK_MARK; without them: --offload-mask 0")
	}
	var err error
	if p.rejects, err = k.accepts(p.Config, []expr.Any{rejectICMP(p.Family)}); err != nil {
		return err
	}
	if p.native, err = k.probeQueue(p.Config); err != nil {
		return err
	}
	k.probeRecord(p)
	p.fib, p.bridges = k.knows(p.Config, toLocal()), p.fromBridges() && k.knows(p.Config, append(fromBridge(packetBroadcast), &expr.Notrack{}))
	return nil
}

// knows says whether the kernel takes a rule that the plan can do without.
func (k *kernel) knows(c Config, exprs []expr.Any) bool {
	ok, err := k.accepts(c, exprs)
	return ok && err == nil
}

// probeQueue finds out whether the kernel has the native queue expression or the
// xt target.
func (k *kernel) probeQueue(c Config) (native bool, err error) {
	native, err = k.accepts(c, []expr.Any{nativeQueue(c)})
	if err != nil || native {
		return native, err
	}
	switch ok, err := k.accepts(c, []expr.Any{xtQueue(c)}); {
	case err != nil:
		return false, err
	case !ok:
		return false, errors.New("the kernel has neither the queue expression nor the NFQUEUE target: load one with: modprobe nft_queue, or: modprobe -a nft_compat xt_NFQUEUE")
	}
	return false, nil
}

// accepts says whether the kernel knows the expressions: it makes a rule of them
// in a throw-away table, which no packet reaches and which goes in the same
// transaction.
func (k *kernel) accepts(c Config, exprs []expr.Any) (bool, error) {
	t := k.conn.CreateTable(&nftables.Table{Name: c.Table + ".probe", Family: c.Family.kernel()})
	ch := k.conn.AddChain(&nftables.Chain{Name: "probe", Table: t})
	k.conn.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: exprs})
	k.conn.DelTable(t)
	err := k.conn.Flush()
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		return false, fmt.Errorf("the kernel has no nf_tables family %s: it needs CONFIG_NF_TABLES_INET, NF_TABLES_IPV4 or NF_TABLES_IPV6 (%w)", c.Family, err)
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("try a rule in table %s: %w", t.Name, err)
	}
	return true, nil
}

// replace puts the new table in place of the old one, nil if there is none, in
// one transaction. Chains that are the same in both are kept.
func (k *kernel) replace(old, new *tree) error {
	if old == nil {
		k.conn.CreateTable(new.table)
	}
	if old != nil {
		k.clear(old, new)
	}
	for _, o := range new.counters {
		k.conn.AddObj(o)
	}
	for _, b := range new.chains {
		k.conn.AddChain(b.chain)
	}
	for _, b := range new.chains {
		for _, r := range b.rules {
			k.conn.AddRule(r)
		}
	}
	return k.conn.Flush()
}

// clear removes all of the old table that the new one does not have.
func (k *kernel) clear(old, new *tree) {
	k.conn.FlushTable(old.table)
	for _, o := range old.counters {
		k.conn.DeleteObject(o)
	}
	for _, b := range old.chains {
		if !slices.ContainsFunc(new.chains, b.sameChain) {
			k.conn.DelChain(b.chain)
		}
	}
}

// sameChain says whether the kernel would take one chain for the other.
func (b branch) sameChain(o branch) bool {
	if b.chain.Name != o.chain.Name || b.base() != o.base() {
		return false
	}
	return !b.base() ||
		*b.chain.Hooknum == *o.chain.Hooknum && *b.chain.Priority == *o.chain.Priority && b.chain.Type == o.chain.Type
}

// explain says what failed and, where rights are missing, which.
func explain(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: %w (needs CAP_NET_ADMIN)", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
