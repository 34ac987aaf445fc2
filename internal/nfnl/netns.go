package nfnl

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// InNetNS calls fn on a thread of its own that has entered the network
// namespace behind descriptor fd, and waits for it. fd 0 stands for the
// namespace of the calling thread: fn is then called as it is.
//
// /proc/thread-self/net shows fn the entries of that namespace. fn must not
// start goroutines that should be in it too. Needs CAP_SYS_ADMIN unless fd
// is 0.
func InNetNS(fd int, fn func() error) error {
	if fd == 0 {
		return fn()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w (needs CAP_SYS_ADMIN)", err)
			return
		}
		done <- fn()
	}()
	return <-done
}
