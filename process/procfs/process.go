package procfs

import (
	"bytes"

	"github.com/verdictd/verdictd/process"
)

// Process says all of a process but the hash of its executable.
//
// Comm, Cmdline and Exe are of one time if the process does not execute programs
// faster than they are read. Parents are those of now: when a parent ends, its
// children get another one, mostly the first process. Each has started no later
// than its child.
//
// ErrGone if there is no such process, or if pid is that of a thread. A zombie is
// a process without program and arguments. Other errors: unix.EACCES and
// unix.EPERM where proc is mounted with hidepid; ErrGone if it hides all.
func (fs *FS) Process(pid uint32) (*process.Process, error) { return fs.process(pid, true) }

// Program is Process without the arguments. What it reads does not need the lock of
// the process's memory map, which the process can hold for as long as it likes.
func (fs *FS) Program(pid uint32) (*process.Process, error) { return fs.process(pid, false) }

// Cmdline returns the arguments of a process that started then, in ns of
// CLOCK_BOOTTIME. It can wait for the process. ErrGone as for Process.
func (fs *FS) Cmdline(pid uint32, startBoot uint64) (string, error) {
	e, err := fs.entry(pid)
	if err != nil {
		return "", err
	}
	defer e.close()
	st, err := e.stat()
	if err != nil {
		return "", processError(pid, err)
	}
	if !SameStartBoot(st.start, startBoot) {
		return "", processError(pid, ErrGone)
	}
	return e.cmdline(st), nil
}

func (fs *FS) process(pid uint32, args bool) (*process.Process, error) {
	e, err := fs.entry(pid)
	if err != nil {
		return nil, err
	}
	defer e.close()
	before, err := e.stat()
	if err != nil {
		return nil, processError(pid, err)
	}
	p := &process.Process{PID: pid, Start: fs.UnixOf(before.start)}
	const tries = 3 // against execve between two reads
	for range tries {
		p.Exe = fs.exe(e, before)
		if args {
			p.Cmdline = e.cmdline(before)
		}
		after, err := e.stat()
		if err != nil {
			return nil, processError(pid, err)
		}
		if after.start != before.start {
			return nil, processError(pid, ErrGone)
		}
		p.Comm, p.TTY = process.Text(after.comm), ttyName(after.tty)
		now, err := fileAt(e.fd, "exe", 0)
		unchanged := err != nil || now.inode == p.Exe.Inode && now.device == p.Exe.Device
		before = after
		if unchanged {
			break
		}
	}
	p.Parents = fs.parents(e, before)
	return p, nil
}

// cmdline reads the arguments, separated by blanks and cut.
func (e entry) cmdline(st stat) string {
	if st.kernel {
		return ""
	}
	dir := e.fd
	if st.zombie() && st.threads > 1 {
		thread, err := e.threadDir()
		if err != nil {
			return ""
		}
		e.fd = thread
		defer e.close()
		dir = thread
	}
	b, err := readAt(dir, "cmdline", make([]byte, process.MaxCmdline+1))
	if err != nil {
		return ""
	}
	if len(b) <= process.MaxCmdline { // else the end is not that of the arguments
		b = bytes.TrimRight(b, "\x00")
	}
	for i := range b {
		if b[i] == 0 {
			b[i] = ' '
		}
	}
	return process.TextMax(b, process.MaxCmdline)
}

// parents goes up from an opened entry.
func (fs *FS) parents(e entry, st stat) []process.Parent {
	var list []process.Parent
	child := e
	for len(list) < process.MaxParents && st.parent != 0 {
		parent, pst, ok := fs.parent(child, st)
		if child != e {
			child.close()
		}
		if !ok {
			return list
		}
		list = append(list, process.Parent{
			PID: parent.pid, Start: fs.UnixOf(pst.start),
			Comm: process.Text(pst.comm), Exe: fs.exe(parent, pst).Path,
		})
		child, st = parent, pst
	}
	if child != e {
		child.close()
	}
	return list
}

// parent opens the parent of a child. If it started before the child it is the
// one that the child named, as its number can be given to another only later.
// Within one tick that the child still names it shows the same.
func (fs *FS) parent(child entry, st stat) (entry, stat, bool) {
	const tries = 3
	for range tries {
		parent, err := fs.entry(st.parent)
		if err == nil {
			pst, err := parent.stat()
			if err == nil && pst.start < st.start {
				return parent, pst, true
			}
			again, cerr := child.stat()
			if err == nil && cerr == nil && again.parent == parent.pid && pst.start == again.start {
				return parent, pst, true
			}
			parent.close()
		}
		if st, err = child.stat(); err != nil || st.parent == 0 {
			break
		}
	}
	return entry{}, stat{}, false
}
