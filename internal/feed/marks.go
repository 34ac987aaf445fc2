package feed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/verdictd/verdictd/internal/nfnl"
)

// Mark is a use of packet or connection marks by somebody's rules.
type Mark struct {
	Where string // what uses it, such as "ip rule 5210" or "nf_tables, table mangle, chain PREROUTING"

	// Bits are those that it compares or sets, whatever their value; 0 if it takes
	// the whole word for one number, and then Value is that number.
	Bits, Value uint32

	// Unread: it compares or sets more than is read here, such as a set of numbers.
	Unread bool

	// Overwrites: it sets the whole connection mark, whatever else is in it.
	Overwrites bool
}

const whole = 0xffffffff

// field returns the use of a mark of which bits in mask get or have a value.
func field(mask, value uint32) Mark {
	if mask == whole {
		return Mark{Value: value}
	}
	return Mark{Bits: mask | value}
}

// String says where the use is and what it uses.
func (m *Mark) String() string {
	switch {
	case m.Unread:
		return m.Where + ": a set of marks"
	case m.Bits != 0:
		return fmt.Sprintf("%s: bits %#x", m.Where, m.Bits)
	}
	return fmt.Sprintf("%s: mark %#x", m.Where, m.Value)
}

// Marks returns who else uses packet marks and connection marks in the network
// namespace behind a descriptor, 0 for that of the calling thread: rules of ip rule,
// of nf_tables and of iptables-legacy, and Cilium, which marks by BPF programs.
// Rules of verdictd are left out, those too that verdictd has printed for others to
// install. An error says that not all could be read. Needs CAP_NET_ADMIN, and
// CAP_SYS_ADMIN for another namespace.
func Marks(netns int) (marks []Mark, err error) {
	err = nfnl.InNetNS(netns, func() error {
		routing, routeErr := readRouting()
		tables, nftErr := readTableMarks()
		v4, v4Err := readLegacyMarks(&ipv4)
		v6, v6Err := readLegacyMarks(&ipv6)
		marks = slices.Concat(routing, tables, v4, v6, ciliumMarks())
		return errors.Join(routeErr, nftErr, v4Err, v6Err)
	})
	return unique(marks), err
}

// ciliumMarks returns what Cilium uses, if it is here.
//
// Source: pkg/datapath/linux/linux_defaults/mark.go of github.com/cilium/cilium: bits
// 0x0f00 say what the packet is, the upper 16 the identity of who sends.
func ciliumMarks() []Mark {
	if _, err := net.InterfaceByName("cilium_host"); err != nil {
		return nil
	}
	return []Mark{{Where: "Cilium (interface cilium_host)", Bits: 0xffff0f00}}
}

// unique leaves out what is the same, and what uses nothing: numbers of which all
// bits are 0.
func unique(marks []Mark) (list []Mark) {
	for _, m := range marks {
		nothing := m.Bits == 0 && m.Value == 0 && !m.Unread && !m.Overwrites
		if !nothing && !slices.Contains(list, m) {
			list = append(list, m)
		}
	}
	return list
}

// own says whether a chain is one that verdictd installs or prints.
func own(chain string) bool { return strings.HasPrefix(chain, "verdictd") }

// xtables reads the match or target of xtables with that name; ok is false if it is
// about no marks.
//
// Sources: struct xt_mark_mtinfo1 and xt_mark_tginfo2, xt_mark.h; xt_connmark_mtinfo1
// and xt_connmark_tginfo1, xt_connmark.h; all numbers in host byte order. New marks
// are (old & ~mask) ^ value.
func xtables(name string, info []byte) (m Mark, ok bool) {
	word := func(i int) uint32 {
		if len(info) < 4*i+4 {
			return 0
		}
		return binary.NativeEndian.Uint32(info[4*i:])
	}
	switch name {
	case "mark", "connmark", "MARK":
		return field(word(1), word(0)), len(info) >= 8
	case "CONNMARK":
		return connmark(word(0), word(1), word(2), word(3)&0xff), len(info) >= 13
	}
	return Mark{}, false
}

// connmark reads struct xt_connmark_tginfo1.
func connmark(value, ctMask, packetMask, mode uint32) Mark {
	const set, save = 0, 1 // XT_CONNMARK_SET, XT_CONNMARK_SAVE; else XT_CONNMARK_RESTORE
	switch mode {
	case set:
		m := field(ctMask, value)
		m.Overwrites = ctMask == whole
		return m
	case save:
		return Mark{Bits: partial(ctMask) | partial(packetMask), Overwrites: ctMask == whole}
	}
	return Mark{Bits: partial(ctMask) | partial(packetMask)}
}

// partial returns a mask, 0 if it is the whole word: that is copied as it is.
func partial(mask uint32) uint32 {
	if mask == whole {
		return 0
	}
	return mask
}
