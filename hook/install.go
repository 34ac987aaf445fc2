package hook

import (
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// ErrNotInstalled says that verdictd's table is not in the kernel.
var ErrNotInstalled = errors.New("not installed")

// ErrChanged says that verdictd's table is in the kernel, but not as it was
// installed.
var ErrChanged = errors.New("changed by somebody else")

// Ruleset is an installed ruleset. Its methods may be called from several
// goroutines; each call opens and closes a netlink socket of its own.
type Ruleset struct {
	dial dialer
	mu   sync.Mutex
	plan plan // but for its Config, which stays, guarded by mu; held while the kernel's table is changed
}

// Counter counts the packets that reached the queue rule of one hook since
// Install. A packet counts when it is handed to the queue, whatever happens
// then: also when nobody has bound the queue or it is full.
type Counter struct {
	Hook           Hook
	Packets, Bytes uint64
}

// Install puts the ruleset into the kernel, in one transaction: either all of it
// or nothing. A table that an earlier run left behind is replaced in the same
// transaction, without a moment in which packets pass unseen; what somebody
// added to that table is removed. Chains that stay the same are not deleted
// (see the package comment). Counters start at 0.
//
// Bind the queue first, or packets are dropped (or with Config.Bypass pass)
// until it is bound.
//
// Errors name what is missing: CAP_NET_ADMIN, a kernel module, or a table of
// the same name that is not verdictd's.
func Install(cfg Config) (*Ruleset, error) { return install(cfg, dial) }

func install(cfg Config, dial dialer) (*Ruleset, error) {
	c, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	r := &Ruleset{dial: dial, plan: plan{Config: c, marks: c.marks()}}
	return r, r.install()
}

func (r *Ruleset) install() error {
	return r.put(func(k *kernel) error { return k.probe(&r.plan) })
}

// put puts the planned table into the kernel, after complete has completed the
// plan.
func (r *Ruleset) put(complete func(*kernel) error) error {
	what := r.what("install")
	k, err := r.dial(r.plan.NetNS)
	if err != nil {
		return explain(what, err)
	}
	old, err := k.read(r.plan.Config)
	if err != nil && !errors.Is(err, ErrNotInstalled) {
		return explain(what, err)
	}
	if err := complete(k); err != nil {
		return explain(what, err)
	}
	t := r.plan.build()
	policies := t.open()
	if err := k.replace(old, t); err != nil {
		return explain(what, err)
	}
	if len(policies) == 0 {
		return nil
	}
	for c, policy := range policies {
		c.Policy = policy
		k.conn.AddChain(c)
	}
	return explain(what, k.conn.Flush())
}

// open makes the policy of every chain accept, and returns those that are to be
// put in force afterwards. A new chain meets packets with its policy a moment
// before its rules are there.
func (t *tree) open() map[*nftables.Chain]*nftables.ChainPolicy {
	accept := nftables.ChainPolicyAccept
	policies := map[*nftables.Chain]*nftables.ChainPolicy{}
	for i := range t.chains {
		if c := t.chains[i].chain; c.Policy != nil && *c.Policy != accept {
			policies[c], c.Policy = c.Policy, &accept
		}
	}
	return policies
}

// Restore installs the ruleset again, with the marks in use, after somebody else
// has changed or deleted it. What the kernel can do is not tried anew unless that
// fails or the program of Config.Record was not taken: each try takes the kernel
// some milliseconds, in which packets may pass unseen.
func (r *Ruleset) Restore() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.plan.noRecord == nil && !r.plan.stopped && !r.plan.blocked && r.put(func(*kernel) error { return nil }) == nil {
		return nil
	}
	return r.install()
}

// Remove deletes the table that Install made with the same Family, Table and
// NetNS, whoever installed it; the other fields do not matter. It returns ErrNotInstalled if there is none, and
// an error if the table is not verdictd's. Packets waiting in any queue of the
// network namespace are dropped (see the package comment).
func Remove(cfg Config) error { return remove(cfg, dial) }

func remove(c Config, dial dialer) error {
	if err := c.defaultPlace(); err != nil {
		return err
	}
	what := fmt.Sprintf("remove table %s %s", c.Family, c.Table)
	k, err := dial(c.NetNS)
	if err != nil {
		return explain(what, err)
	}
	if _, err := k.chains(c); err != nil {
		return explain(what, err)
	}
	k.conn.DelTable(c.table())
	return explain(what, k.conn.Flush())
}

// Show returns the installed ruleset as the kernel has it, with counters, in the
// language of nft. The xt NFQUEUE target is shown as the queue statement it
// stands for; the first line says so. Only Family, Table and NetNS matter. It
// returns ErrNotInstalled if there is no such table.
func Show(cfg Config) (string, error) { return show(cfg, dial) }

func show(c Config, dial dialer) (string, error) {
	if err := c.defaultPlace(); err != nil {
		return "", err
	}
	what := fmt.Sprintf("show table %s %s", c.Family, c.Table)
	k, err := dial(c.NetNS)
	if err != nil {
		return "", explain(what, err)
	}
	t, err := k.read(c)
	if err != nil {
		return "", explain(what, err)
	}
	return "# queued by " + t.queuedBy() + "\n" + t.text(true), nil
}

// queuedBy names what sends packets to the queue.
func (t *tree) queuedBy() string {
	for _, b := range t.chains {
		for _, r := range b.rules {
			if s := queuedBy(r); s != "" {
				return s
			}
		}
	}
	return "nothing: the rules are gone"
}

func queuedBy(r *nftables.Rule) string {
	for _, e := range r.Exprs {
		switch e.(type) {
		case *expr.Queue:
			return "the queue expression"
		case *expr.Target:
			return "the xt NFQUEUE target"
		}
	}
	return ""
}

// Config returns the configuration with its defaults filled in.
func (r *Ruleset) Config() Config { return r.plan.Config }

// Native says whether the kernel's queue expression is used, not the xt NFQUEUE
// target.
func (r *Ruleset) Native() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.plan.native
}

// Rejects says whether packets marked Reject are answered. Otherwise, for lack
// of nft_reject in the kernel or of Config.Mask, they can only be dropped.
func (r *Ruleset) Rejects() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.plan.rejects && r.plan.Mask != 0
}

// Marks returns the marks in use.
func (r *Ruleset) Marks() Marks {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.plan.marks
}

// SetMarks puts marks of another generation into use, in one step: from then on
// the connection marks of all others no longer count. Mask, Reject and Reply
// must be those of Config.Mask; Accept 0 suspends the offload.
func (r *Ruleset) SetMarks(m Marks) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	what := r.what("change the marks of")
	if want := r.plan.marks; m.Mask != want.Mask || m.Reject != want.Reject || m.Reply != want.Reply || m.Accept&^m.Mask != 0 {
		return fmt.Errorf("%s: marks %#x do not belong to mask %#x", what, m, want.Mask)
	}
	k, err := r.dial(r.plan.NetNS)
	if err != nil {
		return explain(what, err)
	}
	changed := r.plan
	changed.marks, changed.former = m, r.plan.marks
	for _, b := range []branch{changed.plain(offloadChain, changed.offload), changed.plain(cleanChain, changed.clean)} {
		k.conn.FlushChain(b.chain)
		for _, rule := range b.rules {
			k.conn.AddRule(rule)
		}
	}
	if err := k.conn.Flush(); err != nil {
		return explain(what, err)
	}
	r.plan.marks, r.plan.former = changed.marks, changed.former // its Config is read without the lock
	return nil
}

// Offloaded counts the packets that passed by the queue because their flow is
// accepted, since Install.
func (r *Ruleset) Offloaded() (packets, bytes uint64, err error) { return r.count(offloadedCounter) }

// Errors counts the messages of this host's kernel that passed by the queue since
// Install, as the kernel does not queue them: they tell a sender of a packet that
// it was not forwarded, or refused by another rule, before it began a connection.
func (r *Ruleset) Errors() (packets, bytes uint64, err error) { return r.count(errorsCounter) }

func (r *Ruleset) count(name string) (packets, bytes uint64, err error) {
	what := r.what("read the counters of")
	k, err := r.dial(r.plan.NetNS)
	if err != nil {
		return 0, 0, explain(what, err)
	}
	n, err := k.counter(r.plan.table(), name)
	if err != nil {
		return 0, 0, explain(what, err)
	}
	return n.Packets, n.Bytes, nil
}

// Counters returns one counter per hook, in the order of the kernel's hook
// numbers. They go on after Stop, until Close.
func (r *Ruleset) Counters() ([]Counter, error) {
	what := r.what("read the counters of")
	c := r.Config()
	k, err := r.dial(c.NetNS)
	if err != nil {
		return nil, explain(what, err)
	}
	var counters []Counter
	for _, h := range c.Hooks {
		n, err := k.counter(c.table(), counterName(h))
		if err != nil {
			return nil, explain(what, err)
		}
		counters = append(counters, Counter{Hook: h, Packets: n.Packets, Bytes: n.Bytes})
	}
	return counters, nil
}

// Verify compares the kernel's table with what was installed. Somebody else may
// have emptied or deleted it, such as nft flush ruleset: packets then pass
// unseen. It returns nil, ErrNotInstalled, ErrChanged or what went wrong.
func (r *Ruleset) Verify() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	what := r.what("verify")
	k, err := r.dial(r.plan.NetNS)
	if err != nil {
		return explain(what, err)
	}
	t, err := k.read(r.plan.Config)
	if err != nil {
		return explain(what, err)
	}
	if got, want := t.text(false), r.plan.build().text(false); got != want {
		return fmt.Errorf("%s: %w: install it again", what, ErrChanged)
	}
	return nil
}

// Stop takes the rules out that fill the queue, and leaves the chains in place:
// packets already queued stay and can still be judged, also rejected. All others
// pass from then on. It is no error if the table is gone.
func (r *Ruleset) Stop() error {
	return r.refill("stop", func(p *plan) { p.stopped = true })
}

// Close deletes the table. Call Stop first and judge what is still queued: the
// deletion drops the packets waiting in any queue of the network namespace,
// also those of other programs. It is no error if the table is gone.
func (r *Ruleset) Close() error {
	if err := remove(r.plan.Config, r.dial); !errors.Is(err, ErrNotInstalled) {
		return err
	}
	return nil
}

func (r *Ruleset) what(verb string) string {
	return fmt.Sprintf("%s table %s %s", verb, r.plan.Family, r.plan.Table)
}
