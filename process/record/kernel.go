package record

import (
	"errors"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// needs names what is missing when the kernel refuses.
func needs(err error) string {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		// EINVAL: a helper that only some may call is unknown to others.
		if missing := lacking(); len(missing) > 0 {
			return " (needs " + strings.Join(missing, ", ") + ")"
		}
	case errors.Is(err, unix.EBADF):
		return " (needs a directory of cgroup version 2)"
	case errors.Is(err, unix.ENOSYS):
		return " (needs CONFIG_BPF_SYSCALL)"
	case errors.Is(err, unix.ENOMEM):
		return " (needs memory: configure fewer entries)"
	}
	return ""
}

// lacking returns the capabilities that the calling thread needs and lacks, or
// those it needs if they are not known.
func lacking() []string {
	var sets [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	err := unix.Capget(&header, &sets[0])
	has := func(capability int) bool {
		return err == nil && sets[capability/32].Effective&(1<<(capability%32)) != 0
	}
	var missing []string
	for _, c := range []struct {
		number int
		name   string
	}{
		{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_PERFMON, "CAP_PERFMON"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"},
	} {
		if !has(c.number) && !has(unix.CAP_SYS_ADMIN) {
			missing = append(missing, c.name)
		}
	}
	return missing
}

// isThere says that a map has the key already.
func isThere(err error) bool { return errors.Is(err, ebpf.ErrKeyExist) }

// OwnNetNS returns the cookie of the caller's network namespace, 0 if the kernel
// does not tell (before Linux 5.14).
func OwnNetNS() uint64 {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}
