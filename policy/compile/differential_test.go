package compile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/verdictd/verdictd/rules"
)

// record is facts that a test makes up: any mix of fields, absent ones too.
type record struct {
	has  []bool
	vals []rules.Value
}

// recordFields returns the product's fields, read from *r instead of facts.
func recordFields(r **record) []rules.Field {
	fields := rules.Fields()
	for i := range fields {
		fields[i].Get = func(_ *rules.Facts, v *rules.Value) bool {
			*v = (*r).vals[i]
			return (*r).has[i]
		}
	}
	return fields
}

// randomRecord draws facts from the pools that policies draw from.
func randomRecord(r *rand.Rand, fields []rules.Field) *record {
	rec := &record{has: make([]bool, len(fields)), vals: make([]rules.Value, len(fields))}
	for i, f := range fields {
		rec.has[i] = r.IntN(8) != 0
		rec.vals[i] = randomValue(r, f)
	}
	return rec
}

func randomValue(r *rand.Rand, f rules.Field) rules.Value {
	switch f.Kind {
	case rules.Bool:
		return rules.Value{Int: int64(r.IntN(2))}
	case rules.Int:
		n := pick(r, intPool()...)
		if r.IntN(4) == 0 {
			n += int64(r.IntN(3))
		}
		return rules.Value{Int: n}
	case rules.Addr:
		if r.IntN(4) == 0 {
			var b [16]byte
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			return rules.Value{Addr: netip.AddrFrom16(b)}
		}
		return rules.Value{Addr: netip.MustParseAddr(pick(r, addrPool()...))}
	}
	if len(f.Enum) > 0 && r.IntN(2) == 0 {
		return rules.Value{Str: pick(r, f.Enum...)}
	}
	return rules.Value{Str: pick(r, stringPool()...)}
}

// input builds the Rego input document of a record, the plain way.
func (rec *record) input(fields []rules.Field) ast.Value {
	root := map[string]any{}
	for i, f := range fields {
		if !rec.has[i] {
			continue
		}
		path := strings.Split(f.Path, ".")
		obj := root
		for _, name := range path[:len(path)-1] {
			below, ok := obj[name].(map[string]any)
			if !ok {
				below = map[string]any{}
				obj[name] = below
			}
			obj = below
		}
		v := rec.vals[i]
		obj[path[len(path)-1]] = map[rules.Kind]any{rules.Bool: v.Int != 0, rules.Int: v.Int, rules.String: v.Str, rules.Addr: v.Addr.String()}[f.Kind]
	}
	return ast.MustInterfaceToValue(root)
}

// reference evaluates a rule with topdown.
type reference struct {
	compiler *ast.Compiler
	store    storage.Store
	txn      storage.Transaction
	query    ast.Body
}

func newReference(modules map[string]*ast.Module, data ast.Object, path string) (*reference, error) {
	c := ast.NewCompiler().WithDefaultRegoVersion(ast.RegoV1)
	if c.Compile(modules); c.Failed() {
		return nil, c.Errors
	}
	ref := &reference{compiler: c, store: inmem.NewFromASTObject(data)}
	var err error
	if ref.txn, err = ref.store.NewTransaction(context.Background()); err != nil {
		return nil, err
	}
	ref.query, err = c.QueryCompiler().Compile(ast.MustParseBody("data." + strings.ReplaceAll(path, "/", ".") + " = x"))
	return ref, err
}

// eval returns the rule's value, nil if it is undefined.
func (ref *reference) eval(input ast.Value) (v ast.Value, err error) {
	err = topdown.NewQuery(ref.query).WithCompiler(ref.compiler).WithStore(ref.store).WithTransaction(ref.txn).
		WithInput(ast.NewTerm(input)).
		Iter(context.Background(), func(r topdown.QueryResult) error {
			v = r["x"].Value
			return nil
		})
	return v, err
}

const undefined = "undefined"

// spell makes a decision of any value: its spelling is the rule.
func spell(v ast.Value, d *rules.Decision) error {
	*d = rules.Decision{Rule: v.String()}
	return nil
}

func spellInput(modules map[string]*ast.Module, data ast.Object) Input {
	return Input{Modules: modules, Data: data, Entries: []Entry{{"verdictd/decision", spell}}, Undefined: rules.Decision{Rule: undefined}, Budget: 1 << 40}
}

func parse(texts map[string]string) (map[string]*ast.Module, error) {
	modules := map[string]*ast.Module{}
	for name, text := range texts {
		m, err := ast.ParseModuleWithOpts(name, text, ast.ParserOptions{RegoVersion: ast.RegoV1})
		if err != nil {
			return nil, err
		}
		modules[name] = m
	}
	return modules, nil
}

// testData is the base document that random policies refer to.
func testData(r *rand.Rand) ast.Object {
	var rulesList, manynets, bigset, manyports []any
	for i := range 20 {
		rulesList = append(rulesList, map[string]any{
			"proto": pick(r, "tcp", "udp", "icmp"), "net": pick(r, netPool()...), "prio": i % 6,
			"ports": []any{pick(r, intPool()...), pick(r, intPool()...)},
		})
	}
	for range 40 {
		manynets = append(manynets, fmt.Sprintf("%d.%d.0.0/%d", r.IntN(256), r.IntN(256), r.IntN(33)))
		bigset = append(bigset, fmt.Sprint("name", r.IntN(1000)))
		manyports = append(manyports, r.IntN(65536))
	}
	for _, n := range netPool() {
		manynets = append(manynets, n)
	}
	for _, s := range stringPool()[:6] {
		bigset = append(bigset, s)
	}
	return ast.MustInterfaceToValue(map[string]any{
		"ports":     map[string]any{"80": 80, "443": 443, "ssh": 22, "x": "tcp", "53": 1500},
		"portset":   map[string]any{"80": true, "443": true, "8080": true, "65535": true},
		"names":     []any{"eth", "0", "tcp", "wlan0", "put", "10.0"},
		"addrs":     []any{"10.0.0.1", "::1", "fe80::1%eth0", "::ffff:8.8.8.8", "8.8.8.8"},
		"nets":      []any{"10.0.0.0/8", "::/0", "nonsense", "2001:db8::/32"},
		"manynets":  manynets,
		"manyports": append(manyports, 22, 80, 443),
		"hosts":     map[string]any{"10.0.0.1": "tcp", "10.0.0.53": "udp", "8.8.8.8": 53, "::1": true, "2001:db8::1": "tcp"},
		"bigset":    bigset,
		"seen":      map[string]any{"tcp": true, "eth0": true, "10.0.0.1": true, "::1": true, "fe80::1%eth0": true, "2001:DB8::1": true},
		"zones":     []any{map[string]any{"80": 1, "443": "tcp", "sub": map[string]any{"80": 0}}, map[string]any{"53": true, "in": 80, "sub": []any{22, 80}}},
		"pairs":     []any{[]any{"tcp", 80}, []any{"udp", 53}, []any{443, "lo"}, []any{1}, "tcp"},
		"lib":       map[string]any{"extra": map[string]any{"tcp": 1, "in": "out"}, "eth0": true},
		"rules":     rulesList,
		"empty":     []any{},
	}).(ast.Object)
}

// comparison is one random policy, ready to be compared.
type comparison struct {
	text    string
	fields  []rules.Field
	current *record
	ref     *reference
	program *Program
	doubts  int // evaluations that were left to topdown, which decided
}

var errRefused = errors.New("OPA refuses the policy")

func newComparison(seed uint64) (*comparison, error) {
	r := rand.New(rand.NewPCG(seed, 1))
	g := &policyGen{r: r}
	policy, lib := g.module()
	c := &comparison{text: policy + "\n" + lib}
	c.fields = recordFields(&c.current)
	data := testData(r)
	modules, err := parse(map[string]string{"policy.rego": policy, "lib.rego": lib})
	if err != nil {
		return c, fmt.Errorf("%w: %w", errRefused, err)
	}
	if c.ref, err = newReference(modules, data, "verdictd/decision"); err != nil {
		return c, fmt.Errorf("%w: %w", errRefused, err)
	}
	c.program, err = Compile(context.Background(), spellInput(modules, data), c.fields)
	return c, err
}

// sample is a record and its input document.
type sample struct {
	rec   *record
	input ast.Value
}

// newSamples draws the records that every policy of a run judges.
func newSamples(seed uint64, n int) []sample {
	r, fields := rand.New(rand.NewPCG(seed, 2)), rules.Fields()
	out := make([]sample, n)
	for i := range out {
		rec := randomRecord(r, fields)
		out[i] = sample{rec, rec.input(fields)}
	}
	return out
}

// compare judges s both ways and returns what differs, or "".
func (c *comparison) compare(s sample, d *rules.Decision) string {
	c.current = s.rec
	want, wantErr := c.ref.eval(s.input)
	err := c.program.Evaluate(&rules.Facts{}, d)
	spelled := undefined
	if want != nil {
		spelled = want.String()
	}
	switch {
	case Doubtful(err): // left to topdown, whatever it says
		if wantErr == nil {
			c.doubts++
		}
		return ""
	case (err != nil) != (wantErr != nil):
		return fmt.Sprintf("error %v, want %v", err, wantErr)
	case err == nil && d.Rule != spelled:
		return fmt.Sprintf("got %s, want %s", d.Rule, spelled)
	}
	return ""
}

// tally counts what a run compared. Of the errors, doubts are those on which
// topdown decided.
type tally struct {
	policies, refused, unsupported, comparisons, errors, doubts, undefined int
}

func (t *tally) add(u tally) {
	t.policies += u.policies
	t.refused += u.refused
	t.unsupported += u.unsupported
	t.comparisons += u.comparisons
	t.errors += u.errors
	t.doubts += u.doubts
	t.undefined += u.undefined
}

// differ compares one random policy over samples.
func differ(t *testing.T, seed uint64, samples []sample) (sum tally) {
	t.Helper()
	c, err := newComparison(seed)
	var no *Unsupported
	switch {
	case errors.Is(err, errRefused):
		return tally{refused: 1}
	case errors.As(err, &no):
		t.Logf("seed %d: %v", seed, no)
		return tally{unsupported: 1}
	case err != nil:
		t.Errorf("seed %d: compile: %v\n%s", seed, err, c.text)
		return sum
	}
	sum.policies = 1
	for i, s := range samples {
		var d rules.Decision
		if diff := c.compare(s, &d); diff != "" {
			t.Errorf("seed %d: %s\ninput %v\n%s", seed, diff, s.input, c.text)
			return sum
		}
		sum.comparisons++
		sum.doubts = c.doubts
		switch d.Rule {
		case "":
			sum.errors++
		case undefined:
			sum.undefined++
		}
		other := samples[(i*7+int(seed%1009)+1)%len(samples)].rec
		if diff := c.checkReads(other, s.rec, d); diff != "" {
			t.Errorf("seed %d: %s\ninput %v\n%s", seed, diff, s.input, c.text)
			return sum
		}
	}
	return sum
}

// checkReads changes every field that the decision did not read to that of
// from, and demands the same decision and the same reads.
func (c *comparison) checkReads(from, rec *record, d rules.Decision) string {
	other := &record{has: slices.Clone(from.has), vals: slices.Clone(from.vals)}
	for i := range c.fields {
		if d.Reads.Has(i) {
			other.has[i], other.vals[i] = rec.has[i], rec.vals[i]
		}
	}
	var again rules.Decision
	c.current = other
	if err := c.program.Evaluate(&rules.Facts{}, &again); (err != nil) != (d.Rule == "") {
		return fmt.Sprintf("unread fields decide about an error: %v", err)
	}
	if again != d {
		return fmt.Sprintf("unread fields changed %+v to %+v", d, again)
	}
	return ""
}

// TestDifferential compares random policies with topdown. For a long run set
// VERDICTD_DIFFERENTIAL to the number of comparisons, VERDICTD_SEED to where
// to start.
func TestDifferential(t *testing.T) {
	total, start := envInt("VERDICTD_DIFFERENTIAL", 20_000), uint64(envInt("VERDICTD_SEED", 1))
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		sum  tally
		next = start
	)
	samples := newSamples(start, min(1000, max(200, total/100)))
	began := time.Now()
	for range 2 {
		wg.Go(func() {
			for {
				mu.Lock()
				seed, enough := next, sum.comparisons >= total || sum.refused > 100+sum.policies || t.Failed()
				next++
				mu.Unlock()
				if enough {
					return
				}
				got := differ(t, seed, samples)
				mu.Lock()
				sum.add(got)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%+v in %v, last seed %d", sum, time.Since(began).Round(time.Second), next-1)
	if !t.Failed() && (sum.comparisons < total || sum.errors*2 > sum.comparisons || sum.undefined*2 > sum.comparisons) {
		t.Errorf("the run says little: %+v", sum)
	}
}

// FuzzPolicy compares the policies that the fuzzer's numbers stand for.
func FuzzPolicy(f *testing.F) {
	for _, seed := range []uint64{8, 51, 100867, 3000016, 4000209, 5011395} { // each found a difference once
		f.Add(seed)
	}
	samples := newSamples(1, 100)
	f.Fuzz(func(t *testing.T, seed uint64) { differ(t, seed, samples) })
}

func envInt(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}
