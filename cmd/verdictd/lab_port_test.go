package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// servedPolicy lets the superuser receive at one port; nobody sends but to answer.
const servedPolicy = `package verdictd

decision := {"verdict": "accept", "rule": "served"} if {
	input.direction == "in"
	input.udp.dst_port == 5353
	input.process.uid == 0
}
`

// bindAs binds a UDP socket that shares its port, as a user.
func bindAs(t *testing.T, ns *lab.Namespace, uid uintptr, at string) net.PacketConn {
	t.Helper()
	share := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }), err)
	}}
	var conn net.PacketConn
	err := errors.New("not called")
	asUser(t, ns, uid, func() { conn, err = share.ListenPacket(context.Background(), "udp4", at) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// asUser calls do in the namespace, on a thread that belongs to the user.
func asUser(t *testing.T, ns *lab.Namespace, uid uintptr, do func()) {
	t.Helper()
	become := func(uid uintptr) error {
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, 0); e != 0 { // this thread only
			return e
		}
		return nil
	}
	err := ns.Do(func() error {
		if err := become(uid); err != nil {
			return err
		}
		do()
		return become(0)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// got returns the text of the next datagram, "" if none comes in time.
func got(t *testing.T, c net.PacketConn, within time.Duration) string {
	t.Helper()
	b := make([]byte, 100)
	c.SetReadDeadline(time.Now().Add(within))
	n, _, err := c.ReadFrom(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return string(b[:n])
}

// TestLabPortTakenOver: who takes over a port gets nothing and sends nothing by the
// flow that was accepted for another, whatever comes first, and the log names both.
func TestLabPortTakenOver(t *testing.T) {
	setup(t, labtest.BPF)
	const port, thiefUID = "5353", 65534
	lan := labtest.Pair(t)
	d := startDaemon(t, lan.Client, servedPolicy, "--hook", "output,input")
	served := bindAs(t, lan.Client, 0, "0.0.0.0:"+port)
	outside := bindAs(t, lan.Server, 0, "10.99.0.2:7777")
	to, from := &net.UDPAddr{IP: net.IPv4(10, 99, 0, 1), Port: 5353}, outside.LocalAddr()
	send := func(c net.PacketConn, to net.Addr, text string) {
		t.Helper()
		if _, err := c.WriteTo([]byte(text), to); err != nil && !errors.Is(err, unix.EPERM) { // the queue's drop
			t.Fatal(err)
		}
	}
	send(outside, to, "first")
	if text := got(t, served, wait); text != "first" {
		t.Fatalf("served got %q, want the first datagram", text)
	}
	send(served, from, "answer")
	if text := got(t, outside, wait); text != "answer" {
		t.Fatalf("outside got %q, want the answer", text)
	}
	thief := bindAs(t, lan.Client, thiefUID, "10.99.0.1:"+port)
	send(outside, to, "stolen")
	if text := got(t, thief, silence); text != "" {
		t.Errorf("who took over the port got %q", text)
	}
	asUser(t, lan.Client, thiefUID, func() { send(thief, from, "leak") })
	if text := got(t, outside, silence); text != "" {
		t.Errorf("outside got %q from who took over the port", text)
	}
	thief.Close()
	send(outside, to, "again")
	if text := got(t, served, wait); text != "again" {
		t.Errorf("served got %q after the thief left, want what is sent to it", text)
	}
	send(outside, to, "last")
	if text := got(t, served, wait); text != "last" {
		t.Errorf("served got %q, want what is sent to it", text)
	}
	d.Stop()
	changed := false
	for line := range strings.Lines(d.Stdout()) {
		var r struct {
			Own struct {
				Process, Before *struct{ UID uint32 }
			} `json:"verdictd"`
		}
		line = strings.ReplaceAll(line, `"process_before"`, `"before"`)
		if json.Unmarshal([]byte(line), &r) == nil && r.Own.Before != nil && r.Own.Process != nil {
			changed = changed || r.Own.Before.UID == 0 && r.Own.Process.UID == thiefUID
		}
	}
	if !changed {
		t.Error("no record names who had the port and who took it")
	}
}
