package hook_test

import (
	"encoding/binary"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// sockFilter is a BPF program of type socket filter that counts its runs and
// keeps the cookie of the last packet's socket, and returns 0.
type sockFilter struct{ prog, counts int }

// seen is the value of the program's map: one entry of 16 bytes.
type seen struct{ Packets, Cookie uint64 }

// loadSockFilter loads the program. Its descriptors are closed after the test.
func loadSockFilter(t *testing.T) sockFilter {
	t.Helper()
	// union bpf_attr for BPF_MAP_CREATE, include/uapi/linux/bpf.h.
	create := struct{ kind, key, value, entries, flags uint32 }{unix.BPF_MAP_TYPE_ARRAY, 4, 16, 1, 0}
	f := sockFilter{prog: -1, counts: bpf(t, unix.BPF_MAP_CREATE, unsafe.Pointer(&create), unsafe.Sizeof(create))}
	t.Cleanup(func() { unix.Close(f.counts) })

	code := f.code()
	license := []byte("MIT\x00")
	// union bpf_attr for BPF_PROG_LOAD.
	load := struct {
		kind, count    uint32
		insns, license uint64
		level, size    uint32
		log            uint64
	}{
		kind: unix.BPF_PROG_TYPE_SOCKET_FILTER, count: uint32(len(code)),
		insns: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	f.prog = bpf(t, unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	t.Cleanup(func() { f.close() })
	return f
}

// close closes the descriptor of the program; rules keep the program.
func (f *sockFilter) close() {
	if f.prog >= 0 {
		unix.Close(f.prog)
	}
	f.prog = -1
}

// code assembles the program. Each line is an instruction: operation, registers
// (source in the high four bits), offset, immediate value.
//
// Source: struct bpf_insn and enum bpf_func_id, include/uapi/linux/bpf.h.
func (f sockFilter) code() []uint64 {
	const (
		lookup    = 1  // BPF_FUNC_map_lookup_elem
		getCookie = 46 // BPF_FUNC_get_socket_cookie
		r0, r1    = 0, 1
		r2, r6    = 2, 6
		fp        = 10
		isMapFD   = 1 // BPF_PSEUDO_MAP_FD
	)
	insn := func(op byte, dst, src int, off int16, imm int32) uint64 {
		var b [8]byte
		b[0] = op
		b[1] = byte(src<<4 | dst)
		binary.NativeEndian.PutUint16(b[2:], uint16(off))
		binary.NativeEndian.PutUint32(b[4:], uint32(imm))
		return binary.NativeEndian.Uint64(b[:])
	}
	return []uint64{
		insn(0x85, 0, 0, 0, getCookie),              // r0 = cookie of r1, the packet
		insn(0xbf, r6, r0, 0, 0),                    // r6 = r0
		insn(0x62, fp, 0, -4, 0),                    // key = 0
		insn(0xbf, r2, fp, 0, 0),                    // r2 = fp
		insn(0x07, r2, 0, 0, -4),                    // r2 += -4
		insn(0x18, r1, isMapFD, 0, int32(f.counts)), // r1 = map
		insn(0, 0, 0, 0, 0),
		insn(0x85, 0, 0, 0, lookup), // r0 = entry
		insn(0x15, r0, 0, 3, 0),     // if r0 == 0 skip 3
		insn(0xb7, r1, 0, 0, 1),     // r1 = 1
		insn(0xdb, r0, r1, 0, 0),    // *(u64 *)r0 += r1, atomic
		insn(0x7b, r0, r6, 8, 0),    // *(u64 *)(r0 + 8) = r6
		insn(0xb7, r0, 0, 0, 0),     // r0 = 0
		insn(0x95, 0, 0, 0, 0),      // exit
	}
}

// seen reads the map.
func (f sockFilter) seen(t *testing.T) seen {
	t.Helper()
	var key uint32
	var value seen
	// union bpf_attr for BPF_MAP_LOOKUP_ELEM.
	get := struct {
		fd, _             uint32
		key, value, flags uint64
	}{fd: uint32(f.counts), key: uint64(uintptr(unsafe.Pointer(&key))), value: uint64(uintptr(unsafe.Pointer(&value)))}
	bpf(t, unix.BPF_MAP_LOOKUP_ELEM, unsafe.Pointer(&get), unsafe.Sizeof(get))
	runtime.KeepAlive(&key)
	return value
}

// pin makes the program found by path, which must be on a bpf file system.
func (f sockFilter) pin(t *testing.T, path string) {
	t.Helper()
	name := append([]byte(path), 0)
	// union bpf_attr for BPF_OBJ_PIN.
	pin := struct {
		path      uint64
		fd, flags uint32
	}{path: uint64(uintptr(unsafe.Pointer(&name[0]))), fd: uint32(f.prog)}
	bpf(t, unix.BPF_OBJ_PIN, unsafe.Pointer(&pin), unsafe.Sizeof(pin))
	runtime.KeepAlive(name)
}

func bpf(t *testing.T, cmd int, attr unsafe.Pointer, size uintptr) int {
	t.Helper()
	n, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
	if errno == unix.ENOSYS || errno == unix.EPERM {
		labtest.Lacks(t, labtest.BPF, errno)
	}
	if errno != 0 {
		t.Fatalf("bpf command %d: %v", cmd, errno)
	}
	return int(n)
}
