package queue

import (
	"sync/atomic"
	"syscall"

	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/packet"
)

// Stats counts packets since the queue was bound; where it was attached without
// a Position, since then. The counters only grow.
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
	// them of its packets; Flushes tells the two apart. LateDrop is the same for
	// packets that were to be dropped or rejected: no loss.
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
	Earlier     uint64 // packets that somebody read who died: they came again under new ids, or were answered before
	Repeats     uint64 // how often packets of a dead owner were sent through their hook again
	Again       uint64 // packets that were sent through their hook again to have more bytes of them; not Received

	// Saturated is how often so many packets were read in one go that MaxLen may
	// have been waiting at some moment. As long as it does not grow, and Backlog,
	// which is read in the present go, is well below MaxLen, the queue was never
	// full.
	Saturated uint64
	Backlog   uint64 // not a sum but now

	// Counters of the kernel from before: from owners that left none of these.
	EarlierQueueDropped uint64
	EarlierUserDropped  uint64
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
	earlier      atomic.Uint64
	repeats      atomic.Uint64
	saturated    atomic.Uint64
	backlog      atomic.Uint64
	again        atomic.Uint64
}

// refusal counts the kernel's refusal of a verdict. It returns whether an accepted
// packet is lost because the kernel had dropped it before.
func (c *counters) refusal(m *nfnl.Message) (flushed bool) {
	switch {
	case m.Request.Type == nfnl.Type(subsystem, msgBatch) && m.Errno == syscall.ENOENT:
		// Nothing was left to repeat.
	case m.Request.Type != nfnl.Type(subsystem, msgVerdict):
		c.unknown.Add(1)
	case m.Errno == syscall.EPERM:
		c.notPermitted.Add(1)
	case m.Errno != syscall.ENOENT:
		c.refused.Add(1)
	case packet.Action(m.Request.PortID&(1<<actionBits-1)) == packet.Accept:
		c.hookFlush.Add(1)
		return true
	default:
		c.lateDrop.Add(1)
	}
	return false
}

// Stats returns the counters. It may be called from any goroutine, also while
// and after Run runs.
func (q *Queue) Stats() Stats {
	c, s := &q.count, q.conn.Stats()
	sum := Stats{
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
		Earlier:      c.earlier.Load(),
		Repeats:      c.repeats.Load(),
		Saturated:    c.saturated.Load(),
		Backlog:      c.backlog.Load(),
		Again:        c.again.Load(),
	}
	sum.add(&q.before)
	return sum
}

// add adds the counters of an earlier owner.
func (s *Stats) add(t *Stats) {
	s.Received += t.Received
	s.Accepted += t.Accepted
	s.Dropped += t.Dropped
	s.Rejected += t.Rejected
	s.HookFlush += t.HookFlush
	s.LateDrop += t.LateDrop
	s.NotPermitted += t.NotPermitted
	s.Refused += t.Refused
	s.Unsent += t.Unsent
	s.Gaps += t.Gaps
	s.Overruns += t.Overruns
	s.Truncated += t.Truncated
	s.Malformed += t.Malformed
	s.Unknown += t.Unknown
	s.SendRetries += t.SendRetries
	s.Earlier += t.Earlier
	s.Repeats += t.Repeats
	s.Saturated += t.Saturated
	s.EarlierQueueDropped += t.EarlierQueueDropped
	s.EarlierUserDropped += t.EarlierUserDropped
	s.Again += t.Again
}

// MaxLen returns how many packets may wait for a verdict.
func (q *Queue) MaxLen() uint32 { return q.cfg.MaxLen }

// FailOpen returns Config.FailOpen.
func (q *Queue) FailOpen() bool { return q.cfg.FailOpen }
