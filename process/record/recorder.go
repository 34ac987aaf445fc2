package record

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/cgroup2"
)

// Config says what to record. The zero value records what this host sends.
type Config struct {
	// Cgroup is the directory of the cgroup (version 2) whose processes are
	// recorded; empty: the root of the hierarchy.
	Cgroup string
	// Forward also records flows of processes in other network namespaces, as they
	// come in to be forwarded, with the interface that they come in by. It costs a
	// program call for each packet that any interface receives.
	Forward bool
	// NetNS is the cookie of the network namespace whose packets are judged; 0: the
	// caller's.
	NetNS uint64
	// Entries of the maps; 0 means 1048576, 65536 and 16384. Of flows and of
	// processes that have ended, about 290 and 1100 bytes each, the kernel allocates
	// all at once; of open sockets, about 180 bytes each, as they come.
	Owners, Flows, Processes int
	// Tasks is how many running processes are recorded, about 1100 bytes each as they
	// come; 0 means as many as there can be.
	Tasks int
	// Inherited are maps, programs and links of a recorder before, as Files named them.
	// Maps are taken over if they fit, else made anew. The programs, which have not
	// ceased to record, go on until ours do; then all files are closed.
	Inherited map[string]*os.File

	window time.Duration // for tests; 0: flowWindow
}

// Recorder holds programs, links and maps. All but Close, Pin and Open may be
// called by several goroutines; nothing may be called after Close.
type Recorder struct {
	maps     maps
	requests requests
	flow     *ebpf.Program
	links    []attached
	iter     *link.Iter // one of links; nil if the kernel has none
	tunnels  *link.Iter // the same
	pinned   string     // where the flow program is pinned, or ""
	stats    Stats
	offsets  *offsets // nil if nothing is known of kernel structures
	window   time.Duration
}

// attached is the link of the program of that name.
type attached struct {
	link.Link
	name string
}

// Open loads the programs and attaches them. From its return on, what processes
// do with sockets is recorded; Close ends it, and so does the end of the
// process.
//
// Errors: the kernel lacks a feature without which nothing is recorded, or the
// caller a capability; the text names it. What can be done without is not an
// error: Stats says what is missing. Nothing stays behind.
func Open(cfg Config) (*Recorder, error) {
	defer closeFiles(cfg.Inherited)
	r := &Recorder{window: cmp.Or(cfg.window, flowWindow)}
	if err := r.open(cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("record owners of sockets: %w", err), r.Close())
	}
	return r, nil
}

func (r *Recorder) open(cfg Config) error {
	// Linux 5.11 and later charge maps to the memory cgroup and need no limit. If
	// it is needed and cannot be raised, making the maps says so.
	_ = rlimit.RemoveMemlock()
	var unknown error
	var side sync.WaitGroup
	types := btf.NewCache() // to read them takes milliseconds
	side.Go(func() { r.offsets, unknown = kernelOffsets(types) })
	taken, err := r.maps.open(cfg)
	side.Wait()
	if err != nil {
		return err
	}
	r.stats.Inherited = taken
	dir, err := r.cgroup(cfg.Cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = r.attachAll(dir, types, cfg)
	if err != nil && r.offsets != nil {
		// The kernel may refuse to let its structures be read: go without.
		r.offsets, unknown = nil, err
		if r.Detach() == nil && r.attachAll(dir, types, cfg) == nil {
			err = nil
		}
	}
	if r.offsets == nil {
		r.miss("programs of processes, their start times, owners of accepted connections", unknown)
	}
	return err
}

// cgroup opens the directory to attach to.
func (r *Recorder) cgroup(path string) (*os.File, error) {
	var dir *os.File
	var err error
	if path == "" {
		dir, path, err = cgroup2.Root()
	} else if dir, err = os.Open(path); err != nil {
		err = fmt.Errorf("open cgroup: %w", err)
	}
	if err != nil {
		return nil, err
	}
	const rootInode = 1
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err == nil && st.Ino != rootInode {
		r.miss("processes outside of "+path, errors.New("it is not the root of the hierarchy of cgroups"))
	}
	return dir, nil
}

// miss notes what is not recorded, and why.
func (r *Recorder) miss(what string, why error) {
	r.stats.Missing = append(r.stats.Missing, what+": "+why.Error())
}

// FlowProgram returns the descriptor of the socket filter that a rule must call
// just before it queues a packet (xt_bpf, mode fd). It never matches. The
// descriptor stays owned by r and is valid until Close; a rule keeps the program
// longer, but nothing reads then what it writes.
func (r *Recorder) FlowProgram() int { return r.flow.FD() }

// Pin makes the flow program a file of a BPF file system, for iptables -m bpf
// --object-pinned. Close removes it. Only one path at a time.
func (r *Recorder) Pin(path string) error {
	if err := r.flow.Pin(path); err != nil {
		return fmt.Errorf("pin flow program to %s: %w (needs a directory of a mounted BPF file system)", path, err)
	}
	r.pinned = path
	return nil
}

// Stats returns the state of programs and counters.
func (r *Recorder) Stats() Stats {
	s := r.stats
	var key uint32
	var n [counters]uint64
	if err := r.maps.counters.Lookup(unsafe.Pointer(&key), unsafe.Pointer(&n)); err == nil {
		s.OwnersFailed, s.FlowsFailed, s.ProcessesFailed, s.Busy = n[countOwners], n[countFlows], n[countProcesses], n[countBusy]
	}
	return s
}

// Close detaches all programs and gives up the maps. A rule that calls the flow
// program should be gone before. Closing twice is harmless.
func (r *Recorder) Close() error {
	err := r.Detach()
	if closed := r.maps.close(); closed != nil {
		err = errors.Join(err, fmt.Errorf("close maps: %w", closed))
	}
	return err
}

// Detach ends the recording as Close does, but leaves what was recorded readable, for
// who may still be reading. Close may follow.
func (r *Recorder) Detach() error {
	var errs []error
	for _, l := range r.links {
		errs = append(errs, l.Close())
	}
	if r.flow != nil {
		if r.pinned != "" {
			errs = append(errs, r.flow.Unpin())
		}
		errs = append(errs, r.flow.Close())
	}
	r.links, r.iter, r.tunnels, r.flow, r.pinned, r.stats.Programs = nil, nil, nil, nil, "", nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach programs: %w", err)
	}
	return nil
}
