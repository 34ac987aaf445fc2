package record

import (
	"strconv"
	"time"
)

// User is the user that the kernel names with a packet (NFQA_UID): the file system id
// of who made the file of the socket, which nothing changes. NoUser is for packets with
// which it names nobody: of the kernel, or of a socket that no file belongs to, as it is
// closed or not accepted yet.
type User uint32

// NoUser is the zero value.
const NoUser User = 0

// UserOf returns the User with an id of the initial user namespace.
func UserOf(uid uint32) User { return User(uid + 1) }

// Flow is what is known of the packets of one tuple with which the kernel names one
// user.
type Flow struct {
	// Cookie names the socket (SO_COOKIE). 0: the packet is of no socket, or of one
	// that the kernel keeps for its own resets and ICMP messages.
	Cookie uint64
	// Owner is who used the socket when the flow was recorded; valid iff HasOwner.
	HasOwner bool
	Owner    Owner
	// NetNS is the cookie of the socket's network namespace; 0 if unknown.
	NetNS uint64
	// Ambiguous: a socket of another program, user or cgroup than this one did less than 10 s
	// before this one's first, and the kernel names the same user with its packets: one that waits in a queue can be of either. The
	// record is that of the last one.
	Ambiguous bool
	// Kernel: a tunnel made the packet, around one of another socket, whose user is
	// that of the inner packet.
	Kernel bool
	// Doubtful: the packet carries a socket that need not have made it, so neither that
	// nor the user that the kernel names with it says whose it is.
	Doubtful bool
}

// Owner is who used a socket last.
type Owner struct {
	Cookie uint64 // the socket
	// PID is the process (in kernel terms tgid) and TID the thread, in the initial
	// pid namespace. Of several threads of a process TID is the first that used
	// the socket.
	PID, TID uint32
	// UID and GID are the real ids of the thread in the initial user namespace.
	UID, GID uint32
	// CgroupID is the inode of the thread's cgroup (version 2).
	CgroupID uint64
	// NetNS is the cookie of the socket's network namespace (SO_NETNS_COOKIE).
	NetNS uint64
	// Start is when the process was started, in nanoseconds of CLOCK_BOOTTIME; 0 if
	// unknown. With PID it names the process for good.
	Start uint64
	// ExecID counts the programs that the process and its ancestors had executed
	// when it used the socket: with another one, Process is of another program. 0
	// if unknown.
	ExecID uint64
	Comm   [16]byte // name of the thread, ended by 0; never proof of anything
	Hook   Hook     // the operation that made this the owner
	// Tick is what CLOCK_MONOTONIC_COARSE was at the operation, in nanoseconds: the clock
	// by which files are changed. 0 if that is not known.
	Tick   uint64
	Seeded bool // told by Seed
	// Tunnel: by this socket a tunnel of the kernel receives. Unclear: the kernel made
	// it, and whose it is nobody can tell. Nothing but Cookie is valid then.
	Tunnel, Unclear bool
}

// Process is what a process runs.
type Process struct {
	PID uint32
	// ParentPID and ParentStart name the parent when the record was made;
	// ParentPID is 0 if there is none.
	ParentPID uint32
	// Times in nanoseconds of CLOCK_BOOTTIME. Exec is when the program was started,
	// by this process or, without exec since, by one it was forked from; 0 if the
	// record was not made then.
	Start, ParentStart, Exec uint64
	ExecID, ParentExecID     uint64 // as in Owner; of the parent, when it made this process

	// Inode and Device are of the file that runs (that of /proc/PID/exe); Device as
	// st_dev of stat(2) encodes it, and 0 if it is not known. Inode is 0 if there is
	// none, as for threads of the kernel.
	Inode, Device uint64
	// Changed is when the file was changed last (ctime), in Unix nanoseconds, as it
	// was when the program was started. While it runs the file cannot change; a change
	// after that gets at least the time Owner.Tick, rounded down to Granularity, and
	// another one for certain if ChangedRead.
	Changed     int64
	ChangedRead bool
	Granularity time.Duration
	// FileSystem is its type as statfs(2) has it. UserMount: a user has mounted it,
	// in a user namespace.
	FileSystem uint32
	UserMount  bool
	// MountNS is the inode of the mount namespace that Path is of; 0 if the file is
	// in none (memfd, file system unmounted since).
	MountNS uint32
	// Path leads from the root of that namespace to the file. If PathCut, its
	// beginning is missing and it starts with "...". Without a slash in front the
	// file has only a name.
	Path    string
	PathCut bool
	// Nlink0: the file has no name in any directory: it was deleted, or never had
	// one (memfd).
	Nlink0 bool

	Comm    string // name of the first thread
	Args    string // arguments, separated by blanks, as the process shows them
	ArgsCut bool   // there were more
	TTY     string // controlling terminal, such as pts/3; empty if there is none

	Exited bool // the process is no more
}

// Hook is an operation on a socket.
type Hook uint8

// The operations.
const (
	// HookUnknown: found by other means (Seed). The zero value.
	HookUnknown Hook = iota
	// HookCreate: socket(2).
	HookCreate
	// HookBind: bind(2).
	HookBind
	// HookConnect: connect(2).
	HookConnect
	// HookSend: a datagram was sent by an unconnected socket.
	HookSend
	// HookAccept: nobody used the socket; the owner is that of the listener whose
	// connection it is. Who accepts can be another process.
	HookAccept
)

// String returns the operation's name.
func (h Hook) String() string {
	names := [...]string{"unknown", "create", "bind", "connect", "send", "accept"}
	if int(h) < len(names) {
		return names[h]
	}
	return strconv.Itoa(int(h))
}

// Stats says what a Recorder does and what it could not do.
type Stats struct {
	// Programs lists all programs, attached or not.
	Programs []Program
	// Missing names what the kernel or our rights lack, and what is not recorded
	// therefore. Empty if nothing.
	Missing []string
	// Inherited names the maps that were taken over.
	Inherited []string
	// Records that the kernel refused to write, by map; 0 in normal operation. What
	// LRU maps forget is not counted by the kernel.
	OwnersFailed, FlowsFailed, ProcessesFailed uint64
	// Busy is how often no scratch memory was free to make a process record. It is
	// made at the next operation on a socket.
	Busy uint64
}

// Program is the state of one BPF program.
type Program struct {
	Name     string
	Attached bool   // or, for the flow program, loaded: a rule attaches it
	Reason   string // why it is not; empty if it is
}
