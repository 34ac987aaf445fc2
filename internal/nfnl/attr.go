package nfnl

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// ErrAttribute says that attributes are cut short or of the wrong size.
var ErrAttribute = errors.New("attribute is cut short")

// Attrs walks over netlink attributes in place:
//
//	for a := nfnl.NewAttrs(m.Attrs); a.Next(); {
//		switch a.Type() {
//		case attrMark:
//			mark = a.Uint32()
//		}
//	}
//
// Getters check the length: an attribute that is too short gives 0 and sets
// Err. What Bytes returns is a part of the walked bytes.
type Attrs struct {
	rest []byte
	data []byte
	typ  uint16
	bad  bool
}

// NewAttrs returns a walk over b, standing before its first attribute.
func NewAttrs(b []byte) Attrs { return Attrs{rest: b} }

// Next steps to the next attribute; false means that there is none, or that
// what follows is not an attribute: then Err is not nil.
func (a *Attrs) Next() bool {
	if len(a.rest) < attrLen {
		a.bad = a.bad || len(a.rest) > 0
		return false
	}
	n := int(binary.NativeEndian.Uint16(a.rest))
	if n < attrLen || n > len(a.rest) {
		a.bad = true
		return false
	}
	a.typ = binary.NativeEndian.Uint16(a.rest[2:]) & attrMask
	a.data = a.rest[attrLen:n]
	a.rest = a.rest[min(align(n), len(a.rest)):]
	return true
}

// Type returns the attribute's type without its flag bits.
func (a *Attrs) Type() uint16 { return a.typ }

// Bytes returns the attribute's value.
func (a *Attrs) Bytes() []byte { return a.data }

// Uint8 returns the attribute's value as one byte.
func (a *Attrs) Uint8() uint8 {
	if len(a.data) < 1 {
		a.bad = true
		return 0
	}
	return a.data[0]
}

// Uint16 returns the attribute's value, read as big endian.
func (a *Attrs) Uint16() uint16 {
	if len(a.data) < 2 {
		a.bad = true
		return 0
	}
	return binary.BigEndian.Uint16(a.data)
}

// Uint32 returns the attribute's value, read as big endian.
func (a *Attrs) Uint32() uint32 {
	if len(a.data) < 4 {
		a.bad = true
		return 0
	}
	return binary.BigEndian.Uint32(a.data)
}

// Uint64 returns the attribute's value, read as big endian.
func (a *Attrs) Uint64() uint64 {
	if len(a.data) < 8 {
		a.bad = true
		return 0
	}
	return binary.BigEndian.Uint64(a.data)
}

// String returns a copy of the attribute's value up to its first NUL. It
// allocates.
func (a *Attrs) String() string {
	s, _, _ := bytes.Cut(a.data, []byte{0})
	return string(s)
}

// Err returns ErrAttribute if the walk met an attribute that was cut short or
// too small for its getter.
func (a *Attrs) Err() error {
	if a.bad {
		return ErrAttribute
	}
	return nil
}
