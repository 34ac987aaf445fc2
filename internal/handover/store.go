package handover

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

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

	firstFD = 3 // SD_LISTEN_FDS_START
)

// Notifier tells the service manager about this process; sd_notify(3). The zero
// value tells nobody.
type Notifier struct{ path string }

// NewNotifier returns a Notifier for the service manager that started the
// process, if one did.
func NewNotifier() Notifier { return Notifier{os.Getenv(notifyEnv)} }

// Present returns whether there is somebody to tell.
func (n Notifier) Present() bool { return n.path != "" }

// Notify sends lines of KEY=value.
func (n Notifier) Notify(lines ...string) error { return n.send(lines, nil) }

// Store leaves a descriptor with the service manager, under a name without
// colon: should the process die, the next one finds it by Given. A descriptor
// of the same name is replaced. f stays the caller's.
func (n Notifier) Store(name string, f *os.File) error {
	return n.send([]string{"FDSTORE=1", "FDNAME=" + name}, []*os.File{f})
}

// Forget makes the service manager close what it holds under a name.
func (n Notifier) Forget(name string) error {
	return n.send([]string{"FDSTOREREMOVE=1", "FDNAME=" + name}, nil)
}

func (n Notifier) send(lines []string, files []*os.File) error {
	if !n.Present() {
		return nil
	}
	oob, err := rights(files)
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	err = unix.Sendmsg(fd, []byte(strings.Join(lines, "\n")), oob, &unix.SockaddrUnix{Name: n.path}, unix.MSG_NOSIGNAL)
	runtime.KeepAlive(files)
	if err != nil {
		return fmt.Errorf("notify the service manager at %s: %w", n.path, os.NewSyscallError("sendmsg", err))
	}
	return nil
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
