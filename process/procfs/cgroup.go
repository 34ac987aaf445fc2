package procfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/cgroup2"
	"github.com/verdictd/verdictd/process"
)

// fileidKernfs is FILEID_KERNFS, include/linux/exportfs.h: the handle of a file of
// cgroup2 is its inode.
const fileidKernfs = 0xfe

// openCgroups keeps the root of the hierarchy if it is what mountinfo says, and
// not something mounted over it.
func (fs *FS) openCgroups(point string) {
	fd, err := openat(unix.AT_FDCWD, point, readOnly|unix.O_DIRECTORY)
	if err != nil {
		return
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || int64(st.Type) != unix.CGROUP2_SUPER_MAGIC {
		unix.Close(fd)
		return
	}
	fs.cgroups, fs.cgroupMount = fd, point
}

// mountCgroups opens the hierarchy where it is not mounted in our mount namespace.
func (fs *FS) mountCgroups() {
	root, point, err := cgroup2.Root()
	if err != nil {
		return
	}
	defer root.Close()
	fd, err := unix.FcntlInt(root.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		fs.cgroups, fs.cgroupMount = fd, point
	}
}

// CgroupOf returns the control group that a process is in. ID is 0 if its
// directory cannot be looked at: it was removed, or cgroup2 is not mounted. Path
// is relative to the cgroup namespace of verdictd; what is outside of it begins
// with "/..".
//
// ErrGone if there is no such process. The zero Cgroup and no error if the kernel
// has no unified hierarchy.
func (fs *FS) CgroupOf(pid uint32) (process.Cgroup, error) {
	e, err := fs.entry(pid)
	if err != nil {
		return process.Cgroup{}, err
	}
	defer e.close()
	b, err := readAll(e.fd, "cgroup")
	if err != nil {
		return process.Cgroup{}, processError(pid, err)
	}
	for line := range bytes.Lines(b) {
		path, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte("0::"))
		if ok {
			return fs.cgroupAt(string(path)), nil
		}
	}
	return process.Cgroup{}, nil
}

// cgroupAt describes a group by its path in /proc.
func (fs *FS) cgroupAt(path string) process.Cgroup {
	id, err := fs.cgroupID(path)
	if short, marked := strings.CutSuffix(path, mark); err != nil && marked {
		path = short // its directory is gone, so there is nothing to look at
	}
	c := process.ParseCgroup(process.Text([]byte(path)))
	c.ID = id
	return c
}

func (fs *FS) cgroupID(path string) (uint64, error) {
	if fs.cgroups < 0 || strings.HasPrefix(path, "/..") {
		return 0, unix.ENOENT
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fs.cgroups, "./"+path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// Cgroup returns the control group of an id, which is what the kernel calls a
// cgroup id: INET_DIAG_CGROUP_ID, bpf_get_current_cgroup_id.
//
// ErrGone if it was removed. An error without ErrGone if cgroup2 is not mounted,
// the right is missing, or the group is outside of our cgroup namespace.
func (fs *FS) Cgroup(id uint64) (process.Cgroup, error) {
	if fs.cgroups < 0 {
		return process.Cgroup{}, fmt.Errorf("look up cgroup %d: no hierarchy (mount cgroup2)", id)
	}
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(fs.cgroups, handle, pathDir)
	switch {
	case errors.Is(err, unix.ESTALE), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return process.Cgroup{}, fmt.Errorf("look up cgroup %d: %w", id, ErrGone)
	case errors.Is(err, unix.EPERM):
		return process.Cgroup{}, fmt.Errorf("look up cgroup %d: %w (needs CAP_DAC_READ_SEARCH)", id, err)
	case err != nil:
		return process.Cgroup{}, fmt.Errorf("look up cgroup %d: %w", id, err)
	}
	defer unix.Close(fd)
	text, err := linkAt(fs.self, "fd/"+strconv.Itoa(fd), make([]byte, unix.PathMax+1))
	if err != nil {
		return process.Cgroup{}, fmt.Errorf("look up cgroup %d: %w", id, err)
	}
	path, inside := strings.CutPrefix(string(text), strings.TrimSuffix(fs.cgroupMount, "/"))
	if !inside || path != "" && path[0] != '/' {
		return process.Cgroup{}, fmt.Errorf("look up cgroup %d: it is outside of our cgroup namespace", id)
	}
	if path == "" {
		path = "/"
	}
	if _, err := fs.cgroupID(path); err != nil && strings.HasSuffix(path, mark) {
		return process.Cgroup{}, fmt.Errorf("look up cgroup %d: %w", id, ErrGone)
	}
	c := process.ParseCgroup(process.Text([]byte(path)))
	c.ID = id
	return c, nil
}
