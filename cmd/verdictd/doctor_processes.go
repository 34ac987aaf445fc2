package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/terminal"
)

// A process can make those wait who read its arguments, for as long as it likes: by
// keeping the lock of its memory map.
const (
	processPatience = time.Second
	mostHung        = 8 // processes that may keep one of our threads
)

// processes counts those that run, and those of which program and open files can
// be read.
type processes struct {
	all, readable int
	hung          []string // those that cannot be read, by pid, name and user
	left          int      // that were not looked at, as too many hang
	hidden        string   // value of hidepid, empty if there is none
	err           error
}

// sight is what is seen of a process.
type sight uint8

const (
	sightGone sight = iota // it has ended, or is a thread of the kernel
	sightProtected
	sightReadable
)

// readProcesses looks at all processes of /proc.
func readProcesses(ctx context.Context) processes {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return processes{err: err}
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	p := inspect(ctx, pids, lookAt, processPatience)
	list, err := mountinfo()
	p.err = err
	for _, m := range list {
		if m.point == "/proc" && m.kind == "proc" {
			for _, option := range strings.Split(m.options, ",") {
				if value, ok := strings.CutPrefix(option, "hidepid="); ok {
					p.hidden = value
				}
			}
		}
	}
	return p
}

// inspect looks at processes one after the other. One that takes longer than the
// patience is given up and named: the goroutine that looks at it ends when the
// process lets it, or with the command.
func inspect(ctx context.Context, pids []int, look func(pid int) sight, patience time.Duration) (p processes) {
	ask, answers := looker(look)
	defer func() { close(ask) }()
	for i, pid := range pids {
		ask <- pid
		select {
		case s := <-answers:
			p.add(s)
			continue
		case <-ctx.Done():
			p.left = len(pids) - i
			return p
		case <-time.After(patience):
		}
		p.all++
		p.hung = append(p.hung, nameOf(pid))
		if len(p.hung) == mostHung {
			p.left = len(pids) - i - 1
			return p
		}
		close(ask)
		ask, answers = looker(look)
	}
	return p
}

// looker starts a goroutine that looks at the processes it is asked for, until ask
// is closed.
func looker(look func(pid int) sight) (ask chan int, answers chan sight) {
	ask, answers = make(chan int), make(chan sight, 1)
	go func() {
		for pid := range ask {
			answers <- look(pid)
		}
	}()
	return ask, answers
}

func (p *processes) add(s sight) {
	switch s {
	case sightGone:
		return
	case sightReadable:
		p.readable++
	}
	p.all++
}

// lookAt tries what is read of a process.
func lookAt(pid int) sight {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	if args, _ := os.ReadFile(filepath.Join(dir, "cmdline")); len(args) == 0 {
		return sightGone
	}
	_, exe := os.Readlink(filepath.Join(dir, "exe"))
	_, fds := os.ReadDir(filepath.Join(dir, "fd"))
	switch {
	case exe == nil && fds == nil:
		return sightReadable
	case errors.Is(exe, fs.ErrPermission) || errors.Is(fds, fs.ErrPermission):
		return sightProtected
	}
	return sightGone
}

// nameOf says which process it is, by what can be read without its memory map.
func nameOf(pid int) string {
	name := fmt.Sprintf("pid %d", pid)
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
		name += ", called " + terminal.Word(strings.TrimSuffix(string(comm), "\n"))
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", pid), &st); err == nil {
		name += fmt.Sprintf(", of user %d", st.Uid)
	}
	return name
}

// procFinding says what can be read of processes. mayRead: by its capabilities
// this command may read all.
func procFinding(p processes, mayRead bool) finding {
	f := finding{Name: "/proc", State: stateOK, Found: fmt.Sprintf("program and open files of %d of %d processes can be read", p.readable, p.all)}
	switch {
	case p.err != nil:
		return finding{"/proc", stateMissing, p.err.Error(), "programs are not known", "mount -t proc proc /proc"}
	case len(p.hung) > 0:
		f.State, f.Consequence = stateNote, "arguments of those that keep their memory map locked are not known; no verdict waits for them"
		f.Remedy = "look at what they do; end them if it is not meant"
	case p.readable < p.all && mayRead:
		f.State, f.Consequence = stateNote, "the others are protected even from root; their sockets are known by what is recorded, or by their user only"
	case p.readable < p.all:
		f.State, f.Consequence = stateLimit, "sockets of the others are known by their user only"
		f.Remedy = "run it with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, or as root"
	}
	if p.hidden != "" {
		f.Found += ", hidepid=" + p.hidden
	}
	for _, name := range p.hung {
		f.Found += "; " + name + ", keeps its memory map locked"
	}
	if p.left > 0 {
		f.Found += fmt.Sprintf("; %d were not looked at", p.left)
	}
	return f
}
