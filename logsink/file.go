package logsink

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// file is a log file that is appended to in whole lines and rotated by size.
// It is for one goroutine.
type file struct {
	path     string
	maxBytes int64 // 0: never rotated
	keep     int   // old files kept: path.1 is the newest
	f        *os.File
	size     int64
	regular  bool  // not a pipe or device: those are neither repaired nor rotated
	limit    int64 // size at which the next rotation is due

	last      []byte // the last line that was there when it was opened; nil if none is
	repaired  int64  // bytes of a torn record cut off by the last open
	rotations uint64
	rotateErr error // of the last attempt to rotate
}

// maxTorn is the longest unfinished line that is taken for a torn record.
const maxTorn = 64 << 10

// openFile opens path for appending and creates it if need be, with mode
// 0640. A last line without newline, which is what a crash leaves behind, is
// cut off: each line of the file is a whole record. (If the line is longer
// than any record, somebody else wrote it: it is kept and ended.)
//
// The file is locked against a second daemon.
func openFile(path string, maxBytes int64, keep int) (*file, error) {
	l := &file{path: path, maxBytes: maxBytes, keep: keep}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *file) open() error {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return openError(l.path, err)
	}
	old := *l
	if err := l.take(f); err != nil {
		*l = old
		return errors.Join(err, f.Close())
	}
	if old.f != nil {
		old.f.Close() // what could not be written there has been reported
	}
	return nil
}

// take makes f the current file.
func (l *file) take(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	l.f, l.size, l.limit, l.repaired, l.last = f, info.Size(), l.maxBytes, 0, nil
	if l.regular = info.Mode().IsRegular(); !l.regular {
		return nil
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("open audit log %s: in use by another process (give each verdictd its own file)", l.path)
	}
	if l.last, l.repaired, err = repair(f, l.size); err != nil {
		return fmt.Errorf("repair last line of audit log %s: %w", l.path, err)
	}
	l.size -= l.repaired
	return nil
}

// openError adds the remedy.
func openError(path string, err error) error {
	dir := filepath.Dir(path)
	if _, statErr := os.Stat(dir); errors.Is(statErr, fs.ErrNotExist) {
		return fmt.Errorf("open audit log %s: directory %s does not exist (create it: install -d -m 0750 %s)", path, dir, dir)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("open audit log: %w (make it writable for uid %d)", err, os.Geteuid())
	}
	return fmt.Errorf("open audit log: %w", err)
}

// repair cuts a torn last line off and returns its length, and the last whole
// line, unless that is longer than any record.
func repair(f *os.File, size int64) (last []byte, cut int64, err error) {
	tail := make([]byte, min(size, maxTorn))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	end := bytes.LastIndexByte(tail, '\n') + 1
	torn := len(tail) - end
	if torn == maxTorn {
		_, err := f.Write([]byte{'\n'})
		return nil, 0, err
	}
	if end > 0 {
		start := bytes.LastIndexByte(tail[:end-1], '\n') + 1
		if start > 0 || size == int64(len(tail)) {
			last = bytes.Clone(tail[start:end])
		}
	}
	if torn == 0 {
		return last, 0, nil
	}
	return last, int64(torn), f.Truncate(size - int64(torn))
}

// reopen opens the path anew if it no longer names the open file: log
// rotation by others has moved it.
func (l *file) reopen() error {
	if l.isCurrent() {
		return nil
	}
	return l.open()
}

func (l *file) isCurrent() bool {
	mine, err := l.f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(l.path)
	return err == nil && os.SameFile(mine, named)
}

// write appends as many whole lines of b as fit into the file, rotating it
// first if need be, and returns how many bytes it wrote. atLine says whether b
// starts at the start of a line: only there may the file be rotated. If
// rotation fails, rotateErr says why and the file grows by another maxBytes
// until the next attempt.
func (l *file) write(b []byte, atLine bool) (n int, err error) {
	if l.regular && l.maxBytes > 0 && atLine {
		if l.size > 0 && wholeLines(b, l.limit-l.size) == 0 {
			if l.rotateErr = l.rotate(); l.rotateErr != nil {
				l.limit = l.size + l.maxBytes
			}
		}
		// A record longer than a file may be has a file of its own.
		b = b[:max(wholeLines(b, l.limit-l.size), bytes.IndexByte(b, '\n')+1)]
	}
	n, err = l.f.Write(b)
	l.size += int64(n)
	return n, err
}

// wholeLines returns the length of the lines at the start of b that fit into
// room bytes.
func wholeLines(b []byte, room int64) int {
	if room <= 0 {
		return 0
	}
	return bytes.LastIndexByte(b[:min(int64(len(b)), room)], '\n') + 1
}

// rotate renames path.1 to path.2 and so on, then path to path.1, and opens
// path anew.
func (l *file) rotate() error {
	if l.isCurrent() {
		for i := l.keep - 1; i >= 1; i-- {
			err := os.Rename(l.numbered(i), l.numbered(i+1))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("rotate audit log: %w", err)
			}
		}
		if err := l.retire(); err != nil {
			return fmt.Errorf("rotate audit log: %w", err)
		}
	}
	if err := l.open(); err != nil {
		return err
	}
	l.rotations++
	return nil
}

// retire takes the name from the current file.
func (l *file) retire() error {
	if l.keep == 0 {
		return os.Remove(l.path)
	}
	return os.Rename(l.path, l.numbered(1))
}

func (l *file) numbered(i int) string { return l.path + "." + strconv.Itoa(i) }
