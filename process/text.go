package process

import "unicode/utf8"

// Text returns bytes of the kernel, such as a path or a command line, as valid
// UTF-8, which JSON and Rego demand. Each byte that is not part of a UTF-8
// character becomes \xHH, in lower case. All else stays as it is, also control
// characters and backslashes: so a name that spells "\xff" and one that has the
// byte give the same text, and a text is for comparing and showing, not for
// opening files.
func Text(b []byte) string { return TextMax(b, len(b)*escaped) }

// escaped is the length of an escaped byte.
const escaped = len(`\xHH`)

// TextMax is Text, cut at most maxBytes bytes into the result, and never within a
// character or an escaped byte.
func TextMax(b []byte, maxBytes int) string {
	if utf8.Valid(b) {
		return string(cut(b, maxBytes))
	}
	const digits = "0123456789abcdef"
	maxBytes = max(maxBytes, 0)
	out := make([]byte, 0, min(len(b)*escaped, maxBytes))
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		if r == utf8.RuneError && size == 1 {
			if len(out)+escaped > maxBytes {
				break
			}
			out = append(out, '\\', 'x', digits[b[0]>>4], digits[b[0]&0xf])
			b = b[1:]
			continue
		}
		if len(out)+size > maxBytes {
			break
		}
		out = append(out, b[:size]...)
		b = b[size:]
	}
	return string(out)
}

// cut returns the most of valid UTF-8 that fits.
func cut(b []byte, maxBytes int) []byte {
	if len(b) <= maxBytes {
		return b
	}
	n := max(maxBytes, 0)
	for n > 0 && !utf8.RuneStart(b[n]) {
		n--
	}
	return b[:n]
}
