package procfs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/process"
)

// Key names the content of a file: none of it changes without Ctime, which users
// cannot set. It is worth what the file system is: one in user space (FUSE) or a
// server can say anything.
type Key struct {
	Device, Inode uint64 // as stat(2) gives them
	Mtime, Ctime  int64  // Unix ns
	Size          int64  // bytes
}

// HasherConfig bounds a Hasher.
type HasherConfig struct {
	Entries int           // hashes that are kept; the oldest goes first; 0 means 4096
	MaxSize int64         // bytes of a file that is hashed; 0 means DefaultMaxSize
	Time    time.Duration // that reading one file may take; 0 means 30 s
}

// DefaultMaxSize is the greatest file that is hashed.
const DefaultMaxSize = 256 << 20

// Hasher makes the SHA-256 of executables and keeps them. Its methods may be called
// from any goroutine.
type Hasher struct {
	fs     *FS
	cfg    HasherConfig
	hashes atomic.Pointer[map[Key]string]

	mu   sync.Mutex
	keys []Key // of hashes in a ring, next is the oldest once it is full
	next int
}

// Request is an executable to hash, and whose.
type Request struct {
	PID       uint32
	StartBoot uint64 // ns of CLOCK_BOOTTIME, see SameStartBoot
	// Path, an Exe.Path, is looked at if the process has ended or runs another file by now;
	// empty, or not the bytes of a path (see process.Text), means only the process.
	Path string
	Exe  process.Exe // Inode and Device say which file; Changed, if it is not 0, with which content
}

// Why a file has no hash, beside ErrGone: neither process nor path leads to it any
// more.
var (
	ErrWriting  = errors.New("changed while it was read")
	ErrChanged  = errors.New("changed since it was started")
	ErrTooLarge = errors.New("too large")
	ErrTooSlow  = errors.New("took too long to read")
)

// NewHasher makes a Hasher that reads by fs, which must outlive it.
func NewHasher(fs *FS, cfg HasherConfig) *Hasher {
	const entries, patience = 4096, 30 * time.Second
	if cfg.Entries == 0 {
		cfg.Entries = entries
	}
	if cfg.MaxSize == 0 {
		cfg.MaxSize = DefaultMaxSize
	}
	if cfg.Time == 0 {
		cfg.Time = patience
	}
	h := &Hasher{fs: fs, cfg: cfg, keys: make([]Key, 0, cfg.Entries)}
	h.hashes.Store(&map[Key]string{})
	return h
}

// Lookup returns the hash of a content if it is kept. It takes no lock, allocates
// nothing and asks nobody.
func (h *Hasher) Lookup(key Key) (sha256 string, ok bool) {
	sha256, ok = (*h.hashes.Load())[key]
	return sha256, ok
}

// Reading is a file that is being hashed, a piece at a time: so that many can be
// read in turn. It is for one goroutine at a time.
type Reading struct {
	h       *Hasher
	fd      int
	key     Key
	changed int64 // Ctime that the file must have; 0: any
	rested  bool  // before it was read it had been at rest
	sum     hash.Hash
	offset  int64
	spent   time.Duration
}

// Open begins to hash a file. sha256 is set, and there is nothing to read, if it is
// known already. Errors: ErrGone, ErrChanged, ErrTooLarge, or that the file cannot be opened.
// No part of a file that is too large is read.
func (h *Hasher) Open(r Request) (reading *Reading, sha256 string, err error) {
	fd, err := h.fs.openToRead(r)
	if err != nil {
		return nil, "", fmt.Errorf("hash executable of process %d: %w", r.PID, err)
	}
	reading = &Reading{h: h, fd: fd, changed: r.Exe.Changed}
	if err = reading.look(); err == nil && reading.key.Size > h.cfg.MaxSize {
		err = fmt.Errorf("%d bytes, at most %d: %w", reading.key.Size, h.cfg.MaxSize, ErrTooLarge)
	}
	sum, known := h.Lookup(reading.key)
	if err == nil && !known {
		return reading, "", nil
	}
	reading.Close()
	if err != nil {
		return nil, "", fmt.Errorf("hash executable of process %d: %w", r.PID, err)
	}
	return nil, sum, nil
}

// Left returns how many bytes are still to be read.
func (r *Reading) Left() int64 { return r.key.Size - r.offset }

// Close ends a Reading.
func (r *Reading) Close() { unix.Close(r.fd) }

// Read reads a piece of some milliseconds, and returns the hash with the last. After
// that, and after an error, there is only Close. Errors: ErrWriting, ErrTooLarge,
// ErrTooSlow, or that of reading. The file is read once it has been at rest for
// longer than the kernel's clock of changes is coarse, else it could change again
// and show the same Ctime: the first call waits for that.
func (r *Reading) Read(buf []byte) (sha256 string, err error) {
	begin := time.Now()
	if r.sum == nil {
		if err := r.rest(); err != nil {
			return "", err
		}
	}
	const piece = 4 << 20
	for end := r.offset + piece; r.offset < end; {
		n, err := unix.Pread(r.fd, buf, r.offset)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return "", fmt.Errorf("read: %w", err)
		case n == 0:
			return r.done()
		}
		r.sum.Write(buf[:n])
		r.offset += int64(n)
	}
	if r.offset > r.h.cfg.MaxSize {
		return "", ErrTooLarge // it grew
	}
	if r.spent += time.Since(begin); r.spent > r.h.cfg.Time {
		return "", ErrTooSlow
	}
	return "", nil
}

// look notes which content the file has.
func (r *Reading) look() (err error) {
	if r.key, _, err = keyOf(r.fd, "", unix.AT_EMPTY_PATH); err == nil && r.changed != 0 && r.key.Ctime != r.changed {
		err = ErrChanged
	}
	return err
}

// rest waits until the file can be read.
func (r *Reading) rest() (err error) {
	const rest = 100 * time.Millisecond // a jiffy is at most 10 ms
	r.sum = sha256.New()
	age := time.Since(time.Unix(0, r.key.Ctime))
	if age >= 0 && age < rest {
		time.Sleep(rest - age)
		if err := r.look(); err != nil {
			return err
		}
		age = time.Since(time.Unix(0, r.key.Ctime))
	}
	r.rested = age >= rest // not so if Ctime is in the future
	return nil
}

// done returns the hash of what was read, if that was one content.
func (r *Reading) done() (string, error) {
	after, _, err := keyOf(r.fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return "", err
	}
	if after != r.key {
		return "", ErrWriting
	}
	sum := hex.EncodeToString(r.sum.Sum(nil))
	if r.rested {
		r.h.keep(r.key, sum)
	}
	return sum, nil
}

// openToRead opens the file of a request: by the process, which is the very file
// also if it has no path any more, or else by its path.
func (fs *FS) openToRead(r Request) (int, error) {
	if r.Exe.Inode == 0 {
		return -1, fmt.Errorf("its inode is not known: %w", ErrGone)
	}
	if fd, err := fs.openLive(r); err == nil {
		return fd, nil
	}
	if r.Path == "" {
		return -1, ErrGone
	}
	at, err := fs.ref.open(r.Path)
	if err != nil {
		return -1, ErrGone
	}
	defer unix.Close(at)
	return fs.reopen(at, r.Exe)
}

func (fs *FS) openLive(r Request) (int, error) {
	e, err := fs.entry(r.PID)
	if err != nil {
		return -1, err
	}
	defer e.close()
	st, err := e.stat()
	if err != nil {
		return -1, err
	}
	if st.kernel || !SameStartBoot(st.start, r.StartBoot) {
		return -1, ErrGone
	}
	at, err := fs.openExe(e, st)
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	return fs.reopen(at, r.Exe)
}

// reopen opens for reading what at stands on, if it is the file asked for. A
// path can lead to a device, which must not even be opened.
func (fs *FS) reopen(at int, exe process.Exe) (int, error) {
	key, regular, err := keyOf(at, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, err
	}
	if !regular || key.Inode != exe.Inode || key.Device != exe.Device {
		return -1, ErrGone
	}
	return openat(fs.self, "fd/"+strconv.Itoa(at), readOnly|unix.O_NONBLOCK)
}

// keyOf looks at a file, asking a server for what is true now.
func keyOf(dir int, name string, flags int) (key Key, regular bool, err error) {
	var st unix.Stat_t
	if flags&unix.AT_EMPTY_PATH != 0 {
		err = unix.Fstat(dir, &st)
	} else {
		err = unix.Fstatat(dir, name, &st, flags)
	}
	return Key{
		Device: uint64(st.Dev), Inode: st.Ino, //nolint:unconvert // of 32 bits on some architectures
		Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(), Size: st.Size,
	}, st.Mode&unix.S_IFMT == unix.S_IFREG, err
}

// keep publishes a hash, and drops the oldest if there are too many.
func (h *Hasher) keep(key Key, sum string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := *h.hashes.Load()
	if _, ok := old[key]; ok {
		return
	}
	hashes := make(map[Key]string, len(old)+1)
	for k, v := range old {
		hashes[k] = v
	}
	if len(h.keys) < cap(h.keys) {
		h.keys = append(h.keys, key)
	} else {
		delete(hashes, h.keys[h.next])
		h.keys[h.next] = key
		h.next = (h.next + 1) % len(h.keys)
	}
	hashes[key] = sum
	h.hashes.Store(&hashes)
}
