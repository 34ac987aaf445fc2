package sockdiag

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNamespace runs fn on a thread in the network namespace that netns refers to,
// or on the calling one if it is 0. The thread belongs to a goroutine of its
// own: if it cannot be taken back it ends with that.
func inNamespace(netns int, fn func() error) error {
	if netns == 0 {
		return fn()
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err, home := moved(netns, fn)
		if home {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// moved says also whether the thread is where it was.
func moved(netns int, fn func() error) (err error, home bool) {
	back, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open own network namespace: %w", err), true
	}
	defer back.Close()
	if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w (needs CAP_SYS_ADMIN)", err), true
	}
	err = fn()
	return err, unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil
}
