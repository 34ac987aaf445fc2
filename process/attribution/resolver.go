package attribution

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/procfs"
	"github.com/verdictd/verdictd/process/record"
	"github.com/verdictd/verdictd/process/sockdiag"
)

// Mode says by which ways owners are looked for.
type Mode uint8

// Modes.
const (
	// Auto: with a record made in the kernel if that is possible, else without.
	Auto Mode = iota
	// Proc: without BPF.
	Proc
	// Off: owners are not looked for.
	Off
)

// ParseMode reads auto, proc or off; "" is auto.
func ParseMode(text string) (Mode, error) {
	switch text {
	case "", "auto":
		return Auto, nil
	case "proc":
		return Proc, nil
	case "off":
		return Off, nil
	}
	return Off, fmt.Errorf("want auto, proc or off, got %q", text)
}

// Config says whose sockets are looked for.
type Config struct {
	Mode  Mode // Auto or Proc
	NetNS int  // descriptor of the network namespace whose packets are judged; 0: the calling thread's

	// Forward: packets of local network namespaces are forwarded and judged too.
	Forward bool
	// Flows is how many flows the kernel's record holds, before the oldest are
	// forgotten and sock_diag is asked instead; 0 means 65,536.
	Flows int
	// Maps are those of the daemon before, from Resolver.Maps.
	Maps map[string]*os.File
	// HashSize and HashTime bound the hashing of a program: bytes, and the time to read
	// them. 0 means the defaults of procfs.HasherConfig.
	HashSize int64
	HashTime time.Duration
}

// Resolver is what all Attributors share. Its methods may be called from any
// goroutine.
type Resolver struct {
	cfg    Config
	rec    *record.Recorder // nil: nothing is recorded
	noRec  error            // why not
	tables bool             // rec lists who holds sockets, by the numbers that /proc has
	fs     *procfs.FS
	users  *procfs.Users

	boot       int64  // Unix ns when the machine booted, by the clocks of fs
	hostMounts uint32 // procfs.FS.HostMounts

	// What was looked up, and who looks it up.
	images   answers[programKey, image]
	presents answers[processKey, present]
	lines    answers[programKey, line]
	cgroups  answers[uint64, process.Cgroup]
	sockets  answers[uint32, found] // by inode
	hashes   hashes
	contents contents
	lookers  *pool
	hashers  *pool
	looks    atomic.Uint64 // at processes that nobody recorded

	ids      atomic.Uint32 // the latest Owner.ID
	changes  atomic.Uint32 // counts what may change the owner of any flow
	revision atomic.Uint32 // counts that, and each lookup that has ended
	nobody   *process.Owner
	kernel   *process.Owner

	holders    atomic.Pointer[map[uint32]holder]          // of sockets, by inode
	several    atomic.Pointer[map[uint64]sockdiag.Socket] // that several processes hold, by cookie
	pings      atomic.Pointer[map[pingKey]sockdiag.Raw]
	wantSearch chan struct{}
	searches   atomic.Uint64
	unclear    atomic.Bool // a search is to tell whether a socket of the kernel is a tunnel's

	waiting sync.Map // of *Attributor to func(): what wakes who waits for changes

	lookout     lookout
	recent      recent
	noConnector atomic.Pointer[error] // why the kernel does not tell which processes begin; nil: it does, or was not asked

	counts counts
}

// counts are how often owners were looked for, by what came of it.
type counts struct {
	sources  [process.BPFFlow + 1]atomic.Uint64
	unhashed atomic.Uint64 // programs without a hash
	tooLarge atomic.Uint64 // of them, because the file is too large
	tooSlow  atomic.Uint64 // of them, because it took too long
	failed   atomic.Uint64 // questions to the kernel that ended in an error
}

// Open prepares to look for owners. If nothing can be recorded in the kernel the
// Resolver does without and Report says why; no error is returned for that.
// Sockets that are there already are made known by Run.
func Open(cfg Config) (*Resolver, error) {
	r := &Resolver{cfg: cfg, wantSearch: make(chan struct{}, 1)}
	r.nobody = r.named(process.Owner{})
	r.kernel = r.named(process.Owner{Source: process.Kernel})
	var err error
	if r.fs, err = procfs.Open("/proc"); err != nil {
		return nil, fmt.Errorf("look for owners of sockets: %w", err)
	}
	r.users, err = procfs.OpenUsers("/etc/passwd")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("look for owners of sockets: %w", err), r.fs.Close())
	}
	r.boot, r.hostMounts = r.fs.UnixOf(0), r.fs.HostMounts()
	r.contents = openContents()
	r.hashes.hasher = procfs.NewHasher(r.fs, procfs.HasherConfig{MaxSize: cfg.HashSize, Time: cfg.HashTime})
	r.lookers = newPool(poolConfig{workers: 8, share: 2, hung: 64, limit: 250 * time.Millisecond})
	r.hashers = newPool(poolConfig{workers: 2, share: 1, hung: 16, limit: 2 * time.Second})
	if cfg.Mode == Proc {
		r.noRec = errors.New("switched off (--attribution proc)")
		return r, nil
	}
	var own uint64
	if cfg.NetNS != 0 {
		err := nfnl.InNetNS(cfg.NetNS, func() error {
			own = record.OwnNetNS()
			return nil
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("look for owners of sockets: %w", err), r.fs.Close())
		}
	}
	r.rec, r.noRec = record.Open(record.Config{Forward: cfg.Forward, NetNS: own, Flows: cfg.Flows, Inherited: cfg.Maps})
	if r.rec != nil && r.rec.ListsHolders() {
		r.tables, err = InitialPIDs()
		if err != nil {
			r.counts.failed.Add(1)
		}
	}
	return r, nil
}

// InitialPIDs says whether this process is in the initial pid namespace, whose
// numbers the kernel's records have.
//
// Source: PROC_PID_INIT_INO, include/linux/proc_ns.h.
func InitialPIDs() (bool, error) {
	at, err := os.Readlink("/proc/self/ns/pid")
	return at == fmt.Sprintf("pid:[%d]", 0xEFFFFFFC), err
}

// Close ends the recording and frees everything. No Attributor may be in use. Threads
// that hang are waited for a moment: what they use stays open, until the process ends.
func (r *Resolver) Close() error {
	looked, hashed := r.lookers.close(), r.hashers.close()
	ended := looked && hashed
	var err error
	switch {
	case r.rec != nil && ended:
		err = r.rec.Close()
	case r.rec != nil:
		err = r.rec.Detach()
	}
	if !ended {
		return err
	}
	return errors.Join(err, r.fs.Close())
}

// Recorded returns nil if the kernel records who uses sockets, or why it does not.
func (r *Resolver) Recorded() error { return r.noRec }

// Program returns the descriptor of the BPF program that a rule must run on each
// packet before it is queued, 0 if there is none.
func (r *Resolver) Program() int {
	if r.rec == nil {
		return 0
	}
	return r.rec.FlowProgram()
}

// Pin makes that program known under a path in a BPF file system, for rules of the
// user's own, until Close.
func (r *Resolver) Pin(path string) error {
	if r.rec == nil {
		return fmt.Errorf("pin the program that records who sends at %s: nothing is recorded: %w", path, r.noRec)
	}
	return r.rec.Pin(path)
}

// Maps returns what is recorded, for a process that takes over.
func (r *Resolver) Maps() (map[string]*os.File, error) {
	if r.rec == nil {
		return nil, nil
	}
	return r.rec.Files()
}

// Run learns what changes by itself, until ctx is done: who holds sockets that nobody
// recorded, which processes begin, names of users. It may be called again after it
// has returned.
func (r *Resolver) Run(ctx context.Context) error {
	var tasks sync.WaitGroup
	var usersErr, followErr error
	tasks.Go(func() { usersErr = r.users.Run(ctx, r.changed) })
	if r.rec == nil {
		tasks.Go(func() { followErr = r.followProcesses(ctx) })
	}
	r.searcher(ctx)
	tasks.Wait()
	return errors.Join(usersErr, followErr)
}

// named gives an owner an ID.
func (r *Resolver) named(o process.Owner) *process.Owner {
	o.ID = r.ids.Add(1)
	return &o
}

// openDiag returns a connection for questions about sockets.
func (r *Resolver) openDiag() (*sockdiag.Conn, error) { return sockdiag.Open(r.cfg.NetNS) }

// unixOf returns a time of CLOCK_BOOTTIME in Unix ns, and bootTime the other way
// round.
func (r *Resolver) unixOf(boot uint64) int64   { return r.boot + int64(boot) }
func (r *Resolver) bootTime(unix int64) uint64 { return uint64(unix - r.boot) }

// changed says that the owner of any flow may be another one.
func (r *Resolver) changed() {
	r.changes.Add(1)
	r.learned()
}

// learned says that something that was pending is known.
func (r *Resolver) learned() {
	r.revision.Add(1)
	r.waiting.Range(func(_, wake any) bool {
		wake.(func())()
		return true
	})
}
