package control

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// asNobody runs fn as another user. Go's own Setuid would change all threads;
// this one is changed alone, stays locked and ends with the goroutine.
func asNobody(fn func() error) error {
	runtime.LockOSThread()
	const nobody = 65534
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
		return fmt.Errorf("become user %d: %w", nobody, errno)
	}
	return fn()
}
