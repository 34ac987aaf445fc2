package attribution_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/attribution"
)

// senderEnv makes the test binary a program that sends, says which ports its
// sockets have and stays until its input ends. Its value is how many sockets it
// opens and to whom.
const senderEnv = "VERDICTD_TEST_SENDER"

// send is that program.
func send(what string) error {
	var count int
	var to string
	if _, err := fmt.Sscan(what, &count, &to); err != nil {
		return err
	}
	for range count {
		conn, err := net.Dial("udp4", to)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("x")); err != nil {
			return err
		}
		fmt.Println("port", conn.LocalAddr().(*net.UDPAddr).Port)
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

const (
	sinkAddr   = "10.99.0.2:9"
	clientAddr = "10.99.0.1"
)

// program is a running program that becomes or starts senders.
type program struct {
	tb    testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
}

// run runs a program whose senders have count sockets each.
func run(tb testing.TB, ns *lab.Namespace, count int, path string, args ...string) *program {
	tb.Helper()
	p := &program{tb: tb, cmd: exec.Command(path, args...)}
	p.cmd.Stderr = os.Stderr
	p.cmd.Env = []string{fmt.Sprintf("%s=%d %s", senderEnv, count, sinkAddr)}
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		tb.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	p.lines = bufio.NewScanner(out)
	if err := ns.Do(p.cmd.Start); err != nil {
		tb.Fatal(err)
	}
	return p
}

// flows returns the flows of the next sender.
func (p *program) flows() (flows []*packet.Packet) {
	p.tb.Helper()
	for p.lines.Scan() {
		var port uint16
		if _, err := fmt.Sscanf(p.lines.Text(), "port %d", &port); err == nil {
			flows = append(flows, udp(netip.AddrPortFrom(netip.MustParseAddr(clientAddr), port), netip.MustParseAddrPort(sinkAddr)))
		}
		if p.lines.Text() == "ready" {
			return flows
		}
	}
	p.tb.Fatalf("%s ended after it had sent from %d sockets", p.cmd, len(flows))
	return nil
}

// end ends the program, unless it waits for something else than its input.
func (p *program) end() {
	p.in.Close()
	for p.lines.Scan() {
	}
	if err := p.cmd.Wait(); err != nil {
		p.tb.Error(err)
	}
}

// sender starts a program that sends from count sockets, and returns their flows
// and what ends it.
func sender(tb testing.TB, ns *lab.Namespace, count int) (flows []*packet.Packet, end func()) {
	tb.Helper()
	p := run(tb, ns, count, "/proc/self/exe")
	return p.flows(), p.end
}

func udp(src, dst netip.AddrPort) *packet.Packet {
	return &packet.Packet{Status: packet.OK, Version: 4, Protocol: packet.ProtoUDP, HasPorts: true,
		Src: src.Addr(), Dst: dst.Addr(), SrcPort: src.Port(), DstPort: dst.Port()}
}

// resolver opens a resolver for the client of a small network, where the rules
// record who sends.
func resolver(tb testing.TB, mode attribution.Mode) (*lab.Network, *attribution.Resolver) {
	tb.Helper()
	labtest.Require(tb, labtest.Root, labtest.NFTables)
	lan := labtest.Pair(tb)
	r, err := attribution.Open(attribution.Config{Mode: mode, NetNS: lan.Client.FD()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	if mode == attribution.Proc {
		return lan, r
	}
	if err := r.Recorded(); err != nil {
		labtest.Lacks(tb, labtest.BPF, err)
	}
	rules, err := hook.Install(hook.Config{Hooks: []hook.Hook{hook.Output}, Bypass: true, Record: r.Program(), NetNS: lan.Client.FD()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { rules.Close() })
	if ok, err := rules.Recording(); !ok {
		labtest.Lacks(tb, "xt_bpf and nft_compat", err)
	}
	return lan, r
}

func attributor(tb testing.TB, r *attribution.Resolver) *attribution.Attributor {
	a := r.New()
	tb.Cleanup(func() { a.Close() })
	return a
}

// TestParentsOfNow: a shell starts two programs, the second after it has become
// another program itself, and both are called what they are.
func TestParentsOfNow(t *testing.T) {
	lan, r := resolver(t, attribution.Auto)
	a := attributor(t, r)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other")
	text, err := os.ReadFile(shell)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, text, 0o755); err != nil {
		t.Fatal(err)
	}
	const script = `"$1" </dev/null; "$1" </dev/null; read next; exec "$2" -c '"$1"; :' x "$1"`
	p := run(t, lan.Client, 1, shell, "-c", script, "x", self, other)
	defer p.end()
	seen := map[uint32]bool{}
	var shells []process.Parent
	for i, want := range []string{shell, shell, other} {
		if i == 2 {
			fmt.Fprintln(p.in)
		}
		o := a.Settled(&packet.Meta{Hook: packet.Output, HasUID: true, UID: uint32(os.Getuid())}, p.flows()[0])
		if o.Process == nil || len(o.Process.Parents) < 2 {
			t.Fatalf("program %d: got %+v, want it with its parents", i, o)
		}
		if got := o.Process.Exe; got.Path != self || got.Deleted {
			t.Errorf("program %d: got %+v, want %s", i, got, self)
		}
		if got := o.Process.Parents[0].Exe; got != want {
			t.Errorf("parent of program %d: got %s, want %s", i, got, want)
		}
		if got := int(o.Process.Parents[1].PID); got != os.Getpid() {
			t.Errorf("parent of the parent of program %d: got %d, want %d", i, got, os.Getpid())
		}
		seen[o.Process.PID] = true
		shells = append(shells, o.Process.Parents[0])
	}
	if len(seen) != len(shells) || shells[0].PID != shells[2].PID {
		t.Errorf("got programs %v of %v, want three of one", seen, shells)
	}
}
