package nfnl

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrHandOver is the cause of a context's end (context.WithCancelCause) that
// makes a reader of a socket leave it to somebody else: it deals with
// everything it has read, leaves what still waits, and unbinds nothing.
var ErrHandOver = errors.New("handed over to another process")

// Dup returns a second descriptor of the same socket, with a name for
// messages. The caller closes it.
func Dup(raw syscall.RawConn, name string) (*os.File, error) {
	fd := -1
	var err error
	ctlErr := raw.Control(func(p uintptr) {
		fd, err = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return nil, fmt.Errorf("duplicate socket %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
