package sockdiag

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/packet"
)

// answer builds struct inet_diag_msg by the kernel header, apart from the parser.
func answer(family, state byte, local, remote netip.AddrPort, attrs ...[]byte) []byte {
	b := []byte{family, state, 0, 0}
	b = binary.BigEndian.AppendUint16(b, local.Port())
	b = binary.BigEndian.AppendUint16(b, remote.Port())
	for _, a := range []netip.Addr{local.Addr(), remote.Addr()} {
		b = append(b, a.AsSlice()...)
		b = append(b, make([]byte, 16-len(a.AsSlice()))...)
	}
	for _, n := range []uint32{7, 0x11223344, 0x55667788, 0, 0, 0, 1000, 4711} { // interface, cookie, expires, queues, uid, inode
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	for _, a := range attrs {
		b = append(b, a...)
	}
	return b
}

func attr(kind uint16, data ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func le(n uint64, size int) []byte { return binary.NativeEndian.AppendUint64(nil, n)[:size] }

func TestParse(t *testing.T) {
	v4 := [2]netip.AddrPort{netip.MustParseAddrPort("10.1.2.3:80"), netip.MustParseAddrPort("10.4.5.6:1025")}
	v6 := [2]netip.AddrPort{netip.MustParseAddrPort("[::ffff:10.1.2.3]:80"), netip.MustParseAddrPort("[fe80::2]:0")}
	base := Socket{UID: 1000, Inode: 4711, Interface: 7, Cookie: 0x5566778811223344}
	with := func(change func(*Socket)) Socket { s := base; change(&s); return s }
	four := func(s *Socket) { s.Family, s.State, s.Local, s.Remote = 4, Established, v4[0], v4[1] }
	tests := []struct {
		name string
		data []byte
		want Socket
		ok   bool
	}{
		{"no attributes", answer(unix.AF_INET, 1, v4[0], v4[1]), with(four), true},
		{"all attributes", answer(unix.AF_INET6, 10, v6[0], v6[1],
			attr(8, 0), attr(attrV6Only, 1), attr(attrMark, le(5, 4)...), attr(14), attr(attrCgroup, le(1<<40, 8)...)),
			with(func(s *Socket) {
				s.Family, s.State, s.Local, s.Remote = 6, Listen, v6[0], v6[1]
				s.V6Only, s.Mark, s.HasMark, s.CgroupID, s.HasCgroup = true, 5, true, 1<<40, true
			}), true},
		{"attributes of other lengths", answer(unix.AF_INET, 1, v4[0], v4[1],
			attr(attrMark, 1, 2), attr(attrCgroup, le(9, 4)...), attr(attrV6Only)), with(four), true},
		{"attribute cut short", answer(unix.AF_INET, 1, v4[0], v4[1], attr(attrMark, le(5, 4)...)[:6]), with(four), true},
		{"attribute of length 0", answer(unix.AF_INET, 1, v4[0], v4[1], make([]byte, 8)), with(four), true},
		{"too short", answer(unix.AF_INET, 1, v4[0], v4[1])[:71], Socket{}, false},
		{"empty", nil, Socket{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s Socket
			ok := s.parse(tt.data)
			if ok != tt.ok || ok && s != tt.want {
				t.Errorf("got %+v, %v, want %+v, %v", s, ok, tt.want, tt.ok)
			}
		})
	}
	var s Socket
	if s.parse(answer(unix.AF_UNIX, 1, v4[0], v4[1])) {
		t.Error("a message of another family is taken")
	}
}

func TestState(t *testing.T) {
	for s, want := range map[State]string{0: "state(0)", Established: "ESTAB", Close: "UNCONN", Listen: "LISTEN", TimeWait: "TIME-WAIT", BoundInactive: "BOUND-INACTIVE", 99: "state(99)"} {
		if got := s.String(); got != want {
			t.Errorf("%d: got %q, want %q", s, got, want)
		}
	}
}

// fakeKernel is the other end of a Conn: it answers each request with what reply
// makes of it.
func fakeKernel(t *testing.T, reply func(n int, req []byte) [][]byte) *Conn {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	c := newConn(fds[0])
	c.has[ProtoTCP], c.has[ProtoUDP] = true, true
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 4096)
		for n := 0; ; n++ {
			size, err := unix.Read(fds[1], b)
			if err != nil || size == 0 {
				return
			}
			for _, datagram := range reply(n, b[:size]) {
				if _, err := unix.Write(fds[1], datagram); err != nil {
					return
				}
			}
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-done
		unix.Close(fds[1])
	})
	return c
}

// netlinkMessage makes a message that answers req.
func netlinkMessage(req []byte, kind, flags uint16, data []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = append(b, req[8:12]...)
	b = append(b, 0, 0, 0, 0)
	return append(b, data...)
}

func code(errno unix.Errno) []byte {
	return binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno)))
}

func key(proto uint8, src, dst string) *packet.Key {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	k := &packet.Key{Protocol: proto, Version: 4, Src: s.Addr().As16(), Dst: d.Addr().As16(), SrcPort: s.Port(), DstPort: d.Port()}
	if s.Addr().Is6() {
		k.Version = 6
	}
	return k
}

// TestAnswers checks what becomes of errors, stale and malformed answers.
func TestAnswers(t *testing.T) {
	sock := answer(unix.AF_INET, 1, netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
	tests := []struct {
		name  string
		reply func(n int, req []byte) [][]byte
		found bool
		err   string
	}{
		{"found", func(_ int, req []byte) [][]byte { return [][]byte{netlinkMessage(req, byFamily, 0, sock)} }, true, ""},
		{"not found", func(_ int, req []byte) [][]byte {
			return [][]byte{netlinkMessage(req, unix.NLMSG_ERROR, 0, code(unix.ENOENT))}
		}, false, ""},
		{"refused", func(_ int, req []byte) [][]byte {
			return [][]byte{netlinkMessage(req, unix.NLMSG_ERROR, 0, code(unix.ENOMEM))}
		}, false, "cannot allocate memory"},
		{"after a stale one", func(_ int, req []byte) [][]byte {
			stale := netlinkMessage(req, unix.NLMSG_ERROR, 0, code(unix.ENOENT))
			stale[8]++
			return [][]byte{stale, netlinkMessage(req, byFamily, 0, sock)}
		}, true, ""},
		{"malformed", func(_ int, req []byte) [][]byte { return [][]byte{netlinkMessage(req, byFamily, 0, sock[:20])} }, false, "malformed answer of 20 bytes"},
		{"silent", func(int, []byte) [][]byte { return nil }, false, "no answer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := fakeKernel(t, tt.reply)
			var s Socket
			found, err := c.Find(key(ProtoTCP, "10.0.0.1:1", "10.0.0.2:2"), false, &s)
			if found != tt.found || (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %v, error %v, want %v, %q", found, err, tt.found, tt.err)
			}
		})
	}
}

// TestInterruptedDump begins a list anew that the kernel calls incomplete, a
// bounded number of times, and reads on after an error of yield.
func TestInterruptedDump(t *testing.T) {
	sock := answer(unix.AF_INET, 1, netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
	dump := func(interrupted func(n int) bool) func(n int, req []byte) [][]byte {
		return func(n int, req []byte) [][]byte {
			var flags uint16
			if interrupted(n) {
				flags = unix.NLM_F_DUMP_INTR
			}
			two := append(netlinkMessage(req, byFamily, 0, sock), netlinkMessage(req, byFamily, 0, sock)...)
			return [][]byte{two, netlinkMessage(req, unix.NLMSG_DONE, flags, code(0))}
		}
	}
	sockets := 0
	count := func(s *Socket) error { sockets++; return nil }
	c := fakeKernel(t, dump(func(n int) bool { return n < 2 }))
	if err := c.Dump(t.Context(), count); err != nil || sockets != (2+4)*2 {
		t.Errorf("got %d sockets, error %v, want 12: four lists of 2, the first three times", sockets, err)
	}
	c = fakeKernel(t, dump(func(int) bool { return true }))
	if err := c.Dump(t.Context(), count); !errors.Is(err, errInterrupted) {
		t.Errorf("always interrupted: got error %v", err)
	}
	c = fakeKernel(t, dump(func(int) bool { return false }))
	stop := errors.New("stop")
	sockets = 0
	for range 2 { // the second shows that nothing of the first was left
		if err := c.Dump(t.Context(), func(*Socket) error { sockets++; return stop }); !errors.Is(err, stop) {
			t.Errorf("got error %v, want yield's", err)
		}
	}
	if sockets != 2 {
		t.Errorf("yield was called %d times, want 2: once by each Dump", sockets)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Dump(ctx, count); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want the context's", err)
	}
}

// TestReadRawText reads lines as the kernel prints them: addresses as numbers in
// the machine's byte order.
func TestReadRawText(t *testing.T) {
	loopback := fmt.Sprintf("%08X", binary.NativeEndian.Uint32([]byte{127, 0, 0, 1}))
	v4 := strings.ReplaceAll(`  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
    1: LOOPBACK:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 4711 2 0000000000000000 0
    2: LOOPBACK 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 4712 2 0000000000000000 0
    3: LOOPBACK:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000  -1        0 4713 2 0000000000000000 0
`, "LOOPBACK", loopback)
	want := []Raw{{Family: 4, ID: 1, Local: netip.MustParseAddr("127.0.0.1"), Remote: netip.IPv4Unspecified(), UID: 1000, Inode: 4711}}
	if diff := cmp.Diff(want, appendRaw(nil, []byte(v4), Raw{Family: 4}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzParse reads arbitrary messages: nothing panics, nothing is read beyond.
func FuzzParse(f *testing.F) {
	v6 := netip.MustParseAddrPort("[fd99::1]:80")
	f.Add(answer(unix.AF_INET6, 10, v6, v6, attr(attrV6Only, 1), attr(attrMark, 1, 2, 3, 4), attr(attrCgroup, le(7, 8)...)))
	f.Add(answer(unix.AF_INET, 1, netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), attr(8, 3)))
	f.Fuzz(func(t *testing.T, data []byte) {
		b := make([]byte, len(data)) // no room behind it
		copy(b, data)
		var s, again Socket
		ok := s.parse(b)
		if ok != again.parse(data) || s != again {
			t.Errorf("got %+v and %+v of the same bytes", s, again)
		}
		if ok && (s.Family != 4 && s.Family != 6 || s.Local.Addr().Is4() != (s.Family == 4)) {
			t.Errorf("got family %d with address %s", s.Family, s.Local)
		}
		for m, rest, ok := next(b); ok; m, rest, ok = next(rest) {
			if len(m.data)+len(rest) > len(b) {
				t.Fatalf("message of %d and rest of %d bytes from %d", len(m.data), len(rest), len(b))
			}
			m.errno()
			b = rest
		}
	})
}
