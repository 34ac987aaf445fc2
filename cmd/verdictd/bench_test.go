package main_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// BenchmarkLabTCP measures one TCP stream that a router forwards. Compare within
// a run only:
//
//	go test ./cmd/verdictd -run '^$' -bench LabTCP -benchtime 3s -count 3
func BenchmarkLabTCP(b *testing.B) {
	labtest.Require(b, labtest.Root, labtest.NFQueue, labtest.NFTables)
	for _, tt := range []struct {
		name string
		args []string // nil: no verdictd
	}{
		{"none", nil},
		{"offload", []string{"run", "--hook", "forward", "--log", "/dev/null"}},
		{"queue", []string{"run", "--hook", "forward", "--log", "/dev/null", "--offload", "off"}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			lan := labtest.Router(b)
			if tt.args != nil {
				labtest.Daemon(b, lan.Router, tt.args...)
			}
			sendStream(b, lan)
		})
	}
}

// sendStream sends b.N times 1 MiB to a sink on the server.
func sendStream(b *testing.B, lan *lab.Network) {
	const mib = 1 << 20
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	var listener net.Listener
	at := to("10.99.2.2", sinkPort).String()
	if err := lan.Server.Do(func() (err error) { listener, err = net.Listen("tcp4", at); return err }); err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			defer conn.Close()
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, mib))
		}
		done <- err
	}()
	var conn net.Conn
	err := lan.Client.Do(func() (err error) { conn, err = new(net.Dialer).DialContext(ctx, "tcp4", at); return err })
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(mib)
	buf := make([]byte, mib)
	for b.Loop() {
		if _, err := conn.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	conn.Close()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
