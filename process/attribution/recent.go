package attribution

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/process/connector"
)

// Where nothing is recorded, a socket that is not known from a search is mostly
// that of a process that has just begun. So the youngest are looked at first, if any
// are young, and not for every socket: a program that opens socket after socket is
// not among them.
const (
	youngest  = 8  // that are looked at, some 50 microseconds each
	keptYoung = 64 // that are remembered

	young     = time.Second          // after a process has begun
	lookEvery = 2 * time.Millisecond // at most
)

// recent are the processes that have begun last. One goroutine writes it, any may
// read.
type recent struct {
	places [keptYoung]atomic.Uint64 // pid and, in the upper half, that of its parent
	next   atomic.Uint32
	latest atomic.Int64 // Unix ns of the latest add
}

func (r *recent) add(pid, parent uint32) {
	n := r.next.Load()
	r.places[n%keptYoung].Store(uint64(parent)<<32 | uint64(pid))
	r.next.Store(n + 1)
	r.latest.Store(time.Now().UnixNano())
}

// each gives the youngest processes to yield, until it returns false.
func (r *recent) each(yield func(pid, parent uint32) bool) {
	last := r.next.Load()
	var seen [youngest]uint32
	count := 0
	for i := uint32(1); i <= min(last, keptYoung) && count < youngest; i++ {
		p := r.places[(last-i)%keptYoung].Load()
		pid := uint32(p)
		if slices.Contains(seen[:count], pid) {
			continue
		}
		seen[count] = pid
		count++
		if !yield(pid, uint32(p>>32)) {
			return
		}
	}
}

// followProcesses notes which processes begin, until ctx is done. That the kernel
// does not tell is no error: then searches have to do.
func (r *Resolver) followProcesses(ctx context.Context) error {
	conn, err := openConnector()
	if err != nil {
		r.noConnector.Store(&err)
		return nil
	}
	defer conn.Close()
	parents := map[uint32]uint32{}
	return conn.Run(ctx, func(e connector.Event) {
		switch {
		case e.PID != e.TID:
		case e.Kind == connector.Fork:
			if len(parents) >= maxCached {
				clear(parents)
			}
			parents[e.PID] = e.ParentPID
			r.recent.add(e.PID, e.ParentPID)
		case e.Kind == connector.Exec:
			r.recent.add(e.PID, parents[e.PID])
		}
	})
}

// lookout is when young processes were looked at.
type lookout struct {
	sync.Mutex
	looked time.Time // last
	last   uint32    // number that the kernel gave last, where it does not tell of processes
	given  time.Time // when that was first seen
}

// young returns the process that holds the socket, if it is one of the youngest
// and its parent does not hold it too.
func (r *Resolver) young(inode uint32) (h holder, ok bool) {
	r.lookout.Lock()
	each := r.youngOnes(time.Now())
	r.lookout.Unlock()
	if each == nil {
		return holder{}, false
	}
	each(func(pid, parent uint32) bool {
		if _, holds := r.fs.HoldersOf([]uint32{pid}, inode); !holds {
			return true
		}
		p, err := r.fs.Program(pid)
		if err != nil {
			return false
		}
		if parent == 0 && len(p.Parents) > 0 {
			parent = p.Parents[0].PID
		}
		if _, both := r.fs.HoldersOf([]uint32{parent}, inode); both {
			return false
		}
		h, ok = holder{pid: pid, start: r.bootTime(p.Start)}, true
		return false
	})
	return h, ok
}

// youngOnes returns what gives the youngest processes, nil if none is young or it
// is too early for another look.
func (r *Resolver) youngOnes(now time.Time) func(yield func(pid, parent uint32) bool) {
	l := &r.lookout
	if now.Sub(l.looked) < lookEvery {
		return nil
	}
	l.looked = now
	if r.noConnector.Load() == nil {
		if now.UnixNano()-r.recent.latest.Load() > int64(young) {
			return nil
		}
		return r.recent.each
	}
	// The kernel does not tell which processes begin. So the numbers that it gave
	// last are tried; those of threads are among them.
	if last := lastPID(); last != l.last {
		l.last, l.given = last, now
	}
	if now.Sub(l.given) > young {
		return nil
	}
	newest := l.last
	return func(yield func(pid, parent uint32) bool) {
		for pid := newest; pid > 0 && newest-pid < 2*youngest; pid-- {
			if !yield(pid, 0) {
				return
			}
		}
	}
}

// lastPID returns the number that the kernel gave last to a process or thread; 0
// if it does not tell.
func lastPID() uint32 {
	text, err := os.ReadFile("/proc/loadavg") // 0.20 0.18 0.12 1/80 11206: the last is that number
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) == 0 {
		return 0
	}
	last, _ := strconv.ParseUint(fields[len(fields)-1], 10, 32)
	return uint32(last)
}

// openConnector listens to what the kernel tells of processes. It tells it only in
// the initial network namespace: that of the caller, or of the first process.
func openConnector() (conn *connector.Conn, err error) {
	const kinds = connector.Fork | connector.Exec
	if conn, err = connector.Open(kinds); err == nil {
		return conn, nil
	}
	home, openErr := os.Open("/proc/1/ns/net")
	if openErr != nil {
		return nil, errors.Join(err, openErr)
	}
	defer home.Close()
	err = nfnl.InNetNS(int(home.Fd()), func() (err error) {
		conn, err = connector.Open(kinds)
		return err
	})
	return conn, err
}
