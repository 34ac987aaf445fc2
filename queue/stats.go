package queue

import (
	"sync/atomic"
	"syscall"

	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/packet"
)

// Stats counts packets since the queue was bound. The counters only grow.
//
// Once Run has no packet in hand,
//
//	Received == Accepted + Dropped + Rejected + Unsent
//
// and of the accepted packets HookFlush did not leave the machine. Refused and
// NotPermitted tell that packets still wait in the kernel's queue.
type Stats struct {
	Received uint64 // packets read

	Accepted uint64 // verdicts sent
	Dropped  uint64
	Rejected uint64

	// HookFlush is how many accepted packets the kernel had dropped before the
	// verdict came (ENOENT): the removal of any nf_tables base chain in the
	// namespace empties all its queues, an interface that goes down empties
	// them of its packets. LateDrop is the same for packets that were to be
	// dropped or rejected: no loss.
	HookFlush uint64
	LateDrop  uint64

	// NotPermitted counts refusals with EPERM: the process lost CAP_NET_ADMIN,
	// or the queue belongs to another socket. One refusal may stand for a
	// whole batch. Refused counts refusals for any other reason.
	NotPermitted uint64
	Refused      uint64

	// Unsent is how many verdicts could not be sent, for want of kernel memory.
	Unsent uint64

	// Gaps is how many packet ids are missing in what was read: packets that
	// found no room in the receive buffer. Without Config.FailOpen the kernel
	// counts the same as Kernel.UserDropped; with it they were accepted unseen.
	Gaps uint64

	Overruns    uint64 // ENOBUFS, each an unknown number of messages
	Truncated   uint64 // messages longer than the buffer: judged by what is there
	Malformed   uint64 // messages or attributes that could not be decoded
	Unknown     uint64 // messages of an unknown kind
	SendRetries uint64 // batches of verdicts sent again, the kernel being short of memory
}

// counters are what Run counts, for Stats to read from elsewhere.
type counters struct {
	received     atomic.Uint64
	verdicts     [packet.Reject + 1]atomic.Uint64 // by packet.Action
	hookFlush    atomic.Uint64
	lateDrop     atomic.Uint64
	notPermitted atomic.Uint64
	refused      atomic.Uint64
	unsent       atomic.Uint64
	gaps         atomic.Uint64
	malformed    atomic.Uint64
	unknown      atomic.Uint64
}

// refusal counts the kernel's refusal of a verdict.
func (c *counters) refusal(m *nfnl.Message) {
	switch {
	case m.Request.Type != nfnl.Type(subsystem, msgVerdict):
		c.unknown.Add(1)
	case m.Errno == syscall.EPERM:
		c.notPermitted.Add(1)
	case m.Errno != syscall.ENOENT:
		c.refused.Add(1)
	case packet.Action(m.Request.PortID) == packet.Accept:
		c.hookFlush.Add(1)
	default:
		c.lateDrop.Add(1)
	}
}

// Stats returns the counters. It may be called from any goroutine, also while
// and after Run runs.
func (q *Queue) Stats() Stats {
	c, s := &q.count, q.conn.Stats()
	return Stats{
		Received:     c.received.Load(),
		Accepted:     c.verdicts[packet.Accept].Load(),
		Dropped:      c.verdicts[packet.Drop].Load(),
		Rejected:     c.verdicts[packet.Reject].Load(),
		HookFlush:    c.hookFlush.Load(),
		LateDrop:     c.lateDrop.Load(),
		NotPermitted: c.notPermitted.Load(),
		Refused:      c.refused.Load(),
		Unsent:       c.unsent.Load(),
		Gaps:         c.gaps.Load(),
		Overruns:     s.Overruns,
		Truncated:    s.Truncated,
		Malformed:    s.Malformed + c.malformed.Load(),
		Unknown:      c.unknown.Load(),
		SendRetries:  s.SendRetries,
	}
}

// MaxLen returns how many packets may wait for a verdict.
func (q *Queue) MaxLen() uint32 { return q.cfg.MaxLen }

// FailOpen returns Config.FailOpen.
func (q *Queue) FailOpen() bool { return q.cfg.FailOpen }
