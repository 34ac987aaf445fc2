package verdictd_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/rules"
)

// defaultTests is the package whose tests a table names without saying so.
const defaultTests = "cmd/verdictd"

// A cell of a column "test": TestLabKill, TestLabLedger/queue_full,
// TestWatchServer (`policy`).
var namedTest = regexp.MustCompile("\\b(Test[A-Z]\\w*)(?:/(\\w+))?(?: \\(`([\\w/]+)`\\))?")

// TestDocuments holds the documents to what they say: a table is one table, and
// the tests they name exist, so that what a document says of the program goes
// when the test of it goes.
func TestDocuments(t *testing.T) {
	files, err := filepath.Glob("*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("got %d documents, error %v", len(files), err)
	}
	tests := map[string]*testNames{}
	tabled := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		tables, errs := tablesOf(text)
		for _, err := range errs {
			t.Errorf("%s:%v", file, err)
		}
		for _, table := range tables {
			if table.head[len(table.head)-1] != "test" {
				continue
			}
			tabled++
			for i, row := range table.rows {
				where := fmt.Sprintf("%s:%d", file, table.line+2+i)
				named := namedTest.FindAllStringSubmatch(row[len(row)-1], -1)
				if len(named) == 0 {
					t.Errorf("%s: row %q names no test", where, row[0])
				}
				for _, n := range named {
					checkNamed(t, where, n, tests)
				}
			}
		}
	}
	if tabled == 0 {
		t.Error("no table has a column test")
	}
}

// TestFactsHaveChoosers: SECURITY.md says of every fact that a policy can read who
// can choose it.
func TestFactsHaveChoosers(t *testing.T) {
	text, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	tables, _ := tablesOf(text)
	said := map[string]bool{}
	for _, table := range tables {
		if !slices.Equal(table.head, []string{"fact", "who can choose it", "test"}) {
			continue
		}
		for _, row := range table.rows {
			for _, name := range quotedName.FindAllStringSubmatch(row[0]+row[1], -1) {
				said[name[1]] = true
			}
		}
	}
	for _, f := range rules.Fields() {
		name := strings.TrimPrefix(f.Path, "process.")
		group, _, _ := strings.Cut(name, ".")
		if !said[name] && !said[group] && !said[group+".*"] {
			t.Errorf("SECURITY.md does not say who can choose %s", f.Path)
		}
	}
}

var quotedName = regexp.MustCompile("`([a-z_0-9.*]+)`")

// checkNamed reports a test that a document names and that does not exist: n is
// what namedTest found.
func checkNamed(t *testing.T, where string, n []string, known map[string]*testNames) {
	t.Helper()
	dir := n[3]
	if dir == "" {
		dir = defaultTests
	}
	in := known[dir]
	if in == nil {
		var err error
		if in, err = testsIn(dir); err != nil {
			t.Fatal(err)
		}
		known[dir] = in
	}
	if !in.funcs[n[1]] {
		t.Errorf("%s: %s has no %s", where, dir, n[1])
	}
	if sub := strings.ReplaceAll(n[2], "_", " "); sub != "" && !in.texts[sub] && !in.texts[n[2]] {
		t.Errorf("%s: no test in %s has a part %q", where, dir, sub)
	}
}

// testNames are the test functions of a package and the texts in its tests,
// among which are the names of their parts.
type testNames struct{ funcs, texts map[string]bool }

func testsIn(dir string) (*testNames, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, err
	}
	n := &testNames{map[string]bool{}, map[string]bool{}}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		ast.Inspect(parsed, func(node ast.Node) bool {
			switch x := node.(type) {
			case *ast.FuncDecl:
				n.funcs[x.Name.Name] = x.Recv == nil
			case *ast.BasicLit:
				if s, err := strconv.Unquote(x.Value); err == nil && x.Kind == token.STRING {
					n.texts[s] = true
				}
			}
			return true
		})
	}
	return n, nil
}

// table is a table of a Markdown document.
type table struct {
	line int // of its head, from 1
	head []string
	rows [][]string
}

var delimiter = regexp.MustCompile(`^[|\s:-]+$`)

// tablesOf returns the tables of a document, and an error for each line that
// looks like a row and would not be shown as one of a table with its columns.
func tablesOf(text []byte) (tables []table, errs []error) {
	lines := strings.Split(string(text), "\n")
	fenced := false
	var in *table
	for i, line := range lines {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		if fenced || !strings.HasPrefix(line, "|") {
			in = nil
			continue
		}
		row := cells(line)
		if in == nil {
			if i+1 == len(lines) || !delimiter.MatchString(lines[i+1]) || !strings.Contains(lines[i+1], "-") {
				errs = append(errs, fmt.Errorf("%d: a row outside of a table", i+1))
				continue
			}
			tables = append(tables, table{line: i + 1, head: row})
			in = &tables[len(tables)-1]
			continue
		}
		if len(row) != len(in.head) {
			errs = append(errs, fmt.Errorf("%d: %d columns, want %d", i+1, len(row), len(in.head)))
			continue
		}
		if i+1 > in.line+1 { // not the delimiter
			in.rows = append(in.rows, row)
		}
	}
	return tables, errs
}

// cells returns the cells of a row, which starts and ends with |.
func cells(line string) []string {
	const bar = "\x00" // stands for \|, which is no separator
	line = strings.ReplaceAll(strings.TrimSpace(line), `\|`, bar)
	row := strings.Split(strings.TrimSuffix(strings.TrimPrefix(line, "|"), "|"), "|")
	for i := range row {
		row[i] = strings.ReplaceAll(strings.TrimSpace(row[i]), bar, "|")
	}
	return row
}

// TestTablesOf shows that a broken table is seen.
func TestTablesOf(t *testing.T) {
	tests := []struct {
		name, text string
		rows, errs int
	}{
		{"whole", "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | |\n", 2, 0},
		{"a bar in a cell", "| a | b |\n|---|---|\n| `1 \\| 2` | 3 |\n", 1, 0},
		{"a paragraph in the middle", "| a | b |\n|---|---|\n| 1 | 2 |\n\ntext\n\n| 3 | 4 |\n| 5 | 6 |\n", 1, 2},
		{"a column too few", "| a | b |\n|---|---|\n| 1 |\n", 0, 1},
		{"a column too many", "| a | b |\n|---|---|\n| 1 | 2 | 3 |\n", 0, 1},
		{"code", "```\n| a |\n```\n", 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tables, errs := tablesOf([]byte(tt.text))
			rows := 0
			for _, table := range tables {
				rows += len(table.rows)
			}
			if rows != tt.rows || len(errs) != tt.errs {
				t.Errorf("got %d rows and errors %v, want %d and %d", rows, errs, tt.rows, tt.errs)
			}
		})
	}
	named := namedTest.FindStringSubmatch("TestWatchServer (`policy`)")
	if !slices.Equal(named[1:], []string{"TestWatchServer", "", "policy"}) {
		t.Errorf("got %q", named)
	}
}
