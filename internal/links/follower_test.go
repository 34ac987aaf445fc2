package links_test

import (
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/internal/links"
)

// TestLabFollowerIsNeverLate renames, makes and removes interfaces and asks at
// once, with no other goroutine that could have read it meanwhile.
func TestLabFollowerIsNeverLate(t *testing.T) {
	labtest.Require(t, labtest.Root)
	labtest.Leaks(t)
	a, b := namespace(t, "a"), namespace(t, "b")
	f, err := links.Follow(a.FD())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := lab.Link(a, b, lab.LinkConfig{NameA: "wan7", NameB: "lan7"}); err != nil {
		t.Fatal(err)
	}
	index := indexOf(t, a, "wan7")
	f.Update(1)
	name, first := f.Name(index)
	if name != "wan7" || first == 0 {
		t.Fatalf("a new interface: got %q, %d, want wan7", name, first)
	}
	for range 100 {
		rename(t, a, "wan7", "old7")
		f.Update(1)
		if name, id := f.Name(index); name != "old7" || id == first {
			t.Fatalf("renamed: got %q, %d, want old7 and another number than %d", name, id, first)
		}
		rename(t, a, "old7", "wan7")
		f.Update(1)
		if name, id := f.Name(index); name != "wan7" || id != first {
			t.Fatalf("renamed back: got %q, %d, want wan7, %d", name, id, first)
		}
	}
	// Several names between two batches: a packet that has waited may have come by any.
	rename(t, a, "wan7", "old7")
	rename(t, a, "old7", "wan7")
	const while = 20e6 // ns
	f.Update(2)
	if name, id := f.Name(index); name != "" || id != 0 {
		t.Errorf("renamed twice: got %q, %d, want nothing", name, id)
	}
	f.Update(2 + while)
	if name, id := f.Name(index); name != "wan7" || id != first {
		t.Errorf("a while later: got %q, %d, want wan7, %d", name, id, first)
	}
	if n := testing.AllocsPerRun(100, func() { f.Update(1) }); n != 0 {
		t.Errorf("%v allocations where nothing has changed", n)
	}
	if name, id := f.Name(1 << 30); name != "" || id != 0 {
		t.Errorf("no interface: got %q, %d", name, id)
	}
}

// TestLabFollowerLosesTrack: what was not read for too long is not guessed, and
// known again when all interfaces were listed.
func TestLabFollowerLosesTrack(t *testing.T) {
	labtest.Require(t, labtest.Root)
	labtest.Leaks(t)
	a, b := namespace(t, "a"), namespace(t, "b")
	if err := lab.Link(a, b, lab.LinkConfig{NameA: "wan7", NameB: "lan7"}); err != nil {
		t.Fatal(err)
	}
	index := indexOf(t, a, "wan7")
	f, err := links.Follow(a.FD())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	done, ended := make(chan struct{}), make(chan error)
	go func() { ended <- f.Run(done) }()
	for range 2500 { // renames: two messages of 2 KiB each
		rename(t, a, "wan7", "old7")
		rename(t, a, "old7", "wan7")
	}
	f.Update(1)
	if name, _ := f.Name(index); name != "" {
		t.Errorf("got the name %q after messages were lost, want none", name)
	}
	if !lab.Poll(5e9, func() bool { f.Update(time.Now().UnixNano()); name, _ := f.Name(index); return name == "wan7" }) {
		t.Error("the name is not known again")
	}
	close(done)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// rename gives an interface another name, by SIOCSIFNAME.
func rename(t *testing.T, ns *lab.Namespace, from, to string) {
	t.Helper()
	err := ns.Do(func() error {
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
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
