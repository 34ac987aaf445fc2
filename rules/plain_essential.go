package rules

import (
	_ "embed"

	"github.com/goccy/go-yaml/ast"
)

//go:embed essential.yaml
var essential string

// EssentialFile is how the rules that "essential: yes" stands for are named
// among the files of a Ruleset.
const EssentialFile = "essential: yes"

// Essential returns the text of those rules.
func Essential() string { return essential }

// wantsEssential reads the key essential.
func (f *plainFile) wantsEssential(pair *ast.MappingValueNode) {
	at := f.place(pair.Key)
	s, _ := f.text(pair.Value)
	yes, ok := parseBool(s.text)
	switch {
	case !ok:
		f.fail(at, "write essential: yes or essential: no", "essential is %s", describeNode(pair.Value))
	case f.name != f.out.Files[0]:
		f.fail(at, "say it in "+f.out.Files[0], "an included file asks for no essential rules")
	default:
		f.essential = yes
	}
}

// addEssential adds the essential rules behind all others.
func (p *plainParser) addEssential() {
	body, ok := p.yaml(EssentialFile, []byte(essential))
	if !ok {
		return
	}
	p.out.Files = append(p.out.Files, EssentialFile)
	f := plainFile{plainParser: p, name: EssentialFile}
	f.top(body)
}
