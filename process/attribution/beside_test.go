package attribution_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"
)

// TestPacketSideWaitsForNobody: what runs for a packet neither opens files nor calls
// what reads /proc, or what does that beside the packets.
func TestPacketSideWaitsForNobody(t *testing.T) {
	imports := []string{"os", "syscall", "golang.org/x/sys/unix", "github.com/verdictd/verdictd/process/procfs"}
	// Methods that read /proc, or lead there, and fields that can.
	names := []string{
		"fs", "hasher", "lookImage", "lookPresent", "lookCgroup", "lookHolder", "exe", "parentsNow", "current", "young", "shared",
		"scan", "list", "survey", "readPings", "HoldersOf",
	}
	for _, file := range []string{"attributor.go", "recorded.go", "answers.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range f.Imports {
			if path, _ := strconv.Unquote(spec.Path.Value); slices.Contains(imports, path) {
				t.Errorf("%s imports %s", file, path)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok || !slices.Contains(names, s.Sel.Name) {
				return true
			}
			if of, ok := s.X.(*ast.SelectorExpr); ok && of.Sel.Name == "r" || isName(s.X, "r") {
				t.Errorf("%s uses Resolver.%s", file, s.Sel.Name)
			}
			return true
		})
	}
}

// isName tells whether x is the identifier name.
func isName(x ast.Expr, name string) bool {
	id, ok := x.(*ast.Ident)
	return ok && id.Name == name
}
