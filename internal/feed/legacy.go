package feed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacy is how the rules of iptables-legacy are read for one family.
//
// Source: include/uapi/linux/netfilter_ipv4/ip_tables.h and its like for IPv6:
// struct ipt_entry is followed by matches and a target, at target_offset.
type legacy struct {
	name         string
	domain       int
	level        uintptr
	proc         string // lists the tables in use
	targetOffset int    // where target_offset is in an entry; next_offset follows
}

var (
	ipv4 = legacy{"iptables", unix.AF_INET, unix.SOL_IP, "/proc/thread-self/net/ip_tables_names", 88}
	ipv6 = legacy{"ip6tables", unix.AF_INET6, unix.SOL_IPV6, "/proc/thread-self/net/ip6_tables_names", 140}
)

// Options and sizes, from ip_tables.h and x_tables.h.
const (
	optInfo    = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	optEntries = 65 // IPT_SO_GET_ENTRIES, IP6T_SO_GET_ENTRIES

	targetHeader   = 32 // struct xt_entry_target: size, name of 29 bytes, revision
	targetNameSize = 29
	queueStandard  = -verdictQueue - 1 // -j QUEUE in a standard target
)

// tableInfo is struct ipt_getinfo.
type tableInfo struct {
	Name       [32]byte
	ValidHooks uint32
	HookEntry  [5]uint32
	Underflow  [5]uint32
	Entries    uint32
	Size       uint32 // bytes of all entries
}

// entriesHead is the head of struct ipt_get_entries.
type entriesHead struct {
	_    [0]uint64 // aligned as the entries are, for their counters
	Name [32]byte
	Size uint32
}

// readLegacy returns the rules of iptables-legacy that queue.
func readLegacy(l *legacy) (rules []Rule, err error) {
	err = l.each(func(table string, entries []byte) { rules = append(rules, l.read(table, entries)...) })
	return rules, err
}

// each calls yield with the entries of each table.
func (l *legacy) each(yield func(table string, entries []byte)) error {
	text, err := os.ReadFile(l.proc)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the kernel has none
	}
	names := strings.Fields(string(text))
	if err != nil || len(names) == 0 {
		return err
	}
	fd, err := unix.Socket(l.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("read the rules of %s-legacy: %w", l.name, os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	for _, name := range names {
		entries, err := l.entries(fd, name)
		if err != nil {
			return fmt.Errorf("read table %s of %s-legacy: %w", name, l.name, err)
		}
		yield(name, entries)
	}
	return nil
}

// entries returns the table's entries as the kernel has them. A table that grows
// between the two questions is asked for again.
func (l *legacy) entries(fd int, name string) ([]byte, error) {
	var err error
	for range tries {
		info := tableInfo{}
		copy(info.Name[:len(info.Name)-1], name)
		if err = l.ask(fd, optInfo, unsafe.Pointer(&info), unsafe.Sizeof(info)); err != nil {
			return nil, err
		}
		const head = int(unsafe.Sizeof(entriesHead{}))
		words := make([]uint64, (head+int(info.Size)+7)/8) // aligned
		h := (*entriesHead)(unsafe.Pointer(&words[0]))
		h.Name, h.Size = info.Name, info.Size
		all := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), head+int(info.Size))
		if err = l.ask(fd, optEntries, unsafe.Pointer(&words[0]), uintptr(len(all))); err == nil {
			return all[head:], nil
		}
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	return nil, err
}

func (l *legacy) ask(fd int, option uintptr, p unsafe.Pointer, size uintptr) error {
	length := uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), l.level, option, uintptr(p), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return os.NewSyscallError("getsockopt", errno)
	}
	return nil
}

// read finds the entries that queue. No offset is trusted.
func (l *legacy) read(table string, entries []byte) (rules []Rule) {
	for len(entries) >= l.targetOffset+4 {
		target := int(binary.NativeEndian.Uint16(entries[l.targetOffset:]))
		next := int(binary.NativeEndian.Uint16(entries[l.targetOffset+2:]))
		if target+targetHeader > next || next > len(entries) {
			return rules
		}
		r := Rule{Tables: l.name, Table: table}
		if r.readLegacy(entries[target:next]) {
			rules = append(rules, r)
		}
		entries = entries[next:]
	}
	return rules
}

func (r *Rule) readLegacy(target []byte) bool {
	name, data := unix.ByteSliceToString(target[2:2+targetNameSize]), target[targetHeader:]
	if name != "" { // the standard target has none
		return r.readNFQUEUE(name, data)
	}
	if len(data) < 4 || int32(binary.NativeEndian.Uint32(data)) != queueStandard {
		return false
	}
	r.First, r.Count = 0, 1
	return true
}
