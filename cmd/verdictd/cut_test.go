package main

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/verdictd/verdictd/internal/conntrack"
	"github.com/verdictd/verdictd/packet"
)

// Of what the kernel tracks only connections that no local socket is an end of
// are forwarded.
func TestForwardedLines(t *testing.T) {
	at := netip.MustParseAddrPort
	local := []socketLine{
		{Protocol: "tcp", Local: at("192.0.2.1:22"), Remote: at("198.51.100.7:4000")},
		{Protocol: "udp", Local: at("0.0.0.0:53"), Remote: at("0.0.0.0:0")},
	}
	ends := map[[2]netip.AddrPort]bool{{at("192.0.2.1:22"), at("198.51.100.7:4000")}: true}
	tests := []struct {
		name string
		c    conntrack.Connection
		want bool
	}{
		{"to a local socket", conntrack.Connection{Protocol: packet.ProtoTCP, Src: at("198.51.100.7:4000"), Dst: at("192.0.2.1:22")}, false},
		{"to a server without a peer", conntrack.Connection{Protocol: packet.ProtoUDP, Src: at("198.51.100.7:999"), Dst: at("192.0.2.1:53")}, false},
		{"forwarded", conntrack.Connection{Protocol: packet.ProtoTCP, Src: at("10.0.0.2:999"), Dst: at("203.0.113.9:443")}, true},
		{"another protocol", conntrack.Connection{Protocol: 1, Src: at("10.0.0.2:0"), Dst: at("203.0.113.9:0")}, false},
	}
	for _, tt := range tests {
		got := forwardedLines([]conntrack.Connection{tt.c}, local, ends)
		if (len(got) == 1) != tt.want {
			t.Errorf("%s: got %+v, want one: %v", tt.name, got, tt.want)
		}
		if len(got) == 1 && (got[0].Local != tt.c.Src || got[0].Remote != tt.c.Dst || got[0].Direction != "forward") {
			t.Errorf("%s: got %+v", tt.name, got[0])
		}
	}
}

// The sockets of who asks are those that its ancestors hold.
func TestOwnSockets(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := raw.Control(func(fd uintptr) { err = syscall.Fstat(int(fd), &st) }); err != nil {
		t.Fatal(err)
	}
	if own := ownSockets(os.Getpid()); !slices.Contains(own, uint32(st.Ino)) {
		t.Errorf("got %v, want %d among them", own, st.Ino)
	}
	if got := ownSockets(0); got != nil {
		t.Errorf("of nobody: got %v", got)
	}
}

// An order comes out of its text as it went in.
func TestOrder(t *testing.T) {
	for _, o := range []order{{}, {confirm: confirmMinute}, {own: []uint32{1, 4294967295}}, {confirm: confirmMinute, own: []uint32{7}}} {
		got, err := parseOrder(strings.TrimSpace(o.String()))
		if err != nil || got.confirm != o.confirm || !slices.Equal(got.own, o.own) {
			t.Errorf("got %+v, %v, want %+v", got, err, o)
		}
	}
	for _, bad := range []string{"confirm=1s", "confirm=x", "own=", "own=a", "own=1,-2", "else=1", "own=" + strings.Repeat("1,", maxOwn) + "1"} {
		if got, err := parseOrder(bad); err == nil {
			t.Errorf("%s: got %+v, want an error", bad, got)
		}
	}
}

const confirmMinute = 60e9
