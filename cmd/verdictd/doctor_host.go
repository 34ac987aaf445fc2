package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelTypes is where the kernel describes its structures.
const kernelTypes = "/sys/kernel/btf/vmlinux"

func connectorFinding(err error) finding {
	f := finding{Name: "connector", State: stateOK, Found: "the kernel tells of processes that start and end"}
	const without = "without BPF, only searches through /proc tell whose a socket is"
	switch {
	case err == nil:
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		f.State, f.Found = stateUnknown, "not known without root (needs CAP_NET_ADMIN)"
	case errors.Is(err, unix.ECONNREFUSED):
		f.State, f.Found, f.Consequence = stateNote, "the kernel tells of processes only in the initial network namespace", without
	default:
		f = finding{f.Name, stateNote, err.Error(), without, "a kernel with CONFIG_PROC_EVENTS"}
	}
	return f
}

// mounted is a line of mountinfo, see proc_pid_mountinfo(5).
type mounted struct{ root, point, kind, options string }

// mountinfo lists the mounts that this process sees.
func mountinfo() (all []mounted, err error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(text)) {
		front, back, _ := strings.Cut(line, " - ")
		f, b := strings.Fields(front), strings.Fields(back)
		const frontFields, backFields = 6, 3
		if len(f) >= frontFields && len(b) >= backFields {
			all = append(all, mounted{root: f[3], point: f[4], kind: b[0], options: b[2]})
		}
	}
	return all, err
}

// cgroups says where the hierarchies of control groups are mounted.
type cgroups struct {
	v2, part string // all of version 2, or a part of it; empty if it is not mounted
	v1       bool
	err      error
}

func cgroupMounts() (c cgroups) {
	list, err := mountinfo()
	c.err = err
	for _, m := range list {
		switch {
		case m.kind == "cgroup":
			c.v1 = true
		case m.kind == "cgroup2" && m.root == "/" && c.v2 == "":
			c.v2 = m.point
		case m.kind == "cgroup2" && c.part == "":
			c.part = m.point
		}
	}
	return c
}

func cgroupFinding(c cgroups) finding {
	const name, boot = "cgroup", "boot with systemd.unified_cgroup_hierarchy=1"
	switch {
	case c.err != nil:
		return finding{Name: name, State: stateUnknown, Found: c.err.Error()}
	case c.v2 == "" && c.part == "":
		return finding{name, stateMissing, "version 2 is not mounted", "BPF cannot be attached, so nothing is recorded", "mount -t cgroup2 none /sys/fs/cgroup/unified, or " + boot}
	case c.v2 == "":
		return finding{name, stateLimit, "only a part of version 2 is mounted, at " + c.part, "processes outside of it are not recorded", "run it in the initial cgroup namespace"}
	case c.v1:
		return finding{name, stateNote, "version 2 at " + c.v2 + ", beside version 1 (hybrid)",
			"processes that are sorted by version 1 alone all have the cgroup /", boot}
	}
	return finding{Name: name, State: stateOK, Found: "version 2 at " + c.v2}
}

// readable returns nil if the file can be opened.
func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

func btfFinding(err error) finding {
	if err == nil {
		return finding{Name: "kernel types (BTF)", State: stateOK, Found: kernelTypes}
	}
	return finding{"kernel types (BTF)", stateLimit, err.Error(),
		"programs, start times and accepted connections are not recorded", "a kernel with CONFIG_DEBUG_INFO_BTF"}
}

func pidFinding(initial bool, err error) finding {
	const name = "pid namespace"
	switch {
	case err != nil:
		return finding{Name: name, State: stateUnknown, Found: err.Error()}
	case !initial:
		return finding{name, stateLimit, "not the initial one", "recorded pids are not those of /proc here: programs may be missing",
			"run it on the host, or the container with --pid=host"}
	}
	return finding{Name: name, State: stateOK, Found: "the initial one, as recorded pids are"}
}

// elsewhere says whether a process is in another network namespace.
func elsewhere(pid int) bool {
	own, err1 := os.Readlink("/proc/self/ns/net")
	other, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err1 == nil && err2 == nil && own != other
}

// capabilities returns the effective ones of a process, 0 being this one.
func capabilities(pid int) (set uint64, err error) {
	path := "/proc/self/status"
	if pid != 0 {
		path = fmt.Sprintf("/proc/%d/status", pid)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	_, after, _ := bytes.Cut(text, []byte("\nCapEff:"))
	line, _, _ := bytes.Cut(after, []byte("\n"))
	return strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 64)
}

// mayReadAll says whether this command may read all of /proc.
func mayReadAll() bool {
	const need = 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_READ_SEARCH
	set, err := capabilities(0)
	return err == nil && set&need == need
}

// rightFindings says which capabilities are there, and what they are for.
func rightFindings(set uint64, err error) (all []finding) {
	if err != nil {
		return []finding{{Name: "capabilities", State: stateUnknown, Found: err.Error()}}
	}
	for _, r := range []struct {
		name     string
		bits     uint64
		use, not string
	}{
		{"CAP_NET_ADMIN", 1 << unix.CAP_NET_ADMIN, "queue, rules, connection marks, BPF at cgroups", "no packet can be judged"},
		{"CAP_BPF", 1<<unix.CAP_BPF | 1<<unix.CAP_SYS_ADMIN, "BPF programs and maps", "no bpf-flow, no bpf-cookie"},
		{"CAP_PERFMON", 1<<unix.CAP_PERFMON | 1<<unix.CAP_SYS_ADMIN, "BPF that reads the kernel's structures", "programs and start times are not recorded"},
		{"CAP_SYS_PTRACE", 1 << unix.CAP_SYS_PTRACE, "programs and open files of other users' processes", "they are known by what was recorded only"},
		{"CAP_DAC_READ_SEARCH", 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_DAC_OVERRIDE, "the same, and hashes of programs that not all may read", "such programs have no hash, and older sockets no owner"},
	} {
		f := finding{Name: r.name, State: stateOK, Found: r.use}
		if set&r.bits == 0 {
			f.State, f.Consequence = stateMissing, r.not
		}
		all = append(all, f)
	}
	return all
}
