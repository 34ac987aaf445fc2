package hook

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of ctnetlink, include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const (
	ctNew netlink.HeaderType = unix.NFNL_SUBSYS_CTNETLINK << 8   // IPCTNL_MSG_CT_NEW
	ctGet netlink.HeaderType = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET

	ctaTupleOrig = 1
	ctaMark      = 8
	ctaZone      = 18
	ctaMarkMask  = 21

	genmsgLen = 4 // struct nfgenmsg
)

// maxClearRounds bounds how often ClearMarks looks for marks it has missed.
const maxClearRounds = 8

// ClearMarks clears the bits of mask in the mark of every connection where they
// are value, and returns in how many. All other bits stay, also if their owner
// changes them meanwhile. It looks again until there is none left, so the caller
// must have seen to it that nobody sets value any more.
//
// Call it before a value comes into use that was in use before, by this process
// or an earlier one. netns is as in Config.NetNS. It needs CAP_NET_ADMIN and the
// kernel module nf_conntrack_netlink.
func ClearMarks(netns int, mask, value uint32) (cleared int, err error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netns})
	if err != nil {
		return 0, explain("clear connection marks", err)
	}
	defer c.Close()
	for range maxClearRounds {
		n, err := clearMarks(c, mask, value)
		if cleared += n; err != nil {
			return cleared, explain("clear connection marks", noConntrack(err))
		}
		if n == 0 {
			return cleared, nil
		}
	}
	return cleared, fmt.Errorf("clear connection marks: somebody goes on setting %#x in mask %#x: keep others from these bits, or choose another mask", value, mask)
}

// ClearRun clears, as ClearMarks, all values that a run has given which began with
// NewMarks and whose latest marks are m. The rules must be gone that set them.
func ClearRun(netns int, m Marks) (cleared int, err error) {
	first, err := NewMarks(m.Mask)
	first.Last = m.Last
	if err != nil {
		return 0, fmt.Errorf("clear connection marks: %w", err)
	}
	values := []uint32{m.Reject}
	for v := first; ; v = v.Next() {
		values = append(values, v.Accept)
		if v.Accept == m.Accept || v.Next().Accept == first.Accept {
			break
		}
	}
	for _, v := range values {
		n, err := ClearMarks(netns, m.Mask, v)
		if cleared += n; err != nil {
			return cleared, err
		}
	}
	return cleared, nil
}

// noConntrack names the module that is missing.
func noConntrack(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("the kernel does not list connections: load it with: modprobe nf_conntrack_netlink (%w)", err)
	}
	return err
}

// clearMarks clears the marks that it finds in one dump.
func clearMarks(c *netlink.Conn, mask, value uint32) (cleared int, err error) {
	if err := c.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return 0, err
	}
	found, err := dumpMarked(c, mask, value)
	if err != nil {
		return 0, err
	}
	for _, m := range found {
		change, err := unmark(m, mask)
		if err != nil {
			return cleared, err
		}
		_, err = c.Execute(change)
		switch {
		case errors.Is(err, unix.ENOENT): // it has ended meanwhile
		case err != nil:
			return cleared, err
		default:
			cleared++
		}
	}
	return cleared, nil
}

// dumpMarked returns a message for each connection whose mark has value in mask.
func dumpMarked(c *netlink.Conn, mask, value uint32) ([]netlink.Message, error) {
	data, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: ctaMark, Data: binary.BigEndian.AppendUint32(nil, value)},
		{Type: ctaMarkMask, Data: binary.BigEndian.AppendUint32(nil, mask)},
	})
	if err != nil {
		return nil, err
	}
	all, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: ctGet, Flags: netlink.Request | netlink.Dump},
		Data:   append(make([]byte, genmsgLen), data...),
	})
	if err != nil {
		return nil, err
	}
	// A kernel that does not filter by mark sends all connections.
	var marked []netlink.Message
	for _, m := range all {
		a, err := netlink.UnmarshalAttributes(m.Data[min(genmsgLen, len(m.Data)):])
		if err != nil {
			return nil, err
		}
		for i := range a {
			if a[i].Type == ctaMark && len(a[i].Data) == 4 && binary.BigEndian.Uint32(a[i].Data)&mask == value {
				marked = append(marked, m)
			}
		}
	}
	return marked, nil
}

// unmark makes the message that clears the mask's bits in the mark of the
// connection that m describes.
func unmark(m netlink.Message, mask uint32) (netlink.Message, error) {
	given, err := netlink.UnmarshalAttributes(m.Data[genmsgLen:])
	if err != nil {
		return netlink.Message{}, err
	}
	attrs := []netlink.Attribute{
		{Type: ctaMark, Data: make([]byte, 4)},
		{Type: ctaMarkMask, Data: binary.BigEndian.AppendUint32(nil, mask)},
	}
	for _, a := range given {
		if t := a.Type &^ netlink.Nested; t == ctaTupleOrig || t == ctaZone {
			attrs = append(attrs, a)
		}
	}
	data, err := netlink.MarshalAttributes(attrs)
	return netlink.Message{
		Header: netlink.Header{Type: ctNew, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(append(make([]byte, 0, len(m.Data)), m.Data[0], 0, 0, 0), data...),
	}, err
}
