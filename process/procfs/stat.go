package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// stat is what is used of /proc/PID/stat.
type stat struct {
	comm    []byte // lent by the buffer that was parsed
	state   byte
	parent  uint32
	tty     uint32
	threads uint32
	kernel  bool   // a thread of the kernel
	thread  bool   // not the leader of its thread group
	start   uint64 // ns of CLOCK_BOOTTIME
}

// zombie has ended and was not waited for; its other threads may go on.
func (s stat) zombie() bool { return s.state == 'Z' }

// maxStat is more than 52 numbers of 20 digits and a name of 64 bytes can have
// in practice; what is cut lacks fields, and is an error.
const maxStat = 1024

var errStat = errors.New("stat is not what proc_pid_stat(5) says")

// stat reads the entry's stat. A thread that is no process counts as gone:
// /proc has an entry for it, which the listing does not show.
func (e entry) stat() (stat, error) {
	b, err := readOnce(e.fd, "stat", make([]byte, maxStat))
	if err != nil {
		return stat{}, err
	}
	st, err := parseStat(b)
	if err != nil {
		return stat{}, err
	}
	if st.thread {
		return stat{}, fmt.Errorf("%w: it is a thread of another process", ErrGone)
	}
	return st, nil
}

// parseStat reads /proc/PID/stat. The name, in parentheses, can hold any byte but
// NUL, also parentheses and newlines; it ends at the last one.
//
// Source: do_task_stat, fs/proc/array.c. Field numbers are those of
// proc_pid_stat(5) less 3, as fields are counted from the state.
func parseStat(b []byte) (stat, error) {
	const (
		state, parent, tty, flags, threads, start, exitSignal = 0, 1, 4, 6, 17, 19, 35

		kthread = 0x00200000 // PF_KTHREAD, include/linux/sched.h
	)
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return stat{}, errStat
	}
	fields := bytes.Fields(b[end+1:])
	if len(fields) <= exitSignal || len(fields[state]) != 1 {
		return stat{}, errStat
	}
	var sticky error
	number := func(i, bits int) uint64 {
		n, err := strconv.ParseUint(string(fields[i]), 10, bits)
		sticky = errors.Join(sticky, err)
		return n
	}
	st := stat{
		comm:    b[open+1 : end],
		state:   fields[state][0],
		parent:  uint32(number(parent, 32)),
		threads: uint32(number(threads, 32)),
		kernel:  number(flags, 64)&kthread != 0,
		start:   number(start, 64) * tick,
		// -1 for all but the leader: thread_group_leader, linux/sched/signal.h.
		thread: fields[exitSignal][0] == '-',
	}
	device, err := strconv.ParseInt(string(fields[tty]), 10, 64)
	if sticky = errors.Join(sticky, err); sticky != nil {
		return stat{}, errStat
	}
	st.tty = uint32(device)
	return st, nil
}

// ttyName names a terminal as tty(1) does, without /dev/.
//
// Source: Documentation/admin-guide/devices.txt.
func ttyName(device uint32) string {
	// new_encode_dev, include/linux/kdev_t.h.
	major, minor := device>>8&0xfff, device&0xff|device>>12&0xfff00
	const ptsPerMajor, consoles, lowDensity = 256, 64, 64
	number := func(name string, n uint32) string { return name + strconv.FormatUint(uint64(n), 10) }
	switch {
	case major >= 136 && major <= 143:
		return number("pts/", (major-136)*ptsPerMajor+minor)
	case major == 4 && minor < consoles:
		return number("tty", minor)
	case major == 4:
		return number("ttyS", minor-consoles)
	case major == 5 && minor == 1:
		return "console"
	case major == 229:
		return number("hvc", minor)
	case major == 204 && minor >= lowDensity:
		return number("ttyAMA", minor-lowDensity)
	case major == 188:
		return number("ttyUSB", minor)
	case major == 166:
		return number("ttyACM", minor)
	}
	return ""
}

// threadDir opens a thread of the entry that has not ended: once the first
// thread of a process ended, /proc/PID has neither program nor descriptors.
func (e entry) threadDir() (int, error) {
	task, err := openat(e.fd, "task", readOnly|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	defer unix.Close(task)
	dir := -1
	err = names(task, func(name string) bool {
		fd, err := openat(task, name, pathDir)
		if err != nil {
			return true
		}
		b, err := readOnce(fd, "stat", make([]byte, maxStat))
		st, perr := parseStat(b)
		if err != nil || perr != nil || st.state == 'Z' || st.state == 'X' {
			unix.Close(fd)
			return true
		}
		dir = fd
		return false
	})
	if err == nil && dir < 0 {
		err = unix.ENOENT
	}
	return dir, err
}

// names gives the entries of an open directory until yield returns false.
func names(dir int, yield func(name string) bool) error {
	buf := make([]byte, 8<<10)
	list := make([]string, 0, 64)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return err
		}
		_, _, list = unix.ParseDirent(buf[:n], -1, list[:0])
		for _, name := range list {
			if !yield(name) {
				return nil
			}
		}
	}
}
