package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/process/attribution"
)

// sampleCheckup is a machine on which much is wanting.
func sampleCheckup() *checkup {
	owners := attributionStatus{RuleReason: "record who sends: the kernel has no bpf match: load it with: modprobe -a nft_compat xt_bpf", Report: attribution.Report{
		Mode: "auto", Recording: true, SockDiag: true, Unrecorded: 3,
		Programs: []attribution.Program{{Name: "exec", Reason: "attach program exec: no such file or directory"}, {Name: "flow", Attached: true}},
		Missing:  []string{"start times of processes: no BTF"},
		Sources:  map[string]uint64{"unknown": 5, "uid-only": 7, "diag": 0, "bpf-cookie": 9},
	}}
	c := &checkup{
		Kernel: "6.12.1", Daemon: &daemonReport{PID: 4711, Version: "v1.2.3", Elsewhere: true}, Owners: owners,
		Queue: []finding{
			{Name: findQueue, State: stateOK, Found: "packets come up to be judged"},
			{findRule, stateMissing, "neither", "--hook is not possible", "modprobe nft_queue"},
		},
		Attribution: []finding{
			counted(&owners), flowFinding(&owners), cookieFinding(&owners),
			procFinding(processes{all: 40, readable: 3, hidden: "2"}, false),
			connectorFinding(unix.EPERM),
			cgroupFinding(cgroups{v2: "/sys/fs/cgroup/unified", v1: true}),
			btfFinding(nil), pidFinding(true, nil),
		},
		Rights: rightFindings(1<<unix.CAP_NET_ADMIN, nil),
	}
	c.Attribution = append(c.Attribution, programFindings(&owners)...)
	c.Families = families()
	for i := range c.Families {
		c.Families[i].State = []string{familyPresent, familyAbsent}[i%2]
	}
	c.judge()
	return c
}

// textOf returns all sections.
func textOf(c *checkup, colour bool) (text []byte) {
	for s := range sections {
		text = append(text, c.text(s, colour)...)
	}
	return text
}

// TestDoctorGolden fixes what people and machines read. VERDICTD_UPDATE=1 writes
// the files anew.
func TestDoctorGolden(t *testing.T) {
	c := sampleCheckup()
	object, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{
		"doctor.txt": fmt.Appendf(textOf(c, false), "%v\n", c.err()), "doctor.json": append(object, '\n'),
	} {
		golden(t, filepath.Join("testdata", "doctor", name), got)
	}
}

// Colours change nothing but colours.
func TestDoctorColours(t *testing.T) {
	c := sampleCheckup()
	plain := string(textOf(c, false))
	if strings.Contains(plain, "\x1b") {
		t.Error("there are colours without a terminal")
	}
	coloured := string(textOf(c, true))
	for _, code := range []string{"\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"} {
		if !strings.Contains(coloured, code) {
			t.Errorf("no colour %q", code)
		}
		coloured = strings.ReplaceAll(coloured, code, "")
	}
	if diff := cmp.Diff(plain, coloured); diff != "" {
		t.Errorf("(-plain +coloured):\n%s", diff)
	}
}

// TestDoctorVerdict looks at what follows from the findings.
func TestDoctorVerdict(t *testing.T) {
	good := finding{Name: "a", State: stateOK}
	tests := []struct {
		name string
		c    checkup
		want string
		err  string
	}{
		{"all there", checkup{Queue: []finding{good}, Rights: []finding{{Name: "b", State: stateNote}}}, verdictComplete, ""},
		{"a limit", checkup{Queue: []finding{good}, Rights: []finding{{Name: "b", State: stateLimit}, {Name: "c", State: stateUnknown}}},
			verdictLimited, "works with limits: b; not known: c (run it as root)"},
		{"a family", checkup{Families: []family{{Name: "ROUTE", role: roleUsed, State: familyAbsent}, {Name: "NFLOG", role: roleGone, State: familyAbsent}}},
			verdictLimited, "works with limits: NETLINK_ROUTE"},
		{"no queue", checkup{Queue: []finding{{Name: findQueue, State: stateMissing}}}, verdictUnable, "no packet can be judged here; missing or limited: nfnetlink_queue"},
		{"unknown", checkup{Queue: []finding{{Name: findQueue, State: stateUnknown}}}, verdictUnknown, "not all is known; not known: nfnetlink_queue (run it as root)"},
		{"no rights", checkup{Unprivileged: true, Rights: []finding{{Name: "b", State: stateMissing}}}, verdictUnknown, "much is not known without root (needs CAP_NET_ADMIN)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.c.judge()
			got := ""
			if err := tt.c.err(); err != nil {
				got = err.Error()
			}
			if tt.c.Verdict != tt.want || got != tt.err {
				t.Errorf("got %s: %q, want %s: %q", tt.c.Verdict, got, tt.want, tt.err)
			}
		})
	}
}

// TestDoctorFindings gives each finding what it can meet.
func TestDoctorFindings(t *testing.T) {
	tests := []struct {
		name  string
		got   finding
		state string
		text  string // in what is found or to be done
	}{
		{"not permitted", flowFinding(&attributionStatus{Report: attribution.Report{Mode: "auto", Reason: "make map: operation not permitted"}}), stateMissing, "CAP_BPF"},
		{"switched off", flowFinding(&attributionStatus{Report: attribution.Nothing()}), stateMissing, "--attribution auto"},
		{"no rule", flowFinding(&attributionStatus{RuleReason: "modprobe xt_bpf", Report: attribution.Report{Mode: "auto", Recording: true}}), stateMissing, "modprobe xt_bpf"},
		{"old daemon", flowFinding(&attributionStatus{}), stateUnknown, "does not tell"},
		{"old daemon, counts", counted(&attributionStatus{}), stateUnknown, "verdictd upgrade"},
		{"no packet", counted(&attributionStatus{Report: attribution.Report{Mode: "auto"}}), stateOK, "nobody was asked for"},
		{"no sock_diag", diagFinding(&attributionStatus{Report: attribution.Report{Mode: "auto", NoSockDiag: "none"}}), stateMissing, "tcp_diag"},
		{"protected", procFinding(processes{all: 4, readable: 3}, true), stateNote, "3 of 4"},
		{"no /proc", procFinding(processes{err: fs.ErrNotExist}, true), stateMissing, "mount -t proc"},
		{"other namespace", connectorFinding(unix.ECONNREFUSED), stateNote, "initial network namespace"},
		{"no connector", connectorFinding(unix.EPROTONOSUPPORT), stateNote, "CONFIG_PROC_EVENTS"},
		{"version 1 alone", cgroupFinding(cgroups{v1: true}), stateMissing, "mount -t cgroup2"},
		{"part of version 2", cgroupFinding(cgroups{part: "/c"}), stateLimit, "at /c"},
		{"unified", cgroupFinding(cgroups{v2: "/sys/fs/cgroup"}), stateOK, "at /sys/fs/cgroup"},
		{"no BTF", btfFinding(fs.ErrNotExist), stateLimit, "CONFIG_DEBUG_INFO_BTF"},
		{"container", pidFinding(false, nil), stateLimit, "--pid=host"},
		{"no module", part(unix.EINVAL, finding{Remedy: "modprobe x"}), stateMissing, "modprobe x"},
		{"no rights", part(unix.EPERM, finding{}), stateUnknown, "not known without root"},
		{"native", ruleFindings(hook.Abilities{NativeQueue: true, XTQueue: true}, nil)[0], stateOK, "queue expression"},
		{"through nft_compat", ruleFindings(hook.Abilities{XTQueue: true}, nil)[0], stateOK, "nft_compat"},
		{"no rule to the queue", ruleFindings(hook.Abilities{}, nil)[0], stateMissing, "modprobe nft_queue"},
		{"no nf_tables", ruleFindings(hook.Abilities{}, errors.New("modprobe nf_tables"))[0], stateMissing, "modprobe nf_tables"},
		{"rules, no rights", ruleFindings(hook.Abilities{}, fs.ErrPermission)[0], stateUnknown, "not known without root"},
		{"no marks", ruleFindings(hook.Abilities{}, nil)[2], stateMissing, "CONFIG_NF_CONNTRACK_MARK"},
		{"CAP_SYS_ADMIN is CAP_BPF too", rightFindings(1<<unix.CAP_SYS_ADMIN, nil)[1], stateOK, "BPF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if said := tt.got.Found + "; " + tt.got.Remedy; tt.got.State != tt.state || !strings.Contains(said, tt.text) {
				t.Errorf("got %s: %s, want %s: %s", tt.got.State, said, tt.state, tt.text)
			}
			if (tt.got.State == stateMissing || tt.got.State == stateLimit) && tt.got.Consequence == "" && tt.name != "no module" {
				t.Error("it does not say what follows")
			}
		})
	}
}

// TestInspect: a process that cannot be looked at is named and passed over, and no
// more of them are looked at than may hang.
func TestInspect(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	self := os.Getpid()
	for _, tt := range []struct {
		hang      int // every so many, from the first on
		hung      int
		all, left int
	}{{40, 1, 40, 0}, {20, 2, 40, 0}, {2, mostHung, 2*mostHung - 1, 40 - 2*mostHung + 1}, {1, mostHung, mostHung, 40 - mostHung}} {
		var n atomic.Int32
		got := inspect(t.Context(), slices.Repeat([]int{self}, 40), func(int) sight {
			if (int(n.Add(1))-1)%tt.hang == 0 {
				<-release
			}
			return sightReadable
		}, 20*time.Millisecond)
		if got.all != tt.all || len(got.hung) != tt.hung || got.readable != tt.all-tt.hung || got.left != tt.left {
			t.Errorf("each %d. hangs: got %+v, want %+v", tt.hang, got, tt)
		}
		if f := procFinding(got, true); f.State != stateNote || !strings.Contains(f.Found, fmt.Sprintf("pid %d, called ", self)) {
			t.Errorf("got %+v, want the process named", f)
		}
	}
}
