package logsink

import (
	"slices"
	"unicode/utf8"

	"github.com/verdictd/verdictd/internal/terminal"
	"github.com/verdictd/verdictd/process"
)

// What a process, a remote sender or a policy chose is cut in a record, so that
// nobody makes the log grow faster than others can be heard in it. The bounds are
// in bytes as they stand in the record: a character that is escaped takes up to
// twelve.

// MaxRecord is the greatest size of a record about a packet, in bytes: of two
// owners whose every text is longer than its bound. One of a plain process takes
// about 1 KiB. MaxPretty is that of a line for people.
const (
	MaxRecord = 16 << 10
	MaxPretty = 8 << 10
)

// Bounds of the texts in a record.
const (
	maxOwner    = 6 << 10 // an owner: what the others leave of it is for the arguments
	minCmdline  = 256     // but no less
	maxExe      = 640     // exe and exe_inside, each
	maxGroup    = 512     // path of the control group
	maxName     = 192     // units, slice, container
	maxShort    = 96      // name and terminal of the process, user, runtime, pod, why there is no hash
	maxAncestor = 160     // exe of a parent

	maxRule   = 256 // name of a rule
	maxAside  = 512 // message of a rule, detail
	maxValue  = 256 // in a line for people
	maxEscape = 6   // bytes in a record for one of a text, at most
)

// bounded appends the member unless v is empty, cut at a character so that its value
// takes at most most bytes, and whether it was cut.
func bounded(b []byte, name, v string, most int) (longer []byte, cut bool) {
	n := fits(v, most-len(`""`))
	return nonempty(b, name, v[:n]), n < len(v)
}

// fits returns how many bytes of s, up to the end of a character, quote spells in
// most bytes.
func fits(s string, most int) int {
	if len(s)*maxEscape <= most {
		return len(s)
	}
	var spelled [16]byte
	for i := 0; i < len(s); {
		size, takes := 1, 1
		if c := s[i]; c < ' ' || c >= del || c == '"' || c == '\\' {
			_, size = utf8.DecodeRuneInString(s[i:])
			takes = len(quote(spelled[:0], s[i:i+size])) - len(`""`)
		}
		if most -= takes; most < 0 {
			return i
		}
		i += size
	}
	return len(s)
}

// cuts are the names of what was cut, those of an owner as policies spell them below
// process.
type cuts struct {
	names   [maxCuts]string
	n       int
	parents [process.MaxParents]parentCuts
}

// parentCuts says which texts of a parent were cut.
type parentCuts struct{ exe, comm bool }

// maxCuts is how many texts, but those of parents, one object of a record can have.
const maxCuts = 16

// text appends the member as bounded does, and notes that it was cut as path.
func (c *cuts) text(b []byte, name, path, v string, most int) []byte {
	b, cut := bounded(b, name, v, most)
	if cut && c.n < maxCuts {
		c.names[c.n] = path
		c.n++
	}
	return b
}

// append appends the member cut, unless nothing was.
func (c *cuts) append(b []byte) []byte {
	begin := len(b)
	for _, name := range c.names[:c.n] {
		b = append(append(append(b, '"'), name...), '"', ',')
	}
	for i, p := range c.parents {
		if p.exe {
			b = append(append(append(b, `"parents.`...), byte('1'+i)), `.exe",`...)
		}
		if p.comm {
			b = append(append(append(b, `"parents.`...), byte('1'+i)), `.comm",`...)
		}
	}
	if len(b) == begin {
		return b
	}
	b[len(b)-1] = ']'
	return slices.Insert(b, begin, []byte(`,"cut":[`)...)
}

// word appends " name=value" to a line for people, or nothing if the value is
// empty. One that is cut has another name, NAME_cut, so that nobody takes it for the
// whole.
func word(b []byte, name, value string) []byte {
	n := fits(value, maxValue)
	if n == len(value) {
		return pair(b, name, value)
	}
	b = append(append(append(b, ' '), name...), "_cut="...)
	return terminal.AppendWord(b, value[:n])
}
