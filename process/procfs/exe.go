package procfs

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/process"
)

// Exe says what a process runs. The zero Exe is the answer for a thread of the
// kernel, for a process that has ended and for one that we may not look at.
//
// Path is set in two cases:
//
//   - It leads, by no symbolic link, to the very file (device and inode, both by
//     stat(2)) that runs. Then it does not matter who says so.
//   - It does not, but the file was opened through a mount of the reference, so
//     its link in /proc, which the kernel makes by walking from the file to the
//     root, names the place where it was: Deleted.
//
// The reference is the mount namespace of process 1 or, if that cannot be had,
// our own: see the package.
//
// In which mount namespace the process is says nothing: a file opened in another
// one can be executed by its descriptor, and /proc/PID/exe then shows the path
// that it has there. In all other cases only Inside is set.
//
// A name that itself ends in " (deleted)" is told from the mark of the kernel by
// what the whole path leads to.
func (fs *FS) Exe(pid uint32) (process.Exe, error) {
	e, err := fs.entry(pid)
	if err != nil {
		return process.Exe{}, err
	}
	defer e.close()
	st, err := e.stat()
	if err != nil {
		return process.Exe{}, processError(pid, err)
	}
	return fs.exe(e, st), nil
}

// file identifies a file as stat(2) does.
type file struct {
	inode, device uint64
	volume        uint64 // subvolume, where the file system tells (STATX_SUBVOL, Linux 6.10); else 0
	links         uint64
	regular       bool
}

func (f file) same(g file) bool {
	return f.inode == g.inode && f.device == g.device && f.volume == g.volume
}

// fileAt looks at a file without going to a server for it.
func fileAt(dir int, name string, flags int) (file, error) {
	var stx unix.Statx_t
	flags |= unix.AT_STATX_DONT_SYNC | unix.AT_NO_AUTOMOUNT
	const mask = unix.STATX_INO | unix.STATX_NLINK | unix.STATX_TYPE | unix.STATX_SUBVOL
	if err := unix.Statx(dir, name, flags, mask, &stx); err != nil {
		return file{}, err
	}
	f := file{
		inode: stx.Ino, device: unix.Mkdev(stx.Dev_major, stx.Dev_minor),
		links: uint64(stx.Nlink), regular: stx.Mode&unix.S_IFMT == unix.S_IFREG,
	}
	if stx.Mask&unix.STATX_SUBVOL != 0 {
		f.volume = stx.Subvol
	}
	return f, nil
}

// exe is Exe for an opened entry.
func (fs *FS) exe(e entry, st stat) process.Exe {
	if st.kernel {
		return process.Exe{}
	}
	fd, err := fs.openExe(e, st)
	if err != nil {
		return process.Exe{}
	}
	defer unix.Close(fd)
	// What the descriptor is and where it is are now of one file, whatever the
	// process does.
	running, err := fileAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return process.Exe{}
	}
	exe := process.Exe{Inode: running.inode, Device: running.device, Deleted: running.links == 0}
	text, err := linkAt(fs.self, "fd/"+strconv.Itoa(fd), make([]byte, unix.PathMax+1))
	// "/" stands for a file that was moved out of the directory that is mounted:
	// prepend_path, fs/d_path.c.
	if err != nil || string(text) == "/" {
		return exe
	}
	fs.ref.place(&exe, string(text), running, func() bool { return fs.ref.atRoot && fs.ref.has(fd) })
	return exe
}

// openExe opens the file that the entry runs, only to stand on it.
func (fs *FS) openExe(e entry, st stat) (int, error) {
	fd, err := openat(e.fd, "exe", pathOnly)
	if err == nil || !st.zombie() || st.threads <= 1 {
		return fd, err
	}
	dir, err := e.threadDir()
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return openat(dir, "exe", pathOnly)
}

// mark is what the kernel appends to the path of a file that has lost it.
const mark = " (deleted)"

// place sets Path, Inside and Deleted by the kernel's text. walked tells whether
// text was walked to the root of the reference; it is asked only if the file is
// not at its path.
func (r *reference) place(exe *process.Exe, text string, running file, walked func() bool) {
	name, marked := strings.CutSuffix(text, mark)
	path, there, err := r.look(text)
	if err == nil && there.same(running) {
		exe.Inside, exe.Deleted = process.Text([]byte(text)), false
		exe.Path = process.Text([]byte(path))
		return
	}
	// The mark may be part of the name if links are left and something is at the
	// whole path: nobody can say.
	if ambiguous := marked && running.links > 0 && err == nil; ambiguous {
		exe.Inside = process.Text([]byte(text))
		return
	}
	exe.Inside = process.Text([]byte(name))
	if marked {
		exe.Deleted = true
		// Deleted, and put back as a link to the same file.
		if path, there, err := r.look(name); err == nil && there.same(running) {
			exe.Path, exe.Deleted = process.Text([]byte(path)), false
			return
		}
	}
	if strings.HasPrefix(name, "/") && walked() {
		exe.Path, exe.Deleted = exe.Inside, marked || !errors.Is(err, errWaits)
	}
}

// Device converts a device number as the kernel keeps it (s_dev of a super block)
// to the dev_t that stat(2) gives.
func Device(kernel uint32) uint64 {
	const minorBits = 20 // MINORBITS, include/linux/kdev_t.h
	return unix.Mkdev(kernel>>minorBits, kernel&(1<<minorBits-1))
}

// LeadsTo tells whether a path, as process.Exe.Path has it, leads to a file as the
// kernel has recorded it. It costs two system calls.
func (fs *FS) LeadsTo(path string, inode, device uint64) bool {
	fd, err := fs.ref.open(path)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	there, err := fileAt(fd, "", unix.AT_EMPTY_PATH)
	return err == nil && isRecorded(fd, there, file{inode: inode, device: device})
}

// Runs tells whether a process runs a file now, by one system call. inode and
// device are those of an Exe that was found to be at its path.
func (fs *FS) Runs(pid uint32, inode, device uint64) bool {
	there, err := fileAt(fs.root, strconv.FormatUint(uint64(pid), 10)+"/exe", 0)
	return err == nil && inode != 0 && there.inode == inode && there.device == device
}

// ResolveExe is Exe for a record that was made in the kernel when the process
// executed a file; the process may have ended since.
//
// inside is the file's path, the bytes as the kernel has them, without a mark of
// deletion, walked from the file up to the root of the mount namespace mountNS.
// mountNS must be the namespace of the mount that the file was opened through,
// or 0 if that is not known, or if the walk left the mounted directory. The
// namespace of the process will not do: see Exe.
// inode and device are those of the file as stat(2) has them, or 0 if they are not
// known: then the file cannot be told from others, and no path leads to it.
// startBoot is the start of the process, in ns of CLOCK_BOOTTIME.
//
// While the process lives and runs that file, the answer is that of Exe. If it
// does not, Path is set if it leads to that file and, as Deleted, if mountNS is the
// namespace of the reference and its root directory is the root of that.
// Inode and Device are as recorded. Where the kernel has another device for a file
// than stat(2) (overlayfs over several disks without xino), no path is known to lead
// to it, and Path is the one by mountNS, if any.
func (fs *FS) ResolveExe(inside string, inode, device uint64, mountNS uint32, pid uint32, startBoot uint64) process.Exe {
	recorded := file{inode: inode, device: device}
	if exe, ok := fs.liveExe(recorded, pid, startBoot); ok {
		return exe
	}
	exe := process.Exe{Inside: process.Text([]byte(inside)), Inode: inode}
	if inode != 0 {
		exe.Device = device
	}
	if !strings.HasPrefix(inside, "/") {
		return exe
	}
	walked := fs.ref.atRoot && mountNS == fs.ref.mountNS
	path, fd, err := fs.ref.lead(inside)
	switch {
	case err == nil:
		defer unix.Close(fd)
	case walked && errors.Is(err, errWaits):
		exe.Path = exe.Inside
		return exe
	default:
		// Only that there is nothing shows that the file is gone.
		if gone := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR); walked && gone {
			exe.Path, exe.Deleted = exe.Inside, true
		}
		return exe
	}
	there, err := fileAt(fd, "", unix.AT_EMPTY_PATH)
	switch {
	case err != nil || inode == 0:
	case isRecorded(fd, there, recorded):
		exe.Path = process.Text([]byte(path))
	case walked: // another one is there, or, by another device, nobody can say
		exe.Path, exe.Deleted = exe.Inside, there.inode != inode || there.device == device
	}
	return exe
}

// liveExe is the Exe of a process if it is the one that started then and runs
// the recorded file.
func (fs *FS) liveExe(recorded file, pid uint32, startBoot uint64) (process.Exe, bool) {
	e, err := fs.entry(pid)
	if err != nil {
		return process.Exe{}, false
	}
	defer e.close()
	st, err := e.stat()
	if err != nil || st.kernel || !SameStartBoot(st.start, startBoot) {
		return process.Exe{}, false
	}
	fd, err := fs.openExe(e, st)
	if err != nil {
		return process.Exe{}, false
	}
	defer unix.Close(fd)
	running, err := fileAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil || !isRecorded(fd, running, recorded) {
		return process.Exe{}, false
	}
	exe := fs.exe(e, st)
	return exe, exe.Inode == running.inode && exe.Device == running.device
}

// isRecorded tells whether an open file is the one that the kernel recorded, by
// inode and device. Where inode numbers are those of a subvolume, that is enough
// only if each has a device of its own: on btrfs.
func isRecorded(fd int, there, recorded file) bool {
	if recorded.inode == 0 || recorded.device == 0 || there.inode != recorded.inode || there.device != recorded.device {
		return false
	}
	if there.volume == 0 {
		return true
	}
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.BTRFS_SUPER_MAGIC
}
