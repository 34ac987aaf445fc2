package main

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/process/attribution"
)

const (
	findQueue = "nfnetlink_queue" // without it no packet can be judged at all
	findRule  = "rule to the queue"
)

// try makes rules in the kernel and, if no daemon was asked, records owners for
// a moment.
func (c *checkup) try() (can hook.Abilities, st attributionStatus, err error) {
	if c.Daemon != nil {
		can, err = hook.Probe(hook.Config{})
		return can, c.Owners, err
	}
	// As for rules of the user's own, that may queue what is forwarded.
	owners, err := attribution.Open(attribution.Config{Forward: true})
	if err != nil {
		st.Report = attribution.Report{Mode: attribution.Auto.String(), Reason: err.Error(), NoSockDiag: "not tried"}
		can, err = hook.Probe(hook.Config{})
		return can, st, err
	}
	can, err = hook.Probe(hook.Config{Record: owners.Program()})
	st = attributionStatus{Report: owners.Report(), Rule: can.Record}
	switch {
	case !st.Recording:
		st.RuleReason = "nothing is recorded"
	case err != nil:
		st.RuleReason = err.Error()
	case can.NoRecord != nil:
		st.RuleReason = can.NoRecord.Error()
	}
	return can, st, errors.Join(err, owners.Close())
}

// queueFindings says how packets come up.
func queueFindings(can hook.Abilities, err error) []finding {
	all := []finding{part(hasQueue(), finding{
		Name: findQueue, Found: "packets come up to be judged",
		Consequence: "no packet can be judged", Remedy: "modprobe nfnetlink_queue (CONFIG_NETFILTER_NETLINK_QUEUE)",
	})}
	all = append(all, ruleFindings(can, err)...)
	return append(all,
		part(hasConntrack(), finding{
			Name: "ctnetlink", Found: "marks of an old policy can be taken from connections",
			Consequence: "the offload is suspended after some reloads", Remedy: "modprobe nf_conntrack_netlink (CONFIG_NF_CT_NETLINK)",
		}),
		part(hasLog(), finding{
			Name: "nfnetlink_log", Found: "what other rules log comes into the audit log (--nflog-group)",
			Consequence: "--nflog-group is not possible", Remedy: "modprobe nfnetlink_log (CONFIG_NETFILTER_NETLINK_LOG)",
		}))
}

// ruleFindings says what of the ruleset is possible.
func ruleFindings(can hook.Abilities, err error) []finding {
	if err != nil {
		f := finding{Name: findRule, State: stateMissing, Found: err.Error(), Consequence: "--hook is not possible, and what rules of your own can do is not known"}
		if errors.Is(err, fs.ErrPermission) {
			f.State, f.Found, f.Consequence = stateUnknown, "not known without root: "+err.Error(), ""
		}
		return []finding{f}
	}
	rule := finding{Name: findRule, State: stateOK, Found: "queue expression of nf_tables"}
	switch {
	case can.NativeQueue:
	case can.XTQueue:
		rule.Found = "NFQUEUE target through nft_compat (there is no queue expression: as good)"
	default:
		rule = finding{findRule, stateMissing, "neither a queue expression nor an NFQUEUE target", "--hook is not possible",
			"modprobe nft_queue, or modprobe -a nft_compat xt_NFQUEUE"}
	}
	return []finding{
		rule,
		either(can.Conntrack, finding{
			Name: "conntrack", Found: "replies are told from new flows",
			Consequence: "--hook is not possible", Remedy: "modprobe nft_ct (CONFIG_NFT_CT)",
		}),
		either(can.Marks, finding{
			Name: "offload", Found: "connection marks: decided flows can pass by the queue",
			Consequence: "every packet of every flow comes up, and --hook needs --offload-mask 0", Remedy: "a kernel with CONFIG_NF_CONNTRACK_MARK",
		}),
		either(can.Reject, finding{
			Name: "reject", Found: "the kernel tells senders by TCP reset and ICMP",
			Consequence: "rejected packets are dropped in silence", Remedy: "modprobe nft_reject_inet (CONFIG_NFT_REJECT)",
		}),
	}
}

// either returns the finding as it is if the thing works, with no consequence
// and remedy, else as missing.
func either(works bool, f finding) finding {
	if works {
		return finding{Name: f.Name, State: stateOK, Found: f.Found}
	}
	f.State, f.Found = stateMissing, "the kernel lacks it"
	return f
}

// part is either by what the kernel answered.
func part(err error, f finding) finding {
	switch {
	case err == nil:
		return either(true, f)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return finding{Name: f.Name, State: stateUnknown, Found: "not known without root (needs CAP_NET_ADMIN)"}
	}
	f = either(false, f)
	f.Found += ": " + err.Error()
	return f
}
