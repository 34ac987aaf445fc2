package queue

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/verdictd/verdictd/internal/nfnl"
)

// Files of the network namespace of the calling thread.
const (
	procQueues  = "/proc/thread-self/net/netfilter/nfnetlink_queue"
	procNetlink = "/proc/thread-self/net/netlink"
)

// Kernel is what the kernel itself counts of a bound queue, since it was bound.
// Counters wrap at 2^32.
type Kernel struct {
	Num          uint16
	PortID       uint32 // netlink port of the socket that bound it
	Depth        uint32 // packets that wait for a verdict
	CopyRange    uint32 // bytes
	QueueDropped uint32 // packets dropped because Config.MaxLen were waiting
	UserDropped  uint32 // packets dropped because the receive buffer was full
	LastID       uint32 // id of the latest packet
}

// ReadKernel returns the queues that are bound in the network namespace behind
// descriptor netns, or that of the calling thread if it is 0. Given numbers, it
// returns only those queues. It needs the right to read
// /proc/net/netfilter/nfnetlink_queue (root) and, unless netns is 0,
// CAP_SYS_ADMIN.
func ReadKernel(netns int, nums ...uint16) ([]Kernel, error) {
	var text []byte
	err := nfnl.InNetNS(netns, func() (err error) {
		text, err = os.ReadFile(procQueues)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read queue counters: %w", err)
	}
	queues, err := parseKernel(string(text))
	if len(nums) > 0 {
		queues = slices.DeleteFunc(queues, func(k Kernel) bool { return !slices.Contains(nums, k.Num) })
	}
	return queues, err
}

// parseKernel parses the text of /proc/net/netfilter/nfnetlink_queue: a line
// for each queue with number, port id, depth, copy mode, copy range, queue
// dropped, user dropped, last id and the number 1.
func parseKernel(text string) ([]Kernel, error) {
	var queues []Kernel
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if line == "" {
			continue
		}
		var v [8]uint32
		fields := strings.Fields(line)
		if len(fields) < len(v) {
			return queues, fmt.Errorf("%s:%d: %d fields, want %d", procQueues, i+1, len(fields), len(v)+1)
		}
		for j := range v {
			n, err := strconv.ParseUint(fields[j], 10, 32)
			if err != nil {
				return queues, fmt.Errorf("%s:%d: field %d: %w", procQueues, i+1, j+1, err)
			}
			v[j] = uint32(n)
		}
		queues = append(queues, Kernel{
			Num: uint16(v[0]), PortID: v[1], Depth: v[2], CopyRange: v[4],
			QueueDropped: v[5], UserDropped: v[6], LastID: v[7],
		})
	}
	return queues, nil
}

// ErrInUse says that another socket has bound the queue.
var ErrInUse = errors.New("already bound")

// openError explains why there is no socket to bind a queue with.
func openError(cfg *Config, err error) error {
	switch {
	case errors.Is(err, syscall.EPERM) && cfg.NetNS != 0:
		return fmt.Errorf("bind queue %d: enter its network namespace: %w (needs CAP_SYS_ADMIN)", cfg.Num, err)
	case errors.Is(err, syscall.EPROTONOSUPPORT):
		return fmt.Errorf("bind queue %d: the kernel has no netfilter netlink (load it: modprobe nfnetlink_queue): %w", cfg.Num, err)
	}
	return fmt.Errorf("bind queue %d: %w", cfg.Num, err)
}

// bindError explains why a queue could not be bound. The kernel refuses with
// EPERM both the process without CAP_NET_ADMIN and the queue that another
// socket has bound; EBUSY would be a queue that the same socket has bound.
func bindError(cfg *Config, err error) error {
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EBUSY):
		if who := owner(cfg); who != "" {
			return fmt.Errorf("bind queue %d: %w by %s (stop the other program or choose another --queue)", cfg.Num, ErrInUse, who)
		}
		return fmt.Errorf("bind queue %d: %w (needs CAP_NET_ADMIN)", cfg.Num, err)
	case errors.Is(err, syscall.EINVAL) && !supported(cfg):
		return fmt.Errorf("bind queue %d: the kernel has no packet queue (load it: modprobe nfnetlink_queue): %w", cfg.Num, err)
	}
	return fmt.Errorf("bind queue %d: %w", cfg.Num, err)
}

// supported returns false if the namespace has no file for the queues, which
// the kernel's queue module makes.
func supported(cfg *Config) bool {
	_, err := ReadKernel(cfg.NetNS)
	return !errors.Is(err, fs.ErrNotExist)
}

// owner says who has bound the queue, as Owner.
func owner(cfg *Config) string {
	who, _ := Owner(cfg.NetNS, cfg.Num) // without rights to look nobody is named
	return who
}

// Owner says who has bound queue num: "port id 4711 (pid 815, nfqd)". It is empty
// if nobody has. netns, rights and errors are those of ReadKernel; the process is
// left out if it is in another process namespace or of another user.
func Owner(netns int, num uint16) (string, error) {
	queues, err := ReadKernel(netns, num)
	if len(queues) == 0 {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // no queue module, no queue
		}
		return "", err
	}
	port := queues[0].PortID
	who := fmt.Sprintf("port id %d", port)
	pid := socketPID(socketInode(netns, port))
	if pid == "" {
		return who, nil
	}
	comm, _ := os.ReadFile(filepath.Join("/proc", pid, "comm"))
	return fmt.Sprintf("%s (pid %s, %s)", who, pid, strings.TrimSpace(string(comm))), nil
}

// socketInode returns the inode of the netfilter netlink socket with that port
// id, as /proc/net/netlink gives it, or "".
func socketInode(netns int, port uint32) string {
	var text []byte
	err := nfnl.InNetNS(netns, func() (err error) {
		text, err = os.ReadFile(procNetlink)
		return err
	})
	if err != nil {
		return ""
	}
	family, want := strconv.Itoa(syscall.NETLINK_NETFILTER), strconv.FormatUint(uint64(port), 10)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line) // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		if len(f) == 10 && f[1] == family && f[2] == want {
			return f[9]
		}
	}
	return ""
}

// socketPID returns the id of a process that has the socket open, or "".
func socketPID(inode string) string {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if inode == "" || err != nil {
		return ""
	}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && link == "socket:["+inode+"]" {
			return strings.Split(fd, "/")[2]
		}
	}
	return ""
}
