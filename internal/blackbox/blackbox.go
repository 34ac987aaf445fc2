package blackbox

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// CounterBytes is the size of the memory for counters.
	CounterBytes = 64 << 10

	// NoteBytes is how long a note may be.
	NoteBytes = 4 << 20

	headerBytes = 16 // of a note: number, length, checksum
	slotBytes   = headerBytes + NoteBytes
	size        = CounterBytes + 2*slotBytes // pages that nobody has written take no memory
)

// Box is such memory. Write, Read and File may be called from any goroutine.
type Box struct {
	file *os.File
	mem  []byte

	mu     sync.Mutex
	number uint64 // of the latest note
}

// New returns an empty Box.
func New() (*Box, error) {
	fd, err := unix.MemfdCreate("verdictd-blackbox", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("black box: %w", os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), "blackbox")
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(fmt.Errorf("black box: %w", err), f.Close())
	}
	// Memory that shrinks would kill who reads it.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return nil, errors.Join(fmt.Errorf("black box: seal it: %w", err), f.Close())
	}
	return Open(f)
}

// Open returns the Box that another process left. It owns f, also after an error.
func Open(f *os.File) (*Box, error) {
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err == nil && seals&unix.F_SEAL_SHRINK == 0 {
		err = errors.New("it may shrink")
	}
	var info os.FileInfo
	if err == nil {
		info, err = f.Stat()
	}
	if err == nil && info.Size() != size {
		err = fmt.Errorf("%d bytes, want %d: of another version", info.Size(), int64(size))
	}
	b := &Box{file: f}
	if err == nil {
		b.mem, err = unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("black box: %w", err), f.Close())
	}
	return b, nil
}

// Counters returns the memory for counters: aligned to a page, and zero in a new
// Box. It is valid until Close.
func (b *Box) Counters() []byte { return b.mem[:CounterBytes] }

// File returns another descriptor of the Box.
func (b *Box) File() (*os.File, error) {
	fd, err := unix.FcntlInt(b.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("black box: %w", os.NewSyscallError("fcntl", err))
	}
	return os.NewFile(uintptr(fd), "blackbox"), nil
}

// Write replaces the note by v, as JSON. A process that dies meanwhile leaves the
// note before.
func (b *Box) Write(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("black box: %w", err)
	}
	if len(text) > NoteBytes {
		return fmt.Errorf("black box: a note of %d bytes, want at most %d", len(text), NoteBytes)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.number++
	slot := b.slot(b.number)
	copy(slot[headerBytes:], text)
	binary.NativeEndian.PutUint64(slot, b.number)
	binary.NativeEndian.PutUint32(slot[8:], uint32(len(text)))
	binary.NativeEndian.PutUint32(slot[12:], checksum(b.number, text))
	return nil
}

// Read reads the latest whole note into v, and returns whether there is one.
func (b *Box) Read(v any) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var text []byte
	var latest uint64
	for i := range uint64(2) {
		slot := b.slot(i)
		number, n := binary.NativeEndian.Uint64(slot), binary.NativeEndian.Uint32(slot[8:])
		if number <= latest || n > NoteBytes {
			continue
		}
		if note := slot[headerBytes : headerBytes+n]; checksum(number, note) == binary.NativeEndian.Uint32(slot[12:]) {
			latest, text = number, note
		}
	}
	if text == nil {
		return false, nil
	}
	if err := json.Unmarshal(text, v); err != nil {
		return false, fmt.Errorf("black box: %w", err)
	}
	return true, nil
}

// slot returns where the note of that number stands: two take turns.
func (b *Box) slot(number uint64) []byte {
	at := CounterBytes + int(number%2)*slotBytes
	return b.mem[at : at+slotBytes]
}

func checksum(number uint64, text []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(binary.NativeEndian.AppendUint64(nil, number)), crc32.IEEETable, text)
}

// Close frees the memory, as far as nobody else holds it. Nothing may use its
// counters any more.
func (b *Box) Close() error {
	return errors.Join(unix.Munmap(b.mem), b.file.Close())
}
