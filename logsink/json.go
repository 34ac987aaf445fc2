package logsink

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/verdictd/verdictd/internal/terminal"
)

// The appenders below build one JSON text at the end of b. They trust their
// caller for structure: a name is a constant that needs no escape and b is
// not empty.

// key appends the name of a member, after a comma unless it is the first.
func key(b []byte, name string) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	b = append(b, '"')
	b = append(b, name...)
	return append(b, '"', ':')
}

func number(b []byte, name string, v uint64) []byte {
	return strconv.AppendUint(key(b, name), v, 10)
}

// nonzero appends the member unless v is 0.
func nonzero(b []byte, name string, v uint64) []byte {
	if v == 0 {
		return b
	}
	return number(b, name, v)
}

func boolean(b []byte, name string, v bool) []byte {
	return strconv.AppendBool(key(b, name), v)
}

func text(b []byte, name, v string) []byte {
	return quote(key(b, name), v)
}

// nonempty appends the member unless v is empty.
func nonempty(b []byte, name, v string) []byte {
	if v == "" {
		return b
	}
	return text(b, name, v)
}

func address(b []byte, name string, a netip.Addr) []byte {
	b = append(key(b, name), '"')
	return append(a.Unmap().WithZone("").AppendTo(b), '"')
}

const (
	hexDigits = "0123456789abcdef"
	del       = 0x7f
)

// quote appends s as a JSON string (RFC 8259 §7), with characters escaped that a
// terminal obeys or nobody sees. Each byte that is not part of valid UTF-8 becomes
// U+FFFD, as in encoding/json.
func quote(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			i++
			if c >= ' ' && c != '"' && c != '\\' && c != del {
				continue
			}
			b = appendEscape(append(b, s[start:i-1]...), c)
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			b = append(append(b, s[start:i]...), "\uFFFD"...)
			start = i + size
		case terminal.HiddenInJSON(r):
			b = terminal.AppendJSONEscape(append(b, s[start:i]...), r)
			start = i + size
		}
		i += size
	}
	return append(append(b, s[start:]...), '"')
}

func appendEscape(b []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(b, '\\', c)
	case '\n':
		return append(b, '\\', 'n')
	case '\r':
		return append(b, '\\', 'r')
	case '\t':
		return append(b, '\\', 't')
	}
	return append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}

// stamp appends a member with the time ns (Unix nanoseconds) in UTC, with
// microseconds and a numeric zone, as Suricata writes it:
// "2026-11-23T16:20:00.123456+0000".
func stamp(b []byte, name string, ns int64) []byte {
	t := time.Unix(0, ns).UTC()
	year, month, day := t.Date()
	b = append(key(b, name), '"')
	b = padded(b, year, 4)
	b = padded(append(b, '-'), int(month), 2)
	b = padded(append(b, '-'), day, 2)
	b = clock(append(b, 'T'), t)
	return append(b, "+0000\""...)
}

// clock appends the time of day: 16:20:00.123456.
func clock(b []byte, t time.Time) []byte {
	hour, minute, second := t.Clock()
	b = padded(b, hour, 2)
	b = padded(append(b, ':'), minute, 2)
	b = padded(append(b, ':'), second, 2)
	return padded(append(b, '.'), t.Nanosecond()/1000, 6)
}

// padded appends the lowest width decimal digits of v, which is not negative.
func padded(b []byte, v, width int) []byte {
	for range width {
		b = append(b, '0')
	}
	for i := len(b) - 1; width > 0; i, width = i-1, width-1 {
		b[i] = byte('0' + v%10)
		v /= 10
	}
	return b
}
