package hook

import (
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// recordComment is the comment of the rule that runs the program of
// Config.Record.
const recordComment = "record who sends"

// struct xt_bpf_info_v1, include/uapi/linux/netfilter/xt_bpf.h: mode and length
// of a classic program, 16 bits each, and the descriptor of a program, 32 bits,
// all in host byte order; 512 bytes for the classic program or a path; then a
// pointer that only the kernel uses.
const (
	xtBPFInfoSize = 528
	xtBPFModeFD   = 2   // XT_BPF_MODE_FD_ELF: a descriptor of the calling process
	xtBPFPathMax  = 512 // XT_BPF_PATH_MAX, with the terminating zero
)

// xtRecord runs the program that a descriptor of this process stands for (xt_bpf
// through nft_compat). The kernel takes a reference to the program: the rule
// keeps it when the descriptor is closed and the process ended.
func xtRecord(fd int) expr.Any {
	info := make(xt.Unknown, xtBPFInfoSize)
	binary.NativeEndian.PutUint16(info[0:], xtBPFModeFD)
	binary.NativeEndian.PutUint32(info[4:], uint32(int32(fd)))
	return &expr.Match{Name: "bpf", Rev: 1, Info: &info}
}

// sends says whether this host's own sockets send at hook h.
func (h Hook) sends() bool { return h == Output || h == Postrouting }

// record adds the rule that runs the program. It decides nothing: the program
// returns 0, so the rule does not match, and it would do nothing if it did.
func (p *plan) record(b *branch, h Hook) {
	if p.records && h.sends() {
		b.add(recordComment, []expr.Any{xtRecord(p.Record)})
	}
}

// probeRecord finds out whether the kernel takes the program. That it does not
// is no reason to install nothing: packets are judged all the same, and only
// less is known about who sent them.
func (k *kernel) probeRecord(p *plan) {
	p.records, p.noRecord = false, nil
	if p.Record == 0 || !slices.ContainsFunc(p.Hooks, Hook.sends) {
		return
	}
	ok, err := k.accepts(p.Config, []expr.Any{xtRecord(p.Record)})
	switch {
	case errors.Is(err, unix.EBADF), errors.Is(err, unix.EINVAL):
		p.noRecord = fmt.Errorf("descriptor %d is no BPF program of type socket filter (%w)", p.Record, err)
	case err != nil:
		p.noRecord = err
	case !ok:
		p.noRecord = errors.New("the kernel has no bpf match: load it with: modprobe -a nft_compat xt_bpf")
	default:
		p.records = true
	}
}

// Recording says whether the rule is in that runs the program of Config.Record.
// The error says why not; it is nil too if none was given, or none of the hooks
// is one that this host's sockets send at. Restore tries again.
func (r *Ruleset) Recording() (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.plan.noRecord; err != nil {
		return false, fmt.Errorf("record who sends: %w", err)
	}
	return r.plan.records, nil
}

// checkRecord checks Record and RecordPin.
func (c *Config) checkRecord() error {
	if c.Record < 0 {
		return fmt.Errorf("record: %d is no file descriptor", c.Record)
	}
	// A path that a shell and iptables-restore both read as one word.
	if c.RecordPin != "" && (len(c.RecordPin) >= xtBPFPathMax || !regexp.MustCompile(`^/[A-Za-z0-9_./-]+$`).MatchString(c.RecordPin)) {
		return fmt.Errorf("pinned program %q: want an absolute path of at most %d letters, digits, _, ., / or -", c.RecordPin, xtBPFPathMax-1)
	}
	return nil
}
