package rules_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestSchemaGolden(t *testing.T) {
	tests := []struct {
		name string
		got  func() []byte
	}{
		{"input.schema.json", rules.Schema},
		{"decision.schema.json", rules.DecisionSchema},
		{"rules.schema.json", rules.PlainSchema},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.got()
			if again := tt.got(); !bytes.Equal(got, again) {
				t.Fatal("two calls differ")
			}
			golden := filepath.Join("testdata", tt.name)
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s is out of date (-want +got), go test ./rules -update rewrites it:\n%s", golden, diff)
			}
		})
	}
}

// node is the part of a JSON Schema that this test reads.
type node struct {
	Type                 string
	Description          string
	Enum                 []string
	AnyOf                []struct{ Type, Format string }
	Minimum, Maximum     *int64
	AdditionalProperties *bool
	Properties           map[string]*node
}

func TestSchemaHasEveryField(t *testing.T) {
	var root node
	if err := json.Unmarshal(rules.Schema(), &root); err != nil {
		t.Fatal(err)
	}
	for _, f := range rules.Fields() {
		n := &root
		for _, key := range strings.Split(f.Path, ".") {
			if n.Type != "object" || n.AdditionalProperties == nil || *n.AdditionalProperties {
				t.Errorf("%s: an object above it is not closed", f.Path)
			}
			if n = n.Properties[key]; n == nil {
				t.Fatalf("%s is not in the schema", f.Path)
			}
		}
		if n.Description != f.Doc {
			t.Errorf("%s: description %q, want %q", f.Path, n.Description, f.Doc)
		}
		if diff := cmp.Diff(f.Enum, n.Enum); diff != "" {
			t.Errorf("%s: enum (-want +got):\n%s", f.Path, diff)
		}
		if f.Kind == rules.Int && (n.Minimum == nil || *n.Minimum != 0 || n.Maximum == nil || *n.Maximum != f.Max) {
			t.Errorf("%s: range %v to %v, want 0 to %d", f.Path, n.Minimum, n.Maximum, f.Max)
		}
		if f.Kind == rules.Addr && len(n.AnyOf) != 2 {
			t.Errorf("%s: not an address of either family", f.Path)
		}
	}
}

// TestFields checks what the read set, the schema and the Rego input take for
// granted of the fields.
func TestFields(t *testing.T) {
	fields := rules.Fields()
	if most := len(rules.FieldSet{}) * 64; len(fields) > most {
		t.Fatalf("%d fields, a FieldSet holds %d", len(fields), most)
	}
	seen := map[string]bool{}
	for _, f := range fields {
		if seen[f.Path] {
			t.Errorf("%s is there twice", f.Path)
		}
		seen[f.Path] = true
		if f.Doc == "" || f.Get == nil {
			t.Errorf("%s has no description or no getter", f.Path)
		}
		if f.Kind == rules.Int && f.Max <= 0 {
			t.Errorf("%s has no greatest value", f.Path)
		}
	}
	for path := range seen {
		for other := range seen {
			if strings.HasPrefix(other, path+".") {
				t.Errorf("%s is a field, and an object that holds %s", path, other)
			}
		}
	}
}

func TestFieldGetNoAllocs(t *testing.T) {
	fields := rules.Fields()
	f := rules.Facts{
		Meta: &packet.Meta{HasUID: true, HasGID: true, Hook: packet.Output},
		Packet: &packet.Packet{Status: packet.OK, Version: 4, Protocol: packet.ProtoTCP, HasPorts: true,
			Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("192.0.2.2")},
		InInterface: "eth0",
	}
	var present int
	v := new(rules.Value) // its owner reuses it: what is passed to Get escapes
	allocs := testing.AllocsPerRun(100, func() {
		present = 0
		for i := range fields {
			if fields[i].Get(&f, v) {
				present++
			}
		}
	})
	if allocs != 0 {
		t.Errorf("reading all fields: %v allocs, want 0", allocs)
	}
	if present < 30 {
		t.Errorf("a TCP packet has %d fields, want most of %d", present, len(fields))
	}
}
