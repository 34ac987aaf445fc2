package feed

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/nfnl"
)

// Attributes and numbers of include/uapi/linux/netfilter/nf_tables.h.
const (
	metaDst, metaKey, metaSrc                       = 1, 2, 3
	ctDst, ctKey, ctSrc                             = 1, 2, 4
	keyMark                                         = 3 // NFT_META_MARK and NFT_CT_MARK alike
	bitwiseSrc, bitwiseDst, bitwiseMask, bitwiseXor = 1, 2, 4, 5
	cmpSrc, cmpOp, cmpData                          = 1, 2, 3
	cmpEqual, cmpUnequal                            = 0, 1
	immediateDst                                    = 1
	lookupSrc                                       = 2
	rangeSrc                                        = 1
	dataValue                                       = 1
	matchName, matchInfo                            = 1, 3
	register32                                      = 8 // NFT_REG32_00; those before have 16 bytes
)

// ownChain is in each table that verdictd installs, whatever the table's name.
const ownChain = "verdictd_offload"

// readTableMarks returns the uses of marks by rules of nf_tables.
func readTableMarks() (marks []Mark, err error) {
	var all []tableRule
	err = eachRule(func(attrs []byte, again bool) {
		if again {
			all = nil
		}
		all = append(all, ruleMarks(attrs))
	})
	ours := map[string]bool{}
	for _, r := range all {
		ours[r.table] = ours[r.table] || r.chain == ownChain
	}
	for _, r := range all {
		if !ours[r.table] && !own(r.chain) {
			marks = append(marks, r.marks...)
		}
	}
	return marks, err
}

// tableRule is a rule of nf_tables: where it is, and its uses of marks.
type tableRule struct {
	table, chain string
	marks        []Mark
}

// ruleMarks returns the uses of marks by one rule.
func ruleMarks(attrs []byte) (rule tableRule) {
	r := reader{}
	for a := nfnl.NewAttrs(attrs); a.Next(); {
		switch a.Type() {
		case ruleTable:
			rule.table = unix.ByteSliceToString(a.Bytes())
		case ruleChain:
			rule.chain = unix.ByteSliceToString(a.Bytes())
		case ruleExpressions:
			for e := nfnl.NewAttrs(a.Bytes()); e.Next(); {
				r.expression(nameAndData(e.Bytes()))
			}
		}
	}
	for i := range r.marks {
		r.marks[i].Where = fmt.Sprintf("nf_tables, table %s, chain %s", rule.table, rule.chain)
	}
	rule.marks = r.marks
	return rule
}

// reader follows what is in the registers through the expressions of a rule.
type reader struct {
	registers map[uint32]content
	marks     []Mark
}

// content is what is in a register: (what it came from & and) ^ xor.
type content struct {
	from     origin
	and, xor uint32
}

type origin uint8

const (
	fromElsewhere origin = iota
	fromPacketMark
	fromConnMark
	fromRule // a number that stands in the rule: xor
)

// numbers returns the attributes of an expression that are a number, and those that
// hold data of one word.
func numbers(data []byte) (number map[uint16]uint32, word map[uint16]uint32) {
	number, word = map[uint16]uint32{}, map[uint16]uint32{}
	for a := nfnl.NewAttrs(data); a.Next(); {
		if len(a.Bytes()) == 4 {
			number[a.Type()] = a.Uint32()
		}
		for d := nfnl.NewAttrs(a.Bytes()); d.Next(); {
			if d.Type() == dataValue && len(d.Bytes()) == 4 {
				word[a.Type()] = binary.NativeEndian.Uint32(d.Bytes())
			}
		}
	}
	return number, word
}

// register returns the number of a register's first word.
func register(n uint32) uint32 {
	if n < register32 {
		return register32 + 4*(n-1)
	}
	return n
}

// expression takes note of one expression.
func (r *reader) expression(name string, data []byte) {
	if r.registers == nil {
		r.registers = map[uint32]content{}
	}
	number, word := numbers(data)
	at := func(attr uint16) *content {
		c := r.registers[register(number[attr])]
		return &c
	}
	put := func(attr uint16, c content) { r.registers[register(number[attr])] = c }
	switch name {
	case "meta", "ct":
		r.marked(name, number, at, put)
	case "immediate":
		v, ok := word[immediateData]
		if ok {
			put(immediateDst, content{from: fromRule, xor: v})
		}
	case "bitwise":
		c := *at(bitwiseSrc)
		c.and, c.xor = c.and&word[bitwiseMask], c.xor&word[bitwiseMask]^word[bitwiseXor]
		put(bitwiseDst, c)
	case "cmp":
		c := at(cmpSrc)
		r.compared(c, number[cmpOp] == cmpEqual || number[cmpOp] == cmpUnequal, word[cmpData])
	case "lookup":
		r.compared(at(lookupSrc), false, 0)
	case "range":
		r.compared(at(rangeSrc), false, 0)
	case "match", "target":
		r.compat(data)
	}
}

// marked takes note of an expression that loads or sets a mark, or loads something
// else.
func (r *reader) marked(name string, number map[uint16]uint32, at func(uint16) *content, put func(uint16, content)) {
	const dst, key = metaDst, metaKey // and of ct alike
	src, from := uint16(metaSrc), fromPacketMark
	if name == "ct" {
		src, from = ctSrc, fromConnMark
	}
	if number[key] != keyMark {
		from = fromElsewhere
	}
	if _, loads := number[dst]; loads {
		put(dst, content{from: from, and: whole})
		return
	}
	if from == fromElsewhere {
		return
	}
	c := at(src)
	m := Mark{Overwrites: name == "ct"}
	switch c.from {
	case fromRule:
		m.Value = c.xor
	case from:
		m.Bits, m.Overwrites = ^c.and|c.xor, false
	case fromPacketMark, fromConnMark:
		m.Bits = partial(c.and) | c.xor
	default:
		m.Unread = true
	}
	r.marks = append(r.marks, m)
}

// compared takes note of a comparison with one number, or with more than one.
func (r *reader) compared(c *content, one bool, value uint32) {
	if c.from != fromPacketMark && c.from != fromConnMark {
		return
	}
	m := Mark{Unread: c.and == whole}
	if c.and != whole {
		m.Bits = c.and
	} else if one {
		m = Mark{Value: value ^ c.xor}
	}
	r.marks = append(r.marks, m)
}

// compat takes note of a match or target of xtables, as iptables-nft writes it.
func (r *reader) compat(data []byte) {
	var name string
	var info []byte
	for a := nfnl.NewAttrs(data); a.Next(); {
		switch a.Type() {
		case matchName: // and of targets alike
			name = unix.ByteSliceToString(a.Bytes())
		case matchInfo:
			info = a.Bytes()
		}
	}
	if m, ok := xtables(name, info); ok {
		r.marks = append(r.marks, m)
	}
}
