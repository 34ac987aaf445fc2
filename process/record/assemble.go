package record

import (
	"slices"
	"strconv"

	"github.com/cilium/ebpf/asm"
)

// code is a program under construction. Labels are names of places; fresh ones
// may be asked for, so a piece can be put in twice.
type code struct {
	ins     asm.Instructions
	pending string // label of the next instruction
	labels  int
}

// add appends instructions.
func (c *code) add(ins ...asm.Instruction) {
	for _, i := range ins {
		if c.pending != "" {
			i = i.WithSymbol(c.pending)
			c.pending = ""
		}
		c.ins = append(c.ins, i)
	}
}

// label names the place of the next instruction. Two labels at one place are
// joined by a jump.
func (c *code) label(name string) {
	if c.pending != "" {
		c.add(asm.Ja.Label(name))
	}
	c.pending = name
}

// fresh returns a label that was not used yet.
func (c *code) fresh() string {
	c.labels++
	return "l" + strconv.Itoa(c.labels)
}

// zero clears stack memory from offset at on; size is a multiple of 8. R1 is
// lost.
func (c *code) zero(at int16, size int) {
	c.add(asm.Mov.Imm(asm.R1, 0))
	for i := range int16(size / 8) {
		c.add(asm.StoreMem(asm.R10, at+i*8, asm.R1, asm.DWord))
	}
}

// stack points reg at a place of the stack.
func (c *code) stack(reg asm.Register, at int16) {
	c.add(asm.Mov.Reg(reg, asm.R10), asm.Add.Imm(reg, int32(at)))
}

// probe copies size bytes from src+offset in kernel memory to the stack. What
// cannot be read is 0. Registers 0 to 5 are lost.
func (c *code) probe(at int16, size int32, src asm.Register, offset int16) {
	c.add(asm.Mov.Reg(asm.R3, src), asm.Add.Imm(asm.R3, int32(offset)))
	c.stack(asm.R1, at)
	c.add(asm.Mov.Imm(asm.R2, size), asm.FnProbeReadKernel.Call())
}

// probeTo is probe to dst+at, memory that dst points to.
func (c *code) probeTo(dst asm.Register, at int16, size int32, src asm.Register, offset int16) {
	c.add(
		asm.Mov.Reg(asm.R3, src), asm.Add.Imm(asm.R3, int32(offset)),
		asm.Mov.Reg(asm.R1, dst), asm.Add.Imm(asm.R1, int32(at)),
		asm.Mov.Imm(asm.R2, size), asm.FnProbeReadKernel.Call(),
	)
}

// follow loads the pointer or number of eight bytes at src+offset in kernel
// memory into dst, by way of the stack at scratch.
func (c *code) follow(dst, src asm.Register, offset, scratch int16) {
	c.probe(scratch, 8, src, offset)
	c.add(asm.LoadMem(dst, asm.R10, scratch, asm.DWord))
}

// windowSize bounds what window copies.
const windowSize = 64

// window copies the part of a structure in kernel memory that has all the fields
// of eight bytes at these offsets to the stack, in one go, and tells where each
// is then. Offsets too far apart are an error of kernelOffsets.
func (c *code) window(at int16, src asm.Register, offsets ...int16) func(offset int16) int16 {
	first, last := slices.Min(offsets), slices.Max(offsets)
	c.probe(at, int32(last-first)+8, src, first)
	return func(offset int16) int16 { return at + offset - first }
}

// lookup leaves a pointer to the value of the key on the stack, or 0, in R0.
func (c *code) lookup(fd int, key int16) {
	c.add(asm.LoadMapPtr(asm.R1, fd))
	c.stack(asm.R2, key)
	c.add(asm.FnMapLookupElem.Call())
}

// Flags of a map update, linux/bpf.h.
const (
	updateAny   = 0 // BPF_ANY
	updateNew   = 1 // BPF_NOEXIST
	updateThere = 2 // BPF_EXIST
)

// update writes the value that R3 points to under the key on the stack.
func (c *code) update(fd int, key int16, flags int32) {
	c.add(asm.LoadMapPtr(asm.R1, fd))
	c.stack(asm.R2, key)
	c.add(asm.Mov.Imm(asm.R4, flags), asm.FnMapUpdateElem.Call())
}

// erase deletes the key on the stack.
func (c *code) erase(fd int, key int16) {
	c.add(asm.LoadMapPtr(asm.R1, fd))
	c.stack(asm.R2, key)
	c.add(asm.FnMapDeleteElem.Call())
}

// count adds one to a place of the counters map.
func (c *code) count(fd, place int) {
	c.add(
		asm.LoadMapValue(asm.R1, fd, uint32(place*8)),
		asm.Mov.Imm(asm.R2, 1),
		asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
	)
}

// countFailure is count if R0 is not 0.
func (c *code) countFailure(fd, place int) {
	fine := c.fresh()
	c.add(asm.JEq.Imm(asm.R0, 0, fine))
	c.count(fd, place)
	c.label(fine)
}

// end finishes the program with a result.
func (c *code) end(result int32) {
	c.add(asm.Mov.Imm(asm.R0, result), asm.Return())
}
