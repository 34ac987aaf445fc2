package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// sourcePath is the field that says how the owner of a socket was found.
const sourcePath = "process.source"

// identities returns the fields that say which program or service the owner
// is. How sure that is, process.source says.
func identities() []string {
	return []string{
		"process.exe", "process.exe_inside", rules.HashPath, "process.exe_inode", "process.unit", "process.user_unit", "process.slice", "process.cgroup",
		"process.container.id", "process.container.pod",
	}
}

// owners finds rules that accept for who the owner is and do not ask how that
// is known, and rules that deny by a hash, which a new program lacks at first, and a
// large one for ever.
func (a *analyst) owners() Errors {
	found := a.trusting()
	for _, r := range a.deciders(func(verdict string) bool { return verdict == packet.Drop.String() || verdict == packet.Reject.String() }) {
		for _, region := range a.regions(r) {
			if d, ok := region.fields[rules.HashPath]; ok && region.clash == nil && d.by != nil {
				found = append(found, errorAt(d.by.Location, "this rule denies by input."+rules.HashPath+
					", which a program that was never seen before lacks until it is computed: its packets are held for it, at most 2 s, and dropped after that if a later rule accepts; a program over 256 MiB has no hash, and the rules after this one decide",
					"before the rules that accept, drop what has no hash yet: input.process.pid; not input."+rules.HashPath).coded("hash-pending"))
				break
			}
		}
	}
	return found
}

func (a *analyst) trusting() Errors {
	source := slices.IndexFunc(a.p.fields, func(f rules.Field) bool { return f.Path == sourcePath })
	var found Errors
	for _, r := range a.accepting() {
		for _, region := range a.regions(r) {
			if _, asked := region.fields[sourcePath]; asked || region.clash != nil || region.maybe.Has(source) {
				continue
			}
			i := slices.IndexFunc(identities(), func(path string) bool { return region.fields[path].by != nil })
			if i < 0 {
				continue
			}
			path := identities()[i]
			found = append(found, errorAt(region.fields[path].by.Location, fmt.Sprintf("%s trusts input.%s and does not ask how it is known", a.run.label(r), path),
				"add: input.process.source in {"+strings.Join(quotedList(recorded()), ", ")+"}").coded("untrusted-owner"))
			break
		}
	}
	return found
}

// recorded returns the sources that the kernel recorded, as opposed to what was
// looked up later.
func recorded() []string { return []string{"bpf-flow", "bpf-cookie"} }

func quotedList(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = fmt.Sprintf("%q", w)
	}
	return out
}
