package policy

import (
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// capabilities returns what a policy may use: the language of this OPA
// version and its deterministic builtins, and no remote schemas.
func capabilities() *ast.Capabilities {
	caps := ast.CapabilitiesForThisVersion()
	allowed := make([]*ast.Builtin, 0, len(caps.Builtins))
	for _, b := range caps.Builtins {
		if !b.Nondeterministic && !nondeterministic(b.Name) {
			allowed = append(allowed, b)
		}
	}
	caps.Builtins = allowed
	caps.AllowNet = []string{} // nil would allow every host
	return caps
}

// nondeterministic returns whether the result of a builtin depends on more
// than its arguments. Beyond those that OPA marks so, verification of
// certificates reads the system's clock.
func nondeterministic(name string) bool {
	if strings.HasPrefix(name, "crypto.x509.parse_and_verify") {
		return true
	}
	b, ok := ast.BuiltinMap[name]
	return ok && b.Nondeterministic
}
