package record

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unsafe"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// holdersPart is the name of the program that lists who holds sockets, and
// taskFile the iterator it is of.
const (
	holdersPart = "holders"
	taskFile    = "task_file"
)

// Holder is one descriptor of a socket.
type Holder struct {
	Start uint64 // of the process, ns of CLOCK_BOOTTIME
	Inode uint32 // of the socket
	PID   uint32 // in the initial pid namespace
	FD    uint32
	UID   uint32 // of the socket
	// Cookie names the socket, and CgroupID is the inode of the control group
	// (version 2) that it was made in. Both are 0 if it is none of IP, or if the kernel
	// does not tell.
	Cookie, CgroupID uint64
}

// Offsets of struct bpf_iter_meta and bpf_iter__task_file, include/linux/bpf.h and
// kernel/bpf/task_iter.c. They are the kernel's interface.
const (
	iterMeta = 0
	iterTask = 8
	iterFD   = 16
	iterFile = 24
	metaSeq  = 0
)

// holders writes a Holder for a descriptor if it is of a socket. The kernel calls
// it for each descriptor of each process, and once without one at the end.
func (p *programs) holders() asm.Instructions {
	var h Holder
	const size = int16(unsafe.Sizeof(h))
	const at, scratch = -size, -size - 8
	place := func(offset uintptr) int16 { return at + int16(offset) }
	c := &code{}
	c.add(
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, iterTask, asm.DWord),
		asm.JEq.Imm(asm.R7, 0, "done"),
		asm.LoadMem(asm.R8, asm.R6, iterFile, asm.DWord),
		asm.JEq.Imm(asm.R8, 0, "done"),
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.FnSockFromFile.Call(),
		asm.JEq.Imm(asm.R0, 0, "done"),
		asm.LoadMem(asm.R9, asm.R0, p.offsets.socketSock, asm.DWord),
	)
	c.zero(at, int(size))
	c.add(asm.JEq.Imm(asm.R9, 0, "file"))
	p.internetSocket(c, at, scratch)
	c.label("file")
	c.follow(asm.R8, asm.R8, p.offsets.fileInode, scratch)
	c.follow(asm.R8, asm.R8, p.offsets.inodeNumber, scratch)
	c.add(asm.StoreMem(asm.R10, place(unsafe.Offsetof(h.Inode)), asm.R8, asm.Word))
	c.probe(place(unsafe.Offsetof(h.PID)), 4, asm.R7, p.offsets.taskTGID)
	// The descriptors are the process's, so the start is too: that of its leader.
	c.follow(asm.R7, asm.R7, p.offsets.taskLeader, scratch)
	c.probe(place(unsafe.Offsetof(h.Start)), 8, asm.R7, p.offsets.taskStart)
	c.add(
		asm.LoadMem(asm.R1, asm.R6, iterFD, asm.Word),
		asm.StoreMem(asm.R10, place(unsafe.Offsetof(h.FD)), asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R6, iterMeta, asm.DWord),
		asm.LoadMem(asm.R1, asm.R1, metaSeq, asm.DWord),
	)
	c.stack(asm.R2, at)
	c.add(asm.Mov.Imm(asm.R3, int32(size)), asm.FnSeqWrite.Call())
	c.label("done")
	c.end(0)
	return c.ins
}

// internetSocket notes which socket of IP R9 is, and whose.
func (p *programs) internetSocket(c *code, at, scratch int16) {
	var h Holder
	o := p.offsets
	c.probe(scratch, 2, asm.R9, o.sockFamily)
	c.add(
		asm.LoadMem(asm.R1, asm.R10, scratch, asm.Half),
		asm.JEq.Imm(asm.R1, unix.AF_INET, "internet"), asm.JNE.Imm(asm.R1, unix.AF_INET6, "file"),
	)
	c.label("internet")
	c.add(
		asm.Mov.Reg(asm.R1, asm.R9), asm.FnGetSocketCookie.Call(),
		asm.StoreMem(asm.R10, at+int16(unsafe.Offsetof(h.Cookie)), asm.R0, asm.DWord),
	)
	c.probe(at+int16(unsafe.Offsetof(h.UID)), 4, asm.R9, o.sockUID)
	if o.cgroupID != 0 {
		c.follow(asm.R1, asm.R9, o.sockCgroup, scratch)
		c.follow(asm.R1, asm.R1, o.cgroupNode, scratch)
		c.probe(at+int16(unsafe.Offsetof(h.CgroupID)), 8, asm.R1, o.cgroupID)
	}
}

// ListsHolders tells whether Holders can be called: the kernel has BTF and the
// iterator over descriptors (Linux 5.11 and later).
func (r *Recorder) ListsHolders() bool { return r.iter != nil }

// Holders gives every descriptor of a socket, of every process that there is, from
// the kernel's own tables: nothing is opened, and no right to look at the process
// is needed. It ends at the first error of yield, or when ctx is done, and returns
// that error. Sockets that are on their way through a Unix socket, or that only
// io_uring holds, are not seen.
//
// It takes about a microsecond for each descriptor: it is not for the packet path.
func (r *Recorder) Holders(ctx context.Context, yield func(h *Holder) error) error {
	if r.iter == nil {
		return fmt.Errorf("list holders of sockets: %w", errors.ErrUnsupported)
	}
	from, err := r.iter.Open()
	if err != nil {
		return fmt.Errorf("list holders of sockets: open iterator: %w", err)
	}
	defer from.Close()
	in := bufio.NewReaderSize(from, 32<<10)
	var b [unsafe.Sizeof(Holder{})]byte
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := io.ReadFull(in, b[:])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list holders of sockets: %w", err)
		}
		h := Holder{
			Start: word(b[:]),
			Inode: binary.NativeEndian.Uint32(b[8:]),
			PID:   binary.NativeEndian.Uint32(b[12:]),
			FD:    binary.NativeEndian.Uint32(b[16:]),
			UID:   binary.NativeEndian.Uint32(b[20:]), Cookie: word(b[24:]), CgroupID: word(b[32:]),
		}
		if err := yield(&h); err != nil {
			return err
		}
	}
}
