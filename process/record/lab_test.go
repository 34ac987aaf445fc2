package record_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process/record"
)

// requireBPF skips the test when the kernel or our rights do not suffice, naming
// what is missing; with VERDICTD_LAB=require it fails.
func requireBPF(t testing.TB) {
	t.Helper()
	labtest.Require(t, labtest.Root)
	r, err := record.Open(record.Config{Owners: 16, Flows: 16, Processes: 16})
	if err == nil {
		err = r.Close()
	}
	if err == nil {
		return
	}
	labtest.Lacks(t, labtest.BPF, err)
}

// settle bounds every wait for the kernel.
const settle = 5 * time.Second

// cgroup makes a cgroup below the root of the hierarchy and removes it in the
// end.
func cgroup(t testing.TB) string {
	t.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
		root = "/sys/fs/cgroup/unified"
	}
	dir, err := os.MkdirTemp(root, "record-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !lab.Poll(settle, func() bool { return os.Remove(dir) == nil }) {
			t.Errorf("cgroup %s stays behind", dir)
		}
	})
	return dir
}

// open opens a recorder that ends with the test.
func open(t testing.TB, cfg record.Config) *record.Recorder {
	t.Helper()
	r, err := record.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// filesystem mounts a BPF file system nowhere and returns a path to it that all
// processes can use.
func filesystem(t testing.TB) string {
	t.Helper()
	fs, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
}

// rule makes OUTPUT of namespaces call the flow program for each packet.
func rule(t testing.TB, r *record.Recorder, all ...*lab.Namespace) {
	t.Helper()
	pin := filepath.Join(filesystem(t), "flow")
	if err := r.Pin(pin); err != nil {
		t.Fatal(err)
	}
	for _, ns := range all {
		labtest.BothTables(t, ns, "-A", "OUTPUT", "-m", "bpf", "--object-pinned", pin, "-j", "DROP")
	}
}

// copyOf copies the test binary to a new file.
func copyOf(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// command is a helper program to be run.
type command struct {
	path   string // the test binary if empty
	ns     *lab.Namespace
	cgroup string // to be started in, if not empty
	words  []string
	attr   *unix.SysProcAttr
	args   []string
	dir    string
	stdin  *os.File
}

// run runs a helper to its end and returns the process id it printed last.
func (c command) run(t testing.TB) uint32 {
	t.Helper()
	pid, err := c.try(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// try is run for other goroutines than the test's.
func (c command) try(ctx context.Context) (pid uint32, err error) {
	if c.path == "" {
		c.path = "/proc/self/exe"
	}
	ctx, cancel := context.WithTimeout(ctx, 4*settle)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.path, c.args...)
	cmd.Dir = c.dir
	cmd.Env = environment(strings.Join(c.words, " "))
	cmd.SysProcAttr = &unix.SysProcAttr{}
	if c.attr != nil {
		cmd.SysProcAttr = c.attr
	}
	if c.cgroup != "" {
		dir, err := os.Open(c.cgroup)
		if err != nil {
			return 0, err
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	if c.stdin != nil {
		cmd.Stdin = c.stdin
	}
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := c.ns.Do(cmd.Run); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", cmd, err, stderr.Bytes())
	}
	words := strings.Fields(out.String())
	if len(words) == 0 {
		return 0, fmt.Errorf("%s printed nothing", cmd)
	}
	_, err = fmt.Sscan(words[len(words)-1], &pid)
	return pid, err
}

// key makes a flow key.
func key(proto uint8, src, dst string) *packet.Key {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	k := &packet.Key{Src: s.Addr().As16(), Dst: d.Addr().As16(), SrcPort: s.Port(), DstPort: d.Port(), Protocol: proto, Version: 4}
	if d.Addr().Is6() {
		k.Version = 6
	}
	return k
}

func TestLabOneShot(t *testing.T) {
	requireBPF(t)
	labtest.Require(t, labtest.IPTablesBinary)
	net := labtest.Pair(t)
	for _, where := range []string{"root", "below"} {
		cg := ""
		if where == "below" {
			cg = cgroup(t)
		}
		r := open(t, record.Config{Cgroup: cg})
		rule(t, r, net.Client)
		for _, test := range oneShots() {
			t.Run(where+"/"+test.name, func(t *testing.T) {
				pid := command{ns: net.Client, cgroup: cg, words: strings.Fields(test.words)}.run(t)
				var f record.Flow
				before := r.Changes(test.key)
				if !r.Flow(test.key, 0, ownUser(), &f) {
					t.Fatalf("flow %+v was not recorded", test.key)
				}
				if !f.HasOwner || f.Owner.PID != pid {
					t.Fatalf("got %+v, want pid %d", f, pid)
				}
				var p record.Process
				if !r.Process(pid, f.Owner.ExecID, &p) || p.Start != f.Owner.Start || p.Start == 0 {
					t.Fatalf("process %+v, owner %+v", p, f.Owner)
				}
				if self, _ := os.Readlink("/proc/self/exe"); p.Path != self || !p.Exited {
					t.Errorf("got %+v, want path %s, exited", p, self)
				}
				if r.Changes(test.key) != before {
					t.Error("Changes changed without a packet")
				}
			})
		}
		labtest.BothTables(t, net.Client, "-F", "OUTPUT")
		r.Close()
	}
}

type oneShot struct {
	name, words string
	key         *packet.Key
}

func oneShots() []oneShot {
	const c4, s4, c6, s6 = "10.99.0.1:7001", "10.99.0.2:9", "[fd99::1]:7001", "[fd99::2]:9"
	return []oneShot{
		{"udp", "udp " + s4 + " 7001", key(17, c4, s4)},
		{"udp connected", "udp-connected " + s4 + " 7001", key(17, c4, s4)},
		{"tcp", "tcp " + s4 + " 7001", key(6, c4, s4)},
		{"mptcp", "mptcp " + s4 + " 7001", key(6, c4, s4)},
		{"udp v6", "udp " + s6 + " 7001", key(17, c6, s6)},
		{"udp connected v6", "udp-connected " + s6 + " 7001", key(17, c6, s6)},
		{"tcp v6", "tcp " + s6 + " 7001", key(6, c6, s6)},
		{"udp mapped", "udp-mapped " + s4 + " 7001", key(17, c4, s4)},
		{"tcp mapped", "tcp-mapped " + s4 + " 7001", key(6, c4, s4)},
		{"ping", "ping " + s4 + " 7001", key(1, c4, "10.99.0.2:7001")},
		{"ping v6", "ping " + s6 + " 7001", key(58, c6, "[fd99::2]:7001")},
	}
}
