package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Listen makes the socket at path, readable and writable by the owner alone. A
// socket that a dead daemon left there is replaced. The directory of DefaultPath is
// made if it is missing, no other.
//
// Errors: ErrInUse; a directory that is not there; a path that is no socket, or too long for one; a missing
// right to write there.
func Listen(path string) (*Server, error) {
	s, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("make control socket %s: %w", path, err)
	}
	return s, nil
}

// ListenDefault listens at DefaultPath or, where another daemon does that
// already, at a path beside it that has the process id in its name.
func ListenDefault() (*Server, error) {
	s, err := Listen(DefaultPath)
	if !errors.Is(err, ErrInUse) {
		return s, err
	}
	return Listen(filepath.Join(filepath.Dir(DefaultPath), fmt.Sprintf("verdictd-%d.sock", os.Getpid())))
}

func listen(path string) (*Server, error) {
	if len(path) >= len(unix.RawSockaddrUnix{}.Path) {
		return nil, fmt.Errorf("a socket's path has at most %d bytes", len(unix.RawSockaddrUnix{}.Path)-1)
	}
	if dir := filepath.Dir(path); dir == filepath.Dir(DefaultPath) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	} else if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no directory %s (make it, with rights for those who may control verdictd only)", dir)
	}
	// Of two daemons that find a dead one's socket only one may replace it.
	unlock, err := lock(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := clear(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, err
	}
	// Until then the umask decided; who connects is looked at in any case.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &Server{listener: l, path: path}, nil
}

// clear removes the socket that a dead daemon left at path, and those of dead
// daemons beside DefaultPath.
func clear(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is a file of that name that is not a socket (choose another path)")
	case alive(path):
		return ErrInUse
	default:
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if filepath.Dir(path) != filepath.Dir(DefaultPath) {
		return nil
	}
	others, err := filepath.Glob(pattern())
	for _, other := range others {
		if !alive(other) {
			_ = os.Remove(other) // it is in nobody's way
		}
	}
	return err
}

// alive returns whether somebody listens at path.
func alive(path string) bool {
	conn, err := net.DialTimeout("unix", path, patience)
	if err != nil {
		// EAGAIN: the backlog is full. Whatever is not refused is not known to be dead.
		return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT)
	}
	conn.Close()
	return true
}

// Running returns the paths beside DefaultPath at which a daemon answers.
func Running() []string {
	paths, err := filepath.Glob(pattern())
	if err != nil {
		return nil // the pattern is a constant and right
	}
	var running []string
	for _, path := range paths {
		if alive(path) {
			running = append(running, path)
		}
	}
	return running
}

// lock takes the lock of a directory, waiting for at most a second.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	const tries, pause = 100, 10 * time.Millisecond
	for range tries {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			break
		}
		time.Sleep(pause)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return func() { f.Close() }, nil
}
