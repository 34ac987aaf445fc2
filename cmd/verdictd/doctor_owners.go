package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/attribution"
	"github.com/verdictd/verdictd/process/sockdiag"
)

// attributionFindings says how owners of sockets are found.
func (c *checkup) attributionFindings(ctx context.Context) []finding {
	var all []finding
	if c.Daemon != nil {
		all = append(all, counted(&c.Owners))
	}
	flow, cookie := flowFinding(&c.Owners), cookieFinding(&c.Owners)
	if c.Unprivileged {
		flow = finding{Name: flow.Name, State: stateUnknown, Found: "not known without root (needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN)"}
		cookie = finding{Name: cookie.Name, State: stateUnknown, Found: "not known without root"}
	}
	all = append(all, flow, cookie)
	all = append(all, programFindings(&c.Owners)...)
	return append(all,
		diagFinding(&c.Owners),
		procFinding(readProcesses(ctx), mayReadAll()),
		connectorFinding(hasProcessEvents()),
		cgroupFinding(cgroupMounts()),
		btfFinding(readable(kernelTypes)),
		pidFinding(attribution.InitialPIDs()),
	)
}

// counted says what a daemon has found so far.
func counted(a *attributionStatus) finding {
	f := finding{Name: "so far", State: stateOK}
	if a.Mode == "" {
		f.State, f.Found, f.Remedy = stateUnknown, "this verdictd does not tell", "verdictd upgrade, to one that does"
		return f
	}
	var counts []string
	for i := len(process.Sources()) - 1; i >= 0; i-- { // the best first
		name := process.Sources()[i]
		if n := a.Sources[name]; n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", n, name))
		}
	}
	if counts == nil {
		counts = []string{"nobody was asked for"}
	}
	f.Found = strings.Join(counts, ", ")
	if a.Unrecorded > 0 {
		f.State = stateLimit
		f.Found += fmt.Sprintf("; the kernel did not take %d records", a.Unrecorded)
	}
	return f
}

const (
	lateQuestions = "programs that end at once are mostly not found (2 to 5 of 100 are)"
	bpfRights     = "run it with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (in a unit also: SystemCallFilter=bpf)"
)

// flowFinding says whether owners are recorded before a packet is queued.
func flowFinding(a *attributionStatus) finding {
	f := finding{Name: "bpf-flow", State: stateOK}
	switch {
	case a.Mode == "":
		f.State, f.Found = stateUnknown, "this verdictd does not tell"
	case !a.Recording && strings.Contains(a.Reason, unix.EPERM.Error()):
		f = finding{f.Name, stateMissing, "no right to load BPF programs", lateQuestions, bpfRights}
	case !a.Recording:
		f.State, f.Found, f.Consequence = stateMissing, a.Reason, lateQuestions
		if a.Mode != attribution.Auto.String() {
			f.Remedy = "verdictd run --attribution auto"
		}
	case !a.Rule:
		f.State, f.Found, f.Consequence = stateMissing, a.RuleReason, lateQuestions
	default:
		n := 0
		for _, p := range a.Programs {
			if p.Attached {
				n++
			}
		}
		f.Found = fmt.Sprintf("recorded before the packet is queued: %d of %d BPF programs, and the rule (xt_bpf)", n, len(a.Programs))
	}
	return f
}

// cookieFinding says the same of sockets that receive.
func cookieFinding(a *attributionStatus) finding {
	f := finding{Name: "bpf-cookie", State: stateOK, Found: "the recorded owner of a socket that sock_diag finds"}
	switch {
	case a.Mode == "":
		f.State, f.Found = stateUnknown, "this verdictd does not tell"
	case !a.Recording:
		f.State, f.Found = stateMissing, "nothing is recorded"
		f.Consequence = "who receives is known by searches through /proc: new programs late, sockets shared by several not"
	case !a.SockDiag:
		f.State, f.Found = stateMissing, "sock_diag does not answer"
	}
	return f
}

// programFindings names what is not recorded.
func programFindings(a *attributionStatus) (all []finding) {
	for _, p := range a.Programs {
		if !p.Attached {
			all = append(all, finding{Name: "program " + p.Name, State: stateLimit, Found: p.Reason, Consequence: lost(p.Name)})
		}
	}
	for _, what := range a.Missing {
		all = append(all, finding{Name: "record", State: stateLimit, Found: "without " + what})
	}
	return all
}

// lost says what an optional program records.
func lost(program string) string {
	return map[string]string{
		"accept": "accepted connections are known once they are used",
		"arrive": "who of another network namespace sends what is forwarded is not known",
	}[program]
}

// diagFinding says which sockets the kernel can be asked for.
func diagFinding(a *attributionStatus) finding {
	var has, lacks []string
	for _, p := range []struct {
		name   string
		number uint8
	}{{"tcp", sockdiag.ProtoTCP}, {"udp", sockdiag.ProtoUDP}, {"udplite", sockdiag.ProtoUDPLite}, {"raw", sockdiag.ProtoRaw}} {
		if hasDiag(p.number) == nil {
			has = append(has, p.name)
			continue
		}
		lacks = append(lacks, p.name)
	}
	f := finding{Name: "diag", State: stateOK, Found: "sock_diag knows " + strings.Join(has, ", ")}
	if lacks != nil {
		f.Found += "; not " + strings.Join(lacks, ", ")
	}
	f.Found += "; " + destroyText(tryDestroy())
	if a.Mode != "" && a.Mode != attribution.Off.String() && !a.SockDiag {
		return finding{"diag", stateMissing, a.NoSockDiag, "who receives is not known", "modprobe -a tcp_diag udp_diag (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG)"}
	}
	return f
}

// tryDestroy lets the kernel close a socket that listens for nobody.
func tryDestroy() error {
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // the kernel refuses to close listeners of MPTCP
	l, err := plain.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	diag, err := sockdiag.Open(0)
	if err != nil {
		return err
	}
	defer diag.Close()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	k := packet.Key{Src: at.Addr().As16(), Dst: at.Addr().As16(), DstPort: at.Port(), Protocol: sockdiag.ProtoTCP, Version: 4}
	var s sockdiag.Socket
	found, err := diag.Find(&k, true, &s)
	if err != nil || !found {
		return errors.Join(errors.New("the socket was not found"), err)
	}
	return diag.Destroy(&s)
}

func destroyText(err error) string {
	switch {
	case err == nil:
		return "can close sockets"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "whether it can close sockets is not known without root"
	case errors.Is(err, sockdiag.ErrUnsupported):
		return "cannot close sockets (CONFIG_INET_DIAG_DESTROY)"
	}
	return fmt.Sprintf("closing sockets was not tried: %v", err)
}
