package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/florianl/go-nfqueue/v2"

	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/packet"
)

const (
	// batch is how many packets are read, and how many verdicts sent, by one
	// system call. More gains nothing; sending runs the packets' way out, so
	// it also bounds how long the goroutine is away.
	batch = 64

	verdictLen = 40 // bytes of a verdict message with a mark

	bindTimeout = 5 * time.Second // the kernel may have to load a module

	// heldShare is which part of the queue's places a Holder may use: were it all of
	// them, the owners of what is held could fill the queue.
	heldShare = 4
	quiet     = 5 * time.Millisecond
)

// Idle is how long Run waits for a packet at most, before it looks after what else
// there is to do.
const Idle = time.Second

// A Ticker is a Handler that has work to do between packets, such as expiring
// flows. Tick is called by Run after each batch, and about once a second while
// no packet comes; now is in Unix nanoseconds. It must be as quick as Handle.
type Ticker interface {
	Tick(now int64)
}

// A Holder is a Handler that may put packets aside (packet.Hold) and judge them
// later, in any order. Run calls Begin first: answer takes the verdict of such a
// packet, while Run is in one of the Holder's methods; wake, from any goroutine,
// makes Run call Settle soon; room is how many packets may be held at a time, as each
// has a place of the queue. Settle is called after each batch, and at the time
// that it returned, in Unix nanoseconds: 0 says that nothing is held. With all it
// must leave nothing: Run ends.
type Holder interface {
	packet.Handler
	Begin(answer func(m *packet.Meta, v packet.Verdict), wake func(), room int)
	Settle(now int64, all bool) (next int64)
}

// Queue is a bound kernel queue. Run is for one goroutine; Stats, RecvBuffer,
// SyscallConn and Close may be called from others.
type Queue struct {
	cfg    Config
	conn   *nfnl.Conn
	out    nfnl.Writer
	nextID uint32 // of the next packet, if none is lost
	count  counters

	// What an owner that died may have read and not answered; see Recover.
	recovering bool
	lastID     uint32 // of the packets that came before Recover
	dropped    uint32 // of them, packets that found no room

	before  Stats // of earlier owners
	unknown bool  // what they counted is
	flushes flushes

	pulse atomic.Uint64 // see Pulse
	held  uint64        // packets that the Holder has

	long int64 // Unix nanoseconds until which the kernel copies longCopy bytes; 0: Config.CopyRange

	// Reused from packet to packet.
	msg    nfnl.Message
	meta   packet.Meta
	settle func(now int64, all bool) (next int64) // of a Holder
	until  time.Time                              // deadline of reading
	sent   [packet.Reject + 1]uint64              // verdicts in out, by packet.Action
	config nfnl.Writer
	asked  uint64 // verdicts in out that ask for a packet again
}

// Open binds a queue. From then on packets wait for Run.
//
// Errors: ErrInUse, with the owner; a missing right (syscall.EPERM), naming the
// capability; a missing kernel module, naming it; a setting out of range.
func Open(cfg Config) (*Queue, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	nf, err := nfqueue.Open(&nfqueue.Config{NetNS: cfg.NetNS, NfQueue: cfg.Num})
	if err != nil {
		return nil, openError(&cfg, err)
	}
	q, err := newQueue(cfg, nf.Con)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("bind queue %d: %w", cfg.Num, err), nf.Con.Close())
	}
	if err := q.configure(true); err != nil {
		return nil, errors.Join(bindError(&cfg, err), q.Close())
	}
	return q, nil
}

// newQueue returns a Queue that reads s and owns it.
func newQueue(cfg Config, s nfnl.Socket) (*Queue, error) {
	conn, err := nfnl.New(s, nfnl.Config{
		Batch:       batch,
		MessageSize: int(cfg.longCopy()) + messageOverhead,
		RecvBuffer:  cfg.RecvBuffer,
	})
	if err != nil {
		return nil, err
	}
	return &Queue{cfg: cfg, conn: conn, out: nfnl.NewWriter(batch * verdictLen), nextID: 1}, nil
}

// configure tells the kernel the settings, and with bind binds the queue.
// Packets that come meanwhile are kept for Run.
func (q *Queue) configure(bind bool) error {
	defer q.out.Reset()
	appendConfig(&q.out, &q.cfg, bind)
	return q.conn.Request(q.out.Bytes(), bindTimeout)
}

// Num returns the queue's number.
func (q *Queue) Num() uint16 { return q.cfg.Num }

// RecvBuffer returns how many bytes of messages the kernel holds for us at
// most, and how many Config asked for. It holds less where CAP_NET_ADMIN over
// the initial user namespace is missing (net.core.rmem_max): then bursts are
// lost that MaxLen would bear.
func (q *Queue) RecvBuffer() (got, want int) { return q.conn.RecvBuffer(), 2 * q.cfg.RecvBuffer }

// SyscallConn gives access to the socket, for handing it to another process.
// Nothing may be read from it or written to it.
func (q *Queue) SyscallConn() (syscall.RawConn, error) { return q.conn.SyscallConn() }

// Close unbinds the queue. The kernel drops the packets that still wait for a
// verdict. A running Run returns an error that is os.ErrClosed.
func (q *Queue) Close() error { return q.conn.Close() }

// Run gives each packet to h and its verdict to the kernel, until ctx is done
// and the queue is empty. If h is also a Ticker, its Tick is called in between.
//
// Packet metadata and bytes are lent to h until Handle returns; Meta.Time is
// the time at which the packet's batch was read.
//
// To stop without losing a packet, first remove the rules that fill the queue,
// then end ctx, wait for Run to return, then Close. Run goes on answering until
// no packet came for 5 ms, at most for Config.Drain: where the rules stay, what
// is queued between then and Close is lost.
//
// If the cause of ctx's end is nfnl.ErrHandOver, Run answers only what it has
// read and leaves the rest to the queue's next owner.
//
// Errors in the stream (ENOBUFS, refused verdicts, unknown messages) are
// counted in Stats and never end Run. It returns nil when ctx was done, or the
// error that makes the socket useless.
func (q *Queue) Run(ctx context.Context, h packet.Handler) error {
	if holder, ok := h.(Holder); ok && q.settle == nil {
		q.settle = holder.Settle
		holder.Begin(q.later, q.wake, int(q.cfg.MaxLen)/heldShare)
	}
	q.enter(busy)
	defer q.enter(ended)
	err := q.serve(ctx, h)
	switch {
	case err != nil:
	case errors.Is(context.Cause(ctx), nfnl.ErrHandOver):
		err = q.finish(h)
	default:
		err = q.drain(h)
	}
	if err != nil {
		return fmt.Errorf("read queue %d: %w", q.cfg.Num, err)
	}
	return nil
}

// serve answers packets until ctx is done. The read deadline wakes it up: once
// a second for Tick, and at once when ctx is done. It is set again only when it
// has passed, so a packet costs no timer.
func (q *Queue) serve(ctx context.Context, h packet.Handler) error {
	q.until = time.Now().Add(q.patience())
	if err := q.conn.SetReadDeadline(q.until); err != nil {
		return err
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_ = q.conn.SetReadDeadline(time.Unix(0, 0)) // fails only if the socket is closed, which wakes too
	})
	defer func() {
		if !stop() {
			<-woken
		}
	}()
	ticker, _ := h.(Ticker)
	for spin := false; ctx.Err() == nil; {
		err := q.receive(ctx, spin)
		now := time.Now()
		late := errors.Is(err, os.ErrDeadlineExceeded)
		if late {
			q.until = now.Add(Idle)
			err = q.conn.SetReadDeadline(q.until) // before ctx, or what is held, is looked at again
		}
		if err == nil && late && q.recovering { // a packet may have come while we were not running
			err = q.conn.TryRecv()
		}
		if err != nil {
			return err
		}
		n := q.answer(h, now.UnixNano())
		spin = n > 0 && q.cfg.Spin > 0
		q.noteBacklog(n)
		if late {
			q.repeat(q.lastID)
		}
		if q.long != 0 && now.UnixNano() > q.long {
			q.shorten()
		}
		if err := q.settleInTime(now.UnixNano()); err != nil {
			return err
		}
		if ticker != nil {
			ticker.Tick(now.UnixNano())
		}
	}
	return nil
}

// noteBacklog notes that a batch of n messages was read. One that is not full emptied
// the socket: what was queued between two such moments was read between them. What is
// held has places, too.
func (q *Queue) noteBacklog(n int) {
	run := q.count.backlog.Load() + uint64(n)
	if n == batch {
		q.count.backlog.Store(run)
		return
	}
	if run+batch+q.held >= uint64(q.cfg.MaxLen) {
		q.count.saturated.Add(1)
	}
	q.count.backlog.Store(0)
}

// later takes the verdict of a packet that was held.
func (q *Queue) later(m *packet.Meta, v packet.Verdict) {
	q.held--
	q.verdict(m, v)
	if q.out.Len() == batch {
		q.flush()
	}
}

// wake makes serve look at what is held.
func (q *Queue) wake() {
	_ = q.conn.SetReadDeadline(time.Unix(0, 0)) // fails only if the socket is closed, which wakes too
}

// settleHeld lets the Holder judge what it holds, and returns when it must be asked
// again.
func (q *Queue) settleHeld(now int64, all bool) (next int64) {
	if q.settle == nil {
		return 0
	}
	next = q.settle(now, all)
	q.flush()
	return next
}

// settleInTime does so and sees to it that serve wakes up in time. A wake that came
// before the deadline was set is made up for by asking once more.
func (q *Queue) settleInTime(now int64) error {
	for {
		next := q.settleHeld(now, false)
		if next == 0 || next >= q.until.UnixNano() {
			return nil
		}
		q.until = time.Unix(0, next)
		if err := q.conn.SetReadDeadline(q.until); err != nil {
			return err
		}
	}
}

// receive reads a batch; it waits for one until the read deadline. With spin it
// first looks for one without sleeping.
func (q *Queue) receive(ctx context.Context, spin bool) error {
	if spin {
		if err := q.spin(ctx); err != nil || q.conn.Pending() {
			return err
		}
	}
	return q.wait()
}

// spin looks for a batch until one is there, Config.Spin is over or ctx is done.
//
// It does not yield: runtime.Gosched would wake another thread each time, to
// take over a goroutine that goes on at once. Others take the CPU as they do
// from a queue that is never empty: the runtime preempts after 10 ms.
func (q *Queue) spin(ctx context.Context) error {
	for end := time.Now().Add(q.cfg.Spin); ctx.Err() == nil; {
		if err := q.conn.TryRecv(); err != nil || q.conn.Pending() {
			return err
		}
		if !time.Now().Before(end) {
			return nil
		}
	}
	return nil
}

// finish answers what was read and not yet looked at: a batch at most.
func (q *Queue) finish(h packet.Handler) error {
	if err := q.conn.TryRecv(); err != nil {
		return err
	}
	q.answer(h, time.Now().UnixNano())
	q.settleHeld(time.Now().UnixNano(), true)
	return nil
}

// drain answers what is still queued. All that was read is answered already, or
// held.
func (q *Queue) drain(h packet.Handler) error {
	defer func() { q.settleHeld(time.Now().UnixNano(), true) }()
	for end := time.Now().Add(q.cfg.Drain); time.Now().Before(end); {
		if err := q.conn.SetReadDeadline(time.Now().Add(quiet)); err != nil {
			return err
		}
		err := q.wait()
		late := errors.Is(err, os.ErrDeadlineExceeded)
		if late { // or we were not running when a packet came
			err = q.conn.TryRecv()
		}
		if err != nil {
			return err
		}
		now := time.Now().UnixNano()
		if q.answer(h, now) == 0 && late && q.settleHeld(now, false) == 0 {
			return nil
		}
	}
	return nil
}

// answer judges the packets of a batch, sends the verdicts and returns how many
// messages there were.
func (q *Queue) answer(h packet.Handler, now int64) (messages int) {
	for ; q.conn.Next(&q.msg); messages++ {
		q.message(h, now)
		if q.out.Len() == batch {
			q.flush()
		}
	}
	q.flush()
	return messages
}

// message handles one message: a packet, or the refusal of a verdict.
func (q *Queue) message(h packet.Handler, now int64) {
	m := &q.msg
	if m.IsError {
		if q.count.refusal(m) {
			q.flushes.add(m.Request.PortID>>actionBits, now)
		}
		return
	}
	if m.Type != nfnl.Type(subsystem, msgPacket) || m.ResID != q.cfg.Num {
		q.count.unknown.Add(1)
		return
	}
	payload, ok, whole := decodePacket(m, &q.meta)
	if !whole || !ok {
		q.count.malformed.Add(1)
	}
	if !ok {
		return
	}
	if q.recovering {
		q.repeat(q.meta.ID - 1)
		q.nextID = q.meta.ID
	}
	// The kernel numbers the packets of a queue without gaps, and counts those
	// that did not fit into the receive buffer too.
	if gap := q.meta.ID - q.nextID; gap != 0 {
		q.count.gaps.Add(uint64(gap))
	}
	q.nextID = q.meta.ID + 1
	q.meta.Time, q.meta.More = now, len(payload) < int(min(q.meta.Length, q.cfg.longCopy()))
	v := h.Handle(&q.meta, payload)
	switch {
	case v.Action == packet.Again && q.meta.More:
		q.again(now)
	case v.Action == packet.Hold && q.settle != nil:
		q.held++
	default:
		q.verdict(&q.meta, v)
	}
}

// verdict appends a verdict to those that flush sends.
func (q *Queue) verdict(m *packet.Meta, v packet.Verdict) {
	if v.Action > packet.Reject {
		v.Action = packet.Drop
	}
	appendVerdict(&q.out, q.cfg.Num, m, v)
	q.sent[v.Action]++
}

// flush sends the verdicts and counts them.
func (q *Queue) flush() {
	if q.out.Len() == 0 {
		return
	}
	n := uint64(q.out.Len()) - q.asked
	q.count.received.Add(n)
	q.count.again.Add(q.asked)
	q.asked = 0
	if err := q.conn.Send(q.out.Bytes()); err != nil {
		q.count.unsent.Add(n)
		clear(q.sent[:])
	}
	for action, sent := range q.sent {
		q.count.verdicts[action].Add(sent)
	}
	clear(q.sent[:])
	q.out.Reset()
}
