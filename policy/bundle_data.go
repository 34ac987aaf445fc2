package policy

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/tester"
)

// makeProgram makes a program of files, which were read from src. Parsing,
// type check and compilation do not depend on the data, so they are not done
// again if only the data differ from those of the policy old.
func makeProgram(ctx context.Context, src Source, files []file, old *Policy) (*program, Errors) {
	files = withLibrary(files)
	if old == nil || !slices.EqualFunc(modulesOf(old.program.files), modulesOf(files), sameFile) {
		return newProgram(ctx, src, files)
	}
	p := *old.program
	p.name, p.hash, p.files = src.String(), hash(files), files
	var errs Errors
	if p.data, errs = data(files); len(errs) > 0 {
		return nil, errs.sorted()
	}
	if errs = p.conflicts(ctx); len(errs) > 0 {
		return nil, errs.sorted()
	}
	if errs = p.given(); len(errs) > 0 {
		return nil, errs.sorted()
	}
	return &p, nil
}

// modulesOf returns the files that are compiled.
func modulesOf(files []file) []file {
	return slices.DeleteFunc(slices.Clone(files), func(f file) bool { return !f.plain && !f.isRego() })
}

func sameFile(a, b file) bool {
	return a.name == b.name && a.shown == b.shown && bytes.Equal(a.content, b.content)
}

// testCompiler keeps what the tests of a policy were compiled to, for the
// policies that differ in data only. It is safe for concurrent use.
type testCompiler struct {
	mu       sync.Mutex
	compiler *ast.Compiler
	runs     int // of compiler
}

// maxTestRuns is how often compiled tests are run before they are compiled
// anew: OPA's runner adds to the compiler with each run.
const maxTestRuns = 1000

// use calls run with a runner of p's tests.
func (c *testCompiler) use(p *program, run func(*tester.Runner) ([]*tester.Result, error)) ([]*tester.Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.compiler != nil && c.runs < maxTestRuns {
		c.runs++
		return run(tester.NewRunner().SetCompiler(c.compiler).SetTimeout(testTimeout))
	}
	c.compiler, c.runs = nil, 0
	compiler := p.newTestCompiler()
	results, err := run(p.newRunner().SetCompiler(compiler))
	if err == nil {
		c.compiler = compiler
	}
	return results, err
}
