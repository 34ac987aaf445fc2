package record_test

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
)

// statsRunTime is BPF_STATS_RUN_TIME of linux/bpf.h.
const statsRunTime = 0

type runTime struct {
	runs uint64
	time time.Duration
}

// runTimes reads how often and how long our programs have run, of all recorders
// of the machine.
func runTimes() map[string]runTime {
	out := map[string]runTime{}
	for id, err := ebpf.ProgramGetNextID(0); err == nil; id, err = ebpf.ProgramGetNextID(id) {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue
		}
		info, err1 := p.Info()
		stats, err2 := p.Stats()
		p.Close()
		if err1 != nil || err2 != nil {
			continue
		}
		if name, ok := strings.CutPrefix(info.Name, "vd_"); ok {
			sum := out[name]
			out[name] = runTime{sum.runs + stats.RunCount, sum.time + stats.Runtime}
		}
	}
	return out
}

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// sendTo sends a datagram; what became of it is not asked.
func sendTo(socket *os.File, to string) {
	_ = unix.Sendto(int(socket.Fd()), []byte("x"), 0, address(unix.AF_INET, mustAddrPort(to)))
}

// closeUDP opens a socket, sends by it and closes it.
func closeUDP(t testing.TB, ns *lab.Namespace) {
	t.Helper()
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Connect(fd, address(unix.AF_INET, mustAddrPort(server4)))
	})
	if err != nil {
		t.Fatal(err)
	}
}
