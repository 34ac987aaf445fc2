package record

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/packet"
)

// mapLookup is BPF_MAP_LOOKUP_ELEM of linux/bpf.h.
const mapLookup = 1

// elementAttr is the part of union bpf_attr that concerns elements of maps.
type elementAttr struct {
	fd         uint32
	_          uint32
	key, value uint64 // addresses
	flags      uint64
}

// request is what a lookup needs. It is on the heap, where nothing moves, and
// kept for the next lookup.
type request struct {
	attr    elementAttr
	flow    flowKey
	number  uint64
	key     processKey
	flowRec flowRecord
	owner   ownerRecord
	process processRecord
}

// requests keeps requests that nobody uses.
type requests struct{ pool sync.Pool }

func (q *requests) get() *request {
	if r, ok := q.pool.Get().(*request); ok {
		return r
	}
	return new(request)
}

// lookup copies the value of a key and says whether there is one. Key and value
// are parts of r.
func (r *request) lookup(m *ebpf.Map, key, value unsafe.Pointer) bool {
	r.attr = elementAttr{fd: uint32(m.FD()), key: uint64(uintptr(key)), value: uint64(uintptr(value))}
	// A raw system call, as this one cannot block: any other wakes the scheduler's
	// monitor, which then runs thousands of times a second.
	_, _, errno := unix.RawSyscall(unix.SYS_BPF, mapLookup, uintptr(unsafe.Pointer(&r.attr)), unsafe.Sizeof(r.attr))
	runtime.KeepAlive(r)
	return errno == 0
}

// tries is how often a record is read that is being replaced meanwhile.
const tries = 3

// Flow looks up which socket sent the packets of a tuple, and says whether that
// was recorded. in is 0 for packets that this namespace sent, and the interface that
// they came in by for those of another namespace of this host: what is recorded of one
// interface says nothing of another. user is whom the kernel names with the packet; of
// forwarded packets, and of protocols without ports, it makes no difference. f is
// changed only if so.
//
// One map lookup, no allocation; for several goroutines. To notice later
// changes, ask Changes before.
func (r *Recorder) Flow(k *packet.Key, in uint32, user User, f *Flow) bool {
	if r.offsets == nil { // then the flow program cannot read the user
		user = NoUser
	}
	q := r.requests.get()
	defer r.requests.pool.Put(q)
	q.flow.encode(k, in, user)
	tuple := hash(k)
	for range tries {
		if !q.lookup(r.maps.flows, unsafe.Pointer(&q.flow), unsafe.Pointer(&q.flowRec)) {
			return false
		}
		if q.flowRec.decode(tuple, &q.flow, f) {
			return true
		}
	}
	return false
}

// Owner looks up who used a socket last, and says whether that was recorded. o
// is changed only if so. A socket is known while it is open, and for a while after.
//
// At most three map lookups, no allocation; for several goroutines.
func (r *Recorder) Owner(cookie uint64, o *Owner) bool {
	q := r.requests.get()
	defer r.requests.pool.Put(q)
	q.number = cookie
	for range tries {
		found := false
		for _, owners := range [...]*ebpf.Map{r.maps.owners, r.maps.requests, r.maps.closed} {
			if found = q.lookup(owners, unsafe.Pointer(&q.number), unsafe.Pointer(&q.owner)); found {
				break
			}
		}
		if !found {
			return false
		}
		if q.owner.decode(cookie, o) {
			return true
		}
	}
	return false
}

// Process looks up what a process ran when it had executed that many programs
// (Owner.ExecID, Process.ParentExecID), and says whether that was recorded. Who
// asks must compare p.Start: pids are used again. p is changed only if a record
// is there.
//
// At most two map lookups; the texts are allocated. For several goroutines.
func (r *Recorder) Process(pid uint32, execID uint64, p *Process) bool {
	q := r.requests.get()
	defer r.requests.pool.Put(q)
	q.key = processKey{pid, uint32(execID)}
	for range tries {
		running := q.lookup(r.maps.running, unsafe.Pointer(&q.key.PID), unsafe.Pointer(&q.process))
		if running && q.process.decode(q.key, p) {
			return true
		}
		torn := running && !q.process.whole()
		past := q.lookup(r.maps.past, unsafe.Pointer(&q.key), unsafe.Pointer(&q.process))
		if past && q.process.decode(q.key, p) {
			return true
		}
		// A record comes into past before it is replaced in running, so who is in
		// neither, in this order, has none.
		if !torn && (!past || q.process.whole()) {
			return false
		}
	}
	return false
}

// Running looks up what a process runs now, and says whether that was recorded. Who
// asks must compare p.Start. p is changed only if a record is there.
//
// One map lookup; the texts are allocated. For several goroutines.
func (r *Recorder) Running(pid uint32, p *Process) bool {
	q := r.requests.get()
	defer r.requests.pool.Put(q)
	q.key = processKey{PID: pid}
	for range tries {
		if !q.lookup(r.maps.running, unsafe.Pointer(&q.key.PID), unsafe.Pointer(&q.process)) {
			return false
		}
		if q.process.decode(processKey{pid, uint32(q.process.ExecID)}, p) {
			return true
		}
	}
	return false
}

// Changes returns a number that is another one once a flow of the key's bucket
// was recorded for the first time, with another socket or with another owner, or,
// unless it is TCP, once a socket was bound to a port of the bucket of k.SrcPort, was
// connected from there or closed. Many flows share a bucket. The same number as
// before a call of Flow means that Flow would say the same again, unless the record
// was forgotten. Connecting and closing are counted just before they are done.
//
// No system call, no allocation; for several goroutines, but not after Close.
func (r *Recorder) Changes(k *packet.Key) uint32 {
	n := r.maps.numbers[hash(k)>>bucketShift].Load()
	if k.Protocol != packet.ProtoTCP {
		n += r.maps.numbers[2*buckets+int(k.SrcPort)%buckets].Load()
	}
	return n
}

// Execs returns a number that is another one once the process has executed a
// program. Many processes share one.
//
// No system call, no allocation; for several goroutines, but not after Close.
func (r *Recorder) Execs(pid uint32) uint32 { return r.maps.numbers[buckets+pid%buckets].Load() }

// Seed tells the owner of a socket that was found by other means, such as one
// opened before the recorder. What the kernel has recorded stands.
//
// Errors: none if there is a record already.
func (r *Recorder) Seed(o *Owner) error {
	if o.Cookie == 0 {
		return errors.New("seed owner: it has no socket cookie")
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("seed owner of socket %d: read clock: %w", o.Cookie, err)
	}
	var rec ownerRecord
	rec.encode(o, uint64(now.Nano()))
	err := r.maps.owners.Update(unsafe.Pointer(&o.Cookie), unsafe.Pointer(&rec), ebpf.UpdateNoExist)
	if err != nil && !isThere(err) {
		return fmt.Errorf("seed owner of socket %d: %v%s", o.Cookie, err, needs(err))
	}
	return nil
}
