// Package verdictd is the root of the module. It holds nothing but the example
// policy, which lies here for people to find and is embedded for the demo.
package verdictd

import _ "embed"

//go:embed policy.rego.example
var examplePolicy []byte

// ExamplePolicy returns the text of policy.rego.example. It is the caller's.
func ExamplePolicy() []byte { return append([]byte(nil), examplePolicy...) }
