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
// CAP_DAC_READ_SEARCH for control groups by id; as root of the initial user
// namespace there is nothing to do. Pids are those of the pid namespace that the
// proc file system was mounted in.
//
// Paths of executables are told in the mount namespace of verdictd. If a service
// manager gives it one of its own, the path of a file that was deleted or
// replaced is never known, as its mount is not ours, and what is hidden
// (PrivateTmp=, ProtectHome=yes) has no path: Inside has it. Without CAP_SYS_ADMIN
// and CAP_SYS_CHROOT, or under RestrictNamespaces=, Open cannot tell whether our
// root directory is that of the namespace, with the first of these consequences.
//
// File systems in user space (FUSE), and dead
// network file systems, can let a call that looks at an executable wait: who must
// not wait calls from a goroutine of its own.
package procfs
