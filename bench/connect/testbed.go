package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/verdictd/verdictd/bench/measure"
	"github.com/verdictd/verdictd/internal/lab"
)

// Where the server listens.
const (
	serverPort  = 8443
	destination = "10.99.0.2" // the first of its addresses
	addresses   = 64
)

//go:embed client.c
var clientSource []byte // a constant to us

// bench is what is measured with.
type bench struct {
	*options
	client, server *lab.Namespace
	listener       *measure.Process
	dir            string // temporary
	cPeer, cClient string // programs
	daemon         string
	compiler       string
}

// newBench builds all programs and the network, and starts the server.
func newBench(ctx context.Context, o *options) (b *bench, err error) {
	b = &bench{options: o, daemon: o.Verdictd}
	if b.dir, err = os.MkdirTemp("", "verdictd-bench-"); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{b.build, b.wire, b.serve} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, b.close())
		}
	}
	return b, nil
}

func (b *bench) close() error {
	var err error
	if b.listener != nil {
		err = b.listener.Close()
	}
	return errors.Join(err, b.client.Close(), b.server.Close(), os.RemoveAll(b.dir))
}

func (b *bench) build(ctx context.Context) (err error) {
	if b.cPeer, b.compiler, err = measure.CompilePeer(ctx, b.dir); err != nil {
		return err
	}
	if b.cClient, err = measure.Compile(ctx, b.dir, "client", clientSource, "-static"); err != nil {
		return err
	}
	for name, text := range b.policies() {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if b.daemon != "" {
		return nil
	}
	b.daemon = filepath.Join(b.dir, "verdictd")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", b.daemon, "github.com/verdictd/verdictd/cmd/verdictd").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build verdictd: %w (run from within the repository): %s", err, out)
	}
	return nil
}

func (b *bench) wire(context.Context) (err error) {
	if b.client, err = lab.NewNamespace("client"); err != nil {
		return err
	}
	if b.server, err = lab.NewNamespace("server"); err != nil {
		return err
	}
	var at []netip.Prefix
	for a := netip.MustParseAddr(destination); len(at) < addresses; a = a.Next() {
		at = append(at, netip.PrefixFrom(a, 16))
	}
	err = lab.Link(b.client, b.server, lab.LinkConfig{
		AddrsA: []netip.Prefix{netip.MustParsePrefix("10.99.0.1/16")}, AddrsB: at,
	})
	if err != nil {
		return err
	}
	// Connections are reset. All namespaces share the kernel's table of them.
	return b.client.Sysctl("net/netfilter/nf_conntrack_tcp_timeout_close", "1")
}

func (b *bench) serve(ctx context.Context) (err error) {
	b.listener, err = measure.Start(ctx, b.server, b.cClient, []string{"serve", strconv.Itoa(serverPort)}, b.ClientCPU)
	return err
}

// outcome is what the client says.
type outcome struct {
	Connected int `json:"connected"`
	Failed    int `json:"failed"`
	Took      int `json:"took"` // ns, as are the others
	P50       int `json:"p50"`
	P99       int `json:"p99"`
}

// connect lets the client open connections for that many milliseconds.
func (b *bench) connect(ctx context.Context, s *shape, ms int64) (o outcome, err error) {
	cmd := exec.CommandContext(ctx, b.cClient, s.kind, strconv.Itoa(s.parallel), strconv.FormatInt(ms, 10),
		destination, strconv.Itoa(addresses), strconv.Itoa(serverPort))
	cmd.Stderr = os.Stderr
	var text []byte
	err = b.client.Do(func() error {
		return measure.OnCPU(b.ClientCPU, func() error {
			text, err = cmd.Output()
			return err
		})
	})
	if err != nil {
		return o, fmt.Errorf("client %v: %w", cmd.Args[1:], err)
	}
	if err := json.Unmarshal(text, &o); err != nil {
		return o, fmt.Errorf("client %v: %q: %w", cmd.Args[1:], text, err)
	}
	if o.Connected == 0 {
		return o, fmt.Errorf("client %v: none of %d connections was opened", cmd.Args[1:], o.Failed)
	}
	return o, nil
}
