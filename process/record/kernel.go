package record

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
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

// cgroupRoot returns where the hierarchy of cgroup version 2 is mounted.
func cgroupRoot() (string, error) {
	const file = "/proc/self/mountinfo"
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("find cgroup version 2: %w", err)
	}
	defer f.Close()
	var below string // a mount of a part of the hierarchy
	for s := bufio.NewScanner(f); s.Scan(); {
		root, mountpoint, ok := cgroupMount(s.Text())
		switch {
		case ok && root == "/":
			return mountpoint, nil
		case ok && below == "":
			below = mountpoint
		}
	}
	if below == "" {
		return "", fmt.Errorf("find cgroup version 2: none is mounted in %s (mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1)", file)
	}
	return below, nil
}

// cgroupMount reads a line of mountinfo (proc(5)) and says whether it is a mount
// of cgroup version 2: its root within the hierarchy, and where it is mounted.
func cgroupMount(line string) (root, mountpoint string, ok bool) {
	mount, source, _ := strings.Cut(line, " - ")
	typ, _, _ := strings.Cut(source, " ")
	words := strings.Fields(mount)
	const rootField, pointField = 3, 4
	if typ != "cgroup2" || len(words) <= pointField {
		return "", "", false
	}
	return unescape(words[rootField]), unescape(words[pointField]), true
}

// unescape replaces blanks and the like, written \040, by themselves.
func unescape(s string) string {
	var out strings.Builder
	for {
		before, after, found := strings.Cut(s, `\`)
		out.WriteString(before)
		if !found {
			return out.String()
		}
		const digits = 3
		if len(after) >= digits {
			if n, err := strconv.ParseUint(after[:digits], 8, 8); err == nil {
				out.WriteByte(byte(n))
				s = after[digits:]
				continue
			}
		}
		out.WriteByte('\\')
		s = after
	}
}

// ownNetNS returns the cookie of the caller's network namespace, 0 if the kernel
// does not tell (before Linux 5.14).
func ownNetNS() uint64 {
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
