package compile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"
	opa "github.com/open-policy-agent/opa/v1/compile"
	"github.com/open-policy-agent/opa/v1/ir"
)

// plan turns modules into OPA's intermediate representation with one plan for
// each entrypoint, in their order.
//
// It goes through OPA's own plan target: the planner itself is internal to
// OPA, and the other way to its result, a target plugin, is a process-wide
// registration.
func plan(ctx context.Context, modules map[string]*ast.Module, entrypoints []string, caps *ast.Capabilities) (*ir.Policy, error) {
	b := &bundle.Bundle{}
	b.SetRegoVersion(ast.RegoV1)
	b.Manifest.Init()
	for _, name := range slices.Sorted(maps.Keys(modules)) {
		b.Modules = append(b.Modules, bundle.ModuleFile{URL: name, Path: name, Parsed: modules[name]})
	}
	c := opa.New().
		WithTarget(opa.TargetPlan).
		WithBundle(b).
		WithCapabilities(caps).
		WithRegoVersion(ast.RegoV1).
		WithPruneUnused(true).
		WithEntrypoints(entrypoints...)
	if err := c.Build(ctx); err != nil {
		return nil, planError(strings.Join(entrypoints, ", "), err)
	}
	if len(c.Bundle().PlanModules) != 1 {
		return nil, fmt.Errorf("plan %v: OPA made %d plan files, want 1", entrypoints, len(c.Bundle().PlanModules))
	}
	policy := new(ir.Policy)
	if err := json.NewDecoder(bytes.NewReader(c.Bundle().PlanModules[0].Raw)).Decode(policy); err != nil {
		return nil, fmt.Errorf("decode plan of %v: %w", entrypoints, err)
	}
	if policy.Plans == nil || len(policy.Plans.Plans) != len(entrypoints) {
		return nil, fmt.Errorf("plan %v: OPA planned other entrypoints", entrypoints)
	}
	tidy(policy)
	return policy, nil
}

// tidy takes the lookups of whole documents out of the blocks that the
// planner puts around them, so that what they find stays known:
//
//	block { block { dot...; break 1 }; break 1 }
//
// is left where a dot is undefined, and gone past otherwise, just like the
// dots alone.
func tidy(p *ir.Policy) {
	for _, plan := range p.Plans.Plans {
		tidyBlocks(plan.Blocks)
	}
	if p.Funcs == nil {
		return
	}
	for _, f := range p.Funcs.Funcs {
		tidyBlocks(f.Blocks)
	}
}

func tidyBlocks(blocks []*ir.Block) {
	for _, b := range blocks {
		var out []ir.Stmt
		for _, s := range b.Stmts {
			tidyBlocks(inner(s))
			if dots, ok := wrappedDots(s); ok {
				out = append(out, dots...)
				continue
			}
			out = append(out, s)
		}
		b.Stmts = out
	}
}

// wrappedDots returns the dots that s wraps as tidy says.
func wrappedDots(s ir.Stmt) ([]ir.Stmt, bool) {
	outer, ok := wrapped(s)
	if !ok || len(outer) != 1 {
		return nil, false
	}
	dots, ok := wrapped(outer[0])
	if !ok {
		return nil, false
	}
	for _, s := range dots {
		if _, isDot := s.(*ir.DotStmt); !isDot {
			return nil, false
		}
	}
	return dots, true
}

// wrapped returns what stands in a statement of one block before its final
// break 1.
func wrapped(s ir.Stmt) ([]ir.Stmt, bool) {
	b, ok := s.(*ir.BlockStmt)
	if !ok || len(b.Blocks) != 1 || len(b.Blocks[0].Stmts) == 0 {
		return nil, false
	}
	stmts := b.Blocks[0].Stmts
	end, ok := stmts[len(stmts)-1].(*ir.BreakStmt)
	return stmts[:len(stmts)-1], ok && end.Index == 1
}

// planError keeps OPA's own compile errors, which carry file and line, and
// makes everything else, what the planner cannot do, an *Unsupported.
func planError(rule string, err error) error {
	var errs ast.Errors
	if errors.As(err, &errs) {
		return errs
	}
	return &Unsupported{Rule: rule, Reason: err.Error()}
}

// ruleFunc returns the function of the rule at path, or nil. g0 is the planner's
// generation without any with.
func ruleFunc(p *ir.Policy, path []string) *ir.Func {
	if p.Funcs == nil {
		return nil
	}
	for _, f := range p.Funcs.Funcs {
		if len(f.Path) == len(path)+1 && f.Path[0] == "g0" && slices.Equal(f.Path[1:], path) {
			return f
		}
	}
	return nil
}
