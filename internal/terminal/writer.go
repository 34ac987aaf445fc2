package terminal

import (
	"bytes"
	"io"
	"sync"
	"unicode/utf8"
)

// Writer passes on what is safe to print, line breaks, tabs and colours (ESC [
// digits m). It escapes each other character that is not safe: so no sequence that
// was forgotten to be quoted reaches the terminal. It may be used from any
// goroutine.
type Writer struct {
	mu   sync.Mutex
	to   io.Writer
	rest []byte // the beginning of a character or a colour whose end did not come yet
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{to: w} }

// Write writes p to the last byte, but for the beginning of a character or a colour
// at its end: that is written with what follows.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := p
	if len(w.rest) > 0 {
		all = append(w.rest, p...)
	}
	out, rest := clean(all)
	w.rest = bytes.Clone(rest)
	if len(out) == 0 {
		return len(p), nil
	}
	if _, err := w.to.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// clean returns what may be printed of text, and what its end lacks. It returns
// text itself if there is nothing to change.
func clean(text []byte) (out, rest []byte) {
	var b []byte
	done := 0 // bytes of text that are in b
	for i := 0; i < len(text); {
		n, ok, whole := next(text[i:])
		if !whole {
			text, rest = text[:i], text[i:]
			break
		}
		if !ok {
			b = appendEscape(append(b, text[done:i]...), string(text[i:i+n]))
			done = i + n
		}
		i += n
	}
	if done == 0 {
		return text, rest
	}
	return append(b, text[done:]...), rest
}

// next returns the length of the first character or colour of text and whether it
// may be printed; whole is false if more must come to tell.
func next(text []byte) (n int, ok, whole bool) {
	switch c := text[0]; {
	case c == '\n', c == '\t':
		return 1, true, true
	case c == 0x1b:
		return colour(text)
	case c < utf8.RuneSelf:
		return 1, safe(rune(c)), true
	case !utf8.FullRune(text):
		return 0, false, false
	}
	r, n := utf8.DecodeRune(text)
	return n, safe(r) && (r != utf8.RuneError || n > 1), true
}

// colour is next for an escape character.
func colour(text []byte) (n int, ok, whole bool) {
	const longest = len("\x1b[38;2;255;255;255m")
	for i := 1; i < len(text) && i < longest; i++ {
		switch c := text[i]; {
		case i == 1 && c == '[', i > 1 && (c >= '0' && c <= '9' || c == ';'):
		case i > 1 && c == 'm':
			return i + 1, true, true
		default:
			return 1, false, true
		}
	}
	return 1, false, len(text) >= longest
}
