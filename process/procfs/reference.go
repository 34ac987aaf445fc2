package procfs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// reference is the mount namespace that paths are told in, with the root
// directory that they begin at: those of process 1 if they can be had and are
// not ours, else our own. It is what it was when Open was called.
type reference struct {
	process int    // directory in /proc of a process that is there
	root    int    // its root directory, an O_PATH descriptor; AT_FDCWD: ours
	mountNS uint32 // its inode

	// atRoot: root is the root of the namespace. So a path leads to the same if it
	// was walked from a file of the namespace up to where no mount is above,
	// whether by the programs of package record or by the kernel for us.
	atRoot bool
	scoped bool // openat2(2) can be called

	// missing says why it is not process 1's, or not known to be at the root.
	missing error
}

// foreign tells whether the reference is not our own root directory.
func (r *reference) foreign() bool { return r.root != unix.AT_FDCWD }

// openReference chooses the reference and opens it.
func (fs *FS) openReference() error {
	own, err := namespace(fs.self, "ns/mnt")
	if err != nil {
		return fmt.Errorf("read own mount namespace: %w", err)
	}
	host, err := fs.openHost(own)
	if err == nil {
		fs.ref = host
		return nil
	}
	fs.ref = reference{process: fs.self, root: unix.AT_FDCWD, mountNS: own, atRoot: atRoot()}
	switch {
	case !errors.Is(err, errOurs):
		fs.ref.missing = err
	case !fs.ref.atRoot:
		fs.ref.missing = errNotAtRoot
	}
	return nil
}

// Reasons not to take process 1's namespace.
var (
	errOurs      = errors.New("it is our own")
	errChroot    = errors.New("its root directory is not that of its mount namespace")
	errNotAtRoot = errors.New("our root directory is not known to be that of the mount namespace (needs CAP_SYS_ADMIN and CAP_SYS_CHROOT)")
)

// openHost opens the reference that process 1 is.
//
// Nothing there is believed because of its name. What is opened is the directory
// that the kernel keeps as the root of process 1. That it is the root of the
// namespace shows in the path that the kernel gives it here: in another
// namespace than its own the kernel walks up until no mount is above. This says
// nothing if our own root directory, where it stops as well, was put into that
// namespace (chroot into /proc/1/root): then the reference is not taken.
func (fs *FS) openHost(own uint32) (_ reference, err error) {
	r := reference{process: -1, root: -1, atRoot: true}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.process, err = openat(fs.root, "1", pathDir); err != nil {
		return r, fmt.Errorf("open process 1: %w%s", err, needsPtrace(err))
	}
	if r.mountNS, err = namespace(r.process, "ns/mnt"); err != nil {
		return r, fmt.Errorf("read mount namespace of process 1: %w%s", err, needsPtrace(err))
	}
	if r.mountNS == own {
		return r, errOurs
	}
	if r.root, err = openat(r.process, "root", pathDir); err != nil {
		return r, fmt.Errorf("open root directory of process 1: %w%s", err, needsPtrace(err))
	}
	if err := fs.checkHost(&r); err != nil {
		return r, err
	}
	r.scoped = canScope(r.root)
	return r, nil
}

// checkHost tells whether the reference is at the root of its namespace.
func (fs *FS) checkHost(r *reference) error {
	ours, err := openat(unix.AT_FDCWD, "/", pathDir)
	if err != nil {
		return fmt.Errorf("open own root directory: %w", err)
	}
	defer unix.Close(ours)
	if _, listed := listedMount(r.process, ours); listed {
		return errChroot
	}
	if _, listed := listedMount(r.process, r.root); !listed { // or no mount can be
		return errChroot
	}
	// A directory that was moved out of what is mounted is shown as "/", too: it
	// must be the root of a mount.
	var stx unix.Statx_t
	if err := unix.Statx(r.root, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &stx); err != nil {
		return fmt.Errorf("look at root directory of process 1: %w", err)
	}
	text, err := linkAt(fs.self, "fd/"+strconv.Itoa(r.root), make([]byte, unix.PathMax+1))
	if err != nil {
		return fmt.Errorf("look at root directory of process 1: %w", err)
	}
	if stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 || string(text) != "/" {
		return errChroot
	}
	return nil
}

// needsPtrace names the right that is asked for, if it was that. Process 1 is
// always there, but can be hidden (hidepid).
func needsPtrace(err error) string {
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOENT) {
		return " (needs CAP_SYS_PTRACE)"
	}
	return ""
}

// close frees the descriptors of a reference that is not our own.
func (r *reference) close() error {
	var errs []error
	for _, fd := range []int{r.process, r.root} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// canScope tells whether openat2(2), Linux 5.6, may be called.
func canScope(root int) bool {
	fd, err := openInRoot(root, "/")
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// open opens what an absolute path leads to, only to stand on it.
func (r *reference) open(path string) (int, error) {
	switch {
	case !strings.HasPrefix(path, "/"):
		return -1, unix.ENOENT
	case !r.foreign():
		return openat(unix.AT_FDCWD, path, pathOnly)
	case r.scoped:
		return openInRoot(r.root, path)
	}
	return openStepwise(r.root, path)
}

// openInRoot takes a directory as the root of all links, too.
func openInRoot(root int, path string) (int, error) {
	how := unix.OpenHow{Flags: pathOnly, Resolve: unix.RESOLVE_IN_ROOT}
	const tries = 8 // EAGAIN: something was renamed while a link led upwards
	for n := 1; ; n++ {
		fd, err := unix.Openat2(root, path, &how)
		if n == tries || !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// openStepwise is the same for a path without links, which is what the kernel
// gives: a link, put there since, is ELOOP.
func openStepwise(root int, path string) (int, error) {
	at, err := openat(root, ".", pathOnly)
	if err != nil {
		return -1, err
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." {
			continue
		}
		next, err := stepInto(at, name)
		unix.Close(at)
		if err != nil {
			return -1, err
		}
		at = next
	}
	return at, nil
}

// stepInto opens an entry of a directory that is no link and does not lead up.
func stepInto(dir int, name string) (int, error) {
	if name == ".." {
		return -1, unix.ELOOP
	}
	fd, err := openat(dir, name, pathOnly|unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		err = unix.ELOOP
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// look looks at what an absolute path leads to.
func (r *reference) look(path string) (file, error) {
	if !r.foreign() && strings.HasPrefix(path, "/") {
		return fileAt(unix.AT_FDCWD, path, 0)
	}
	fd, err := r.open(path)
	if err != nil {
		return file{}, err
	}
	defer unix.Close(fd)
	return fileAt(fd, "", unix.AT_EMPTY_PATH)
}

// has tells whether an open file is in a mount of the reference. While the file
// is open the number of its mount is not used for another.
func (r *reference) has(fd int) bool {
	if r.foreign() { // statmount(2) tells only with CAP_SYS_ADMIN there
		_, listed := listedMount(r.process, fd)
		return listed
	}
	_, ours := ourMount(r.process, fd)
	return ours
}

// key is the Key of the file that an absolute path leads to.
func (r *reference) key(path string) (key Key, regular bool, err error) {
	if !r.foreign() {
		return keyOf(unix.AT_FDCWD, path, 0)
	}
	fd, err := r.open(path)
	if err != nil {
		return Key{}, false, err
	}
	defer unix.Close(fd)
	return keyOf(fd, "", unix.AT_EMPTY_PATH)
}
