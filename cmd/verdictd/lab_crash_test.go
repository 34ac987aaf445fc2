package main_test

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	recorder "github.com/verdictd/verdictd/process/record"
	"github.com/verdictd/verdictd/queue"
)

// TestLabCrash kills the worker in the middle of a flood, again and again. The
// keeper's next worker answers what it had read: no datagram is lost, none
// comes twice, none that the policy denies passes, and verdicts are back within
// a second, or three times what the first start took where everything is slow.
func TestLabCrash(t *testing.T) {
	setup(t)
	const rounds, rate = 4, 5_000
	net := labtest.Pair(t)
	got, denied := sink(t, net.Server, sinkPort), sink(t, net.Server, deniedSinkPort)
	labtest.Binary(t) // the time is that of a start
	began := time.Now()
	u := startUpgradable(t, net.Client, portsPolicy, "--hook", "output", "--queue-length", "65536", "--offload", "off")
	limit := max(time.Second, 3*time.Since(began))
	l, stop := runLoad(t, net, rate, 1)
	var floods sync.WaitGroup
	floods.Go(func() {
		if _, err := net.Client.Flood(t.Context(), lab.Flood{To: to("10.99.0.2", deniedSinkPort), Count: 2000, Rate: 500}); err != nil {
			t.Error(err)
		}
	})
	for i := range rounds {
		before := got.Received().Distinct
		if !lab.Poll(wait, func() bool { return got.Received().Distinct > before+500 }) {
			t.Fatalf("round %d: no datagrams come: %s", i, u.Stderr())
		}
		killed := time.Now()
		if err := unix.Kill(u.worker(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		u.waitProcesses(i + 2)
		at := got.Received().Distinct
		lab.Poll(wait, func() bool { return got.Received().Distinct > at })
		took := time.Since(killed)
		t.Logf("round %d: verdicts again after %v", i, took)
		if took > limit {
			t.Errorf("round %d: verdicts again after %v, want at most %v", i, took, limit)
		}
	}
	stop()
	floods.Wait()
	want(t, got, int(l.sent.Load()))
	want(t, denied, 0)
	u.stop(true)
}

// TestLabCrashSilence kills a worker that has read packets and not answered
// them, with nothing coming afterwards: the next one finds them all the same.
func TestLabCrashSilence(t *testing.T) {
	setup(t)
	const count = 200 // fewer than the sender's socket lets wait
	net := labtest.Pair(t)
	got := sink(t, net.Server, sinkPort)
	u := startUpgradable(t, net.Client, portsPolicy, "--hook", "output", "--queue-length", "65536", "--offload", "off")
	pid := u.worker()
	// The flood ends while the worker stands still in the middle of it.
	done := make(chan error, 1)
	go func() {
		_, err := net.Client.Flood(t.Context(), lab.Flood{To: to("10.99.0.2", sinkPort), Count: count, Rate: 20_000})
		done <- err
	}()
	got.Wait(count/10, wait)
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if waiting(t, net.Client) == 0 {
		t.Log("the worker had answered everything before it stood still")
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	u.waitProcesses(2)
	want(t, got, count)
	u.stop(true)
}

// TestLabKeeperSignals sends each signal to the keeper.
func TestLabKeeperSignals(t *testing.T) {
	setup(t)
	net := labtest.Pair(t)
	echo(t, net.Server, echoPort)
	u := startUpgradable(t, net.Client, portsPolicy, "--hook", "output,input")
	pid := u.worker()
	u.reload(acceptAll, byHangup)
	answered(t, net.Client, "10.99.0.2:7001")
	u.upgrade()
	if u.worker() == pid || u.worker() == u.PID() {
		t.Errorf("got worker %d after %d under keeper %d, want a new one", u.worker(), pid, u.PID())
	}
	answered(t, net.Client, "[fd99::2]:7001")
	u.stop(false)
	if err := unix.Kill(u.worker(), 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the worker still runs: %v", err)
	}
}

// TestLabKeeperPrivate looks for a way in which a stranger could send to the
// keeper: none of its sockets has a name. What the keeper says of a worker's
// death is how it died, and how long it had judged.
func TestLabKeeperPrivate(t *testing.T) {
	setup(t)
	ns := namespace(t, "keeper")
	u := startUpgradable(t, ns, acceptAll, "--hook", "output")
	sockets := regexp.MustCompile(`socket:\[(\d+)\]`)
	var table []byte
	err := ns.Do(func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/unix")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", u.PID()))
	if err != nil {
		t.Fatal(err)
	}
	held := 0
	for _, link := range links {
		to, _ := os.Readlink(link) // it may be closed by now
		m := sockets.FindStringSubmatch(to)
		if m == nil {
			continue
		}
		held++
		if named := regexp.MustCompile(`(?m) ` + m[1] + ` [@/].*$`).Find(table); named != nil {
			t.Errorf("anybody finds the keeper's socket: %s", named)
		}
	}
	if held == 0 {
		t.Error("got no socket of the keeper")
	}
	if err := unix.Kill(u.worker(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	u.waitProcesses(2)
	if told := regexp.MustCompile(`worker died, starting another.* end="killed by SIGKILL" was="ready for \d+m?s" pause=0s`); !told.MatchString(u.Stderr()) {
		t.Errorf("got %s, want like %s", u.Stderr(), told)
	}
	u.stop(true)
}

// TestLabKeeperGivesUp makes every new worker fail. The keeper gives up and
// lets go of the queue: the rules say what becomes of packets then.
func TestLabKeeperGivesUp(t *testing.T) {
	for fail, pass := range map[string]lab.Outcome{"closed": lab.Silent, "open": lab.Answered} {
		t.Run(fail, func(t *testing.T) {
			setup(t)
			net := labtest.Pair(t)
			echo(t, net.Server, deniedEchoPort)
			u := startUpgradable(t, net.Client, portsPolicy, "--hook", "output", "--fail", fail)
			writeFile(t, u.policy, "no policy at all")
			if err := unix.Kill(u.worker(), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if code := u.Wait(); code != 1 {
				t.Errorf("got exit code %d, want 1", code)
			}
			if !strings.Contains(u.Stderr(), "giving up") || strings.Count(u.Stderr(), "worker started") != 9 {
				t.Errorf("got %s, want nine workers and a word that this is the end", u.Stderr())
			}
			ask(t, []question{{net.Client, lab.Probe{Proto: lab.UDP, To: to("10.99.0.2", deniedEchoPort), Timeout: silence}, pass}})
		})
	}
}

// TestLabKeeperStart starts a worker that cannot work: the keeper does not try
// again.
func TestLabKeeperStart(t *testing.T) {
	setup(t)
	ns := namespace(t, "keeper")
	policy := filepath.Join(t.TempDir(), "policy.rego")
	writeFile(t, policy, "no policy at all")
	exit := labtest.Run(t, ns, "run", "--keeper", "--policy", policy)
	if exit.Code != 2 || strings.Count(exit.Stderr, "worker started") != 1 {
		t.Errorf("got exit code %d and %q, want 2 and one worker", exit.Code, exit.Stderr)
	}
}

// TestLabKeeperKilled kills the keeper: the worker goes on judging.
func TestLabKeeperKilled(t *testing.T) {
	setup(t)
	net := labtest.Pair(t)
	got, denied := sink(t, net.Server, sinkPort), sink(t, net.Server, deniedSinkPort)
	u := startUpgradable(t, net.Client, portsPolicy, "--hook", "output")
	u.Kill()
	for _, s := range []*lab.Sink{denied, got} {
		flood(t, net.Client, lab.Flood{To: to("10.99.0.2", s.Addr().Port()), Count: 100})
	}
	want(t, got, 100)
	want(t, denied, 0)
	if err := unix.Kill(u.worker(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if !lab.Poll(wait, func() bool { return boundQueues(t, net.Client) == 0 }) {
		t.Error("the worker does not stop without its keeper")
	}
}

// serviceManager is a stand-in for systemd's side of sd_notify(3): it keeps
// what comes with FDSTORE=1 and gives it to the next process.
type serviceManager struct {
	t     *testing.T
	conn  *net.UnixConn
	ns    *lab.Namespace
	ready chan struct{} // READY=1 came

	mu    sync.Mutex
	files map[string]*os.File
}

func newServiceManager(t *testing.T, ns *lab.Namespace) *serviceManager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &serviceManager{t: t, conn: conn, ns: ns, files: map[string]*os.File{}, ready: make(chan struct{}, 10)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.listen()
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
		for _, f := range m.files {
			f.Close()
		}
	})
	return m
}

func (m *serviceManager) listen() {
	buf, oob := make([]byte, 4096), make([]byte, 1024)
	for {
		n, oobn, _, _, err := m.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		text := string(buf[:n])
		name := regexp.MustCompile(`FDNAME=([^\n:]+)`).FindStringSubmatch(text)
		msgs, err := syscall.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			m.t.Error(err)
			continue
		}
		switch {
		case len(msgs) == 1 && name != nil && strings.Contains(text, "FDSTORE=1"):
			fds, err := syscall.ParseUnixRights(&msgs[0])
			if err != nil || len(fds) != 1 {
				m.t.Errorf("got descriptors %v, %v in %q, want one", fds, err, text)
				continue
			}
			m.put(name[1], os.NewFile(uintptr(fds[0]), name[1]))
		case name != nil && strings.Contains(text, "FDSTOREREMOVE=1"):
			m.put(name[1], nil)
		case strings.Contains(text, "READY=1"):
			m.ready <- struct{}{}
		}
	}
}

func (m *serviceManager) put(name string, f *os.File) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.files[name]; old != nil {
		old.Close()
	}
	delete(m.files, name)
	if f != nil {
		m.files[name] = f
	}
}

// held returns the names of the descriptors.
func (m *serviceManager) held() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.files))
}

// start runs verdictd as a service and waits until it is ready. The shell
// knows the process id that LISTEN_PID must be.
func (m *serviceManager) start(args ...string) *exec.Cmd {
	m.t.Helper()
	cmd := exec.Command("sh", append([]string{"-c", `[ "$LISTEN_FDS" = 0 ] || export LISTEN_PID=$$; exec "$0" "$@"`, labtest.Binary(m.t)}, args...)...)
	m.mu.Lock() // the child may replace a descriptor before Start has returned
	var names []string
	for name, f := range m.files {
		names, cmd.ExtraFiles = append(names, name), append(cmd.ExtraFiles, f)
	}
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.conn.LocalAddr().String(),
		"LISTEN_FDNAMES="+strings.Join(names, ":"), fmt.Sprint("LISTEN_FDS=", len(names)))
	err := m.ns.Do(cmd.Start)
	m.mu.Unlock()
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	select {
	case <-m.ready:
	case <-time.After(wait):
		m.t.Fatal("verdictd does not say that it is ready")
	}
	return cmd
}

// TestLabDescriptorStore kills verdictd under a service manager that keeps
// descriptors, in the middle of a flood. What comes meanwhile waits, and
// nothing is lost. At the end nothing stays in the store.
func TestLabDescriptorStore(t *testing.T) {
	setup(t, labtest.NFLog, labtest.BPF)
	const rate = 5_000
	net := labtest.Pair(t)
	got := sink(t, net.Server, sinkPort)
	stored := append(strings.Fields("blackbox nflog queue-3 queue-4"), recordNames(t)...)
	m := newServiceManager(t, net.Client)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "policy.rego"), portsPolicy)
	args := []string{"run", "--policy", filepath.Join(dir, "policy.rego"), "--log", filepath.Join(dir, "eve.json"),
		"--hook", "output", "--queue", "3-4", "--nflog-group", "5", "--queue-length", "65536", "--offload", "off"}
	p := m.start(args...)
	l, stop := runLoad(t, net, rate, 1)
	for range 3 {
		got.Wait(got.Received().Distinct+500, wait)
		p.Process.Kill()
		p.Wait()
		if names := m.held(); !slices.Equal(names, stored) {
			t.Errorf("got descriptors %v in the store, want %v", names, stored)
		}
		p = m.start(args...)
	}
	stop()
	want(t, got, int(l.sent.Load()))
	p.Process.Signal(unix.SIGTERM)
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	// The store must not keep the queues bound.
	if !lab.Poll(wait, func() bool { return boundQueues(t, net.Client) == 0 }) {
		t.Errorf("queues are bound after the end")
	}
	if names := m.held(); len(names) != 0 {
		t.Errorf("got descriptors %v in the store after the end, want none", names)
	}
}

// recordNames returns the names of the records that a daemon leaves with its
// supervisor: those that this kernel lets a recorder have.
func recordNames(t *testing.T) (names []string) {
	t.Helper()
	r, err := recorder.Open(recorder.Config{})
	if err != nil {
		t.Fatal(err)
	}
	files, err := r.Files()
	for name, f := range files {
		names = append(names, "record-"+name)
		f.Close()
	}
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// boundQueues returns how many queues of the namespace are bound.
func boundQueues(t *testing.T, ns *lab.Namespace) int {
	t.Helper()
	kernel, err := queue.ReadKernel(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	return len(kernel)
}
