package policy_test

import (
	"context"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/open-policy-agent/opa/v1/rego"

	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

// BenchmarkEvaluate measures decisions of random packets. "policy" is
// Evaluate; "rego" is what OPA's documentation shows: a prepared query with a
// map as input.
func BenchmarkEvaluate(b *testing.B) {
	example, err := os.ReadFile("../policy.rego.example")
	if err != nil {
		b.Fatal(err)
	}
	fields := rules.Fields()
	r := rand.New(rand.NewPCG(5, 6))
	packets := make([]*rules.Facts, 256)
	for i := range packets {
		packets[i] = randomFacts(r)
	}
	for _, bench := range []struct{ name, text string }{
		{"small", smallPolicy}, {"medium", mediumPolicy()}, {"example", string(example)},
	} {
		b.Run(bench.name+"/policy", func(b *testing.B) {
			p := load(b, source(bench.text))
			b.ReportAllocs()
			var d rules.Decision
			for i := 0; b.Loop(); i++ {
				if err := p.Evaluate(packets[i%len(packets)], &d); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(bench.name+"/rego", func(b *testing.B) {
			ctx := context.Background()
			q, err := rego.New(rego.Query("data.verdictd.decision"), rego.Module("policy.rego", bench.text)).PrepareForEval(ctx)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := q.Eval(ctx, rego.EvalInput(document(fields, packets[i%len(packets)]))); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkLoad measures what a reload costs: parse, check, test, compile.
func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		if _, err := policy.Load(context.Background(), policy.Source{Path: "../policy.rego.example"}); err != nil {
			b.Fatal(err)
		}
	}
}
