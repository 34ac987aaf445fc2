package feed

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Parts of struct xt_entry_match and xt_entry_target, x_tables.h.
const (
	xtHeader   = targetHeader
	xtNameSize = targetNameSize
	xtError    = "ERROR" // XT_ERROR_TARGET: begins a chain of the user's, and names it
)

// readLegacyMarks returns the uses of marks by rules of iptables-legacy.
func readLegacyMarks(l *legacy) (marks []Mark, err error) {
	err = l.each(func(table string, entries []byte) {
		chain := ""
		for len(entries) >= l.targetOffset+4 {
			target := int(binary.NativeEndian.Uint16(entries[l.targetOffset:]))
			next := int(binary.NativeEndian.Uint16(entries[l.targetOffset+2:]))
			if target+xtHeader > next || next > len(entries) || target < l.matches() {
				return
			}
			entry := entries[:next]
			entries = entries[next:]
			if name, data := xtPart(entry[target:]); name == xtError {
				chain = unix.ByteSliceToString(data)
			}
			if !own(chain) {
				marks = append(marks, l.entryMarks(table, chain, entry, target)...)
			}
		}
	})
	return marks, err
}

// matches is where the matches of an entry begin: after target_offset, next_offset
// and comefrom come two counters, aligned.
func (l *legacy) matches() int { return (l.targetOffset+8+7)&^7 + 16 }

// entryMarks returns the uses of marks by one entry, of which the target is at an
// offset.
func (l *legacy) entryMarks(table, chain string, entry []byte, target int) (marks []Mark) {
	where := fmt.Sprintf("%s, table %s", l.name, table)
	if chain != "" {
		where += ", chain " + chain
	}
	add := func(part []byte) {
		if m, ok := xtables(xtPart(part)); ok {
			m.Where = where
			marks = append(marks, m)
		}
	}
	for at := l.matches(); at+xtHeader <= target; {
		size := int(binary.NativeEndian.Uint16(entry[at:]))
		if size < xtHeader || at+size > target {
			break
		}
		add(entry[at : at+size])
		at += size
	}
	add(entry[target:])
	return marks
}

// xtPart returns the name and the data of a match or target.
func xtPart(part []byte) (name string, data []byte) {
	return unix.ByteSliceToString(part[2 : 2+xtNameSize]), part[xtHeader:]
}
