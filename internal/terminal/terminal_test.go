package terminal

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestWord(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"/usr/bin/curl", "/usr/bin/curl"},
		{"ssh.service", "ssh.service"},
		{"", `""`},
		{"-", `"-"`},
		{"a b", `"a b"`},
		{"a=b", `"a=b"`},
		{`a"b\c`, `"a\"b\\c"`},
		{"a\tb\nc\rd\x00e", `"a\tb\nc\rd\x00e"`},
		{"\x1b]0;owned\x07", `"\x1b]0;owned\x07"`},
		{"\x7f", `"\x7f"`},
		{"\u009b31m", `"\u009b31m"`},
		{"bad\xffbyte", `"bad\xffbyte"`},
		{"\ufffd", `"\ufffd"`},
		{"Müller", `"Müller"`},
		{"/usr/bin/\u0441url", "\"/usr/bin/\u0441url\""}, // a Cyrillic letter
		{"e\u0301", `"e\u0301"`},                         // a mark
		{"a\u202eb", `"a\u202eb"`},
		{"\u2067", `"\u2067"`},
		{"\u05d0", `"\u05d0"`}, // Hebrew turns what stands beside it
		{"\U0001e900", `"\U0001e900"`},
		{"\u200b", `"\u200b"`},
		{"\u3164", `"\u3164"`}, // Hangul filler: a letter that is not seen
		{"\u2800", `"\u2800"`},
		{"\u00a0", `"\u00a0"`},
		{"\ufe0f", `"\ufe0f"`},
		{"\U000e0041", `"\U000e0041"`}, // a tag
	} {
		if got := Word(c.in); got != c.want {
			t.Errorf("%q: got %s, want %s", c.in, got, c.want)
		}
	}
}

// unseen returns the first character of shown that must not be there.
func unseen(shown string, allowed string) (rune, bool) {
	for _, r := range shown {
		if !strings.ContainsRune(allowed, r) && (!unicode.IsPrint(r) || unicode.Is(unicode.Bidi_Control, r) || unicode.Is(unicode.M, r)) {
			return r, true
		}
	}
	return 0, false
}

func FuzzWord(f *testing.F) {
	for _, s := range []string{"curl", "a b", "\x1b[31m", "\u202e", "\xff\xfe", `\"`, "\u0085"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Word(s)
		if r, bad := unseen(got, ""); bad || !utf8.ValidString(got) {
			t.Fatalf("%q: %q shows %U", s, got, r)
		}
		if got[0] != '"' {
			if got != s || strings.ContainsAny(got, " \t=") {
				t.Fatalf("%q: got %s without quotes", s, got)
			}
			return
		}
		if back, err := strconv.Unquote(got); err != nil || back != s {
			t.Fatalf("%q: %s is %q, %v", s, got, back, err)
		}
	})
}

func FuzzJSON(f *testing.F) {
	for _, s := range []string{"curl", "\x7f", "\u009b", "\u202e\U000e0041", "\u2028<&>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		text, err := json.Marshal(map[string]string{"exe": s})
		if err != nil {
			t.Fatal(err)
		}
		got := JSON(text)
		for _, r := range string(got) {
			if !unicode.IsPrint(r) {
				t.Fatalf("%q: %U is left in %q", s, r, got)
			}
		}
		var was, is map[string]string
		if err := json.Unmarshal(text, &was); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(got, &is); err != nil || is["exe"] != was["exe"] {
			t.Fatalf("%q: got %q, %v, want %q", s, is["exe"], err, was["exe"])
		}
	})
}

// FuzzWriter writes a text in two pieces, cut anywhere: what comes out is the same
// and has nothing in it that a terminal obeys, but colours.
func FuzzWriter(f *testing.F) {
	f.Add([]byte("a\tb\nMüller \x1b[31mred\x1b[0m"), 9)
	f.Add([]byte("\x1b]0;owned\x07\x1b[2J\u202e\xff\x1b[1;1H"), 3)
	f.Fuzz(func(t *testing.T, p []byte, at int) {
		at = min(max(at, 0), len(p))
		var whole, pieces bytes.Buffer
		one, two := NewWriter(&whole), NewWriter(&pieces)
		for _, err := range []error{write(one, p), write(two, p[:at]), write(two, p[at:])} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if whole.String() != pieces.String() || !bytes.Equal(one.rest, two.rest) {
			t.Fatalf("%q: got %q, and %q if cut at %d", p, &whole, &pieces, at)
		}
		left := whole.String()
		for {
			before, after, found := strings.Cut(left, "\x1b[")
			if r, bad := unseen(before, "\n\t"); bad {
				t.Fatalf("%q: got %q with %U", p, &whole, r)
			}
			if !found {
				return
			}
			end := strings.TrimLeft(after, "0123456789;")
			if !strings.HasPrefix(end, "m") {
				t.Fatalf("%q: got %q with a sequence that is no colour", p, &whole)
			}
			left = end
		}
	})
}

func write(w *Writer, p []byte) error {
	n, err := w.Write(p)
	if err == nil && n != len(p) {
		return strconv.ErrRange
	}
	return err
}

func TestWriterPassesText(t *testing.T) {
	for _, s := range []string{"PROTO  STATE\ntcp\tLISTEN\n", "\x1b[32mok\x1b[0m", "naïve → Ω 漢字", ""} {
		var out bytes.Buffer
		if err := write(NewWriter(&out), []byte(s)); err != nil || out.String() != s {
			t.Errorf("%q: got %q, %v", s, &out, err)
		}
	}
}
