package terminal

import (
	"unicode"
	"unicode/utf8"
)

// Word returns s if it is one plain word of ASCII, else s in double quotes, as Go
// spells strings, without any character that is not safe. What is quoted holds no
// line break, and another word can never look like it.
//
// "-" is quoted, as it stands for what is not known, and so is the empty string.
func Word(s string) string {
	if plain(s) {
		return s
	}
	return string(AppendWord(make([]byte, 0, len(s)+len(`""`)), s))
}

// Line returns a text of several words, such as a reason, as one line: each
// character that is not safe is escaped as in Word. Who writes it can make it look
// like anything else on that line: for a value in a column take Word.
func Line(s string) string {
	var b []byte
	done := 0
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if !safe(r) || r == utf8.RuneError {
			b = appendEscape(append(b, s[done:i]...), s[i:i+size])
			done = i + size
		}
		i += size
	}
	if done == 0 {
		return s
	}
	return string(append(b, s[done:]...))
}

// AppendWord appends Word(s) to b.
func AppendWord(b []byte, s string) []byte {
	if plain(s) {
		return append(b, s...)
	}
	b = append(b, '"')
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case !safe(r) || r == utf8.RuneError:
			b = appendEscape(b, s[:size])
		default:
			b = append(b, s[:size]...)
		}
		s = s[size:]
	}
	return append(b, '"')
}

// plain tells whether s is one word of ASCII that needs no quotes, in a column of a
// table or as the value of a name.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || s[i] == '"' || s[i] == '\\' || s[i] == '=' {
			return false
		}
	}
	return s != "" && s != "-"
}

// safe tells whether a character is seen where it stands and leaves all others
// where they are.
func safe(r rune) bool {
	switch {
	case r < utf8.RuneSelf:
		return r >= ' ' && r <= '~'
	case !unicode.IsPrint(r), unicode.Is(unicode.M, r): // marks change what stands before them
		return false
	}
	return !unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, leftwards) && r != blank
}

// blank is BRAILLE PATTERN BLANK: a symbol, and not seen.
const blank = '\u2800'

// leftwards are the blocks of scripts that are written from right to left: one
// letter of them turns digits and punctuation of other columns round.
//
// Source: default values of Bidi_Class R and AL, DerivedBidiClass.txt of Unicode.
var leftwards = &unicode.RangeTable{
	R16: []unicode.Range16{{Lo: 0x0590, Hi: 0x08ff, Stride: 1}, {Lo: 0xfb1d, Hi: 0xfdff, Stride: 1}, {Lo: 0xfe70, Hi: 0xfeff, Stride: 1}},
	R32: []unicode.Range32{{Lo: 0x10800, Hi: 0x10fff, Stride: 1}, {Lo: 0x1e800, Hi: 0x1efff, Stride: 1}},
}

const hexDigits = "0123456789abcdef"

// appendEscape appends a character, or a byte that is none, as Go spells it.
func appendEscape(b []byte, char string) []byte {
	const short, long = 4, 8 // digits
	r, size := utf8.DecodeRuneInString(char)
	switch {
	case r == '\n':
		return append(b, '\\', 'n')
	case r == '\t':
		return append(b, '\\', 't')
	case r == '\r':
		return append(b, '\\', 'r')
	case size == 1:
		return append(b, '\\', 'x', hexDigits[char[0]>>4], hexDigits[char[0]&15])
	case r > 0xffff:
		return appendHex(append(b, '\\', 'U'), uint32(r), long)
	}
	return appendHex(append(b, '\\', 'u'), uint32(r), short)
}

func appendHex(b []byte, v uint32, digits int) []byte {
	const bits = 4
	for i := digits - 1; i >= 0; i-- {
		b = append(b, hexDigits[v>>(i*bits)&15])
	}
	return b
}
