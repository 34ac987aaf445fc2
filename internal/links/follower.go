package links

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A Follower knows the names of interfaces as of the moment at which it is asked.
// The kernel tells of a new interface, and of another name, before a packet can
// have come by it: so who reads what was told, and then looks at a packet, has the
// packet's name. Each Follower has a socket of its own and is for one goroutine.
type Follower struct {
	conn *netlink.Conn
	raw  syscall.RawConn
	read func(fd uintptr) bool
	buf  []byte
	n    int
	err  syscall.Errno

	near  [256]link // by index
	far   map[uint32]link
	ids   map[string]uint32
	next  uint32
	netns int

	changed map[uint32]struct{} // indexes that got another name in this Update
	doubts  map[uint32]int64    // and those that got several: until when nothing is said of them
	now     int64

	lost  bool // not all was read: no name is known until all is listed again
	again atomic.Pointer[map[uint32]string]
	list  chan struct{} // asks Run for again
}

type link struct {
	name string
	id   uint32
}

const (
	followBuffer = 64 << 10 // bytes; a message about an interface takes some 1.5 KiB
	followRoom   = 4 << 20  // bytes that the kernel keeps for us meanwhile
	maxReads     = 64       // of a full buffer, for one Update
	maxNames     = 1 << 16  // that numbers are kept for

	// doubtTime is how long nothing is said of an interface that changed its name
	// several times between two batches, in nanoseconds: for packets that waited.
	doubtTime = int64(10e6)
)

// Follow begins to follow the interfaces of the calling thread's network namespace,
// or of the one that the file descriptor netns refers to if it is not 0. Close frees
// the socket.
func Follow(netns int) (*Follower, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: netns, Groups: unix.RTMGRP_LINK})
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	f := &Follower{conn: conn, buf: make([]byte, followBuffer), netns: netns, list: make(chan struct{}, 1)}
	f.read = func(fd uintptr) bool {
		// A raw system call, as this one cannot block: any other wakes the
		// scheduler's monitor, which then runs thousands of times a second.
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&f.buf[0])),
			uintptr(len(f.buf)), unix.MSG_DONTWAIT, 0, 0)
		f.n, f.err = int(n), errno
		return true // whether there was something or not
	}
	if f.raw, err = conn.SyscallConn(); err == nil {
		// Without the right to take so much it gets what others get.
		_ = f.raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, followRoom) })
		var names map[uint32]string
		if names, err = dump(netns); err == nil {
			f.take(names)
			return f, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("follow network interfaces: %w", err), conn.Close())
}

// Close frees the socket.
func (f *Follower) Close() error { return f.conn.Close() }

// take begins anew with these names.
func (f *Follower) take(names map[uint32]string) {
	f.near, f.far, f.lost = [256]link{}, map[uint32]link{}, false
	for index, name := range names {
		f.put(index, name)
	}
}

func (f *Follower) put(index uint32, name string) {
	id, ok := f.ids[name]
	if !ok {
		if f.ids == nil || len(f.ids) >= maxNames {
			f.ids = map[string]uint32{} // numbers are not used twice
		}
		f.next++
		id = f.next
		f.ids[name] = id
	}
	if index < uint32(len(f.near)) {
		f.near[index] = link{name, id}
	} else {
		f.far[index] = link{name, id}
	}
}

func (f *Follower) drop(index uint32) {
	if index < uint32(len(f.near)) {
		f.near[index] = link{}
	}
	delete(f.far, index)
}

// Name returns the name of the interface, and a number that stands for it: the same
// for the same name, another for any other. Both are zero if there is no such
// interface or nothing is known of it.
func (f *Follower) Name(index uint32) (name string, id uint32) {
	l := link{}
	switch {
	case f.lost:
	case index < uint32(len(f.near)):
		l = f.near[index]
	default:
		l = f.far[index]
	}
	if len(f.doubts) > 0 && f.now < f.doubts[index] {
		return "", 0
	}
	return l.name, l.id
}

// Update reads what the kernel has told until now, in Unix nanoseconds. It does not
// wait. If it told more than could be kept or is read in one go, no name is known until
// Run has listed all interfaces again. If it told several names of one interface, a
// packet that has waited can have come by any of them: then none is known for a while.
func (f *Follower) Update(now int64) {
	f.now = now
	clear(f.changed)
	if names := f.again.Swap(nil); names != nil {
		f.take(*names)
	}
	for range maxReads {
		if f.raw.Read(f.read) != nil || f.err == unix.EAGAIN {
			return
		}
		if f.err == unix.EINTR {
			continue
		}
		if f.err != 0 { // ENOBUFS: messages were lost
			f.lose()
			continue
		}
		f.messages(f.buf[:f.n])
	}
	f.lose()
}

// lose forgets all names and asks for a new list. What is still to be read is older
// than that list, or in it.
func (f *Follower) lose() {
	f.lost = true
	f.again.Store(nil)
	select {
	case f.list <- struct{}{}:
	default:
	}
}

// Run lists all interfaces again when Update has lost some, until done is closed.
func (f *Follower) Run(done <-chan struct{}) error {
	for {
		select {
		case <-done:
			return nil
		case <-f.list:
		}
		names, err := dump(f.netns)
		if err != nil {
			return fmt.Errorf("list network interfaces: %w", err)
		}
		f.again.Store(&names)
	}
}

// messages enters the RTM_NEWLINK and RTM_DELLINK messages in b.
//
// Source: struct nlmsghdr, include/uapi/linux/netlink.h.
func (f *Follower) messages(b []byte) {
	const header = unix.SizeofNlMsghdr
	for len(b) >= header {
		size := int(binary.NativeEndian.Uint32(b))
		if size < header || size > len(b) {
			return
		}
		if body := b[header:size]; len(body) >= unix.SizeofIfInfomsg {
			f.message(binary.NativeEndian.Uint16(b[4:]), body)
		}
		b = b[min(align(size), len(b)):]
	}
}

func (f *Follower) message(typ uint16, body []byte) {
	index := binary.NativeEndian.Uint32(body[4:8])
	switch typ {
	case unix.RTM_DELLINK:
		if body[0] == unix.AF_UNSPEC { // else it has left its bridge
			f.drop(index)
		}
	case unix.RTM_NEWLINK:
		for attrs := body[unix.SizeofIfInfomsg:]; len(attrs) >= unix.SizeofNlAttr; {
			size := int(binary.NativeEndian.Uint16(attrs))
			if size < unix.SizeofNlAttr || size > len(attrs) {
				return
			}
			if binary.NativeEndian.Uint16(attrs[2:]) == unix.IFLA_IFNAME {
				f.rename(index, attrs[unix.SizeofNlAttr:size])
				return
			}
			attrs = attrs[min(align(size), len(attrs)):]
		}
	}
}

// rename enters a name, ended by 0. Most messages tell what is known.
func (f *Follower) rename(index uint32, name []byte) {
	for i, c := range name {
		if c == 0 {
			name = name[:i]
			break
		}
	}
	var known link
	if index < uint32(len(f.near)) {
		known = f.near[index]
	} else {
		known = f.far[index]
	}
	if known.name == string(name) {
		return
	}
	f.put(index, string(name))
	if known.name != "" {
		f.renamed(index)
	}
}

// renamed notes that an interface got another name, and once more in one Update that
// nothing is to be said of it.
func (f *Follower) renamed(index uint32) {
	if f.changed == nil {
		f.changed, f.doubts = map[uint32]struct{}{}, map[uint32]int64{}
	}
	if _, again := f.changed[index]; again {
		if len(f.doubts) >= maxNames {
			clear(f.doubts)
		}
		f.doubts[index] = f.now + doubtTime
	}
	f.changed[index] = struct{}{}
}

// align rounds up to the alignment of netlink messages and attributes.
func align(n int) int { return (n + 3) &^ 3 }
