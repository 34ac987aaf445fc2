package attribution

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/record"
)

// contents says whether a file can be hashed later for what was in it when it was
// executed. Who may write it does so, in place, as soon as the program has ended.
// That shows, as it has another time of change (ctime) then, unless all happens
// within one tick of the clock that gives those times: which is no fixed time, as
// ticks come late on a busy virtual machine. So a tick must have come between the
// file's last change and the program's use of a socket, while it certainly ran.
type contents struct {
	locked bool // the kernel refuses to change what runs

	begun time.Time // with a reading of CLOCK_MONOTONIC, which was
	up    int64     // then
}

// openContents asks the kernel how it treats files that run.
func openContents() contents {
	c := contents{locked: keepsPrograms(), begun: time.Now()}
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &up) == nil {
		c.up = up.Nano()
	}
	return c
}

// keepsPrograms tells whether files cannot be written while they run. Linux 6.11 and
// the first of 6.12 let them.
//
// Source: commits 2a010c412853 and 3b832035387f of Linux.
func keepsPrograms() bool {
	fd, err := unix.Open("/proc/self/exe", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		return false
	}
	if errors.Is(err, unix.ETXTBSY) {
		return true
	}
	var u unix.Utsname
	var major, minor int
	if unix.Uname(&u) != nil {
		return false
	}
	_, err = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major != 6 || minor != 11 && minor != 12)
}

// doubt returns why a recorded program, which used a socket at a tick of the clock,
// cannot be hashed for what was executed, "" if it can: process.NoHash...
func (c *contents) doubt(r *record.Process, tick uint64) string {
	switch {
	case r.UserMount || !keepsFiles(r.FileSystem):
		return process.NoHashFileSystem
	case !c.locked:
		return process.NoHashKernel
	case r.ChangedRead:
		return ""
	}
	if tick == 0 {
		return process.NoHashFresh
	}
	if c.longBefore(r, tick) {
		return ""
	}
	next, ok := coarse(tick)
	if !ok {
		return process.NoHashFresh
	}
	if g := int64(r.Granularity); g > 0 {
		next -= next % g
	}
	if r.Changed >= next {
		return process.NoHashFresh
	}
	return ""
}

// longBefore tells whether a file was changed so long before a tick that no clock need
// be read to the nanosecond, which takes system calls.
func (c *contents) longBefore(r *record.Process, tick uint64) bool {
	const long = int64(time.Second)
	now := time.Now()
	ago := c.up + int64(now.Sub(c.begun)) - int64(tick)
	return c.up != 0 && r.Changed < now.UnixNano()-ago-long-int64(r.Granularity)
}

// coarse returns a recent time of CLOCK_MONOTONIC_COARSE as one of
// CLOCK_REALTIME_COARSE, by which files are changed, in Unix ns: to the nanosecond, as
// the clocks are read in between two ticks. Who sets the clock sets the times of
// changes, too.
func coarse(tick uint64) (changed int64, ok bool) {
	var before, up, after unix.Timespec
	for range 100 {
		if unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &before) != nil || unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &up) != nil ||
			unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &after) != nil {
			return 0, false
		}
		if before == after {
			return before.Nano() - up.Nano() + int64(tick), true
		}
	}
	return 0, false
}

// keepsFiles tells whether a type of file system is one whose files change by this
// kernel's system calls only, which set the time of change: neither a server nor a
// program in user space says what is in them.
//
// Source: include/uapi/linux/magic.h and the file systems'.
func keepsFiles(magic uint32) bool {
	switch magic {
	case 0xef53, // ext2, ext3, ext4
		0x58465342, // xfs
		0x9123683e, // btrfs
		0xf2f52010, // f2fs
		0x2fc12fc1, // zfs
		0xca451a4e, // bcachefs
		0x01021994, // tmpfs, memfd
		0x858458f6, // ramfs
		0x794c7630, // overlay
		0x73717368, // squashfs
		0xe0f5e1e2, // erofs
		0x9660:     // iso9660
		return true
	}
	return false
}
