package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// next returns the owner in the first record of a protocol that is written after
// the log had seen bytes.
func (d *daemon) next(seen int, proto string, keep func(*owned) bool) *owned {
	d.t.Helper()
	var found *owned
	lab.Poll(wait, func() bool {
		for line := range strings.Lines(d.Stdout()[seen:]) {
			var o struct {
				owned
				Proto string `json:"proto"`
			}
			if !strings.HasSuffix(line, "\n") || json.Unmarshal([]byte(line), &o) != nil {
				return false
			}
			if o.Proto == proto && o.Type == "verdict" && o.Own.Process != nil && (keep == nil || keep(&o.owned)) {
				found = &o.owned
				return true
			}
		}
		return false
	})
	if found == nil {
		d.t.Fatalf("no record of a %s packet in %s", proto, d.Stdout()[seen:])
	}
	return found
}

// buildKinds builds the program that sends by every kind of socket, twice.
func (b *senders) buildKinds() {
	b.t.Helper()
	for _, name := range []string{"kinds", "kinds-other"} {
		out, err := exec.Command("gcc", "-O2", "-static", "-o", filepath.Join(b.dir, name), "testdata/owner/kinds.c").CombinedOutput()
		if err != nil {
			b.t.Fatalf("build kinds.c: %v: %s", err, out)
		}
	}
}

// kind sends by one kind of socket to a port of the server and says who did.
func (b *senders) kind(ns *lab.Namespace, kind string, port uint16) (pid uint32, exe string) {
	b.t.Helper()
	return b.kindBy(ns, "kinds", kind, port)
}

// kindBy is kind by one of the two programs.
func (b *senders) kindBy(ns *lab.Namespace, program, kind string, port uint16) (pid uint32, exe string) {
	b.t.Helper()
	return b.kindOf(ns, uint32(os.Getuid()), program, kind, port)
}

// kindOf is kindBy of a user.
func (b *senders) kindOf(ns *lab.Namespace, uid uint32, program, kind string, port uint16) (pid uint32, exe string) {
	b.t.Helper()
	cmd := exec.Command(filepath.Join(b.dir, program), kind, "10.99.0.2", "fd99::2", fmt.Sprint(port))
	cmd.SysProcAttr = &unix.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	var out []byte
	err := ns.Do(func() (err error) { out, err = cmd.Output(); return err })
	if err != nil {
		b.t.Fatalf("%s: %v: %s", kind, err, stderr.String())
	}
	if _, err := fmt.Sscan(string(out), &pid, &exe); err != nil {
		b.t.Fatalf("%s: %q: %v", kind, out, err)
	}
	return pid, exe
}

// TestLabOwnerKinds: every kind of socket that can send, each by a program that
// ends at once.
func TestLabOwnerKinds(t *testing.T) {
	setup(t, labtest.GCC, labtest.BPF)
	lan, b := labtest.Pair(t), newSenders(t)
	b.buildKinds()
	if err := lan.Client.Sysctl("net/ipv4/ping_group_range", "0 2147483647"); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, lan.Client, acceptAll, "--hook", "output")
	for i, tt := range []struct{ kind, proto, exe string }{
		{"udp", "UDP", "kinds"}, {"udp-connected", "UDP", "kinds"}, {"udp6", "UDP", "kinds"}, {"udp-mapped", "UDP", "kinds"},
		{"tcp-mapped", "TCP", "kinds"}, {"mptcp", "TCP", "kinds"},
		{"raw", "ICMP", "kinds"}, {"raw6", "IPv6-ICMP", "kinds"}, {"ping", "ICMP", "kinds"}, {"ping6", "IPv6-ICMP", "kinds"},
		{"fork", "UDP", "kinds"}, {"passed", "UDP", "kinds"}, {"exec", "UDP", "kinds-other"},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			d.t, b.t = t, t
			seen := len(d.Stdout())
			pid, exe := b.kind(lan.Client, tt.kind, uint16(30000+i))
			p := d.next(seen, tt.proto, nil).Own.Process
			if p.Source != "bpf-flow" || p.PID != pid || p.Exe != exe || filepath.Base(exe) != tt.exe {
				t.Errorf("got %+v, want process %d, %s", *p, pid, exe)
			}
		})
	}
}

// TestLabOwnerExecsLater: a program that sends and then becomes another one is not
// taken for that one.
func TestLabOwnerExecsLater(t *testing.T) {
	setup(t, labtest.GCC, labtest.BPF)
	lan, b := labtest.Pair(t), newSenders(t)
	b.buildKinds()
	d := startDaemon(t, lan.Client, acceptAll, "--hook", "output")
	d.Signal(unix.SIGSTOP) // nobody looks before it has become another
	const programs = 10
	seen := len(d.Stdout())
	pids := map[uint16]uint32{}
	for port := uint16(30000); port < 30000+programs; port++ {
		pids[port], _ = b.kind(lan.Client, "then-exec", port)
	}
	d.Signal(unix.SIGCONT)
	for port, pid := range pids {
		p := d.next(seen, "UDP", func(o *owned) bool { return o.DstPort == port }).Own.Process
		if p.PID != pid || p.Exe != filepath.Join(b.dir, "kinds") {
			t.Errorf("got %+v, want process %d and what it ran then", *p, pid)
		}
	}
}

// TestLabOwnerTakenOver: while a packet waits, another program sends by the same
// ports. Neither is taken for the other.
func TestLabOwnerTakenOver(t *testing.T) {
	for _, mode := range []string{"auto", "proc"} {
		t.Run(mode, func(t *testing.T) {
			setup(t, labtest.GCC, labtest.BPF)
			lan, b := labtest.Pair(t), newSenders(t)
			b.buildKinds()
			d := startDaemon(t, lan.Client, acceptAll, "--hook", "output", "--attribution", mode)
			d.Signal(unix.SIGSTOP)
			seen := len(d.Stdout())
			b.kindBy(lan.Client, "kinds", "bound", 30000)
			b.kindBy(lan.Client, "kinds-other", "bound", 30000)
			d.Signal(unix.SIGCONT)
			p := d.next(seen, "UDP", nil).Own.Process
			if p.PID != 0 || p.Exe != "" || p.Source != "uid-only" {
				t.Errorf("got %+v, want nobody but the user", *p)
			}
		})
	}
}

// TestLabOwnerTakenByStranger: while packets wait, programs of other users send by the
// same ports, and the first one again. Each is known: a stranger makes nobody unknown.
func TestLabOwnerTakenByStranger(t *testing.T) {
	setup(t, labtest.GCC, labtest.BPF)
	lan, b := labtest.Pair(t), newSenders(t)
	b.buildKinds()
	d := startDaemon(t, lan.Client, `package verdictd

decision := {"verdict": "accept", "rule": "user", "reason": sprintf("%d", [input.process.uid])}
`, "--hook", "output")
	d.Signal(unix.SIGSTOP)
	seen := len(d.Stdout())
	const stranger = 65534
	programs := map[uint32]string{0: "kinds", stranger: "kinds-other"}
	exes := map[uint32]string{}
	for _, uid := range []uint32{0, stranger, 0, stranger, 0} {
		_, exes[uid] = b.kindOf(lan.Client, uid, programs[uid], "bound", 30000)
	}
	d.Signal(unix.SIGCONT)
	for uid, exe := range exes {
		p := d.next(seen, "UDP", func(o *owned) bool { return *o.Own.Process.UID == uid }).Own.Process
		if p.Source != "bpf-flow" || p.Exe != exe {
			t.Errorf("got %+v, want %s of user %d", *p, exe, uid)
		}
	}
}

// TestLabOwnerKernel: what the kernel itself sends is of no process, also while a
// process provokes it.
func TestLabOwnerKernel(t *testing.T) {
	setup(t, labtest.GCC, labtest.BPF)
	lan, b := labtest.Pair(t), newSenders(t)
	d := startDaemon(t, lan.Client, acceptAll, "--hook", "output")
	seen := len(d.Stdout())
	b.run(lan.Server, 4, 20000, "10.99.0.1", "fd99::1", "") // nobody listens there
	for _, proto := range []string{"TCP", "ICMP", "IPv6-ICMP"} {
		if p := d.next(seen, proto, nil).Own.Process; p.Source != "kernel" || p.PID != 0 {
			t.Errorf("%s: got %+v, want the kernel", proto, *p)
		}
	}
}

// TestLabOwnerAccepted: where only what is sent is judged, a connection that was
// accepted is of who listens.
func TestLabOwnerAccepted(t *testing.T) {
	for _, mode := range []string{"auto", "proc"} {
		t.Run(mode, func(t *testing.T) {
			setup(t, labtest.GCC, labtest.BPF)
			lan, b := labtest.Pair(t), newSenders(t)
			old := b.serve(lan.Client, 4, 20000)
			d := startDaemon(t, lan.Client, acceptAll, "--hook", "output", "--attribution", mode)
			later := b.serve(lan.Client, 4, 20004)
			for _, want := range append(old, later...) {
				if want.port%2 == 0 {
					continue // UDP: nobody answers
				}
				seen := len(d.Stdout())
				b.run(lan.Server, 2, want.port-1, "10.99.0.1", "fd99::1", "") // to 4 and 6: the one that listens answers
				o := d.next(seen, "TCP", func(o *owned) bool { return o.SrcPort == want.port })
				if p := o.Own.Process; mode == "auto" && (p.PID != want.pid || p.Exe != want.exe) || p.PID != 0 && p.PID != want.pid {
					t.Errorf("port %d: got %+v, want %+v", want.port, *p, want)
				}
			}
		})
	}
}
