package rules

import (
	"slices"
	"strings"

	"github.com/verdictd/verdictd/packet"
)

// sourceKey is the condition that asks how the owner of a socket was found.
const sourceKey = "process-source"

// identityKeys are the conditions that say which program or service the owner
// is. How sure that is, sourceKey tells.
func identityKeys() []string {
	return []string{"exe", "exe-sha256", "unit", "slice", "cgroup", "container", "pod"}
}

// unsure finds rules that go by what is not known for sure: an owner that was
// looked up, a hash that is not there yet, or the absence of what they exclude.
func (a *analysis) unsure(r *Rule) {
	if a.dead[slices.IndexFunc(a.set.Rules, func(other Rule) bool { return other.Place == r.Place })] || r.Delegate {
		return
	}
	accepts := r.Action == packet.Accept
	asked := func(keys ...string) *test {
		for i := range r.tests {
			if t := &r.tests[i]; !t.negated && slices.Contains(keys, a.set.conds[t.cond].key) {
				return t
			}
		}
		return nil
	}
	if t := asked(identityKeys()...); t != nil && accepts && asked(sourceKey) == nil {
		a.add(t.place, Warning, "rule %q trusts %s and does not ask how it is known: add process-source: [bpf-flow, bpf-cookie]", r.Name, a.set.conds[t.cond].key)
	}
	if t := asked("exe-sha256"); t != nil && !accepts {
		a.add(t.place, Warning, "rule %q denies by exe-sha256, which a program that was never seen before lacks until it is computed: its packets are held for it, at most 2 s, and dropped after that if a later rule accepts; a program over 256 MiB has no hash, and the rules after this one decide", r.Name)
	}
	for i := range r.tests {
		t := &r.tests[i]
		c := &a.set.conds[t.cond]
		if !t.negated || c.always || !accepts || strings.HasSuffix(c.key, "-interface") {
			continue // a packet lacks an interface by its hook, which rules choose
		}
		switch {
		case len(c.needs) > 0 && (asked("proto") != nil || asked(a.needing(c.needs)...) != nil):
		case strings.HasPrefix(c.fields[0].Path, "process.") && asked(sourceKey) != nil:
		case asked(c.key) != nil:
		case len(c.needs) > 0:
			a.add(t.place, Warning, "rule %q also accepts what has no %s, such as other protocols: add proto: [%s]", r.Name, c.says, strings.Join(c.needs, ", "))
		default:
			a.add(t.place, Warning, "rule %q also accepts packets of which the %s is not known", r.Name, c.says)
		}
	}
}

// needing returns the conditions that hold for packets of the protocols only.
func (a *analysis) needing(protocols []string) []string {
	var keys []string
	for i := range a.set.conds {
		c := &a.set.conds[i]
		if len(c.needs) > 0 && !slices.ContainsFunc(c.needs, func(p string) bool { return !slices.Contains(protocols, p) }) {
			keys = append(keys, c.key)
		}
	}
	return keys
}
