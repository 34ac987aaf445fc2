package record

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Default numbers of entries.
const (
	defaultFlows     = 65536
	defaultOwners    = 1 << 20
	defaultProcesses = 16384
	defaultLeaving   = 16384 // sockets that are closed or not accepted yet
	defaultShares    = 4096
	defaultTasks     = 1 << 18 // if the kernel does not tell how many there can be
)

// fairShare is the part of the owners map that the sockets of one user or service
// can fill.
const fairShare = 4

// tasks is how many processes there can be: so many records of running ones fit,
// and nobody can crowd out another's.
func tasks() int {
	text, err := os.ReadFile("/proc/sys/kernel/threads-max")
	if err != nil {
		return defaultTasks
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || n <= 0 {
		return defaultTasks
	}
	const limit = 4 << 20 // PID_MAX_LIMIT of linux/threads.h
	return min(n, limit)
}

// scratchEntries is how many process records can be in the making: one for each
// thread that is in a program, running or interrupted.
func scratchEntries() uint32 {
	const least, perCPU = 256, 4
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return least
	}
	return uint32(max(least, perCPU*cpus))
}

// interfaces is the size of the interfaces map: a byte for each, by the low bits of its
// index, which says that flows were recorded that came in by it.
const interfaces = 4096

// Flags of maps, linux/bpf.h.
const (
	onDemand = 1 << 0  // BPF_F_NO_PREALLOC
	mmapable = 1 << 10 // BPF_F_MMAPABLE
)

// maps are the maps of a Recorder. The second group is the programs' own.
type maps struct {
	owners, requests, closed, shares *ebpf.Map
	flows, running, past, changes    *ebpf.Map

	counters, scratch, zeros, interfaces *ebpf.Map

	// memory is the changes map. It is mapped until close.
	memory  []byte
	numbers *[3 * buckets]atomic.Uint32
}

// spec describes one map and says where it is kept.
type spec struct {
	name               string
	typ                ebpf.MapType
	key, value, number uint32
	flags              uint32
	slot               **ebpf.Map
}

func (m *maps) specs(cfg Config) []spec {
	number := func(n, standard int) uint32 {
		if n == 0 {
			n = standard
		}
		return uint32(n)
	}
	return []spec{
		{"owners", ebpf.Hash, 8, uint32(ownerSize), number(cfg.Owners, defaultOwners), onDemand, &m.owners},
		{"requests", ebpf.LRUHash, 8, uint32(ownerSize), defaultLeaving, 0, &m.requests},
		{"closed", ebpf.LRUHash, 8, uint32(ownerSize), defaultLeaving, 0, &m.closed},
		{"shares", ebpf.LRUHash, 8, 8, defaultShares, 0, &m.shares},
		{"flows", ebpf.LRUHash, uint32(keySize), uint32(flowSize), number(cfg.Flows, defaultFlows), 0, &m.flows},
		{"running", ebpf.Hash, 4, uint32(processSize), number(cfg.Tasks, tasks()), onDemand, &m.running},
		{"past", ebpf.LRUHash, 8, uint32(processSize), number(cfg.Processes, defaultProcesses), 0, &m.past},
		{"changes", ebpf.Array, 4, 3 * buckets * 4, 1, mmapable, &m.changes},
		{"counters", ebpf.Array, 4, counters * 8, 1, 0, &m.counters},
		{"scratch", ebpf.Hash, 8, uint32(processSize), scratchEntries(), 0, &m.scratch},
		{"interfaces", ebpf.Array, 4, interfaces, 1, 0, &m.interfaces},
		{"zeros", ebpf.Array, 4, uint32(processSize), 1, 0, &m.zeros},
	}
}

// open takes over or makes all maps and returns the names of those taken over. On an
// error the caller must close m.
func (m *maps) open(cfg Config) (taken []string, err error) {
	for _, s := range m.specs(cfg) {
		if *s.slot = s.inherit(cfg.Inherited[s.name]); *s.slot != nil {
			taken = append(taken, s.name)
			continue
		}
		*s.slot, err = ebpf.NewMap(&ebpf.MapSpec{
			Name: s.label(), Type: s.typ, KeySize: s.key, ValueSize: s.value, MaxEntries: s.number, Flags: s.flags,
		})
		if err != nil {
			return nil, fmt.Errorf("make map %s of %d entries: %v%s", s.name, s.number, err, needs(err))
		}
	}
	m.memory, err = unix.Mmap(m.changes.FD(), 0, mapped(), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the memory of map changes: %v (needs Linux 5.5)", err)
	}
	m.numbers = (*[3 * buckets]atomic.Uint32)(unsafe.Pointer(&m.memory[0]))
	return taken, nil
}

// mapped is the size of the changes map in whole pages.
func mapped() int {
	page := os.Getpagesize()
	return (3*buckets*4 + page - 1) / page * page
}

// label is the name of the map in the kernel: at most 15 bytes.
func (s *spec) label() string { return "vd" + layout + "_" + s.name }

// inherit returns the map behind a descriptor if it is just as we would make it,
// else nil. f stays open.
func (s *spec) inherit(f *os.File) *ebpf.Map {
	if f == nil {
		return nil
	}
	fd, err := duplicate(f)
	if err != nil {
		return nil
	}
	m, err := ebpf.NewMapFromFD(fd)
	if err != nil {
		return nil
	}
	info, err := m.Info()
	if err != nil || info.Name != s.label() || m.Type() != s.typ || m.KeySize() != s.key ||
		m.ValueSize() != s.value || m.MaxEntries() != s.number || m.Flags()&(mmapable|onDemand) != s.flags {
		m.Close()
		return nil
	}
	return m
}

// duplicate returns another descriptor of the file.
func duplicate(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	outer := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(outer, err)
}

// close gives up all maps. Those that nobody else holds are gone.
func (m *maps) close() error {
	var err error
	if m.memory != nil {
		err = unix.Munmap(m.memory)
		m.memory, m.numbers = nil, nil
	}
	for _, s := range m.specs(Config{}) {
		if *s.slot != nil {
			err = errors.Join(err, (*s.slot).Close())
			*s.slot = nil
		}
	}
	return err
}
