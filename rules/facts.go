package rules

import (
	"net/netip"
	"strings"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
)

// Facts is everything a policy may ask about one packet. It is the record
// behind the Rego input document: Fields lists what of it is visible, and
// under which name. What it points to is lent for one evaluation.
type Facts struct {
	Meta   *packet.Meta
	Packet *packet.Packet

	// Names of the interfaces Meta.In and Meta.Out; empty if there is none.
	InInterface, OutInterface string
	// InLink and OutLink are numbers that stand for these names, for who only
	// compares them; 0 if there is none.
	InLink, OutLink uint32

	// InPort, OutPort, InPortLink and OutPortLink are the same of the ports of a
	// bridge that a packet goes through: Meta.PhysIn and Meta.PhysOut.
	InPort, OutPort         string
	InPortLink, OutPortLink uint32

	// Related says that the packet is an ICMP error which passes unless the policy
	// says otherwise: see the field icmp.related.
	Related bool

	// AnswersMulticast is whether the packet answers a question that was sent by
	// multicast or broadcast a short time ago.
	AnswersMulticast bool

	// Owner is who owns the local socket of the packet; nil if nobody was asked,
	// as in a replay.
	Owner *process.Owner
}

// Kind is the type of a field.
type Kind uint8

// Kinds.
const (
	Bool   Kind = iota // Value.Int is 0 or 1
	Int                // Value.Int
	String             // Value.Str
	Addr               // Value.Addr; a string in the input document
)

// Value is the value of a field: the member that Kind says.
type Value struct {
	Int  int64
	Str  string
	Addr netip.Addr
}

// Scope says how long a field's value holds.
type Scope uint8

// Scopes.
const (
	// PerFlow fields are part of the flow's identity: the same in every packet
	// of one direction of a flow at one hook.
	PerFlow Scope = iota
	// PerSocket fields belong to the local socket. They are the same in every
	// packet of a flow in which they are present; packets that the kernel
	// sends for a closed socket lack them.
	PerSocket
	// PerOwner fields say who owns the local socket (Facts.Owner). They change
	// with the owner, all at once, which Owner.ID tells.
	PerOwner
	// PerPacket fields may differ from packet to packet.
	PerPacket
)

// Final returns whether the field has the same value in all packets of one
// direction of a flow of IP protocol proto. A decision that read no other fields
// holds for the whole flow. The fields of another transport protocol are absent
// for good. hasOwner says that the socket's owner is known, for a PerSocket field
// by the packet's uid, for a PerOwner field by Facts.Owner. Such fields count for
// TCP only: with other protocols another socket can take over the ports without
// a packet that shows it.
func (f *Field) Final(proto uint8, hasOwner bool) bool {
	switch f.Scope {
	case PerFlow:
		return true
	case PerSocket, PerOwner:
		return hasOwner && proto == packet.ProtoTCP
	}
	group, _, _ := strings.Cut(f.Path, ".")
	switch group {
	case "tcp":
		return proto != packet.ProtoTCP
	case "udp":
		return proto != packet.ProtoUDP
	case "icmp":
		return proto != packet.ProtoICMP && proto != packet.ProtoICMPv6
	}
	return false
}

// Field is one leaf of the input document.
type Field struct {
	Path  string // dotted, below input: "ip.src"
	Kind  Kind
	Scope Scope
	Doc   string

	Enum []string // for String: every value it can take; nil if open
	Max  int64    // for Int: greatest value; the least is 0

	// Facts are what must have been looked up of the owner for the field to be known.
	Facts process.Facts

	// Index, for a String whose values are names of numbered things, gives the
	// number, 0 if the packet has none; nil for other fields. It spares those
	// who only compare values the text.
	Index func(f *Facts) uint32

	// Get puts the field's value of f into v and returns true, or returns
	// false where the packet has no such field: then it is undefined in Rego.
	// It allocates nothing.
	Get func(f *Facts, v *Value) bool
}

// FieldSet is a set of fields, by their index in Fields.
type FieldSet [2]uint64

// Add puts field i into the set.
func (s *FieldSet) Add(i int) { s[i>>6] |= 1 << (i & 63) }

// Has returns whether field i is in the set.
func (s *FieldSet) Has(i int) bool { return s[i>>6]&(1<<(i&63)) != 0 }

// Union puts all of t into the set.
func (s *FieldSet) Union(t FieldSet) { s[0] |= t[0]; s[1] |= t[1] }

// Intersects returns whether a field is in both sets.
func (s FieldSet) Intersects(t FieldSet) bool { return s[0]&t[0]|s[1]&t[1] != 0 }
