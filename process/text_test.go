package process

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestText(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", ""},
		{"/usr/bin/curl", "/usr/bin/curl"},
		{"/opt/größe", "/opt/größe"},
		{"a\nb\x1b[0m", "a\nb\x1b[0m"},
		{`a\x2db`, `a\x2db`},
		{"caf\xe9", `caf\xe9`},
		{"\xff\xfe", `\xff\xfe`},
		{"\xc3", `\xc3`},                    // cut within a character
		{"\xed\xa0\x80", `\xed\xa0\x80`},    // half of a surrogate pair
		{"\uFFFD", "\uFFFD"},                // is itself valid
		{"a\xc3\xa9\xc3z", "a\u00e9\\xc3z"}, // valid and not
	}
	for _, tt := range tests {
		if got := Text([]byte(tt.in)); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestTextMax(t *testing.T) {
	tests := []struct {
		in   string
		max  int
		want string
	}{
		{"abc", 3, "abc"},
		{"abc", 2, "ab"},
		{"aé", 2, "a"},
		{"aé", 3, "aé"},
		{"a€", 3, "a"},
		{"a\xffb", 4, "a"},
		{"a\xffb", 5, `a\xff`},
		{"\xff€", 6, `\xff`},
		{"abc", 0, ""},
		{"abc", -1, ""},
		{"a\xff", -1, ""},
	}
	for _, tt := range tests {
		if got := TextMax([]byte(tt.in), tt.max); got != tt.want {
			t.Errorf("%q at most %d: got %q, want %q", tt.in, tt.max, got, tt.want)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add([]byte("caf\xe9 \\x2d"), 5)
	f.Add([]byte("\xf0\x9f\x98"), 3)
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		whole, part := Text(b), TextMax(b, limit)
		if !utf8.ValidString(whole) || !utf8.ValidString(part) {
			t.Errorf("%q: not UTF-8: %q, %q", b, whole, part)
		}
		if !strings.HasPrefix(whole, part) || len(part) > max(limit, 0) {
			t.Errorf("%q at most %d: %q of %q", b, limit, part, whole)
		}
		if utf8.Valid(b) && whole != string(b) {
			t.Errorf("%q was valid and became %q", b, whole)
		}
	})
}
