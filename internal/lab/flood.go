package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Flood is a run of numbered UDP datagrams.
type Flood struct {
	To    netip.AddrPort
	From  []netip.AddrPort // sources, used in turn; empty means one of the kernel's choice
	Count int              // datagrams; numbered from First
	First uint32           // number of the first datagram
	Rate  int              // datagrams per second over all sources; 0 means unpaced
	Size  int              // bytes of payload, at least and by default 4: the number, big-endian
}

// Sent counts the datagrams of a flood.
type Sent struct {
	OK     int // given to the kernel
	Denied int // refused by the kernel (EPERM): dropped in OUTPUT
}

// seqLen is the length of the number that begins each datagram.
const seqLen = 4

// Flood sends the datagrams and returns when all are sent, ctx ends or after
// MaxLife. OK + Denied is below Count only with an error.
func (n *Namespace) Flood(ctx context.Context, f Flood) (Sent, error) {
	conns, err := n.floodSockets(f)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	if err != nil {
		return Sent{}, fmt.Errorf("open flood from %s to %s: %w", n.name, f.To, err)
	}
	ctx, cancel := context.WithTimeout(ctx, MaxLife)
	defer cancel()
	sent, err := f.send(ctx, conns)
	if err != nil {
		return sent, fmt.Errorf("flood from %s to %s after %d of %d: %w", n.name, f.To, sent.OK+sent.Denied, f.Count, err)
	}
	return sent, nil
}

func (n *Namespace) floodSockets(f Flood) ([]*net.UDPConn, error) {
	sources := f.From
	if len(sources) == 0 {
		sources = make([]netip.AddrPort, 1)
	}
	var conns []*net.UDPConn
	err := n.Do(func() error {
		for _, from := range sources {
			var local *net.UDPAddr
			if from.IsValid() {
				local = net.UDPAddrFromAddrPort(from)
			}
			network := "udp4"
			if f.To.Addr().Is6() {
				network = "udp6"
			}
			c, err := net.ListenUDP(network, local)
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		return nil
	})
	return conns, err
}

func (f Flood) send(ctx context.Context, conns []*net.UDPConn) (Sent, error) {
	var sent Sent
	buf := make([]byte, max(f.Size, seqLen))
	start := time.Now()
	for i := range f.Count {
		if err := f.pace(ctx, start, i); err != nil {
			return sent, err
		}
		binary.BigEndian.PutUint32(buf, f.First+uint32(i))
		_, err := conns[i%len(conns)].WriteToUDPAddrPort(buf, f.To)
		if errors.Is(err, unix.EPERM) {
			sent.Denied++
			continue
		}
		if err != nil {
			return sent, err
		}
		sent.OK++
	}
	return sent, nil
}

// pace waits until datagram i is due. It sleeps only when a millisecond early:
// the kernel's timers are no finer.
func (f Flood) pace(ctx context.Context, start time.Time, i int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.Rate <= 0 {
		return nil
	}
	early := time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(f.Rate)))
	if early < time.Millisecond {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(early):
		return nil
	}
}

// Received is what a Sink has seen so far.
type Received struct {
	Datagrams  int                    // all
	Distinct   int                    // different numbers
	Duplicates int                    // numbers seen before
	Foreign    int                    // too short, or a number of sinkNumbers and more
	Lost       int                    // by the sink itself, its buffer being full (SO_RXQ_OVFL)
	Sources    map[netip.AddrPort]int // datagrams by source
}

// Sink counts the datagrams of a Flood.
type Sink struct {
	conn *net.UDPConn
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu   sync.Mutex
	got  Received
	seen []uint64 // bitmap by number
}

const (
	sinkNumbers = 1 << 24  // the bitmap takes at most 2 MiB
	sinkBuffer  = 32 << 20 // bytes of receive buffer
)

// Sink starts counting datagrams to the address. It ends by Close, with ctx or
// after MaxLife. Needs CAP_NET_ADMIN for a large receive buffer.
func (n *Namespace) Sink(ctx context.Context, at netip.AddrPort) (*Sink, error) {
	s := &Sink{got: Received{Sources: make(map[netip.AddrPort]int)}}
	err := n.Do(func() error {
		lc := net.ListenConfig{Control: sinkOptions}
		pc, err := lc.ListenPacket(ctx, "udp", at.String())
		if err != nil {
			return err
		}
		s.conn = pc.(*net.UDPConn)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("start sink on %s in %s: %w", at, n.name, err)
	}
	ctx, s.stop = context.WithTimeout(ctx, MaxLife)
	s.wg.Go(s.count)
	s.wg.Go(func() {
		<-ctx.Done()
		s.conn.Close()
	})
	return s, nil
}

func sinkOptions(_, _ string, raw syscall.RawConn) error {
	var err error
	ctl := raw.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sinkBuffer),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1),
		)
	})
	return errors.Join(ctl, err)
}

// Addr returns where the sink listens.
func (s *Sink) Addr() netip.AddrPort { return s.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// Received returns a copy of the counts so far.
func (s *Sink) Received() Received {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := s.got
	got.Sources = maps.Clone(got.Sources)
	return got
}

// Wait returns the counts as soon as distinct different numbers have come, or
// when the time is over, whichever is first. To see that nothing more comes,
// wait for one more than expected.
func (s *Sink) Wait(distinct int, timeout time.Duration) Received {
	Poll(timeout, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.got.Distinct >= distinct
	})
	return s.Received()
}

// Close ends the sink and waits for it. The counts stay readable.
func (s *Sink) Close() error {
	s.stop()
	s.wg.Wait()
	return nil
}

func (s *Sink) count() {
	buf, oob := make([]byte, 65535), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, from, err := s.conn.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return
		}
		s.add(buf[:n], lostOf(oob[:oobn]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	}
}

// lostOf reads the socket's running count of lost datagrams, host byte order
// (SO_RXQ_OVFL, socket(7)).
func lostOf(oob []byte) int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_RXQ_OVFL && len(m.Data) >= 4 {
			return int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return 0
}

func (s *Sink) add(datagram []byte, lost int, from netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got.Datagrams++
	s.got.Sources[from]++
	s.got.Lost = max(s.got.Lost, lost)
	s.note(datagram)
}

// note marks the number of the datagram as seen.
func (s *Sink) note(datagram []byte) {
	if len(datagram) < seqLen {
		s.got.Foreign++
		return
	}
	seq := binary.BigEndian.Uint32(datagram)
	if seq >= sinkNumbers {
		s.got.Foreign++
		return
	}
	word, bit := int(seq/64), uint64(1)<<(seq%64)
	if word >= len(s.seen) {
		s.seen = append(s.seen, make([]uint64, word+1-len(s.seen))...)
	}
	if s.seen[word]&bit != 0 {
		s.got.Duplicates++
		return
	}
	s.seen[word] |= bit
	s.got.Distinct++
}
