package connector

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// Kind is what happened, or a set of such.
//
// Source: enum what, include/uapi/linux/cn_proc.h.
type Kind uint32

// Kinds of events.
const (
	Fork Kind = 0x1 // a process or thread was made
	Exec Kind = 0x2
	UID  Kind = 0x4 // the user of a process changed
	GID  Kind = 0x40
	Comm Kind = 0x200 // a thread's name was changed, but not by exec
	Exit Kind = 0x80000000

	// All are all kinds that are understood.
	All = Fork | Exec | UID | GID | Comm | Exit
)

// String returns the names of the kinds, joined by "|".
func (k Kind) String() string {
	var names []string
	for _, n := range []struct {
		kind Kind
		name string
	}{{Fork, "fork"}, {Exec, "exec"}, {UID, "uid"}, {GID, "gid"}, {Comm, "comm"}, {Exit, "exit"}} {
		if k&n.kind != 0 {
			names = append(names, n.name)
			k &^= n.kind
		}
	}
	if k != 0 || len(names) == 0 {
		names = append(names, fmt.Sprintf("kind(%#x)", uint32(k)))
	}
	return strings.Join(names, "|")
}

// Event is one event. It has no pointers: it can be copied and kept.
type Event struct {
	Kind Kind

	// PID and TID name the process and the thread that it happened to; of a
	// fork, the new ones. They are equal for a process's first thread: a Fork
	// where they differ made a thread of an older process, and an Exit where
	// they differ ended one. The process ends when its last thread does.
	PID, TID uint32

	// ParentPID and ParentTID are those of the parent. Valid iff Kind is Fork
	// or Exit; 0 if the parent is gone, or in another way unknown. Of a new
	// thread they are those of its process.
	ParentPID, ParentTID uint32

	// Real and Effective are the new numbers; valid iff Kind is UID or GID.
	Real, Effective uint32

	// ExitCode is as wait(2) has it, ExitSignal the signal that the parent is
	// sent; valid iff Kind is Exit.
	ExitCode, ExitSignal uint32

	comm [commSize]byte

	CPU  uint32        // where it happened
	Time time.Duration // when, by CLOCK_MONOTONIC
}

// Comm returns the new name; "" unless Kind is Comm.
func (e *Event) Comm() string {
	name, _, _ := bytes.Cut(e.comm[:], []byte{0})
	return string(name)
}

const commSize = 16

// struct nlmsghdr, then struct cn_msg: id (two words), seq, ack, 32 bits each,
// length and flags, 16 bits each, then struct proc_event: what, cpu, 32 bits
// each, timestamp, 64 bits, and what depends on the kind. All in host order.
const (
	nlHead   = 16
	cnSeq    = nlHead + 8
	cnAck    = nlHead + 12
	cnLen    = nlHead + 16
	cnHead   = 20
	procAt   = nlHead + cnHead
	procHead = 16
	dataSize = 24 // of the longest event; shorter ones are padded by the kernel
)

// message is a message of the kernel.
type message struct {
	seq, ack uint32
	what     Kind
	event    Event  // valid iff what is one kind of All
	errno    uint32 // valid iff what is 0: the answer to a request
}

// parse reads one datagram. It says whether that is a message of cn_proc.
func (m *message) parse(b []byte) bool {
	if len(b) < procAt+procHead+4 {
		return false
	}
	word := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	if word(nlHead) != idxProc || word(nlHead+4) != valProc {
		return false
	}
	*m = message{seq: word(cnSeq), ack: word(cnAck), what: Kind(word(procAt))}
	m.event = Event{Kind: m.what, CPU: word(procAt + 4), Time: time.Duration(binary.NativeEndian.Uint64(b[procAt+8:]))}
	data := b[procAt+procHead:]
	if m.what == 0 {
		m.errno = binary.NativeEndian.Uint32(data)
		return true
	}
	return m.what&All == 0 || m.event.parse(data)
}

// parse reads the data of an event of known kind. Thread numbers come before
// process numbers: the kernel's pid is what user space calls a thread.
func (e *Event) parse(b []byte) bool {
	if len(b) < dataSize {
		return false
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(b[4*i:]) }
	if e.Kind == Fork {
		e.ParentTID, e.ParentPID, e.TID, e.PID = word(0), word(1), word(2), word(3)
		return true
	}
	e.TID, e.PID = word(0), word(1)
	switch e.Kind {
	case UID, GID:
		e.Real, e.Effective = word(2), word(3)
	case Comm:
		e.comm = [commSize]byte(b[8:])
	case Exit:
		e.ExitCode, e.ExitSignal, e.ParentTID, e.ParentPID = word(2), word(3), word(4), word(5)
	case Exec:
	default:
		return false
	}
	return true
}
