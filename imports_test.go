package verdictd_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/verdictd/verdictd"

// mayImport says which packages of this module each package may import. The
// arrows point one way; ARCHITECTURE.md has the drawing.
func mayImport() map[string][]string {
	return map[string][]string{
		"":                     {},
		"packet":               {},
		"internal/nfnl":        {},
		"internal/links":       {},
		"internal/feed":        {"internal/nfnl"},
		"internal/cgroup2":     {},
		"internal/blackbox":    {},
		"internal/handover":    {},
		"internal/confirm":     {},
		"internal/conntrack":   {},
		"internal/terminal":    {},
		"internal/lab":         {},
		"internal/lab/labtest": {"internal/lab"},
		"config":               {},
		"process":              {},
		"process/record":       {"packet", "internal/cgroup2"},
		"process/sockdiag":     {"packet"},
		"process/procfs":       {"process", "internal/cgroup2"},
		"process/connector":    {},
		"process/attribution":  {"packet", "process", "process/record", "process/sockdiag", "process/procfs", "process/connector", "internal/nfnl"},
		"hook":                 {},
		"rules":                {"packet", "process"},
		"policy":               {"packet", "rules", "policy/compile", "internal/terminal"},
		"policy/compile":       {"packet", "rules"},
		"logsink":              {"packet", "process", "rules", "internal/nfnl", "internal/terminal"},
		"engine":               {"packet", "process", "rules", "logsink"},
		"queue":                {"packet", "internal/nfnl"},
		"ledger":               {"queue"},
		"internal/control":     {},
		"replay":               {"packet"},
		"bench/measure":        {"internal/lab"},
		"bench/connect":        {"bench/measure", "hook", "queue", "internal/lab"},
		"bench/queue":          {"bench/measure", "packet", "policy", "logsink", "engine", "queue", "hook", "internal/lab"},
		"cmd/verdictd": {"", "packet", "rules", "policy", "logsink", "engine", "queue", "hook", "replay", "config", "ledger",
			"internal/blackbox", "internal/control", "internal/feed", "internal/confirm", "internal/conntrack", "internal/links", "internal/lab", "internal/nfnl", "internal/handover", "internal/terminal",
			"process", "process/attribution", "process/sockdiag"},
	}
}

// onlyIn says which packages may import a module that belongs to one of them.
func onlyIn() map[string][]string {
	return map[string][]string{
		"github.com/google/gopacket":       {"packet", "replay"},
		"github.com/open-policy-agent/opa": {"policy", "policy/compile"},
		"github.com/florianl/go-nfqueue":   {"queue", "bench/queue"},
		"github.com/florianl/go-nflog":     {"logsink"},
		"github.com/google/nftables":       {"hook"},
		"github.com/cilium/ebpf":           {"process/record"},
		"github.com/ti-mo/conntrack":       {"internal/conntrack"},
		"github.com/mdlayher/netlink":      {"internal/conntrack", "internal/feed", "internal/nfnl", "internal/links", "internal/lab", "internal/lab/labtest", "hook", "queue", "logsink", "process/sockdiag", "process/connector"},
		"github.com/jsimonetti/rtnetlink":  {"internal/lab"},
		"github.com/goccy/go-yaml":         {"config", "policy", "rules"},
		"github.com/spf13":                 {"cmd/verdictd"},
		"github.com/fsnotify/fsnotify":     {"policy"},
		"github.com/klauspost/compress":    {"replay"},
	}
}

// TestImports reads the sources in this process: a test that asks the go
// command would be answered from the cache after a bad import.
func TestImports(t *testing.T) {
	allowed, exclusive := mayImport(), onlyIn()
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && file != "." || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		dir := strings.TrimPrefix(path.Dir(filepath.ToSlash(file)), ".")
		list, ok := allowed[dir]
		if !ok {
			t.Errorf("%s: package %s is not in the table of mayImport", file, dir)
			return nil
		}
		seen[dir] = true
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range parsed.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if inside, ok := strings.CutPrefix(name, module); ok {
				if inside = strings.TrimPrefix(inside, "/"); !slices.Contains(list, inside) {
					t.Errorf("%s: %s may not import %s", file, dir, inside)
				}
				continue
			}
			for mod, owners := range exclusive {
				if strings.HasPrefix(name, mod) && !slices.Contains(owners, dir) {
					t.Errorf("%s: only %s may import %s", file, strings.Join(owners, ", "), mod)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir := range allowed {
		if !seen[dir] {
			t.Errorf("package %q is in the table and not in the tree", dir)
		}
	}
}
