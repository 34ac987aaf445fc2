package procfs

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the resolution of start times in /proc, in ns: 1 s / USER_HZ, which is
// 100 on all architectures that Go runs on. The kernel rounds down.
//
// Source: nsec_to_clock_t, kernel/time/time.c.
const tick = uint64(10 * time.Millisecond)

// bootTime returns when the machine booted, in Unix ns, by the clocks of now.
func bootTime() (int64, error) {
	best, boot := int64(math.MaxInt64), int64(0)
	const tries = 5
	for range tries {
		var before, wall, after unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &before); err != nil {
			return 0, fmt.Errorf("read CLOCK_BOOTTIME: %w", err)
		}
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &wall); err != nil {
			return 0, fmt.Errorf("read CLOCK_REALTIME: %w", err)
		}
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &after); err != nil {
			return 0, fmt.Errorf("read CLOCK_BOOTTIME: %w", err)
		}
		if took := after.Nano() - before.Nano(); took < best {
			best, boot = took, wall.Nano()-before.Nano()-took/2
		}
	}
	return boot, nil
}

// UnixOf returns a time of CLOCK_BOOTTIME, in ns, in Unix ns. The two clocks are
// compared once, by Open: so one process has the same Start as long as the FS is
// open, also if the wall clock is set.
func (fs *FS) UnixOf(boottimeNS uint64) int64 { return fs.boot + int64(boottimeNS) }

// SameStartBoot tells whether two start times, in ns of CLOCK_BOOTTIME, can be
// the same moment: /proc rounds down to ticks of 10 ms, and the kernel's own
// record of it is exact. With equal pids it is the same process, unless the
// kernel went through all pids within 10 ms.
func SameStartBoot(a, b uint64) bool { return a/tick == b/tick }

// SameStart is SameStartBoot for two results of UnixOf, or of Start.
func (fs *FS) SameStart(a, b int64) bool {
	return SameStartBoot(uint64(a-fs.boot), uint64(b-fs.boot))
}

// Start returns when a process came into being, in Unix ns, rounded down to the
// 10 ms of /proc. ErrGone if there is no such process.
func (fs *FS) Start(pid uint32) (ns int64, err error) {
	boot, err := fs.StartBoot(pid)
	if err != nil {
		return 0, err
	}
	return fs.UnixOf(boot), nil
}

// StartBoot is Start in ns of CLOCK_BOOTTIME, which the kernel's start_boottime
// counts in. Both are of the time namespace of verdictd, which is to be the
// initial one.
func (fs *FS) StartBoot(pid uint32) (ns uint64, err error) {
	e, err := fs.entry(pid)
	if err != nil {
		return 0, err
	}
	defer e.close()
	st, err := e.stat()
	if err != nil {
		return 0, processError(pid, err)
	}
	return st.start, nil
}
