package main_test

import (
	"net"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabInterfaceRenamed: a packet is judged by the name that its interface has,
// right after a change and if the daemon was stopped meanwhile.
func TestLabInterfaceRenamed(t *testing.T) {
	setup(t)
	lan := labtest.Pair(t)
	d := startDaemon(t, lan.Client, `package verdictd

decision := {"verdict": "accept", "rule": "lan"} if input.interface.out == "eth0"
`, "--hook", "output")
	sink, err := lan.Server.Sink(t.Context(), netip.MustParseAddrPort("10.99.0.2:7003"))
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	const times, stopped = 60, 5
	for i := range times + stopped {
		if i >= times {
			d.Signal(unix.SIGSTOP)
		}
		if err := lan.Client.Do(func() error { return renameAndSend("eth0", "old0", "old") }); err != nil {
			t.Fatal(err)
		}
		if i >= times {
			d.Signal(unix.SIGCONT)
		}
		d.waitJudged(0) // what waits while its interface gets another name is judged by that
		if i >= times {
			d.Signal(unix.SIGSTOP)
		}
		if err := lan.Client.Do(func() error { return renameAndSend("old0", "eth0", "lan") }); err != nil {
			t.Fatal(err)
		}
		if i >= times {
			d.Signal(unix.SIGCONT)
		}
		d.waitJudged(0)
	}
	s := d.finish()
	if got := sink.Received(); got.Datagrams != times+stopped || s.accepted != times+stopped || s.dropped != times+stopped {
		t.Errorf("%d of %d arrived, %d accepted, %d dropped, want those by eth0 and no other", got.Datagrams, 2*(times+stopped), s.accepted, s.dropped)
	}
}

// renameAndSend gives an interface of the calling thread's namespace another name
// and sends at once by it.
func renameAndSend(from, to, text string) error {
	conn, err := net.Dial("udp4", "10.99.0.2:7003")
	if err != nil {
		return err
	}
	defer conn.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var request struct { // struct ifreq
		name, to [unix.IFNAMSIZ]byte
		_        [8]byte
	}
	copy(request.name[:], from)
	copy(request.to[:], to)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFNAME, uintptr(unsafe.Pointer(&request))); e != 0 {
		return e
	}
	_, err = conn.Write([]byte(text))
	return err
}
