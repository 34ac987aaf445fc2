package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

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

// mounts lists the mounts that can be reached in the mount namespace of the
// process whose directory is given.
func mounts(process int) ([]mount, error) {
	b, err := readAll(process, "mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
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

// ourMount tells whether an open file is in a mount of our own mount namespace,
// and the device of its file system. self is /proc/self.
func ourMount(self, fd int) (device uint64, ours bool) {
	if id, ok := mountID(fd, unix.STATX_MNT_ID_UNIQUE); ok {
		device, err := statmount(id)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return device, err == nil
		}
	}
	return listedMount(self, fd)
}

// listedMount looks for the mount of an open file in the mountinfo of a process,
// which takes about two microseconds for each mount that there is.
func listedMount(process, fd int) (device uint64, listed bool) {
	id, ok := mountID(fd, unix.STATX_MNT_ID)
	if !ok {
		return 0, false
	}
	b, err := readAll(process, "mountinfo")
	if err != nil {
		return 0, false
	}
	begin := append(strconv.AppendUint(nil, id, 10), ' ')
	for line := range bytes.Lines(b) {
		if bytes.HasPrefix(line, begin) {
			m, ok := parseMount(string(line))
			return m.device, ok
		}
	}
	return 0, false
}

// mountID returns the number of the mount that an open file is in: STATX_MNT_ID
// since Linux 5.8, STATX_MNT_ID_UNIQUE since 6.8.
func mountID(fd, kind int) (id uint64, ok bool) {
	var stx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, kind, &stx); err != nil {
		return 0, false
	}
	return stx.Mnt_id, stx.Mask&uint32(kind) != 0
}

// statmount returns the device of a mount's file system; ENOENT if it is not in
// our mount namespace, ENOSYS before Linux 6.8.
//
// Source: struct mnt_id_req and struct statmount, include/uapi/linux/mount.h.
func statmount(id uint64) (device uint64, err error) {
	const sbBasic = 1 // STATMOUNT_SB_BASIC
	request := struct {
		size, _   uint32
		id, param uint64
	}{id: id, param: sbBasic}
	request.size = uint32(unsafe.Sizeof(request)) // MNT_ID_REQ_SIZE_VER0
	var answer struct {
		size, _      uint32
		mask         uint64
		major, minor uint32
		_            [488]byte
	}
	_, _, errno := unix.Syscall6(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(&request)),
		uintptr(unsafe.Pointer(&answer)), unsafe.Sizeof(answer), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	if answer.mask&sbBasic == 0 {
		return 0, unix.ENOSYS
	}
	return unix.Mkdev(answer.major, answer.minor), nil
}

// atRoot tells whether the root directory of this process is that of its mount
// namespace: entering the namespace again, on a thread of its own, leads to the
// latter. It is false, too, if we may not do that (CAP_SYS_ADMIN and
// CAP_SYS_CHROOT).
func atRoot() bool {
	at := false
	onSpareThread(func() { at = enteredRootIsOurs() })
	return at
}

// onSpareThread runs f on a thread that is not used again, and waits for it. It
// is never the first thread of the process, as that is what /proc/self shows.
func onSpareThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onSpareThread(f)
			runtime.UnlockOSThread()
			return
		}
		f() // locked for good: the thread ends with the goroutine
	}()
	<-done
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
