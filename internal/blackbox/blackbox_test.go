package blackbox_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/internal/blackbox"
)

// survivor returns the Box as the next process gets it.
func survivor(t *testing.T, b *blackbox.Box) *blackbox.Box {
	t.Helper()
	f, err := b.File()
	if err != nil {
		t.Fatal(err)
	}
	next, err := blackbox.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { next.Close() })
	return next
}

func note(t *testing.T, b *blackbox.Box) string {
	t.Helper()
	text := "none"
	if ok, err := b.Read(&text); err != nil || !ok && text != "none" {
		t.Fatalf("got %v, %v", ok, err)
	}
	return text
}

func TestBox(t *testing.T) {
	b, err := blackbox.New()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	next := survivor(t, b)
	if got := note(t, next); got != "none" {
		t.Errorf("an empty box says %q", got)
	}
	for _, text := range []string{"first", strings.Repeat("longer", 1000), "third"} {
		if err := b.Write(text); err != nil {
			t.Fatal(err)
		}
		if got := note(t, next); got != text {
			t.Errorf("got %q, want %q", got, text)
		}
	}
	if err := b.Write(strings.Repeat("x", blackbox.NoteBytes)); err == nil {
		t.Error("a note that is too long was taken")
	}
	if got := note(t, next); got != "third" {
		t.Errorf("after a note that was too long: got %q, want the one before", got)
	}
	copy(b.Counters(), "counters")
	if !bytes.HasPrefix(next.Counters(), []byte("counters")) {
		t.Error("counters do not survive")
	}
}

// A process that dies while it writes a note leaves the one before.
func TestTornNote(t *testing.T) {
	b, err := blackbox.New()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, text := range []string{"whole", "torn!"} {
		if err := b.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	f, err := b.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const second = blackbox.CounterBytes // notes of even numbers come first
	if _, err := f.WriteAt([]byte("\"t-rn"), second+16); err != nil {
		t.Fatal(err)
	}
	if got := note(t, survivor(t, b)); got != "whole" {
		t.Errorf("got %q, want the note before", got)
	}
}

func TestOpenErrors(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blackbox.Open(f); err == nil {
		t.Error("a file was taken for a black box")
	}
}
