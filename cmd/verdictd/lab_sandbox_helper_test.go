package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	sandboxEnv = "VERDICTD_TEST_SANDBOX" // a sandbox as JSON
	runtimeDir = "/run/verdictd"         // RuntimeDirectory=
)

// TestSandboxHelper is no test: in a process that a test has started it does what
// systemd does between fork and exec, and becomes verdictd.
func TestSandboxHelper(*testing.T) {
	text := os.Getenv(sandboxEnv)
	if text == "" {
		return
	}
	runtime.LockOSThread() // what follows is of the thread
	var s sandbox
	err := json.Unmarshal([]byte(text), &s)
	for _, step := range []func() error{s.mount, s.drop, s.filter} {
		if err == nil {
			err = step()
		}
	}
	if err == nil {
		err = syscall.Exec(s.Path, s.Args, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}) //nolint:gosec // what is tested
	}
	fmt.Fprintln(os.Stderr, "enter sandbox:", err)
	os.Exit(1)
}

// mount hides the files that systemd hides.
//
// Source: apply_mount_namespace, src/core/execute.c, and the tables of
// src/core/namespace.c.
func (s *sandbox) mount() error {
	err := errors.Join(
		unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""),
		// ProtectProc=. What systemd leaves writable in it is not for verdictd.
		unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "hidepid=invisible"),
		readOnlyTree("/"), // ProtectSystem=, ProtectKernelTunables=, ProtectControlGroups=
		unix.Mount("tmpfs", "/dev", "tmpfs", unix.MS_NOSUID, "mode=755"),
	)
	for _, dir := range []string{"/home", "/root", "/run/user", "/usr/lib/modules"} {
		err = errors.Join(err, over(dir, "mode=000", unix.MS_RDONLY))
	}
	for _, dir := range []string{"/tmp", "/var/tmp", runtimeDir} {
		err = errors.Join(err, over(dir, "mode=1777", 0))
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "random": 8, "urandom": 9} {
		err = errors.Join(err, unix.Mknod(filepath.Join("/dev", name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))))
	}
	for _, file := range []string{"kallsyms", "kcore"} {
		if _, none := os.Stat("/proc/" + file); none == nil {
			err = errors.Join(err, bind("/dev/null", filepath.Join("/proc", file)))
		}
	}
	if s.Init != 0 {
		err = errors.Join(err, bind("/proc/"+strconv.Itoa(s.Init), "/proc/1"))
	}
	return errors.Join(err, unix.Chdir("/"))
}

func bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source, target, err)
	}
	return nil
}

// over puts an empty directory over one that is there.
func over(dir, mode string, flags uintptr) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|flags, mode); err != nil {
		return fmt.Errorf("mount over %s: %w", dir, err)
	}
	return nil
}

func readOnlyTree(dir string) error {
	err := unix.MountSetattr(unix.AT_FDCWD, dir, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err != nil {
		return fmt.Errorf("make %s read-only: %w", dir, err)
	}
	return nil
}

// drop gives up all capabilities but those of the unit, for good.
func (s *sandbox) drop() error {
	has := map[int]bool{}
	for _, c := range s.Capabilities {
		has[c] = true
	}
	for c := 0; c <= unix.CAP_LAST_CAP; c++ {
		if has[c] {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: not known to the kernel
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return errors.Join(
		unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0),
		unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
	)
}

// filter restricts system calls.
func (s *sandbox) filter() error {
	if len(s.Calls) == 0 {
		return nil
	}
	p := s.program()
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
	runtime.KeepAlive(p)
	if err != nil {
		return fmt.Errorf("restrict system calls: %w", err)
	}
	return nil
}

// Fields of struct seccomp_data, linux/seccomp.h, on machines of this byte order.
const (
	callField = 0
	argsField = 16
)

// program is what SystemCallFilter=, RestrictNamespaces=, RestrictAddressFamilies=
// and MemoryDenyWriteExecute= come to. It does not look at the architecture:
// nothing here is of another.
//
// Source: src/shared/seccomp-util.c of systemd.
func (s *sandbox) program() []unix.SockFilter {
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	ret := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	jump := func(test uint16, k int, yes, no int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, K: uint32(k), Jt: uint8(yes), Jf: uint8(no)}
	}
	refuse := func(errno syscall.Errno) unix.SockFilter { return ret(unix.SECCOMP_RET_ERRNO | uint32(errno)) }
	p := []unix.SockFilter{load(callField)}
	// with appends tests of an argument of a call, which must fall through to go on.
	with := func(call, arg int, tests ...unix.SockFilter) {
		p = append(p, jump(unix.BPF_JEQ, call, 0, len(tests)+2), load(uint32(argsField+8*arg)))
		p = append(append(p, tests...), load(callField))
	}
	const spaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
	for _, call := range []int{unix.SYS_UNSHARE, unix.SYS_CLONE} {
		with(call, 0, jump(unix.BPF_JSET, spaces, 0, 1), refuse(unix.EPERM))
	}
	p = append(p, jump(unix.BPF_JEQ, unix.SYS_SETNS, 0, 1), refuse(unix.EPERM))
	p = append(p, jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1), refuse(unix.ENOSYS))
	var families []unix.SockFilter
	for i, f := range s.Families {
		families = append(families, jump(unix.BPF_JEQ, f, len(s.Families)-i, 0))
	}
	with(unix.SYS_SOCKET, 0, append(families, refuse(unix.EAFNOSUPPORT))...)
	with(unix.SYS_MMAP, 2, jump(unix.BPF_JSET, unix.PROT_WRITE, 0, 2), jump(unix.BPF_JSET, unix.PROT_EXEC, 0, 1), refuse(unix.EPERM))
	with(unix.SYS_MPROTECT, 2, jump(unix.BPF_JSET, unix.PROT_EXEC, 0, 1), refuse(unix.EPERM))
	for _, call := range s.Calls {
		p = append(p, jump(unix.BPF_JEQ, call, 0, 1), ret(unix.SECCOMP_RET_ALLOW))
	}
	return append(p, refuse(unix.EPERM))
}
