package logsink

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	nflog "github.com/florianl/go-nflog/v2"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/packet"
)

// NFLogConfig says which NFLOG groups to read and how.
type NFLogConfig struct {
	Groups []uint16 // --nflog-group of the rules; each can have one reader
	NetNS  int      // descriptor of the network namespace; 0 means the current one (needs CAP_SYS_ADMIN otherwise)

	CopyRange  uint32        // bytes of each packet to copy; 0 means 256, which is enough for all headers
	RecvBuffer int           // bytes the kernel may hold for us; 0 means 32 MiB
	BufferSize uint32        // bytes of one kernel message buffer, at most 131072; 0 means 65536
	Threshold  uint32        // events that the kernel gathers in one buffer; 0 means 100
	Timeout    time.Duration // how long it gathers at most, in steps of 10 ms; 0 means 100 ms

	// InterfaceName returns the name of an interface, empty if it has none. It
	// is called for each packet by one goroutine and must not block. nil means
	// that interfaces have no names.
	InterfaceName func(index uint32) string
}

const (
	maxNFLogBuffer = 131072 // NFULNL_NLBUFSIZ_MAX; the kernel silently refuses more
	maxPrefixes    = 1024
	requestTimeout = 5 * time.Second
	lossInterval   = time.Second
)

// Attributes of a configuration message (enum nfulnl_attr_config) and its
// commands (enum nfulnl_msg_config_cmds), include/uapi/linux/netfilter/nfnetlink_log.h.
const (
	nfulnlMsgConfig  = 1
	nfulaCfgCmd      = 1
	nfulaCfgMode     = 2
	nfulaCfgNLBufSiz = 3
	nfulaCfgTimeout  = 4
	nfulaCfgQThresh  = 5
	nfulaCfgFlags    = 6
	nfulnlCmdBind    = 1
	nfulnlCmdUnbind  = 2
)

// NFLogReader reads the packets that NFLOG rules of the kernel report (nfnetlink_log)
// into a Log, as events of kind NFLog. It is for one goroutine; Stats may be
// called from others.
//
// The kernel numbers the events of each group, so what it could not deliver is
// counted exactly and recorded as a Loss of origin "nflog group N". Only a
// loss after which nothing more comes stays unseen; Stats.Drops shows it.
type NFLogReader struct {
	cfg      NFLogConfig
	log      *Log
	ring     *Ring
	conn     *nfnl.Conn
	decoder  *packet.Decoder
	in       logged
	packet   packet.Packet
	prefixes map[string]string
	groups   []nflogGroup

	events, lost, malformed atomic.Uint64
}

// nflogGroup is what is known of a group.
type nflogGroup struct {
	number         uint16
	origin         string
	next           uint32 // sequence number that comes next
	unsure         bool   // next is not known: what comes first sets it
	lost, recorded uint64
}

// OpenNFLog binds the groups. Events are reported from then on, and wait in
// the kernel until Run. Needs CAP_NET_ADMIN.
//
// Errors name the group and the remedy: another process has it, or the
// capability is missing.
func OpenNFLog(cfg NFLogConfig, log *Log) (*NFLogReader, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	// go-nflog opens the socket in the right namespace; its receive loop is not used.
	nf, err := nflog.Open(&nflog.Config{NetNS: cfg.NetNS, Copymode: nflog.CopyPacket})
	if err != nil {
		return nil, fmt.Errorf("open nflog socket: %w", err)
	}
	n := newNFLog(cfg, log)
	if n.conn, err = cfg.connect(nf.Con); err != nil {
		return nil, errors.Join(err, nf.Con.Close())
	}
	for _, g := range n.groups {
		if err := n.bind(g.number); err != nil {
			return nil, errors.Join(err, n.conn.Close())
		}
	}
	return n, nil
}

// connect makes s the socket that groups are read from.
func (c *NFLogConfig) connect(s nfnl.Socket) (*nfnl.Conn, error) {
	return nfnl.New(s, nfnl.Config{
		Batch:       4,
		MessageSize: 2*int(c.BufferSize) + 4096, // the kernel rounds its buffers up and fills them
		RecvBuffer:  c.RecvBuffer,
	})
}

func newNFLog(cfg NFLogConfig, log *Log) *NFLogReader {
	n := &NFLogReader{
		cfg: cfg, log: log, ring: log.Ring("nflog"),
		decoder: packet.NewDecoder(), prefixes: make(map[string]string),
	}
	for _, g := range cfg.Groups {
		n.groups = append(n.groups, nflogGroup{number: g, origin: "nflog group " + strconv.Itoa(int(g))})
	}
	return n
}

// check fills in the defaults and refuses what the kernel would not do.
func (c *NFLogConfig) check() error {
	if len(c.Groups) == 0 {
		return errors.New("nflog: no group given")
	}
	seen := make(map[uint16]bool)
	for _, g := range c.Groups {
		if seen[g] {
			return fmt.Errorf("nflog group %d is given twice", g)
		}
		seen[g] = true
	}
	if c.BufferSize > maxNFLogBuffer {
		return fmt.Errorf("nflog: buffer size %d is above the kernel's limit of %d", c.BufferSize, maxNFLogBuffer)
	}
	setDefault32(&c.CopyRange, 256)
	setDefault32(&c.BufferSize, 65536)
	setDefault32(&c.Threshold, 100)
	setDefault(&c.RecvBuffer, 32<<20)
	setDefault(&c.Timeout, 100*time.Millisecond)
	if c.InterfaceName == nil {
		c.InterfaceName = func(uint32) string { return "" }
	}
	return nil
}

func setDefault32(v *uint32, def uint32) {
	if *v == 0 {
		*v = def
	}
}

// bind binds a group and configures it in one message, so that no event comes
// with other settings.
func (n *NFLogReader) bind(group uint16) error { return n.bindError(group, n.configure(group, true)) }

// configure sends the settings of a group, and with bind binds it.
func (n *NFLogReader) configure(group uint16, bind bool) error {
	var w nfnl.Writer
	w.Begin(nfnl.Header{Type: nfnl.Type(unix.NFNL_SUBSYS_ULOG, nfulnlMsgConfig)}, unix.AF_UNSPEC, group)
	if bind {
		w.Attr(nfulaCfgCmd, nfulnlCmdBind)
	}
	mode := binary.BigEndian.AppendUint32(nil, n.cfg.CopyRange)
	w.Attr(nfulaCfgMode, append(mode, nflog.CopyPacket, 0)...)
	w.Uint32(nfulaCfgNLBufSiz, n.cfg.BufferSize)
	w.Uint32(nfulaCfgTimeout, uint32(max(n.cfg.Timeout/(10*time.Millisecond), 1)))
	w.Uint32(nfulaCfgQThresh, n.cfg.Threshold)
	w.Attr(nfulaCfgFlags, byte(nflog.FlagSeq>>8), byte(nflog.FlagSeq))
	w.End()
	return n.conn.Request(w.Bytes(), requestTimeout)
}

// bindError explains why a group could not be bound.
func (n *NFLogReader) bindError(group uint16, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EPERM) && isBound(n.cfg.NetNS, group):
		return fmt.Errorf("bind nflog group %d: another process reads it (see /proc/net/netfilter/nfnetlink_log; choose another group): %w", group, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("bind nflog group %d: %w (needs CAP_NET_ADMIN)", group, err)
	}
	return fmt.Errorf("bind nflog group %d: %w", group, err)
}

// isBound returns whether the kernel says that the group has a reader.
func isBound(netns int, group uint16) (bound bool) {
	err := nfnl.InNetNS(netns, func() error {
		f, err := os.Open("/proc/thread-self/net/netfilter/nfnetlink_log")
		if err != nil {
			return err
		}
		defer f.Close()
		want := strconv.Itoa(int(group))
		for s := bufio.NewScanner(f); s.Scan(); {
			if fields := strings.Fields(s.Text()); len(fields) > 0 && fields[0] == want {
				bound = true
			}
		}
		return nil
	})
	return err == nil && bound
}

// Run reads until ctx is done. Then it unbinds the groups, which makes the
// kernel hand over what it has gathered, puts that into the log and returns.
// The Log must run longer than Run. If the cause of ctx's end is
// nfnl.ErrHandOver, the groups stay bound for the reader's successor. An error
// means that the socket cannot be read any more.
func (n *NFLogReader) Run(ctx context.Context) error {
	past := time.Unix(1, 0)
	stop := context.AfterFunc(ctx, func() { n.conn.SetReadDeadline(past) })
	defer stop()
	var tick time.Time
	for {
		now := time.Now()
		if !now.Before(tick) {
			n.recordLosses(now)
			tick = now.Add(lossInterval)
			if err := n.conn.SetReadDeadline(tick); err != nil {
				return fmt.Errorf("read nflog: %w", err)
			}
		}
		if ctx.Err() != nil {
			n.finish(errors.Is(context.Cause(ctx), nfnl.ErrHandOver))
			return nil
		}
		if err := n.conn.Recv(); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("read nflog: %w", err)
		}
		n.drain(time.Now())
	}
}

// finish takes over what the kernel still holds, or leaves it to the reader's
// successor. That a group cannot be unbound is no error: closing the socket
// does it too.
func (n *NFLogReader) finish(handOver bool) {
	if handOver {
		n.recordLosses(time.Now())
		return
	}
	n.drainAll()
	for _, g := range n.groups {
		var w nfnl.Writer
		w.Begin(nfnl.Header{Type: nfnl.Type(unix.NFNL_SUBSYS_ULOG, nfulnlMsgConfig)}, unix.AF_UNSPEC, g.number)
		w.Attr(nfulaCfgCmd, nfulnlCmdUnbind)
		w.End()
		_ = n.conn.Request(w.Bytes(), requestTimeout)
		n.drainAll()
	}
	n.recordLosses(time.Now())
}

// drainAll reads until the socket is empty. It gives up after so many batches
// that more must be coming all the time.
func (n *NFLogReader) drainAll() {
	for range 10000 {
		if n.conn.TryRecv() != nil || n.drain(time.Now()) == 0 {
			return
		}
	}
}

// drain handles the messages of a batch and returns how many there were.
func (n *NFLogReader) drain(now time.Time) int {
	count := 0
	var m nfnl.Message
	for n.conn.Next(&m) {
		n.handle(&m, now.UnixNano())
		count++
	}
	return count
}

// recordLosses records what was lost since the last time.
func (n *NFLogReader) recordLosses(now time.Time) {
	for i := range n.groups {
		g := &n.groups[i]
		if g.lost == g.recorded {
			continue
		}
		n.log.Put(Event{
			Kind: Loss, Time: now.UnixNano(), Origin: g.origin, Queue: g.number,
			Packets: [2]uint64{g.lost - g.recorded, g.lost},
			Text:    "receive buffer full: the reader is slower than the NFLOG rules",
		})
		g.recorded = g.lost
	}
}

// Close closes the socket and so unbinds the groups. Call it after Run has
// returned.
func (n *NFLogReader) Close() error { return n.conn.Close() }

// NFLogStats counts what an NFLogReader read.
type NFLogStats struct {
	Events    uint64 // put into the log, or lost by its ring
	Lost      uint64 // lost by the kernel, by sequence number
	Malformed uint64 // events of Lost that came but could not be read
	Drops     uint32 // messages that did not fit into the receive buffer; each holds one or more events of Lost
}

// Stats returns the counters.
func (n *NFLogReader) Stats() NFLogStats {
	drops, err := n.conn.Drops()
	if err != nil { // the socket is closed
		drops = 0
	}
	return NFLogStats{Events: n.events.Load(), Lost: n.lost.Load(), Malformed: n.malformed.Load(), Drops: drops}
}
