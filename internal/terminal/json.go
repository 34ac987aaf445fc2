package terminal

import (
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// HiddenInJSON tells whether a character may stand in JSON (RFC 8259 §7) but is
// escaped here, as a terminal or an eye would take it for something else: DEL,
// controls of Latin-1, what changes direction, what is not seen.
func HiddenInJSON(r rune) bool { return r > '~' && !unicode.IsPrint(r) }

// AppendJSONEscape appends such a character as JSON spells it.
func AppendJSONEscape(b []byte, r rune) []byte {
	const digits = 4
	if high, low := utf16.EncodeRune(r); high != utf8.RuneError {
		b = appendHex(append(b, '\\', 'u'), uint32(high), digits)
		r = low
	}
	return appendHex(append(b, '\\', 'u'), uint32(r), digits)
}

// JSON returns a JSON text with all such characters escaped. It means the same:
// they stand in strings only.
func JSON(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if size > 1 && HiddenInJSON(r) || r == '\x7f' {
			out = AppendJSONEscape(out, r)
		} else {
			out = append(out, text[:size]...)
		}
		text = text[size:]
	}
	return out
}
