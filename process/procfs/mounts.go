package procfs

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is a line of /proc/self/mountinfo.
type mount struct {
	id     uint64
	device uint64 // of the file system itself; stat(2) has another on btrfs and overlayfs
	root   string // what of the file system is mounted
	point  string
	fsType string
}

// mounts lists the mounts that can be reached in our own mount namespace.
func (fs *FS) mounts() ([]mount, error) {
	b, err := readAll(fs.self, "mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read own mountinfo: %w", err)
	}
	var list []mount
	for line := range strings.Lines(string(b)) {
		if m, ok := parseMount(line); ok {
			list = append(list, m)
		}
	}
	return list, nil
}

// parseMount reads a line as proc_pid_mountinfo(5) describes it.
func parseMount(line string) (mount, bool) {
	front, back, ok := strings.Cut(line, " - ")
	f, b := strings.Fields(front), strings.Fields(back)
	const minFront = 6
	if !ok || len(f) < minFront || len(b) < 1 {
		return mount{}, false
	}
	id, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil {
		return mount{}, false
	}
	major, minor, _ := strings.Cut(f[2], ":")
	ma, err1 := strconv.ParseUint(major, 10, 32)
	mi, err2 := strconv.ParseUint(minor, 10, 32)
	if err1 != nil || err2 != nil {
		return mount{}, false
	}
	return mount{
		id: id, device: unix.Mkdev(uint32(ma), uint32(mi)),
		root: unmangle(f[3]), point: unmangle(f[4]), fsType: b[0],
	}, true
}

// unmangle undoes mangle_path, fs/seq_file.c: blank, tab, newline, backslash and
// number sign are three octal digits after a backslash.
func unmangle(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		const digits = 3
		if s[i] == '\\' && i+digits < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+1+digits], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += digits
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// mountOf returns the mount that an open file is in, if it is one of ours. While
// the file is open its number is not used for another.
func (fs *FS) mountOf(fd int) (mount, bool) {
	var stx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &stx); err != nil {
		return mount{}, false
	}
	if stx.Mask&unix.STATX_MNT_ID == 0 { // before Linux 5.8
		return mount{}, false
	}
	list, err := fs.mounts()
	if err != nil {
		return mount{}, false
	}
	for _, m := range list {
		if m.id == stx.Mnt_id {
			return m, true
		}
	}
	return mount{}, false
}

// atRoot tells whether the root directory of this process is that of its mount
// namespace: entering the namespace again, on a thread of its own, leads to the
// latter. It is false, too, if we may not do that (CAP_SYS_ADMIN and
// CAP_SYS_CHROOT).
func atRoot() bool {
	answer := make(chan bool, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// /proc/self is the first thread: keep it out of this.
			answer <- atRoot()
			runtime.UnlockOSThread()
			return
		}
		answer <- enteredRootIsOurs() // locked for good: the thread ends with the goroutine
	}()
	return <-answer
}

func enteredRootIsOurs() bool {
	const flags, mask = unix.AT_STATX_DONT_SYNC, unix.STATX_INO | unix.STATX_MNT_ID
	var ours, entered unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, "/", flags, mask, &ours); err != nil {
		return false
	}
	ns, err := unix.Open("/proc/thread-self/ns/mnt", readOnly, 0)
	if err != nil {
		return false
	}
	defer unix.Close(ns)
	if unix.Unshare(unix.CLONE_FS) != nil || unix.Setns(ns, unix.CLONE_NEWNS) != nil {
		return false
	}
	if err := unix.Statx(unix.AT_FDCWD, "/", flags, mask, &entered); err != nil {
		return false
	}
	return ours.Ino == entered.Ino && ours.Dev_major == entered.Dev_major &&
		ours.Dev_minor == entered.Dev_minor && ours.Mnt_id == entered.Mnt_id
}
