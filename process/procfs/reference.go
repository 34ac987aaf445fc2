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
	root    int    // its root directory, an O_PATH descriptor
	host    bool   // it is process 1's, and not ours
	mountNS uint32 // its inode

	// atRoot: root is the root of the namespace. So a path leads to the same if it
	// was walked from a file of the namespace up to where no mount is above,
	// whether by the programs of package record or by the kernel for us.
	atRoot bool
	scoped bool // openat2(2) can be called
	cached bool // with RESOLVE_CACHED: Linux 5.12

	// missing says why it is not process 1's, or not known to be at the root.
	missing error
}

// foreign tells whether the reference is not our own root directory.
func (r *reference) foreign() bool { return r.host }

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
	root, ownErr := openat(unix.AT_FDCWD, "/", pathDir)
	if ownErr != nil {
		return fmt.Errorf("open own root directory: %w", ownErr)
	}
	fs.ref = reference{process: fs.self, root: root, mountNS: own, atRoot: atRoot()}
	fs.ref.canScope()
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
	r := reference{process: -1, root: -1, host: true, atRoot: true}
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
	r.canScope()
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

// close frees the descriptors of the reference.
func (r *reference) close() error {
	var errs []error
	for _, fd := range []int{r.process, r.root} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// resolveCached is RESOLVE_CACHED: EAGAIN if the way is not in the kernel's memory.
//
// Source: include/uapi/linux/openat2.h.
const resolveCached = 0x20

// canScope finds out whether openat2(2), Linux 5.6, may be called, and how.
func (r *reference) canScope() {
	for _, try := range []struct {
		can     *bool
		resolve uint64
	}{{&r.scoped, 0}, {&r.cached, resolveCached}} {
		fd, err := openInRoot(r.root, "/", 0, try.resolve)
		if *try.can = err == nil || errors.Is(err, unix.EAGAIN); err == nil {
			unix.Close(fd)
		}
	}
}

// errWaits says that the way of a path is not in the kernel's memory, and that a
// program could make who goes it wait for ever, even against SIGKILL.
var errWaits = errors.New("the way leads through a file system in user space")

// open opens what an absolute path leads to, only to stand on it. A symbolic link
// on the way is ELOOP. It does not ask a file system in user space.
func (r *reference) open(path string) (int, error) { return r.openAs(path, 0) }

func (r *reference) openAs(path string, flags uint64) (int, error) {
	if !strings.HasPrefix(path, "/") {
		return -1, unix.ENOENT
	}
	if r.cached {
		fd, err := openInRoot(r.root, path, flags, resolveCached)
		if !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
	if r.waits(path) {
		return -1, errWaits
	}
	if r.scoped {
		return openInRoot(r.root, path, flags, 0)
	}
	return openStepwise(r.root, path)
}

// waits tells whether a file system on the way of a path is one that a program
// serves. It reads the list of mounts.
func (r *reference) waits(path string) bool {
	list, err := mounts(r.process)
	if err != nil {
		return true
	}
	for _, m := range list {
		served := m.fsType == "autofs" || m.fsType == "fuseblk" || m.fsType == "fuse" || strings.HasPrefix(m.fsType, "fuse.")
		if served && (m.point == "/" || path == m.point || strings.HasPrefix(path, m.point+"/")) {
			return true
		}
	}
	return false
}

// openInRoot takes a directory as the root, and follows no link.
func openInRoot(root int, path string, flags, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: pathOnly | flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | resolve}
	const tries = 8 // EAGAIN: something was renamed while the path led upwards
	for n := 1; ; n++ {
		fd, err := unix.Openat2(root, path, &how)
		again := errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) && resolve == 0
		if n == tries || !again {
			return fd, err
		}
	}
}

// openStepwise is the same without openat2; ".." is ELOOP too.
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

// lead opens what an absolute path leads to, and returns the path that leads there
// without links. That is the same, as a rule: the kernel gives no other. But who has
// made a mount namespace of his own can have directories where the host has links.
func (r *reference) lead(path string) (canonical string, fd int, err error) {
	if fd, err = r.open(path); !errors.Is(err, unix.ELOOP) || !r.scoped {
		return path, fd, err
	}
	if canonical, err = r.canonical(path); err != nil {
		return "", -1, err
	}
	fd, err = r.open(canonical)
	return canonical, fd, err
}

// canonical replaces the links in an absolute path by where they lead.
func (r *reference) canonical(path string) (string, error) {
	const mostLinks, mostNames = 40, 64 // MAXSYMLINKS, include/linux/namei.h; more than record walks
	at, rest := "", strings.Split(path, "/")
	for links, names := 0, 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = at[:max(strings.LastIndexByte(at, '/'), 0)]
			continue
		}
		if names++; names > mostNames {
			return "", unix.ENAMETOOLONG
		}
		target, err := r.target(at + "/" + name)
		if err != nil {
			return "", err
		}
		if target == "" {
			at += "/" + name
			continue
		}
		if links++; links > mostLinks {
			return "", unix.ELOOP
		}
		if target[0] == '/' {
			at = ""
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return "/" + strings.TrimPrefix(at, "/"), nil
}

// target returns where the link at a path leads, "" if no link is there. No part of
// the path before the last is one.
func (r *reference) target(path string) (string, error) {
	fd, err := r.openAs(path, unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var stx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &stx); err != nil {
		return "", err
	}
	if stx.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", nil
	}
	if r.waits(path) {
		return "", errWaits
	}
	text, err := linkAt(fd, "", make([]byte, unix.PathMax+1))
	return string(text), err
}

// look looks at what an absolute path leads to, and returns the path that leads
// there without links.
func (r *reference) look(path string) (canonical string, there file, err error) {
	canonical, fd, err := r.lead(path)
	if err != nil {
		return "", file{}, err
	}
	defer unix.Close(fd)
	there, err = fileAt(fd, "", unix.AT_EMPTY_PATH)
	return canonical, there, err
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

// HostMounts returns the mount namespace in which a path that the kernel has walked
// from a file to the root is one of Exe.Path; 0 if there is none.
func (fs *FS) HostMounts() uint32 {
	if !fs.ref.atRoot {
		return 0
	}
	return fs.ref.mountNS
}
