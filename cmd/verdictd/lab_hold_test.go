package main_test

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabHoldSettings: how long a packet waits for the hash of its program, what
// becomes of it without, and which programs have none, is the operator's to say.
func TestLabHoldSettings(t *testing.T) {
	own, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	policy := fmt.Sprintf(`package verdictd

decision := {"verdict": "accept", "rule": "hash"} if input.process.exe_sha256 == "%x"

decision := {"verdict": "accept", "rule": "none"} if not input.process.exe_sha256
`, sha256.Sum256(own))
	tests := []struct {
		name   string
		args   []string
		first  string // rule of the first decision
		later  string // of those to come
		lacks  string // what the log says of it
		status string
	}{
		{"held", nil, "hash", "hash", "", ""},
		{"not held", []string{"--hold-hash", "0"}, "unhashed", "hash", "", ""},
		{"not held, accepted", []string{"--hold-hash", "0", "--accept-unhashed"}, "none", "hash", "", ""},
		{"too large", []string{"--hash-size", "1MiB"}, "none", "none", `"exe_no_sha256":"too large"`, "1 programs without hash, of them 1 too large"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			setup(t, labtest.BPF)
			net := labtest.Pair(t)
			server, err := net.Server.Echo(t.Context(), netip.MustParseAddrPort("10.99.0.2:7001"))
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			control := filepath.Join(t.TempDir(), "control")
			d := startDaemon(t, net.Client, policy, append([]string{"--hook", "output", "--control", control}, tt.args...)...)
			first := ""
			decided := func(r *record) bool { return r.decided() && r.DstPort == 7001 }
			answered := lab.Poll(wait, func() bool {
				got, err := net.Client.Probe(lab.Probe{Proto: lab.UDP, To: server.Addr(), Timeout: silence})
				all := d.records(decided)
				if first == "" && len(all) > 0 {
					first = all[0].Own.Rule
				}
				return err == nil && got == lab.Answered && len(all) > 0 && all[len(all)-1].Own.Rule == tt.later
			})
			all := d.records(decided)
			if !answered || first != tt.first {
				t.Fatalf("rule %q first, want %q; then %+v, want %q", first, tt.first, all, tt.later)
			}
			if !strings.Contains(d.Stdout(), tt.lacks) {
				t.Errorf("got %s, want %s", d.Stdout(), tt.lacks)
			}
			exit := labtest.Run(t, net.Client, "status", "--control", control)
			if !strings.Contains(exit.Stdout, tt.status) {
				t.Errorf("got %s, want %q", exit.Stdout, tt.status)
			}
		})
	}
}
