package procfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
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
	Waiting int // requests that wait; more are dropped; 0 means 256
	Entries int // hashes that are kept; the oldest goes first; 0 means 4096
}

// Hasher makes the SHA-256 of executables, one after the other, and keeps them.
// Lookup and Request may be called from any goroutine, Run from one at a time.
type Hasher struct {
	fs       *FS
	requests chan Request
	hashes   atomic.Pointer[map[Key]string]
	dropped  atomic.Uint64

	// Run's: the keys of hashes in a ring, next is the oldest once it is full.
	keys []Key
	next int
}

// Request is an executable to hash, and whose.
type Request struct {
	PID       uint32
	StartBoot uint64 // ns of CLOCK_BOOTTIME, see SameStartBoot
	// Path, an Exe.Path, is looked at if the process has ended or runs another file by now;
	// empty, or not the bytes of a path (see process.Text), means only the process.
	Path string
	Exe  process.Exe // Inode and Device say which file
}

// Result answers a request.
type Result struct {
	Request
	Key    Key    // of the file that was read; valid iff Err is nil
	SHA256 string // in hex; empty iff Err is not nil
	// Err is ErrGone if neither process nor path leads to the file any more, and
	// ErrWriting if it changed while it was read.
	Err error
}

// ErrWriting says that a file changes while it is read.
var ErrWriting = errors.New("changed while it was read")

// NewHasher makes a Hasher that reads by fs, which must outlive Run.
func NewHasher(fs *FS, cfg HasherConfig) *Hasher {
	const waiting, entries = 256, 4096
	if cfg.Waiting == 0 {
		cfg.Waiting = waiting
	}
	if cfg.Entries == 0 {
		cfg.Entries = entries
	}
	h := &Hasher{fs: fs, requests: make(chan Request, cfg.Waiting), keys: make([]Key, 0, cfg.Entries)}
	h.hashes.Store(&map[Key]string{})
	return h
}

// Lookup returns the hash of a content if it is kept. It takes no lock, allocates
// nothing and asks nobody.
func (h *Hasher) Lookup(key Key) (sha256 string, ok bool) {
	sha256, ok = (*h.hashes.Load())[key]
	return sha256, ok
}

// KeyAt returns the key of the file that an Exe.Path leads to. It costs one system
// call, or three if paths are those of another mount namespace, and can wait for a
// file system in user space.
func (h *Hasher) KeyAt(path string) (Key, bool) {
	key, regular, err := h.fs.ref.key(path)
	return key, err == nil && regular
}

// Request asks for a hash and never waits. It is false, and counted, if too many
// wait already.
func (h *Hasher) Request(r Request) bool {
	select {
	case h.requests <- r:
		return true
	default:
		h.dropped.Add(1)
		return false
	}
}

// Dropped returns how many requests were dropped.
func (h *Hasher) Dropped() uint64 { return h.dropped.Load() }

// Run answers requests, each with one call of done, until ctx is done. Requests
// that wait then stay without an answer. A read that hangs, in a dead network
// file system, holds it up.
func (h *Hasher) Run(ctx context.Context, done func(Result)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-h.requests:
			res := Result{Request: r}
			res.Key, res.SHA256, res.Err = h.answer(ctx, r)
			if ctx.Err() != nil {
				return nil
			}
			done(res)
		}
	}
}

func (h *Hasher) answer(ctx context.Context, r Request) (Key, string, error) {
	fd, err := h.fs.openToRead(r)
	if err != nil {
		return Key{}, "", fmt.Errorf("hash executable of process %d: %w", r.PID, err)
	}
	defer unix.Close(fd)
	key, sum, err := h.hash(ctx, fd)
	if err != nil {
		return Key{}, "", fmt.Errorf("hash executable of process %d: %w", r.PID, err)
	}
	return key, sum, nil
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

// hash returns what is kept of an open file, or reads it. The file is read once
// it has been at rest for longer than the kernel's clock of changes is coarse:
// else it could change again and show the same Ctime.
func (h *Hasher) hash(ctx context.Context, fd int) (Key, string, error) {
	const rest = 100 * time.Millisecond // a jiffy is at most 10 ms
	key, _, err := keyOf(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return Key{}, "", err
	}
	if sum, ok := h.Lookup(key); ok {
		return key, sum, nil
	}
	age := time.Since(time.Unix(0, key.Ctime))
	if age >= 0 && age < rest {
		if err := sleep(ctx, rest-age); err != nil {
			return Key{}, "", err
		}
		if key, _, err = keyOf(fd, "", unix.AT_EMPTY_PATH); err != nil {
			return Key{}, "", err
		}
		age = time.Since(time.Unix(0, key.Ctime))
	}
	sum, err := digest(ctx, fd)
	if err != nil {
		return Key{}, "", err
	}
	after, _, err := keyOf(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return Key{}, "", err
	}
	if after != key {
		return Key{}, "", ErrWriting
	}
	if age >= rest { // not so if Ctime is in the future
		h.keep(key, sum)
	}
	return key, sum, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// digest reads a file from its beginning to its end, in pieces.
func digest(ctx context.Context, fd int) (string, error) {
	const piece = 256 << 10
	sum, buf, offset := sha256.New(), make([]byte, piece), int64(0)
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := unix.Pread(fd, buf, offset)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			return hex.EncodeToString(sum.Sum(nil)), nil
		}
		sum.Write(buf[:n])
		offset += int64(n)
	}
}

// keep publishes a hash, and drops the oldest if there are too many.
func (h *Hasher) keep(key Key, sum string) {
	old := *h.hashes.Load()
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
