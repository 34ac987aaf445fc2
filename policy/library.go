package policy

import (
	"bytes"
	"embed"
	"slices"

	"github.com/verdictd/verdictd/rules"
)

//go:embed std/*.rego
var library embed.FS

// essentialFile is the one file of the library, and essentialAs how messages
// name it.
const (
	essentialFile = "std/essential.rego"
	essentialAs   = "data.std.essential"
)

// Library returns the Rego package data.std.essential, which every policy can
// ask without having it.
func Library() string {
	text, err := library.ReadFile(essentialFile)
	if err != nil {
		panic("policy: " + err.Error()) // it is part of the program
	}
	return string(text)
}

// withLibrary adds the library to the files of a policy that asks for it. Its
// text is part of what the policy says, and so of the policy's hash.
func withLibrary(files []file) []file {
	asks := slices.ContainsFunc(files, func(f file) bool { return f.isRego() && bytes.Contains(f.content, []byte(essentialAs)) })
	has := slices.ContainsFunc(files, func(f file) bool { return f.name == essentialFile })
	if !asks || has {
		return files
	}
	return append(slices.Clone(files), file{name: essentialFile, shown: essentialAs, content: []byte(Library())})
}

// withEssential adds the text of the rules that a rules file asks for by
// essential: yes, for the policy's hash.
func withEssential(files []file, set *rules.Ruleset) []file {
	if !slices.Contains(set.Files, rules.EssentialFile) {
		return files
	}
	return append(files, file{name: rules.EssentialFile, shown: rules.EssentialFile, content: []byte(rules.Essential()), plain: true})
}
