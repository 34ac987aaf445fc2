package hook

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/*.nft and *.sh anew")

// TestGolden compares what Plan and PrintIptables write with files, which
// -update writes anew.
func TestGolden(t *testing.T) {
	for _, tt := range goldenTests() {
		t.Run(tt.name, func(t *testing.T) {
			plan, err := Plan(tt.config)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, tt.name+".nft", plan)

			var script bytes.Buffer
			if err := PrintIptables(tt.config, &script); err != nil {
				t.Fatal(err)
			}
			golden(t, tt.name+".sh", script.String())
		})
	}
}

type goldenTest struct {
	name   string
	config Config
}

func goldenTests() []goldenTest {
	return []goldenTest{
		{"plain", Config{Hooks: []Hook{Output}}},
		{"range", Config{Hooks: []Hook{Postrouting, Forward, Input}, QueueFirst: 4, QueueLast: 7, Bypass: true, Fanout: true, OwnMark: 0x500, OwnMask: 0xff00, Table: "fw-2", Priority: -5}},
		{"strict", Config{Hooks: []Hook{Prerouting, Output}, QueueFirst: 65535, Loopback: true, StrictNeighbour: true, OwnMark: 5}},
		{"ip", Config{Hooks: []Hook{Input}, QueueFirst: 1, QueueLast: 2, Family: IPv4}},
		{"ip6", Config{Hooks: []Hook{Input}, Bypass: true, Family: IPv6}},
		{"offload", Config{Hooks: []Hook{Input, Forward, Output}, Mask: DefaultMask, Offload: true}},
		{"marks", Config{Hooks: []Hook{Input, Output, Postrouting}, Mask: 0xff0, Loopback: true, Bypass: true}},
		{"until", Config{Hooks: []Hook{Output}, Mask: DefaultMask, Offload: true, Until: time.Unix(1778051289, 0)}},
		{"marks-ip", Config{Hooks: []Hook{Input}, Mask: 0xf0000, Offload: true, Family: IPv4}},
		{"marks-ip6", Config{Hooks: []Hook{Prerouting}, Mask: 0xf0000, Offload: true, Family: IPv6, Priority: -160}},
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	path := filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

func TestBadConfig(t *testing.T) {
	out := []Hook{Output}
	tests := []struct {
		name   string
		config Config
		want   string
	}{
		{"no hook", Config{}, "no hook named"},
		{"unknown hook", Config{Hooks: []Hook{Output, 9}}, "unknown hook 9"},
		{"hook twice", Config{Hooks: []Hook{Input, Output, Input}}, "named twice"},
		{"queues reversed", Config{Hooks: out, QueueFirst: 5, QueueLast: 3}, "queues 5-3"},
		{"all queues", Config{Hooks: out, QueueLast: 65535}, "at most 65535"},
		{"fanout of one", Config{Hooks: out, QueueFirst: 3, Fanout: true}, "more than one queue"},
		{"family", Config{Hooks: out, Family: 7}, "unknown table family 7"},
		{"mark outside mask", Config{Hooks: out, OwnMark: 0x101, OwnMask: 0xff}, "outside its mask"},
		{"priority before conntrack", Config{Hooks: out, Priority: -200}, "priority -200"},
		{"priority of helpers", Config{Hooks: out, Priority: 300}, "priority 300"},
		{"table name for a shell", Config{Hooks: out, Table: "a;reboot"}, "table name"},
		{"table name with space", Config{Hooks: out, Table: "a b"}, "table name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			calls := map[string]func() error{
				"Plan":    func() error { _, err := Plan(tt.config); return err },
				"Install": func() error { _, err := Install(tt.config); return err },
				"Print":   func() error { return PrintIptables(tt.config, &bytes.Buffer{}) },
			}
			for name, call := range calls {
				if err := call(); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%s: got error %v, want one with %q", name, err, tt.want)
				}
			}
		})
	}
}

func TestLongChainName(t *testing.T) {
	c := Config{Hooks: []Hook{Postrouting}, Table: strings.Repeat("t", 17)}
	if err := PrintIptables(c, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "shorter table name") {
		t.Errorf("got error %v, want one that asks for a shorter table name", err)
	}
	c.Table = c.Table[1:]
	if err := PrintIptables(c, &bytes.Buffer{}); err != nil {
		t.Errorf("a chain name of 28 letters: %v", err)
	}
}

func TestParseHooks(t *testing.T) {
	tests := []struct {
		list string
		want []Hook
		err  string
	}{
		{"output", []Hook{Output}, ""},
		{"output, input,forward", []Hook{Output, Input, Forward}, ""},
		{"prerouting,postrouting", []Hook{Prerouting, Postrouting}, ""},
		{"", nil, `unknown hook ""`},
		{"output,,input", nil, `unknown hook ""`},
		{"Output", nil, `unknown hook "Output"`},
		{"input,input", nil, "named twice"},
	}
	for _, tt := range tests {
		got, err := ParseHooks(tt.list)
		if !slices.Equal(got, tt.want) {
			t.Errorf("ParseHooks(%q): got %v, want %v", tt.list, got, tt.want)
		}
		if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("ParseHooks(%q): got error %v, want %q", tt.list, err, tt.err)
		}
	}
}
