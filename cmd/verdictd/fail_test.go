package main

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/verdictd/verdictd/config"
	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// A part that fails ends the daemon. With --fail closed the rules stay and drop
// what they queue; with --fail open they go and everything passes.
func TestLabFailingPart(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	for _, tt := range []struct {
		fail   string
		passes bool
	}{{"closed", false}, {"open", true}} {
		t.Run(tt.fail, func(t *testing.T) {
			net := labtest.Pair(t)
			to := netip.MustParseAddrPort("10.99.0.2:7")
			server, err := net.Server.Echo(t.Context(), to)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			path := filepath.Join(t.TempDir(), "policy.rego")
			if err := os.WriteFile(path, []byte("package verdictd\nverdict := \"accept\"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := newSettings(config.Config{
				Policy: path, Hook: "output", Fail: tt.fail, Control: noControl, Log: config.Log{File: os.DevNull},
			})
			if err != nil {
				t.Fatal(err)
			}
			s.netns = net.Client.FD()
			s.ruleset.NetNS = s.netns
			d := newDaemon(env{stdout: io.Discard, stderr: io.Discard}, s)
			ask := func() lab.Outcome {
				got, err := net.Client.Probe(lab.Probe{Proto: lab.UDP, To: to, Timeout: 300 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				return got
			}
			d.ready = func() { d.queues[0].Close() }
			if err := d.run(t.Context()); err == nil {
				t.Error("the daemon ended without an error though its queue was closed")
			}
			if got := ask() == lab.Answered; got != tt.passes {
				t.Errorf("packets pass: %v, want %v", got, tt.passes)
			}
			_, err = hook.Show(*s.ruleset)
			if installed := err == nil; installed == tt.passes {
				t.Errorf("rules installed: %v (%v), want %v", installed, err, !tt.passes)
			}
		})
	}
}
