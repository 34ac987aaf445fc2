package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	ct "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// answerTime bounds how long the kernel may take to list a million connections.
const answerTime = 10 * time.Second

// Connection is one that both ends take part in. Its ends are those that the
// forward hook sees: the source before it is translated, the destination after.
type Connection struct {
	Protocol uint8
	Src, Dst netip.AddrPort // of who began it, and of who answers; port 0 where the protocol has none
}

// Established lists the connections of a network namespace, given by a
// descriptor or 0 for the calling thread's own, that both directions were seen of
// and that the kernel keeps when its table is full (IPS_ASSURED). It needs
// CAP_NET_ADMIN and the kernel module nf_conntrack_netlink. A kernel that tracks
// nothing has none.
//
// Source: enum ip_conntrack_status, include/uapi/linux/netfilter/nf_conntrack_common.h.
func Established(netns int) ([]Connection, error) {
	list, err := dump(netns)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("list connections: load it with: modprobe nf_conntrack_netlink (%w)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	var found []Connection
	for i := range list {
		f := &list[i]
		if f.Status&ct.StatusAssured == 0 || f.Status&ct.StatusDying != 0 {
			continue
		}
		from, to := &f.TupleOrig, &f.TupleReply
		found = append(found, Connection{
			Protocol: from.Proto.Protocol,
			Src:      netip.AddrPortFrom(from.IP.SourceAddress, from.Proto.SourcePort),
			Dst:      netip.AddrPortFrom(to.IP.SourceAddress, to.Proto.SourcePort),
		})
	}
	return found, nil
}

func dump(netns int) ([]ct.Flow, error) {
	c, err := ct.Dial(&netlink.Config{NetNS: netns})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := time.AfterFunc(answerTime, func() { c.Close() }) // which ends the answer
	defer stop.Stop()
	return c.Dump(nil)
}
