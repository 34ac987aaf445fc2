package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSavedFinding looks for rules of verdictd in files that are loaded at boot.
func TestSavedFinding(t *testing.T) {
	const saved = "table inet verdictd {\n\tchain verdictd_offload {\n\t\tct state invalid counter packets 0 bytes 0\n\t}\n\tchain output {\n\t\txt match \"bpf\"\n\t}\n}\n"
	for name, tt := range map[string]struct {
		files map[string]string
		found string // file that is named, empty if none
	}{
		"nothing":         {nil, ""},
		"others":          {map[string]string{"etc/nftables.conf": "flush ruleset\ntable inet filter {\n\tchain output { # as verdictd_offload\n\t}\n}\n"}, ""},
		"Debian":          {map[string]string{"etc/nftables.conf": "flush ruleset\n" + saved}, "/etc/nftables.conf"},
		"Fedora":          {map[string]string{"etc/sysconfig/nftables.conf": saved}, "/etc/sysconfig/nftables.conf"},
		"included":        {map[string]string{"etc/nftables.conf": "include \"/etc/nft/*.rules\"\n", "etc/nft/all.rules": saved}, "/etc/nft/all.rules"},
		"relative":        {map[string]string{"etc/nftables.conf": "include \"my.nft\"\n", "etc/my.nft": saved}, "/etc/my.nft"},
		"includes itself": {map[string]string{"etc/nftables.conf": "include \"/etc/nftables.conf\"\n"}, ""},
		"directory":       {map[string]string{"etc/nftables/main.nft": saved}, "/etc/nftables/main.nft"},
		"iptables":        {map[string]string{"etc/iptables/rules.v6": "*security\n:verdictd-output - [0:0]\n-A verdictd-output -m bpf --object-pinned /sys/fs/bpf/v\nCOMMIT\n"}, "/etc/iptables/rules.v6"},
		"printed rules":   {map[string]string{"etc/iptables/rules.v4": "*security\n:verdictd-input - [0:0]\n-A verdictd-input -j NFQUEUE --queue-num 0\nCOMMIT\n"}, ""},
		"too large":       {map[string]string{"etc/nftables.conf": strings.Repeat("#\n", maxSaved) + saved}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for path, text := range tt.files {
				path = filepath.Join(root, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				writeFileAt(t, path, text)
			}
			f := savedFinding(root)
			if (f.State == stateLimit) != (tt.found != "") || tt.found != "" && f.Found != "rules of verdictd were saved in "+tt.found {
				t.Errorf("got %+v, want %q found", f, tt.found)
			}
		})
	}
}

func writeFileAt(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
