package procfs

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// Missing names what cannot be read for lack of a right, and the right; nil if
// nothing is known to be missing.
func (fs *FS) Missing() []string {
	var missing []string
	if !capable(unix.CAP_SYS_PTRACE) {
		missing = append(missing, "programs and sockets of processes with other rights (needs CAP_SYS_PTRACE)")
	}
	if fs.cgroups >= 0 && errors.Is(fs.handles(), unix.EPERM) {
		missing = append(missing, "control groups of processes that have ended (needs CAP_DAC_READ_SEARCH)")
	}
	if !fs.ref.atRoot {
		missing = append(missing, "paths of programs that were deleted: "+fs.ref.missing.Error())
	}
	return missing
}

// capable tells whether the calling thread has a capability in its own user
// namespace.
func capable(capability int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // of 32 capabilities each
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// handles tries whether files may be opened by number, with that of the root.
func (fs *FS) handles() error {
	const root = 1 // inode of the root of cgroup2
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, root))
	fd, err := unix.OpenByHandleAt(fs.cgroups, handle, pathDir)
	if err == nil {
		unix.Close(fd)
	}
	return err
}
