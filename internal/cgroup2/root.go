package cgroup2

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Root opens the root directory of the hierarchy. point is where it is mounted: "/"
// if it is nowhere to be seen, as in a mount namespace with a /sys of its own (ip
// netns exec makes one). It is then mounted for the descriptor alone, which nobody else sees
// and nothing is left of when the descriptor is closed.
//
// Where only a part of the hierarchy is mounted, as in a container, the root is that
// of the part.
//
// Errors: the kernel has no cgroup2, or it is not mounted and may not be (needs
// CAP_SYS_ADMIN and Linux 5.2).
func Root() (root *os.File, point string, err error) {
	const list = "/proc/self/mountinfo"
	f, err := os.Open(list)
	if err != nil {
		return nil, "", fmt.Errorf("find cgroup version 2: %w", err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		top, mounted, ok := mount(s.Text())
		if !ok || top != "/" && point != "" {
			continue
		}
		if dir := openMount(mounted); dir != nil {
			if root != nil {
				root.Close() // of a part
			}
			root, point = dir, mounted
		}
		if root != nil && top == "/" {
			return root, point, nil
		}
	}
	if root == nil {
		root, err = detached()
		point = "/"
	}
	return root, point, err
}

// openMount opens the root of a mount, nil if something is mounted over it.
func openMount(point string) *os.File {
	fd, err := unix.Open(point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || int64(st.Type) != unix.CGROUP2_SUPER_MAGIC {
		unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), point)
}

// detached mounts the hierarchy nowhere.
func detached() (*os.File, error) {
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err == nil {
		defer unix.Close(fs)
		err = unix.FsconfigCreate(fs)
	}
	var fd int
	if err == nil {
		fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	}
	var root int
	if err == nil { // a descriptor that is only a place, as this one, serves for less
		defer unix.Close(fd)
		root, err = unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	switch {
	case err == nil:
		return os.NewFile(uintptr(root), "cgroup2"), nil
	case errors.Is(err, unix.ENODEV):
		return nil, errors.New("find cgroup version 2: the kernel has none (needs CONFIG_CGROUPS)")
	}
	return nil, fmt.Errorf("find cgroup version 2: it is not mounted, and to mount it: %w (needs CAP_SYS_ADMIN; or mount -t cgroup2 none /sys/fs/cgroup)", err)
}

// mount reads a line of mountinfo (proc(5)) and says whether it is a mount of cgroup
// version 2: its root within the hierarchy, and where it is mounted.
func mount(line string) (root, point string, ok bool) {
	before, source, _ := strings.Cut(line, " - ")
	typ, _, _ := strings.Cut(source, " ")
	words := strings.Fields(before)
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
