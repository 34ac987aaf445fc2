package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Input is an input document that need not come from a packet at hand: it was
// written down, or taken from a record that carries some of the fields only. A
// field has a value, or is absent (the packet has no such field), or unknown
// (nothing says whether and which). It is not safe for concurrent changes.
type Input struct {
	fields  []Field
	values  []Value
	present FieldSet
	unknown FieldSet
}

// NewInput returns an input document in which every field is absent.
func NewInput() *Input {
	fields := Fields()
	return &Input{fields: fields, values: make([]Value, len(fields))}
}

// InputOf returns the input document of f, of which nothing is unknown.
func InputOf(f *Facts) *Input {
	in := NewInput()
	for i := range in.fields {
		if in.fields[i].Get(f, &in.values[i]) {
			in.present.Add(i)
		}
	}
	return in
}

// Fields returns Fields with getters that read in, whatever facts they are
// given: who evaluates a policy on them evaluates it on in.
func (in *Input) Fields() []Field {
	fields := slices.Clone(in.fields)
	for i := range fields {
		fields[i].Index = nil
		fields[i].Get = func(_ *Facts, v *Value) bool {
			*v = in.values[i]
			return in.present.Has(i)
		}
	}
	return fields
}

// Unknown returns the fields of which nothing is known.
func (in *Input) Unknown() FieldSet { return in.unknown }

// Forget makes the fields unknown that are present and that keep does not
// want.
func (in *Input) Forget(keep func(path string) bool) {
	for i := range in.fields {
		if in.present.Has(i) && !keep(in.fields[i].Path) {
			in.unknown.Add(i)
			in.present.remove(i)
		}
	}
}

// Set gives the field at path the value that text has: a number, true or
// false, an address or a string, as the field's kind wants it.
func (in *Input) Set(path, text string) error {
	i := in.index(path)
	if i < 0 {
		return in.noField(path)
	}
	v, err := in.fields[i].parse(text)
	if err != nil {
		return err
	}
	in.put(i, v)
	return nil
}

func (in *Input) put(i int, v Value) {
	in.values[i] = v
	in.present.Add(i)
	in.unknown.remove(i)
}

func (in *Input) index(path string) int {
	return slices.IndexFunc(in.fields, func(f Field) bool { return f.Path == path })
}

// noField is the error of a path that is no field. It names those beside it.
func (in *Input) noField(path string) error {
	parent := path[:strings.LastIndexByte(path, '.')+1]
	var beside []string
	for i := range in.fields {
		if rest, ok := strings.CutPrefix(in.fields[i].Path, parent); ok {
			name, _, _ := strings.Cut(rest, ".")
			beside = append(beside, name)
		}
	}
	if len(beside) == 0 {
		return fmt.Errorf("input.%s does not exist (verdictd schema lists what does)", path)
	}
	return fmt.Errorf("input.%s does not exist (%s has %s)", path, strings.TrimSuffix("input."+parent, "."), strings.Join(slices.Compact(beside), ", "))
}

// parse returns the value that text has for the field.
func (f *Field) parse(text string) (Value, error) {
	switch f.Kind {
	case Bool:
		if b, ok := parseBool(text); ok {
			return Value{Int: flagItem(b).low}, nil
		}
	case Int:
		digits, base := text, 10
		if hex, ok := strings.CutPrefix(text, "0x"); ok {
			digits, base = hex, 16
		}
		if n, err := strconv.ParseInt(digits, base, 64); err == nil && n >= 0 && n <= f.Max {
			return Value{Int: n}, nil
		}
	case Addr:
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
			return Value{Addr: a}, nil
		}
	default:
		if f.allows(text) {
			return Value{Str: text}, nil
		}
	}
	return Value{}, fmt.Errorf("input.%s is %.80q, want %s", f.Path, text, f.wants())
}

// allows returns whether a string field can have the value s.
func (f *Field) allows(s string) bool {
	switch {
	case f.Enum != nil:
		return slices.Contains(f.Enum, s)
	case f.Path == "ip.protocol":
		_, ok := ParseProtocol(s)
		return ok
	}
	return s != "" // a packet without an interface has no such field
}

// wants says what values the field can have.
func (f *Field) wants() string {
	switch {
	case f.Kind == Bool:
		return "true or false"
	case f.Kind == Int:
		return fmt.Sprintf("a whole number from 0 to %d", f.Max)
	case f.Kind == Addr:
		return "an IP address without a zone"
	case f.Enum != nil:
		return "one of " + strings.Join(f.Enum, ", ")
	case f.Path == "ip.protocol":
		return "a protocol as verdictd names it: tcp, udp, icmp ..., or its number if it has no name"
	}
	return "a string that is not empty"
}

// ParseProtocol returns the number of the protocol that ProtocolName calls
// name.
func ParseProtocol(name string) (proto uint8, ok bool) {
	for n := range 256 {
		if ProtocolName(uint8(n)) == name {
			return uint8(n), true
		}
	}
	return 0, false
}

// Text returns the value as Set reads it.
func (v *Value) Text(kind Kind) string {
	switch kind {
	case Bool:
		return strconv.FormatBool(v.Int != 0)
	case Int:
		return strconv.FormatInt(v.Int, 10)
	case Addr:
		return v.Addr.String()
	}
	return v.Str
}

func (s *FieldSet) remove(i int) { s[i>>6] &^= 1 << (i & 63) }
