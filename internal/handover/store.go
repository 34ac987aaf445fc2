package handover

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Environment of the service manager's protocol, and what the keeper adds: the
// keeper does not know its child's process id before it runs, so it says
// KeeperEnv in place of LISTEN_PID.
const (
	notifyEnv = "NOTIFY_SOCKET"
	countEnv  = "LISTEN_FDS"
	namesEnv  = "LISTEN_FDNAMES"
	pidEnv    = "LISTEN_PID"
	KeeperEnv = "VERDICTD_KEEPER"

	// keeperFDEnv is the number of the descriptor that leads to the keeper: it
	// stands in place of NOTIFY_SOCKET, whose path anybody could send to.
	keeperFDEnv = "VERDICTD_KEEPER_FD"

	firstFD = 3 // SD_LISTEN_FDS_START

	// notifyLimit bounds how long a service manager that reads nothing can hold
	// up who tells it something.
	notifyLimit = 2 * time.Second
)

// Notifier tells the service manager about this process; sd_notify(3). The zero
// value tells nobody. A send that the service manager does not take within 2 s
// fails with EAGAIN.
type Notifier struct {
	path string
	fd   int // leads to the keeper, which has no path; 0: none
}

// NewNotifier returns a Notifier for the service manager or keeper that started
// the process, if one did. The descriptor of a keeper goes on to children by
// Bequeath only.
func NewNotifier() Notifier {
	fd, err := strconv.Atoi(os.Getenv(keeperFDEnv))
	os.Unsetenv(keeperFDEnv)
	if err != nil || fd < firstFD {
		return Notifier{path: os.Getenv(notifyEnv)}
	}
	unix.CloseOnExec(fd)
	return Notifier{fd: fd}
}

// Present returns whether there is somebody to tell.
func (n Notifier) Present() bool { return n.path != "" || n.fd != 0 }

// Bequeath returns what a child needs, beside this process's environment, to
// tell the same one: variables, and files of which the first must have the
// number next in the child. The files are the caller's to close.
func (n Notifier) Bequeath(next int) (env []string, files []*os.File, err error) {
	if n.fd == 0 {
		return nil, nil, nil
	}
	fd, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, firstFD)
	if err != nil {
		return nil, nil, fmt.Errorf("give on the keeper's socket: %w", os.NewSyscallError("fcntl", err))
	}
	return []string{keeperFDEnv + "=" + strconv.Itoa(next)}, []*os.File{os.NewFile(uintptr(fd), "keeper")}, nil
}

// Notify sends lines of KEY=value.
func (n Notifier) Notify(lines ...string) error { return n.send(lines, nil, 0) }

// Beat sends lines that are sent again and again. It does not wait, and sends nothing
// as long as a keeper has not read what was sent before: one that stands still must
// find room for what matters.
func (n Notifier) Beat(lines ...string) error {
	if n.fd != 0 {
		unread, err := unix.IoctlGetInt(n.fd, unix.SIOCOUTQ)
		if err != nil || unread > 0 {
			return os.NewSyscallError("ioctl SIOCOUTQ", err)
		}
	}
	return n.send(lines, nil, unix.MSG_DONTWAIT)
}

// Store leaves a descriptor with the service manager, under a name without
// colon: should the process die, the next one finds it by Given. A descriptor
// of the same name is replaced. f stays the caller's.
func (n Notifier) Store(name string, f *os.File) error {
	return n.send([]string{"FDSTORE=1", "FDNAME=" + name}, []*os.File{f}, 0)
}

// Forget makes the service manager close what it holds under a name.
func (n Notifier) Forget(name string) error {
	return n.send([]string{"FDSTOREREMOVE=1", "FDNAME=" + name}, nil, 0)
}

func (n Notifier) send(lines []string, files []*os.File, flags int) error {
	if !n.Present() {
		return nil
	}
	oob, err := rights(files)
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	to, fd := "the keeper", n.fd
	var at unix.Sockaddr // of a pair: the other end
	if fd == 0 {
		to, at = "the service manager at "+n.path, &unix.SockaddrUnix{Name: n.path}
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return fmt.Errorf("notify %s: %w", to, os.NewSyscallError("socket", err))
		}
		defer unix.Close(fd)
		if err := limitSends(fd); err != nil {
			return fmt.Errorf("notify %s: %w", to, err)
		}
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Sendmsg(fd, []byte(strings.Join(lines, "\n")), oob, at, unix.MSG_NOSIGNAL|flags)
	}
	runtime.KeepAlive(files)
	if err != nil {
		return fmt.Errorf("notify %s: %w", to, os.NewSyscallError("sendmsg", err))
	}
	return nil
}

// limitSends bounds how long a send waits for room.
func limitSends(fd int) error {
	limit := unix.NsecToTimeval(notifyLimit.Nanoseconds())
	return os.NewSyscallError("setsockopt SO_SNDTIMEO", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
}

// Given returns the descriptors that the service manager gave the process, by
// name, and removes the traces from the environment, so that children do not
// take them for theirs. Of several under one name the last counts.
// It must be called once, before other descriptors are opened.
func Given() map[string]*os.File {
	count, err := strconv.Atoi(os.Getenv(countEnv))
	names := strings.Split(os.Getenv(namesEnv), ":")
	mine := os.Getenv(pidEnv) == strconv.Itoa(os.Getpid()) || os.Getenv(pidEnv) == "" && Kept()
	for _, key := range []string{countEnv, namesEnv, pidEnv} {
		os.Unsetenv(key)
	}
	if err != nil || count <= 0 || count > maxFiles || !mine {
		return nil
	}
	files := make(map[string]*os.File, count)
	for i := range count {
		name := "unknown"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		if old := files[name]; old != nil {
			old.Close()
		}
		files[name] = newFile(firstFD+i, name)
	}
	return files
}

// Kept returns whether the process was started by a keeper, or by a process
// that was.
func Kept() bool { return os.Getenv(KeeperEnv) != "" }
