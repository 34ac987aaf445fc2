package record

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/packet"
)

// layout is the version of the records below. It is part of the maps' names: a
// successor with other records makes maps of its own.
const layout = "10"

// flowKey is the key of the flows map: packet.Key with ports in network byte
// order, where the packet came from, and the user that the kernel names with it: so
// what one user sends is no matter of another's record.
type flowKey struct {
	Src, Dst [16]byte
	Ports    [4]byte // source, destination
	Protocol uint8
	Version  uint8
	_        [2]byte
	In       uint32 // interface that it came in by from another namespace; 0: sent here
	User     User
}

// flowRecord is the value of the flows map. All integers of records are in host
// byte order.
type flowRecord struct {
	Tuple  uint64 // hash of the key: see hash
	Cookie uint64
	NetNS  uint64
	Made   uint64 // CLOCK_MONOTONIC of the first packet of this record
	Last   uint64 // and of the last one
	Flags  uint32 // flow...
	In     uint32 // as in the key
	User   User   // as in the key
	_      uint32
	Owner  ownerRecord // zero without flowHasOwner
	Check  uint64      // Tuple ^ Cookie ^ Owner.Stamp
}

const (
	flowHasOwner = 1 << iota // Owner is valid
	flowTaken                // taken over from somebody else, within flowWindow
	flowKernel               // the socket is one of the kernel's own
	flowOuter                // a tunnel's packet, around one of another socket
	flowDoubt                // not made by its socket, nor for certain by a tunnel
	flowMixed                // taken over from or by one of these two
)

// flowWindow is how long a packet may wait in a queue while another program gets
// hold of its tuple.
const flowWindow = 10 * time.Second

// ownerRecord is the value of the owners map. From PID to ExecID it is what
// tells two owners apart, and so is GID.
type ownerRecord struct {
	Cookie   uint64
	Stamp    uint64 // CLOCK_MONOTONIC when it became the owner; never 0
	Tick     uint64 // and CLOCK_MONOTONIC_COARSE; 0 if that is not known
	PID, UID uint32
	CgroupID uint64
	NetNS    uint64
	Start    uint64
	ExecID   uint64 // counts execve in the process (task_struct.self_exec_id)
	Image    uint64 // address of the inode that runs: only for comparison
	GID, TID uint32
	Hook     uint32
	Flags    uint32 // owner...
	Share    uint64 // key of the shares map that the socket counts for; 0: of none
	Comm     [16]byte
	Check    uint64 // Cookie ^ Stamp
}

const (
	ownerSeeded  = 1 << iota
	ownerTunnel  // the socket is one by which a tunnel of the kernel receives
	ownerUnclear // the kernel made it, for whom it does not say
)

// Bounds of the texts in a process record. A component of a path has at most 255
// bytes and a 0, so one more always fits behind pathLimit.
const (
	argsSize      = 256
	pathSize      = 640
	componentSize = 256
	pathLimit     = pathSize - componentSize
	ttySize       = 32
)

// processKey is the key of the past map, of what processes ran before they ended or
// ran another program: it is still there for what they sent before. What a process
// runs now is in the running map, by its pid.
type processKey struct {
	PID    uint32
	ExecID uint32 // low half of processRecord.ExecID
}

// processRecord is the value of the running and past maps.
type processRecord struct {
	PID, ParentPID uint32
	Start          uint64
	ExecID         uint64
	ParentStart    uint64
	ParentExecID   uint64
	Exec           uint64
	Inode          uint64
	Changed        int64  // seconds of inode.i_ctime
	ChangedNanos   uint32 // and nanoseconds, with changedRead
	Granularity    uint32 // of times in the file system, ns
	Magic          uint32 // super_block.s_magic
	UserNS         uint32 // level of the user namespace that the file system was mounted in
	Device         uint32 // dev_t as the kernel keeps it; 0 if it is not known
	MountNS        uint32
	Nlink          uint32
	Flags          uint32 // process...
	ArgsLen        uint32 // bytes used of Args
	PathLen        uint32 // bytes used of Path
	Comm           [16]byte
	TTY            [ttySize]byte
	Args           [argsSize]byte
	Path           [pathSize]byte // components, innermost first, each ended by 0
	Check          uint64         // PID ^ Start ^ ExecID
}

// changedRead in ChangedNanos: somebody has asked for the time since the file was
// changed, so the next change gets another one, however soon it comes.
//
// Source: I_CTIME_QUERIED, include/linux/fs.h (Linux 6.13).
const changedRead = 1 << 31

const (
	processExited   = 1 << iota
	processPathCut  // components are missing
	processDetached // the walk ended at a file that hangs on no directory
	processArgsCut
	processUsed   // a socket, while it ran this
	processParent // has made another one, while it ran this
)

// Places of the counters map.
const (
	countOwners = iota
	countFlows
	countProcesses
	countBusy
	counters
)

// Sizes of values in bytes.
const (
	ownerSize   = int(unsafe.Sizeof(ownerRecord{}))
	flowSize    = int(unsafe.Sizeof(flowRecord{}))
	keySize     = int(unsafe.Sizeof(flowKey{}))
	processSize = int(unsafe.Sizeof(processRecord{}))
)

// encode fills in the key of a flow.
func (f *flowKey) encode(k *packet.Key, in uint32, user User) {
	f.In, f.User = in, user
	if in != 0 || k.SrcPort|k.DstPort == 0 {
		f.User = NoUser
	}
	f.Src, f.Dst = k.Src, k.Dst
	binary.BigEndian.PutUint16(f.Ports[0:2], k.SrcPort)
	binary.BigEndian.PutUint16(f.Ports[2:4], k.DstPort)
	f.Protocol, f.Version = k.Protocol, k.Version
}

// Numbers that the words of a key are multiplied with: odd, and otherwise
// arbitrary (fractional parts of square roots of 2, 3, 5, 7 and 11).
const (
	hash0 = 0x6a09e667f3bcc909
	hash1 = 0xbb67ae8584caa73b
	hash2 = 0x3c6ef372fe94f82b
	hash3 = 0xa54ff53a5f1d36f1
	hash4 = 0x510e527fade682d1
)

// hash mixes the five words of the key that encode makes. The flow program
// computes the same.
func hash(k *packet.Key) uint64 {
	last := uint64(k.SrcPort)<<48 | uint64(k.DstPort)<<32 | uint64(k.Protocol)<<24 | uint64(k.Version)<<16
	if !nativeBig() {
		last = bits.ReverseBytes64(last)
	}
	return word(k.Src[0:8])*hash0 + word(k.Src[8:16])*hash1 +
		word(k.Dst[0:8])*hash2 + word(k.Dst[8:16])*hash3 + last*hash4
}

// word reads eight bytes as the kernel would.
func word(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

// nativeBig says whether this machine is big-endian.
func nativeBig() bool { return binary.NativeEndian.Uint16([]byte{0, 1}) == 1 }

// The changes map is one array of counters: those of flows, of which one is named
// by the top bits of a flow's hash, those of execve, named by the low bits of a pid,
// and those of sockets that come to a port or leave it, named by its low bits.
const (
	bucketBits  = 10
	buckets     = 1 << bucketBits
	bucketShift = 64 - bucketBits
)

// decode says whether the record is whole and of the tuple, and fills in f.
func (r *flowRecord) decode(tuple uint64, k *flowKey, f *Flow) bool {
	if r.Tuple != tuple || r.In != k.In || r.User != k.User || r.Check != r.Tuple^r.Cookie^r.Owner.Stamp {
		return false
	}
	f.Cookie, f.NetNS = r.Cookie, r.NetNS
	f.HasOwner = r.Flags&flowHasOwner != 0
	f.Ambiguous = r.Flags&flowTaken != 0
	f.Kernel = r.Flags&flowOuter != 0 && !f.Ambiguous
	f.Doubtful = r.Flags&flowDoubt != 0 || f.Ambiguous && r.Flags&flowMixed != 0
	if r.Flags&flowKernel != 0 {
		f.Cookie = 0
	}
	if f.HasOwner {
		return r.Owner.decode(r.Cookie, &f.Owner)
	}
	f.Owner = Owner{}
	return true
}

// decode says whether the record is whole and of the socket, and fills in o.
func (r *ownerRecord) decode(cookie uint64, o *Owner) bool {
	if r.Cookie != cookie || r.Check != r.Cookie^r.Stamp {
		return false
	}
	*o = Owner{
		Cookie: r.Cookie, PID: r.PID, TID: r.TID, UID: r.UID, GID: r.GID,
		CgroupID: r.CgroupID, NetNS: r.NetNS, Start: r.Start, ExecID: r.ExecID,
		Comm: r.Comm, Hook: Hook(r.Hook), Tick: r.Tick, Seeded: r.Flags&ownerSeeded != 0,
		Tunnel: r.Flags&ownerTunnel != 0, Unclear: r.Flags&ownerUnclear != 0,
	}
	return true
}

// encode is the reverse of decode, for an owner that was found at stamp.
func (r *ownerRecord) encode(o *Owner, stamp uint64) {
	*r = ownerRecord{
		Cookie: o.Cookie, Stamp: stamp, PID: o.PID, TID: o.TID, UID: o.UID, GID: o.GID,
		CgroupID: o.CgroupID, NetNS: o.NetNS, Start: o.Start,
		Comm: o.Comm, Hook: uint32(o.Hook), Flags: ownerSeeded, Check: o.Cookie ^ stamp,
	}
}

// whole says whether the record was not replaced while it was read.
func (r *processRecord) whole() bool { return r.Check == uint64(r.PID)^r.Start^r.ExecID }

// decode says whether the record is whole and of the process, and fills in p.
func (r *processRecord) decode(k processKey, p *Process) bool {
	if r.PID != k.PID || uint32(r.ExecID) != k.ExecID || !r.whole() {
		return false
	}
	*p = Process{
		PID: r.PID, ParentPID: r.ParentPID,
		Start: r.Start, ParentStart: r.ParentStart, Exec: r.Exec, ExecID: r.ExecID, ParentExecID: r.ParentExecID,
		Inode: r.Inode, Device: device(r.Device), MountNS: r.MountNS,
		Changed: r.Changed*int64(time.Second) + int64(r.ChangedNanos&^changedRead), ChangedRead: r.ChangedNanos&changedRead != 0,
		Granularity: time.Duration(r.Granularity), FileSystem: r.Magic, UserMount: r.UserNS != 0,
		Nlink0:  r.Inode != 0 && r.Nlink == 0,
		PathCut: r.Flags&processPathCut != 0, ArgsCut: r.Flags&processArgsCut != 0,
		Exited: r.Flags&processExited != 0,
		Comm:   text(r.Comm[:]), TTY: terminal(text(r.TTY[:])), Args: arguments(r.Args[:min(r.ArgsLen, argsSize)]),
	}
	p.Path = path(r.Path[:min(r.PathLen, pathSize)], p.PathCut, r.Flags&processDetached != 0)
	return true
}

// device turns the kernel's dev_t (12 bits major, 20 bits minor) into that of
// stat(2).
func device(dev uint32) uint64 { return unix.Mkdev(dev>>20, dev&0xfffff) }

// text returns what stands before the first 0.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// terminal puts a slash into the kernel's name of a pseudo terminal.
func terminal(name string) string {
	if number, ok := strings.CutPrefix(name, "pts"); ok && number != "" && number[0] != '/' {
		return "pts/" + number
	}
	return name
}

// arguments puts blanks between arguments that are ended by 0.
func arguments(b []byte) string {
	b = bytes.TrimRight(b, "\x00")
	return string(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
}

// path puts a path together from its components, innermost first. A walk that
// was cut begins with "..."; what hangs on no directory has only a name.
func path(b []byte, cut, detached bool) string {
	if len(b) == 0 {
		return ""
	}
	parts := bytes.Split(b[:len(b)-1], []byte{0})
	out := make([]byte, 0, len(b)+len("..."))
	if cut {
		out = append(out, "..."...)
	}
	for i := len(parts) - 1; i >= 0; i-- {
		if len(out) > 0 || !detached {
			out = append(out, '/')
		}
		out = append(out, parts[i]...)
	}
	return string(out)
}
