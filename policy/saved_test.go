package policy_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

// savable are policies of each form that Source.Path can have.
func savable(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("tree/policy.rego", "package verdictd\n\ndecision := {\"verdict\": \"accept\", \"rule\": \"tree\"} if input.tcp.dst_port in data.ports.open\n")
	write("tree/ports/data.json", `{"open": [80]}`)

	return map[string]string{
		"file":  write("one.rego", "package verdictd\n\ndecision := {\"verdict\": \"accept\", \"rule\": \"one\"} if input.tcp.dst_port == 80\n"),
		"tree":  filepath.Join(dir, "tree"),
		"rules": write("plain.yaml", "rules:\n  - name: web\n    to-port: 80\n    proto: tcp\n    verdict: accept\n"),
		"none":  "",
	}
}

func TestSaved(t *testing.T) {
	for name, path := range savable(t) {
		t.Run(name, func(t *testing.T) {
			src := policy.Source{Path: path}
			p, err := policy.Load(t.Context(), src)
			if err != nil {
				t.Fatal(err)
			}
			at := filepath.Join(t.TempDir(), "made", "before.policy")
			if err := p.Save(at); err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(at)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("got mode %v, %v, want a file for its owner alone", info.Mode(), err)
			}
			q, err := policy.LoadSaved(t.Context(), at, src)
			if err != nil {
				t.Fatal(err)
			}
			if q.Hash() != p.Hash() {
				t.Errorf("got hash %s, want %s", q.Hash(), p.Hash())
			}
			for _, port := range []uint16{80, 81} {
				if got, want := decide(t, q, port), decide(t, p, port); got != want {
					t.Errorf("port %d: got %s, want %s", port, got, want)
				}
			}
		})
	}
}

// decide returns verdict and rule for a SYN to a port.
func decide(t *testing.T, p *policy.Policy, port uint16) string {
	t.Helper()
	var d rules.Decision
	err := p.Evaluate(&rules.Facts{Meta: &packet.Meta{Hook: packet.Output}, Packet: &packet.Packet{
		Status: packet.OK, Version: 4, Protocol: packet.ProtoTCP, HasPorts: true, DstPort: port, SrcPort: 999,
		Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("192.0.2.2"), TCPFlags: packet.SYN,
	}}, &d)
	if err != nil {
		t.Fatal(err)
	}
	return d.Action.String() + " " + d.Rule
}

// What is not what Save wrote is refused, with the reason.
func TestSavedRefused(t *testing.T) {
	at := filepath.Join(t.TempDir(), "before.policy")
	load := func() error {
		_, err := policy.LoadSaved(t.Context(), at, policy.Source{})
		return err
	}
	if err := load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
	p, err := policy.Load(t.Context(), policy.Source{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Save(at); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, content, want string
		mode                os.FileMode
	}{
		{"no JSON", "policy", "invalid character", 0o600},
		{"another version", strings.Replace(string(good), `"version":1`, `"version":9`, 1), "version 9", 0o600},
		{"another content", strings.Replace(string(good), `"sha256":"`, `"sha256":"0`, 1), "is damaged", 0o600},
		{"writable by others", string(good), "others may write", 0o622},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(at, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(at, tt.mode); err != nil {
				t.Fatal(err)
			}
			if err := load(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
