package record

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Config says what to record. The zero value records what this host sends.
type Config struct {
	// Cgroup is the directory of the cgroup (version 2) whose processes are
	// recorded; empty: the root of the hierarchy, as /proc/self/mountinfo has it.
	Cgroup string
	// Forward also records flows of processes in other network namespaces, for
	// packets that this host forwards. It costs a program call for each packet that
	// any socket of the host sends.
	Forward bool
	// Entries of the maps; 0 means 65536, 65536 and 32768. The kernel allocates
	// them at once: about 150, 230 and 1100 bytes each.
	Owners, Flows, Processes int
	// Inherited are maps of a recorder before, as Files named them. They are taken
	// over if they fit, else made anew, and closed in either case.
	Inherited map[string]*os.File
}

// Recorder holds programs, links and maps. All but Close, Pin and Open may be
// called by several goroutines; nothing may be called after Close.
type Recorder struct {
	maps     maps
	requests requests
	flow     *ebpf.Program
	links    []link.Link
	pinned   string // where the flow program is pinned, or ""
	stats    Stats
	offsets  *offsets // nil if nothing is known of kernel structures
}

// Open loads the programs and attaches them. From its return on, what processes
// do with sockets is recorded; Close ends it, and so does the end of the
// process.
//
// Errors: the kernel lacks a feature without which nothing is recorded, or the
// caller a capability; the text names it. What can be done without is not an
// error: Stats says what is missing. Nothing stays behind.
func Open(cfg Config) (*Recorder, error) {
	r := &Recorder{}
	if err := r.open(cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("record owners of sockets: %w", err), r.Close())
	}
	return r, nil
}

func (r *Recorder) open(cfg Config) error {
	// Linux 5.11 and later charge maps to the memory cgroup and need no limit. If
	// it is needed and cannot be raised, making the maps says so.
	_ = rlimit.RemoveMemlock()
	taken, err := r.maps.open(cfg)
	if err != nil {
		return err
	}
	r.stats.Inherited = taken
	if r.offsets, err = kernelOffsets(); err != nil {
		r.miss("programs of processes, their start times, owners of accepted connections", err)
	}
	dir, err := r.cgroup(cfg.Cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := r.essential(dir); err != nil {
		return err
	}
	r.optional(dir, cfg.Forward)
	return nil
}

// cgroup opens the directory to attach to.
func (r *Recorder) cgroup(path string) (*os.File, error) {
	if path == "" {
		var err error
		if path, err = cgroupRoot(); err != nil {
			return nil, err
		}
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	const rootInode = 1
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err == nil && st.Ino != rootInode {
		r.miss("processes outside of "+path, errors.New("it is not the root of the hierarchy of cgroups"))
	}
	return dir, nil
}

// essential loads and attaches what nothing works without. Where the kernel
// refuses to let its structures be read, it goes without.
func (r *Recorder) essential(dir *os.File) error {
	err := r.attachOwners(dir)
	if err == nil || r.offsets == nil {
		return err
	}
	r.detach()
	r.offsets = nil
	if again := r.attachOwners(dir); again != nil {
		return err // the first one says more
	}
	r.miss("programs of processes, their start times, owners of accepted connections", err)
	return nil
}

// attachOwners loads the flow program and attaches the cgroup hooks.
func (r *Recorder) attachOwners(dir *os.File) error {
	p := &programs{maps: &r.maps, offsets: r.offsets}
	var err error
	r.flow, err = load("flow", ebpf.SocketFilter, ebpf.AttachNone, p.flow(0, 0))
	if err != nil {
		return err
	}
	r.stats.Programs = append(r.stats.Programs, Program{Name: "flow", Attached: true})
	for _, h := range ownerHooks() {
		if err := r.attachCgroup(dir, h, p.owner(h.hook)); err != nil {
			return err
		}
	}
	return nil
}

// optional attaches what the rest works without.
func (r *Recorder) optional(dir *os.File, forward bool) {
	p := &programs{maps: &r.maps, offsets: r.offsets}
	if r.offsets != nil {
		r.try("exec", r.attachTracepoint("sched_process_exec", "exec", p.exec()))
		r.try("fork", r.attachTracepoint("sched_process_fork", "fork", p.fork()))
		r.try("exit", r.attachTracepoint("sched_process_exit", "exit", p.exit()))
		r.try("accept", r.attachCgroup(dir, hookPoint{"accept", ebpf.SockOps, ebpf.AttachCGroupSockOps, HookAccept}, p.accept()))
	}
	if forward {
		egress := hookPoint{"egress", ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress, HookUnknown}
		r.try("egress", r.attachCgroup(dir, egress, p.flow(1, ownNetNS())))
	}
}

// load loads one program. The error names it and what is missing.
func load(name string, typ ebpf.ProgramType, attach ebpf.AttachType, ins asm.Instructions) (*ebpf.Program, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "vd_" + name, Type: typ, AttachType: attach, License: "GPL", Instructions: ins,
	})
	if err != nil {
		return nil, fmt.Errorf("load program %s: %w%s", name, err, needs(err))
	}
	return prog, nil
}

// attachCgroup loads a program and links it to the cgroup. The link alone keeps
// it: it goes when the link is closed.
func (r *Recorder) attachCgroup(dir *os.File, h hookPoint, ins asm.Instructions) error {
	prog, err := load(h.name, h.typ, h.attach, ins)
	if err != nil {
		return err
	}
	defer prog.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: prog, Attach: h.attach})
	if err != nil {
		return fmt.Errorf("attach program %s to cgroup %s: %w%s", h.name, dir.Name(), err, needs(err))
	}
	r.attached(h.name, l)
	return nil
}

// attachTracepoint loads a program and links it to a tracepoint.
func (r *Recorder) attachTracepoint(point, name string, ins asm.Instructions) error {
	prog, err := load(name, ebpf.RawTracepoint, ebpf.AttachNone, ins)
	if err != nil {
		return err
	}
	defer prog.Close()
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: point, Program: prog})
	if err != nil {
		return fmt.Errorf("attach program %s to tracepoint %s: %w%s", name, point, err, needs(err))
	}
	r.attached(name, l)
	return nil
}

func (r *Recorder) attached(name string, l link.Link) {
	r.links = append(r.links, l)
	r.stats.Programs = append(r.stats.Programs, Program{Name: name, Attached: true})
}

// try notes that an optional program is not there.
func (r *Recorder) try(name string, err error) {
	if err != nil {
		r.stats.Programs = append(r.stats.Programs, Program{Name: name, Reason: err.Error()})
	}
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

// Files returns duplicates of the maps' descriptors, for Config.Inherited of a
// successor. The caller closes them.
func (r *Recorder) Files() (map[string]*os.File, error) { return r.maps.files() }

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
	err := r.detach()
	if closed := r.maps.close(); closed != nil {
		err = errors.Join(err, fmt.Errorf("close maps: %w", closed))
	}
	return err
}

// detach closes links and programs.
func (r *Recorder) detach() error {
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
	r.links, r.flow, r.pinned, r.stats.Programs = nil, nil, "", nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach programs: %w", err)
	}
	return nil
}
