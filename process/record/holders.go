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
	_     uint32
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
	)
	c.zero(at, int(size))
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
		}
		if err := yield(&h); err != nil {
			return err
		}
	}
}
