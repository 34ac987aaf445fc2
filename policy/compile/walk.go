package compile

import "github.com/open-policy-agent/opa/v1/ir"

// value returns what an operand stands for. Operands of a plan that was
// decoded from JSON are pointers, those of the planner itself are values.
func value(o ir.Operand) ir.Val {
	switch v := o.Value.(type) {
	case *ir.Local:
		return *v
	case *ir.StringIndex:
		return *v
	case *ir.Bool:
		return *v
	}
	return o.Value
}

// local wraps a local as an operand.
func local(l ir.Local) ir.Operand { return ir.Operand{Value: l} }

// locals returns those of ops that are locals.
func locals(ops ...ir.Operand) []ir.Local {
	var out []ir.Local
	for _, o := range ops {
		if l, ok := value(o).(ir.Local); ok {
			out = append(out, l)
		}
	}
	return out
}

// uses returns the locals that a statement itself reads, not those of the
// blocks in it.
func uses(s ir.Stmt) []ir.Local {
	switch s := s.(type) {
	case *ir.ReturnLocalStmt:
		return []ir.Local{s.Source}
	case *ir.CallStmt:
		return locals(s.Args...)
	case *ir.CallDynamicStmt:
		return append(locals(s.Path...), s.Args...)
	case *ir.DotStmt:
		return locals(s.Source, s.Key)
	case *ir.ScanStmt:
		return []ir.Local{s.Source}
	case *ir.LenStmt:
		return locals(s.Source)
	case *ir.WithStmt:
		return append(locals(s.Value), s.Local)
	case *ir.ResultSetAddStmt:
		return []ir.Local{s.Value}
	}
	if u, ok := testUses(s); ok {
		return u
	}
	return writeUses(s)
}

func testUses(s ir.Stmt) ([]ir.Local, bool) {
	switch s := s.(type) {
	case *ir.EqualStmt:
		return locals(s.A, s.B), true
	case *ir.NotEqualStmt:
		return locals(s.A, s.B), true
	case *ir.IsArrayStmt:
		return locals(s.Source), true
	case *ir.IsObjectStmt:
		return locals(s.Source), true
	case *ir.IsSetStmt:
		return locals(s.Source), true
	case *ir.IsDefinedStmt:
		return []ir.Local{s.Source}, true
	case *ir.IsUndefinedStmt:
		return []ir.Local{s.Source}, true
	}
	return nil, false
}

func writeUses(s ir.Stmt) []ir.Local {
	switch s := s.(type) {
	case *ir.AssignVarStmt:
		return locals(s.Source)
	case *ir.AssignVarOnceStmt:
		return locals(s.Source, local(s.Target))
	case *ir.ArrayAppendStmt:
		return locals(s.Value, local(s.Array))
	case *ir.ObjectInsertStmt:
		return locals(s.Key, s.Value, local(s.Object))
	case *ir.ObjectInsertOnceStmt:
		return locals(s.Key, s.Value, local(s.Object))
	case *ir.ObjectMergeStmt:
		return []ir.Local{s.A, s.B}
	case *ir.SetAddStmt:
		return locals(s.Value, local(s.Set))
	}
	return nil
}

// writes returns the locals that a statement itself assigns or changes.
func writes(s ir.Stmt) []ir.Local {
	switch s := s.(type) {
	case *ir.CallStmt:
		return []ir.Local{s.Result}
	case *ir.CallDynamicStmt:
		return []ir.Local{s.Result}
	case *ir.DotStmt:
		return []ir.Local{s.Target}
	case *ir.LenStmt:
		return []ir.Local{s.Target}
	case *ir.ScanStmt:
		return []ir.Local{s.Key, s.Value}
	case *ir.AssignIntStmt:
		return []ir.Local{s.Target}
	case *ir.AssignVarStmt:
		return []ir.Local{s.Target}
	case *ir.AssignVarOnceStmt:
		return []ir.Local{s.Target}
	case *ir.ResetLocalStmt:
		return []ir.Local{s.Target}
	}
	if l := changed(s); l >= 0 {
		return []ir.Local{l}
	}
	return makes(s)
}

// changed returns the collection that a statement adds to, or -1.
func changed(s ir.Stmt) ir.Local {
	switch s := s.(type) {
	case *ir.ArrayAppendStmt:
		return s.Array
	case *ir.SetAddStmt:
		return s.Set
	case *ir.ObjectInsertStmt:
		return s.Object
	case *ir.ObjectInsertOnceStmt:
		return s.Object
	}
	return -1
}

// makes returns the locals that a statement gives a new value.
func makes(s ir.Stmt) []ir.Local {
	switch s := s.(type) {
	case *ir.MakeNullStmt:
		return []ir.Local{s.Target}
	case *ir.MakeNumberIntStmt:
		return []ir.Local{s.Target}
	case *ir.MakeNumberRefStmt:
		return []ir.Local{s.Target}
	case *ir.MakeArrayStmt:
		return []ir.Local{s.Target}
	case *ir.MakeObjectStmt:
		return []ir.Local{s.Target}
	case *ir.MakeSetStmt:
		return []ir.Local{s.Target}
	case *ir.ObjectMergeStmt:
		return []ir.Local{s.Target}
	}
	return nil
}

// inner returns the blocks inside a statement.
func inner(s ir.Stmt) []*ir.Block {
	switch s := s.(type) {
	case *ir.BlockStmt:
		return s.Blocks
	case *ir.ScanStmt:
		return []*ir.Block{s.Block}
	case *ir.NotStmt:
		return []*ir.Block{s.Block}
	case *ir.WithStmt:
		return []*ir.Block{s.Block}
	}
	return nil
}

// walk calls f for every statement below blocks, outer ones first, until f
// returns false.
func walk(blocks []*ir.Block, f func(ir.Stmt) bool) bool {
	for _, b := range blocks {
		for _, s := range b.Stmts {
			if !f(s) || !walk(inner(s), f) {
				return false
			}
		}
	}
	return true
}

// assigned returns the locals that b or a block in it assigns.
func assigned(b *ir.Block) map[ir.Local]bool {
	m := map[ir.Local]bool{}
	walk([]*ir.Block{b}, func(s ir.Stmt) bool {
		for _, l := range writes(s) {
			m[l] = true
		}
		return true
	})
	return m
}
