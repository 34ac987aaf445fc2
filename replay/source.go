package replay

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// maxRecord bounds a packet record or a pcapng block that has to be held in
// memory. Snapshot lengths are 256 KiB and less; blocks that are skipped may
// be of any size.
const maxRecord = 16 << 20

// bufferSize is how much of a capture is read at once.
const bufferSize = 128 << 10

// ErrTruncated is what errors.Is finds in the error of a capture that ends
// within a record or header.
var ErrTruncated = errors.New("cut short")

// CaptureError says that a capture cannot be read, or not to its end. All
// packets before the place of the error have been judged.
type CaptureError struct {
	Capture string // name as given
	Frame   uint64 // number of the broken packet, 0 if it is not in a packet
	Offset  int64  // where the broken record begins: bytes from the start of the uncompressed capture; -1 if it was not opened
	Err     error
}

func (e *CaptureError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("capture %s: %v", e.Capture, e.Err)
	}
	place := fmt.Sprintf("at byte %d", e.Offset)
	if e.Frame > 0 {
		place = fmt.Sprintf("in packet %d at byte %d", e.Frame, e.Offset)
	}
	var cut *truncation
	if errors.As(e.Err, &cut) {
		return fmt.Sprintf("capture %s: cut short %s (%s)", e.Capture, place, cut.extent())
	}
	return fmt.Sprintf("capture %s: %s: %v", e.Capture, place, e.Err)
}

// Unwrap returns the error without its place.
func (e *CaptureError) Unwrap() error { return e.Err }

// truncation says how much of something is there.
type truncation struct{ have, want int64 }

func (t *truncation) Error() string        { return "cut short (" + t.extent() + ")" }
func (t *truncation) Is(target error) bool { return target == ErrTruncated }
func (t *truncation) extent() string       { return fmt.Sprintf("%d of %d bytes", t.have, t.want) }

// source hands out the bytes of a capture, counting them.
type source struct {
	r    *bufio.Reader
	off  int64  // bytes handed out
	at   int64  // where the record being read begins
	huge []byte // records larger than r's buffer
}

func newSource(r io.Reader) *source { return &source{r: bufio.NewReaderSize(r, bufferSize)} }

// mark notes that a record begins here.
func (s *source) mark() { s.at = s.off }

// take returns the next n bytes, lent until the next call, or io.EOF if
// nothing is left at all. Less than n bytes are a truncation.
func (s *source) take(n int) ([]byte, error) {
	if n > s.r.Size() {
		return s.takeHuge(n)
	}
	b, err := s.r.Peek(n)
	if err != nil {
		return nil, shortage(err, len(b), n)
	}
	s.off += int64(n)
	_, err = s.r.Discard(n) // the bytes are buffered: they stay where they are
	return b, err
}

func (s *source) takeHuge(n int) ([]byte, error) {
	if cap(s.huge) < n {
		s.huge = make([]byte, n)
	}
	b := s.huge[:n]
	got, err := io.ReadFull(s.r, b)
	if err != nil {
		return nil, shortage(err, got, n)
	}
	s.off += int64(n)
	return b, nil
}

// need is take for bytes without which a record is not complete.
func (s *source) need(n int) ([]byte, error) {
	b, err := s.take(n)
	if err == io.EOF {
		err = &truncation{want: int64(n)}
	}
	return b, err
}

// skip passes over n bytes.
func (s *source) skip(n int64) error {
	got, err := io.CopyN(io.Discard, s.r, n)
	s.off += got
	if err == io.EOF {
		err = &truncation{have: got, want: n}
	}
	return err
}

// shortage turns the error of a read that brought have of want bytes into
// io.EOF (a clean end), a truncation, or a failure of the medium.
func shortage(err error, have, want int) error {
	switch {
	case err == io.EOF && have == 0:
		return io.EOF
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		return &truncation{have: int64(have), want: int64(want)}
	}
	return fmt.Errorf("read: %w", err)
}
