package engine

import (
	"math/bits"
	"slices"

	"github.com/verdictd/verdictd/rules"
)

// A decision holds for a flow as long as the fields it was read from keep
// their values. Most are part of the flow's identity. The others are
// volatile: a flow entry stores their values, and a packet with other values
// is judged anew.

// bitsOf are the values of a shape's fields, packed.
type bitsOf [3]uint64

const (
	noReuse   = 1<<16 - 1 // shape of decisions that hold for one packet only
	maxShapes = 1 << 10
)

// shape says how the values of a set of volatile fields are packed.
type shape struct {
	parts []part
	owner bool // one of them is the owner of the socket
	links bool // one of them is the name of an interface, by its number
}

// part is one field's place: where its bits start and how many they are; the
// highest says that the field is present.
type part struct {
	field  *rules.Field
	start  uint8
	width  uint8
	socket bool // a packet without the field keeps the flow's value
}

// ownerWidth is the width of the one part that stands for all fields of the
// owner: its ID.
const ownerWidth = 33

// newShape returns the shape for the volatile fields among reads; ok is false
// if their values do not fit. What was read of the socket or its owner holds for
// the owner, whose part is the first: see slot.holder.
func newShape(fields []rules.Field, reads rules.FieldSet) (s shape, ok bool) {
	used := uint8(0)
	for i := range fields {
		f := &fields[i]
		if reads.Has(i) && (f.Scope == rules.PerOwner || f.Scope == rules.PerSocket) && !s.owner {
			s.owner, s.parts, used = true, []part{{field: ownerField(fields), width: ownerWidth}}, ownerWidth
		}
	}
	for i := range fields {
		f := &fields[i]
		if !reads.Has(i) || f.Scope == rules.PerFlow || f.Scope == rules.PerOwner {
			continue
		}
		width, ok := widthOf(f)
		if !ok || int(used)+int(width) > 64*len(bitsOf{}) {
			return shape{}, false
		}
		s.parts = append(s.parts, part{f, used, width, f.Scope == rules.PerSocket})
		s.links = s.links || f.Index != nil
		used += width
	}
	return s, true
}

// ownerField returns a field that stands for the owner.
func ownerField(fields []rules.Field) *rules.Field {
	return &fields[slices.IndexFunc(fields, func(f rules.Field) bool { return f.Scope == rules.PerOwner })]
}

// put ors the low width bits of x into v, from bit start on.
func (v *bitsOf) put(x uint64, start uint8) {
	word, shift := start/64, start%64
	v[word] |= x << shift
	if rest := x >> (64 - shift); rest != 0 { // a shift by 64 gives 0
		v[word+1] |= rest
	}
}

// widthOf returns how many bits a field's value and presence need.
func widthOf(f *rules.Field) (width uint8, ok bool) {
	switch {
	case f.Kind == rules.Bool:
		return 2, true
	case f.Kind == rules.Int:
		return uint8(bits.Len64(uint64(f.Max))) + 1, true
	case f.Enum != nil:
		return uint8(bits.Len(uint(len(f.Enum)))) + 1, true
	case f.Index != nil:
		return 33, true
	}
	return 0, false
}

// pack returns the values of f's fields, and the bits in which they need not
// agree with a flow's. Field values pass through scratch, which stays off the
// heap that way.
func (s *shape) pack(f *rules.Facts, scratch *rules.Value) (v, free bitsOf) {
	for i := range s.parts {
		p := &s.parts[i]
		x, present := p.value(f, scratch)
		if present {
			x |= 1 << (p.width - 1)
		}
		if !present && p.socket {
			free.put(1<<p.width-1, p.start)
		}
		v.put(x, p.start)
	}
	return v, free
}

// agrees returns whether two values are the same but for the free bits.
func (v *bitsOf) agrees(w, free *bitsOf) bool {
	return (v[0]^w[0])&^free[0] == 0 && (v[1]^w[1])&^free[1] == 0 && (v[2]^w[2])&^free[2] == 0
}

func (p *part) value(f *rules.Facts, v *rules.Value) (x uint64, present bool) {
	if p.field.Scope == rules.PerOwner {
		if f.Owner == nil {
			return 0, false
		}
		return uint64(f.Owner.ID), true
	}
	if p.field.Index != nil {
		n := p.field.Index(f)
		return uint64(n), n != 0
	}
	if !p.field.Get(f, v) {
		return 0, false
	}
	if p.field.Kind != rules.String {
		return uint64(v.Int), true
	}
	for i, s := range p.field.Enum {
		if s == v.Str {
			return uint64(i), true
		}
	}
	return uint64(len(p.field.Enum)), true
}
