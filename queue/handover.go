package queue

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/verdictd/verdictd/internal/nfnl"
)

// A queue belongs to the socket that bound it, not to a process. So another
// process that holds a descriptor of the socket can go on where the first one
// stopped, and no packet is lost: what nobody has read waits in the socket,
// what was read and not answered waits in the kernel's queue.

// Position is what the owner of a queue leaves to the next one. It is taken
// when Run has returned, or, of an owner that died, made of the last Stats that
// are known of it.
type Position struct {
	NextID uint32 // of the packet that comes next; not known if Died
	Stats  Stats
	Died   bool
}

// Position returns where Run stopped.
func (q *Queue) Position() Position { return Position{NextID: q.nextID, Stats: q.Stats()} }

// File returns a descriptor of the queue's socket for another process, which
// goes on with Attach. The queue stays bound until the last descriptor is
// closed. Only one process may read or answer at a time.
func (q *Queue) File() (*os.File, error) {
	raw, err := q.conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("hand over queue %d: %w", q.cfg.Num, err)
	}
	return nfnl.Dup(raw, fmt.Sprintf("queue %d", q.cfg.Num))
}

// Attach takes over a queue that another process bound, by a descriptor of its
// socket, and gives it the settings of cfg. It owns f, also after an error.
// Verdicts need CAP_NET_ADMIN in the process that sends them.
//
// at is where the previous owner stopped; then nothing is answered twice and
// lost packets are counted across the change. If it died, the queue is recovered,
// and the counters go on from those that are known: what it read since then is
// Stats.Earlier. nil says that it died and nothing is known: counting begins.
func Attach(cfg Config, f *os.File, at *Position) (*Queue, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	q, err := newQueue(cfg, f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach queue %d: %w", cfg.Num, err), f.Close())
	}
	switch {
	case at == nil:
		q.unknown = true
		err = q.Recover()
	case at.Died:
		q.before = at.Stats
		q.before.Received = at.Stats.Accepted + at.Stats.Dropped + at.Stats.Rejected + at.Stats.Unsent // read at several moments
		err = q.Recover()
	default:
		q.nextID, q.before = at.NextID, at.Stats
		err = q.configure(false)
	}
	if err != nil {
		return nil, errors.Join(attachError(&cfg, err), q.Close())
	}
	return q, nil
}

// attachError explains why a queue could not be taken over.
func attachError(cfg *Config, err error) error {
	switch {
	case errors.Is(err, syscall.ENODEV):
		return fmt.Errorf("attach queue %d: the socket has not bound it: %w", cfg.Num, err)
	case errors.Is(err, syscall.EPERM):
		if who := owner(cfg); who != "" {
			return fmt.Errorf("attach queue %d: %w (needs CAP_NET_ADMIN; it is bound by %s)", cfg.Num, err, who)
		}
		return fmt.Errorf("attach queue %d: %w (needs CAP_NET_ADMIN)", cfg.Num, err)
	}
	return fmt.Errorf("attach queue %d: %w", cfg.Num, err)
}

// Recover makes the next Run begin with the packets that another process read
// from the same socket and did not answer before it died. They go through
// their hook again (NF_REPEAT) and come back as new packets, behind those that
// wait already: none is lost, none is judged unseen, their order may change.
// The rules of the hook see them twice.
//
// Which packets these are is known when the first unread one comes: all those
// with smaller ids. If none comes within 5 ms, they are all that the kernel
// had counted when Recover was called.
//
// Recover applies the settings again. It must not be called while Run runs.
func (q *Queue) Recover() error {
	kernel, err := ReadKernel(q.cfg.NetNS, q.cfg.Num)
	if err != nil {
		return err
	}
	if len(kernel) == 0 {
		return fmt.Errorf("recover queue %d: not bound: %w", q.cfg.Num, syscall.ENODEV)
	}
	k := &kernel[0]
	q.lastID, q.recovering = k.LastID, true
	switch {
	case q.nextID != 1: // we had it before
	case q.unknown: // what the kernel counted is not of our time
		q.before.EarlierQueueDropped, q.before.EarlierUserDropped = uint64(k.QueueDropped), uint64(k.UserDropped)
	default:
		q.nextID += uint32(q.before.Received + q.before.Earlier)
		if q.cfg.FailOpen { // else the kernel counts them
			q.nextID += uint32(q.before.Gaps)
		}
		q.dropped = k.UserDropped
	}
	return q.configure(false)
}

// repeat ends a recovery: packets up to id were read by somebody else.
func (q *Queue) repeat(id uint32) {
	if !q.recovering {
		return
	}
	q.count.earlier.Add(uint64(max(int32(id+1-q.nextID-q.dropped), 0)))
	q.recovering, q.nextID, q.dropped = false, id+1, 0
	var w nfnl.Writer
	appendRepeat(&w, q.cfg.Num, id)
	if q.conn.Send(w.Bytes()) != nil {
		q.count.unsent.Add(1)
		return
	}
	q.count.repeats.Add(1)
}

// patience is how long serve waits for the first packet before it has other
// work to do.
func (q *Queue) patience() time.Duration {
	if q.recovering {
		return quiet
	}
	return Idle
}
