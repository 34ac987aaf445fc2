package attribution

import (
	"strings"

	"github.com/verdictd/verdictd/process"
)

// later returns an owner with what is known of it by now, and whether that is all.
func (r *Resolver) later(o *process.Owner, at subject) (l *process.Owner, whole bool) {
	owner := *o
	l, whole = &owner, true
	l.ID, l.Later = 0, nil // another one
	if c := r.cgroups.peek(o.Cgroup.ID); c != nil {
		l.Cgroup = *c
	} else {
		whole = at.pending&process.FactCgroup == 0
	}
	if at.socket != 0 {
		f := r.sockets.peek(at.socket)
		if f == nil {
			return l, false
		}
		if f.process.pid != 0 {
			at.present, l.Source = f.process, process.Diag
		}
	}
	var p process.Process
	if l.Process != nil {
		p = *l.Process
	}
	if c := r.presents.peek(at.present); c != nil && c.p != nil {
		p, at.args = *c.p, c.args
	}
	i := r.images.peek(at.image)
	if i != nil && !i.gaveUp {
		exe := i.exe
		exe.Changed, exe.NoSHA256 = p.Exe.Changed, p.Exe.NoSHA256
		p.Exe, p.Parents = exe, i.parents
	}
	t := r.lines.peek(at.args)
	if t != nil && !t.gaveUp && strings.HasPrefix(t.text, p.Cmdline) {
		p.Cmdline = t.text
	}
	if p.PID != 0 {
		l.Process = &p
	}
	const looked = process.FactPath | process.FactFile | process.FactParents
	missing := i == nil && at.image.pid != 0 && at.pending&looked != 0 || t == nil && at.args.pid != 0 && at.pending&process.FactArgs != 0
	return l, whole && !missing
}
