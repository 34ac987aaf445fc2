package feed

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/nfnl"
)

// Numbers of include/uapi/linux/fib_rules.h.
const (
	fibRuleSize = 12 // struct fib_rule_hdr
	fraPriority = 6
	fraMark     = 10
	fraMask     = 16
)

// readRouting returns the uses of marks by the rules that choose a routing table.
func readRouting() (marks []Mark, err error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("read ip rule: %w", err)
	}
	defer c.Close()
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		header := make([]byte, fibRuleSize)
		header[0] = family
		rules, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.RTM_GETRULE, Flags: netlink.Request | netlink.Dump},
			Data:   header,
		})
		switch {
		case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
			continue // a kernel without rules for the family
		case err != nil:
			return marks, fmt.Errorf("read ip rule: %w", err)
		}
		for _, r := range rules {
			if m, ok := routingMark(family, r.Data); ok {
				marks = append(marks, m)
			}
		}
	}
	return marks, nil
}

// routingMark reads one rule; ok is false if it does not ask for a mark.
func routingMark(family byte, data []byte) (m Mark, ok bool) {
	if len(data) < fibRuleSize {
		return m, false
	}
	words := map[uint16]uint32{fraMask: whole}
	for a := nfnl.NewAttrs(data[fibRuleSize:]); a.Next(); {
		if len(a.Bytes()) == 4 {
			words[a.Type()] = binary.NativeEndian.Uint32(a.Bytes())
		}
	}
	value, marked := words[fraMark]
	if !marked || words[fraMask] == 0 {
		return m, false
	}
	m = field(words[fraMask], value)
	m.Where = fmt.Sprintf("ip rule %d", words[fraPriority])
	if family == unix.AF_INET6 {
		m.Where = fmt.Sprintf("ip -6 rule %d", words[fraPriority])
	}
	return m, true
}
