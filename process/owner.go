package process

import "slices"

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
	// LookedUp: the kernel recorded which process used the socket, for which user and
	// in which control group. What it runs was looked up in /proc, where it can choose
	// that: it has executed no program since the recording began.
	LookedUp
	// BPFCookie: the socket was found by sock_diag, and its owner is the one
	// recorded when the socket was used.
	BPFCookie
	// BPFFlow: socket and owner were recorded in the kernel before the packet was
	// queued.
	BPFFlow
)

// Sources returns all sources by the names that policies and records spell.
func Sources() []string {
	return []string{"unknown", "kernel", "uid-only", "diag", "looked-up", "bpf-cookie", "bpf-flow"}
}

// String returns the source's name.
func (s Source) String() string {
	if names := Sources(); int(s) < len(names) {
		return names[s]
	}
	return "unknown"
}

// MarshalText returns the source's name.
func (s Source) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a name; one that is not known is Unknown.
func (s *Source) UnmarshalText(name []byte) error {
	*s = Source(max(slices.Index(Sources(), string(name)), 0))
	return nil
}

// Owner is who owns the local socket of a packet. An Owner is never changed
// once others can see it: what is learned later makes a new one.
type Owner struct {
	// ID tells owners apart: whoever has the same ID is the same Owner, to the
	// last field. It is never 0 and not used twice in the life of a daemon.
	ID     uint32 `json:"-"`
	Source Source `json:"source"`

	// User and group that the socket was used by; valid iff HasUID, HasGID.
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	HasUID bool   `json:"has_uid"`
	HasGID bool   `json:"has_gid"`
	User   string `json:"user,omitempty"` // name of UID; empty if it has none

	Process *Process `json:"process,omitempty"` // nil if it is not known

	// Later, if it is not nil, returns the owner with what has been looked up since,
	// and whether that is all: for records, not for decisions. It may be called from
	// any goroutine.
	Later func() (o *Owner, whole bool) `json:"-"`

	Cgroup Cgroup `json:"cgroup"` // the zero value if it is not known
}

// Process is a process: a program that was started once.
type Process struct {
	// PID is the process id (in kernel terms tgid) in the initial pid namespace. 0 if
	// several processes hold the socket and nobody recorded which of them used it:
	// then the Process is what is true of all of them, without Start, Cmdline and
	// Parents, which tell them apart.
	PID uint32 `json:"pid"`
	// Start is when the process came into being, in Unix nanoseconds. With PID it
	// names the process for good: pids are used again.
	Start int64 `json:"start"`

	Comm    string `json:"comm"`              // name that the process gives itself; at most 15 bytes, never proof of anything
	Cmdline string `json:"cmdline,omitempty"` // arguments, separated by blanks; cut at MaxCmdline bytes
	TTY     string `json:"tty,omitempty"`     // controlling terminal, such as pts/3; empty if there is none

	Exe Exe `json:"exe"`

	// Parents are the processes that this one descends from, its parent first, as
	// they were when each was started; at most MaxParents.
	Parents []Parent `json:"parents,omitempty"`
}

// Exe is the file that a process runs.
type Exe struct {
	// Path leads, in the mount namespace of the host (that of process 1, see package
	// procfs), to the file that runs. Empty if there is no such path, or none that
	// is known: then Inside may say more. If Deleted, it is where the file was.
	Path string `json:"path,omitempty"`
	// Inside is the path as the process's own mount namespace names it. Whoever
	// may make mount namespaces, which is everybody on many systems, chooses it:
	// it is proof of nothing without the container that it stands in.
	Inside string `json:"inside,omitempty"`

	Inode  uint64 `json:"inode,omitempty"`  // 0 if unknown
	Device uint64 `json:"device,omitempty"` // dev_t as stat(2) gives it; valid iff Inode is not 0

	Deleted bool   `json:"deleted"`          // Path does not lead to the file any more: it was deleted or replaced
	SHA256  string `json:"sha256,omitempty"` // of the file that runs, in hex; empty if it is not known (yet)
	// NoSHA256 says why there never will be one: NoHash...
	NoSHA256 string `json:"no_sha256,omitempty"`
	// Changed is when the file was changed last before it was executed (ctime, Unix
	// ns): what has another one by now is not what runs. 0 if nobody recorded it.
	Changed int64 `json:"-"`
}

// Why there is no hash of the file that runs.
const (
	NoHashTooLarge   = "too large"
	NoHashTooSlow    = "hashing took too long"
	NoHashUnreadable = "unreadable"
	// NoHashFresh: the file was changed so soon before it was executed that another
	// change soon afterwards would not show. The next time it is executed there is one.
	NoHashFresh = "changed in the moment in which it was started"
	// NoHashChanged: it has been changed since.
	NoHashChanged = "changed since it was started"
	// NoHashFileSystem: who serves or mounted its file system can change files that run.
	NoHashFileSystem = "its file system shows what others say"
	// NoHashKernel: this kernel lets files be changed that run.
	NoHashKernel = "this kernel lets programs that run be changed"
)

// Parent is one of the processes that another descends from.
type Parent struct {
	PID   uint32 `json:"pid"`
	Start int64  `json:"start"` // Unix nanoseconds
	Comm  string `json:"comm"`
	Exe   string `json:"exe,omitempty"` // Exe.Path; empty if it is not known
}

// Bounds of what is kept of a process.
const (
	MaxParents = 8
	MaxCmdline = 4096
)
