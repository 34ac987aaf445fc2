// Package procfs says what /proc and the tree of control groups tell of
// processes, of the sockets they hold and of the files they run.
//
// It owns reading, the rule by which the path of an executable is believed (see
// FS.Exe), the names of users, and the hashing of executables. It must not know
// packets or sockets, nor how a process was found: attribution does. Nothing
// here is for the packet path, but Users.Name and Hasher.Lookup.
//
// What it cannot read is absent from an answer, never guessed. An answer is of
// one process: /proc/PID is opened once and everything is read below that
// descriptor, which the kernel ties to the process and not to the number.
//
// Rights: CAP_SYS_PTRACE for executables and descriptors of others' processes,
// CAP_DAC_READ_SEARCH for control groups by id and for directories that are closed
// to root; as root of the initial user namespace there is nothing to do. Pids are
// those of the pid namespace that the proc file system was mounted in.
//
// # Whose paths
//
// A path of an executable is told as process 1 of that pid namespace sees it: on a
// host the init system's mount namespace, whatever the service manager has hidden
// from verdictd or put in its place (ProtectSystem=, PrivateTmp=); in a container
// with pids of its own, the container's. It is looked up from /proc/1/root, without
// symbolic links (openat2, RESOLVE_IN_ROOT and RESOLVE_NO_SYMLINKS). Where the name
// that a process has for its file leads by a link of the host, the path is the one
// behind it, as the host's kernel gives it: /var/tmp/a, not /usr/tmp/a. What is
// believed, and why:
//
//   - A path that leads to the very file: to make it lead there takes the right to
//     write in a directory of the host. Files are the same if stat(2) gives the same
//     device and inode for both, and the same subvolume where it tells one. What was
//     recorded in the kernel is compared only where it is of the same kind: see
//     package record and FS.ResolveExe.
//   - The path of a file that is gone, if the mount it was opened through is one of
//     that namespace. The kernel makes the path by walking from the file to where
//     no mount is above. Mounts of other namespaces, which users can make in a user
//     namespace, and mounts that were taken away are in no list of mounts that the
//     kernel gives for process 1, also if the file is executed in another namespace
//     by its descriptor; and the number of a mount is not used again while the file
//     is open.
//   - For the latter to be a path from process 1's root directory, that must be the
//     root of its namespace, and our own must be in another namespace: else the
//     kernel would end its walk there. FS.Open proves both by the path that the
//     kernel has for /proc/1/root, without any right but to open it.
//
// A process in a chroot, or in a container that shares its files with the host,
// has a path with the directory of that chroot before it. One in a container with
// a file system of its own has only Inside.
//
// Our own mount namespace is used if it is process 1's, if /proc/1/root may not be
// opened or if the proof fails, which it does if process 1 or verdictd was put into
// a chroot in process 1's namespace. Paths are then those from our root directory.
// That it is the root of the namespace shows by entering the namespace again, with
// CAP_SYS_ADMIN and CAP_SYS_CHROOT and without RestrictNamespaces=; if it cannot be
// shown, files that are gone have no Path. FS.Missing tells.
//
// # What can wait
//
// A file system in user space (FUSE) can let a call wait for ever, and SIGKILL does
// not end that. So a path is gone in the kernel's memory only (RESOLVE_CACHED, Linux
// 5.12), or, if not all of it is there, if process 1's list of mounts has no such
// file system on the way. What cannot be looked at has the path that the kernel
// walked, or none. A dead network file system can let a call wait, and so can a
// process the reading of its arguments (Process), by holding the lock of its memory
// map: who must not wait calls from a goroutine of its own.
package procfs
