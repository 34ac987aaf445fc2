package process

// Source says how the owner of a socket was found. Sources are ordered: a later
// one says more.
type Source uint8

// Sources.
const (
	// Unknown: nobody could tell. The zero value.
	Unknown Source = iota
	// Kernel: the packet is of no process, the kernel itself sent it.
	Kernel
	// UIDOnly: the kernel named the user id with the packet, and no more is known.
	UIDOnly
	// Diag: the socket was found by sock_diag, and the process that holds it in
	// /proc.
	Diag
	// BPFCookie: the socket was found by sock_diag, and its owner is the one
	// recorded when the socket was used.
	BPFCookie
	// BPFFlow: socket and owner were recorded in the kernel before the packet was
	// queued.
	BPFFlow
)

// Sources returns all sources by the names that policies and records spell.
func Sources() []string {
	return []string{"unknown", "kernel", "uid-only", "diag", "bpf-cookie", "bpf-flow"}
}

// String returns the source's name.
func (s Source) String() string {
	if names := Sources(); int(s) < len(names) {
		return names[s]
	}
	return "unknown"
}

// Owner is who owns the local socket of a packet. An Owner is never changed
// once others can see it: what is learned later makes a new one.
type Owner struct {
	// ID tells owners apart: whoever has the same ID is the same Owner, to the
	// last field. It is never 0 and not used twice in the life of a daemon.
	ID uint32

	Source Source

	// User and group that the socket was used by; valid iff HasUID, HasGID.
	UID, GID       uint32
	HasUID, HasGID bool
	User           string // name of UID; empty if it has none

	Process *Process // nil if it is not known
	Cgroup  Cgroup   // the zero value if it is not known
}

// Process is a process: a program that was started once.
type Process struct {
	// PID is the process id (in kernel terms tgid) in the initial pid namespace.
	PID uint32
	// Start is when the process came into being, in Unix nanoseconds. With PID it
	// names the process for good: pids are used again.
	Start int64

	Comm    string // name that the process gives itself; at most 15 bytes, never proof of anything
	Cmdline string // arguments, separated by blanks; cut at MaxCmdline bytes
	TTY     string // controlling terminal, such as pts/3; empty if there is none

	Exe Exe

	// Parents are the processes that this one descends from, its parent first, as
	// they were when each was started; at most MaxParents.
	Parents []Parent
}

// Exe is the file that a process runs.
type Exe struct {
	// Path leads, in the mount namespace of verdictd, to the file that runs. Empty
	// if there is no such path, or none that is known: then Inside may say more.
	// If Deleted, it is where the file was.
	Path string
	// Inside is the path as the process's own mount namespace names it. Whoever
	// may make mount namespaces, which is everybody on many systems, chooses it:
	// it is proof of nothing without the container that it stands in.
	Inside string

	Inode  uint64 // 0 if unknown
	Device uint64 // dev_t as stat(2) gives it; valid iff Inode is not 0

	Deleted bool   // Path does not lead to the file any more: it was deleted or replaced
	SHA256  string // of the file that runs, in hex; empty if it is not known (yet)
}

// Parent is one of the processes that another descends from.
type Parent struct {
	PID   uint32
	Start int64 // Unix nanoseconds
	Comm  string
	Exe   string // Exe.Path; empty if it is not known
}

// Bounds of what is kept of a process.
const (
	MaxParents = 8
	MaxCmdline = 4096
)
