package procfs

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrGone says that a process or control group does not exist (any more).
var ErrGone = errors.New("gone")

// FS reads a proc file system and the hierarchy of control groups. Its methods
// may be called from any goroutine, but Close only after all others.
type FS struct {
	root int   // the proc file system, an O_PATH descriptor
	self int   // /proc/self
	boot int64 // Unix ns of the boot
	ref  reference

	cgroups     int    // root of the cgroup2 hierarchy; -1 if it is not mounted
	cgroupMount string // where it is mounted
}

// Open opens the proc file system that is mounted at root, "/proc", and finds
// the cgroup2 hierarchy in /proc/self/mountinfo. Without cgroup2 the rest works,
// and CgroupOf has no ID. What else cannot be had is no error either: Missing.
//
// Close frees up to five descriptors.
func Open(root string) (*FS, error) {
	fs := &FS{self: -1, cgroups: -1, ref: reference{process: -1, root: -1}}
	var err error
	if fs.root, err = unix.Open(root, pathDir, 0); err != nil {
		return nil, fmt.Errorf("open %s: %w (is proc mounted there?)", root, err)
	}
	if err := fs.open(root); err != nil {
		return nil, errors.Join(err, fs.Close())
	}
	return fs, nil
}

func (fs *FS) open(root string) error {
	var err error
	if fs.self, err = unix.Openat(fs.root, "self", pathDir, 0); err != nil {
		return fmt.Errorf("open %s/self: %w (is proc mounted there, for this pid namespace?)", root, err)
	}
	if fs.boot, err = bootTime(); err != nil {
		return err
	}
	if err := fs.openReference(); err != nil {
		return err
	}
	list, err := mounts(fs.self)
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.fsType == "cgroup2" && m.root == "/" && fs.cgroups < 0 {
			fs.openCgroups(m.point)
		}
	}
	if fs.cgroups < 0 && root == "/proc" {
		fs.mountCgroups()
	}
	return nil
}

// Close frees the descriptors.
func (fs *FS) Close() error {
	var errs []error
	if fs.ref.foreign() {
		errs = append(errs, unix.Close(fs.ref.process)) // else it is self
	}
	for _, fd := range []int{fs.ref.root, fs.root, fs.self, fs.cgroups} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// Flags of directories and files that are only stood on, not read.
const (
	pathOnly = unix.O_PATH | unix.O_CLOEXEC
	pathDir  = pathOnly | unix.O_DIRECTORY
	readOnly = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOCTTY
)

// entry is an opened /proc/PID. The descriptor stays that process's: once it
// was waited for, all reads below fail with ESRCH, whoever has its number then.
type entry struct {
	pid uint32
	fd  int
}

func (fs *FS) entry(pid uint32) (entry, error) {
	fd, err := openat(fs.root, strconv.FormatUint(uint64(pid), 10), pathDir)
	if err != nil {
		return entry{}, processError(pid, err)
	}
	return entry{pid: pid, fd: fd}, nil
}

func (e entry) close() { unix.Close(e.fd) }

// processError makes an error of reading a process one that callers can test.
func processError(pid uint32, err error) error {
	switch {
	case errors.Is(err, ErrGone):
		return fmt.Errorf("read process %d: %w", pid, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		return fmt.Errorf("read process %d: %w", pid, ErrGone)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("read process %d: %w (needs CAP_SYS_PTRACE)", pid, err)
	}
	return fmt.Errorf("read process %d: %w", pid, err)
}

// openat is openat(2), again if a signal came between.
func openat(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags, 0)
		if err != unix.EINTR { //nolint:errorlint // unix returns the bare Errno
			return fd, err
		}
	}
}

// readAt reads a file below dir into buf, as much as there is and fits.
func readAt(dir int, name string, buf []byte) ([]byte, error) {
	fd, err := openat(dir, name, readOnly)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	n := 0
	for n < len(buf) {
		m, err := unix.Read(fd, buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return buf[:n], nil
}

// readOnce is readAt for a file that the kernel gives whole by the first read, if
// it fits: single_open, fs/seq_file.c.
func readOnce(dir int, name string, buf []byte) ([]byte, error) {
	fd, err := openat(dir, name, readOnly)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, buf)
		if err == nil {
			return buf[:n], nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
}

// readAll reads a file below dir to its end.
func readAll(dir int, name string) ([]byte, error) {
	const first, most = 16 << 10, 64 << 20
	for size := first; ; size *= 4 {
		b, err := readAt(dir, name, make([]byte, size))
		if err != nil || len(b) < size || size >= most {
			return b, err
		}
	}
}

// linkAt returns the bytes of a link below dir. A link of more than PATH_MAX
// bytes, which the kernel does not make, is an error.
func linkAt(dir int, name string, buf []byte) ([]byte, error) {
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return nil, err
	}
	if n == len(buf) {
		return nil, unix.ENAMETOOLONG
	}
	return buf[:n], nil
}

// namespace returns the inode of a namespace, by which the kernel names it.
func namespace(dir int, name string) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, 0); err != nil {
		return 0, err
	}
	return uint32(st.Ino), nil
}
