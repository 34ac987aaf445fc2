package replay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory of zstd; it is the default of the zstd tool.
const maxWindow = 128 << 20

// way is the direction of a packet at the interface where it was captured.
type way uint8

const (
	wayUnknown way = iota
	wayIn
	wayOut
)

// iface is an interface of a capture.
type iface struct {
	id       int
	linkType uint32
	strip    stripper // nil if the link type is not supported
	name     string
	index    uint32 // of name in the run, 0 if it has none
	order    binary.ByteOrder
	snaplen  uint32

	units  uint64 // timestamp units per second
	offset int64  // seconds to add to timestamps

	refused bool // the first frame that had to be skipped has been reported
}

// frame is one captured packet.
type frame struct {
	number uint64 // 0 while a reader is not inside of a packet
	time   int64  // Unix nanoseconds
	data   []byte // from the link layer on; lent until the next one is read
	length uint32 // bytes on the wire, at least len(data)
	iface  *iface
	way    way
}

// frameReader reads the frames of a capture. next returns io.EOF after the
// last one. If it fails, f.number and the mark of the source say where.
type frameReader interface {
	next(f *frame) error
	frames() uint64 // frame numbers given out
}

// capture is an open capture.
type capture struct {
	name   string
	src    *source
	reader frameReader
	close  func() error
}

// Magic numbers of compressions: RFC 1952, RFC 8878.
var (
	magicGzip = []byte{0x1f, 0x8b}
	magicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// openCapture opens a capture file, or stdin for "-", and reads its header.
// The caller closes it.
func openCapture(name string, stdin io.Reader) (*capture, error) {
	c := &capture{name: name, close: func() error { return nil }}
	raw := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, openError(name, err)
		}
		raw, c.close = f, f.Close
	}
	if err := c.start(raw); err != nil {
		return nil, errors.Join(c.fail(0, err), c.close())
	}
	return c, nil
}

// start looks at the first bytes: it sets up decompression and the reader of
// the format.
func (c *capture) start(raw io.Reader) error {
	c.src = newSource(raw)
	head, err := c.src.r.Peek(4)
	switch {
	case len(head) == 0 && err == io.EOF:
		return errors.New("empty file")
	case len(head) < 4 && err != io.EOF:
		return fmt.Errorf("read: %w", err)
	case bytes.HasPrefix(head, magicGzip):
		z, err := gzip.NewReader(c.src.r)
		if err != nil {
			return shortage(err, 0, 10)
		}
		c.src = newSource(z)
	case bytes.Equal(head, magicZstd):
		z, err := zstd.NewReader(c.src.r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return err
		}
		closeFile := c.close
		c.close = func() error { z.Close(); return closeFile() }
		c.src = newSource(z)
	}
	c.reader, err = newReader(c.src)
	return err
}

// newReader returns the reader for the format that the first bytes announce.
func newReader(src *source) (frameReader, error) {
	src.mark()
	b, err := src.r.Peek(4)
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, shortage(err, len(b), 4)
	}
	if binary.BigEndian.Uint32(b) == blockSection {
		return newNgReader(src), nil
	}
	return newPcapReader(src)
}

// next reads the next frame. Its errors carry the place; io.EOF is the end.
func (c *capture) next(f *frame) error {
	err := c.reader.next(f)
	if err == nil || err == io.EOF {
		return err
	}
	return c.fail(f.number, err)
}

func (c *capture) fail(frame uint64, err error) error {
	return &CaptureError{Capture: c.name, Frame: frame, Offset: c.src.at, Err: err}
}

// checkNames finds captures that cannot be read before any packet is judged.
// Only regular files are looked into: reading would use up a pipe.
func checkNames(names []string, stdin io.Reader) error {
	var fromStdin bool
	for _, name := range names {
		if name != "-" {
			if err := checkFile(name); err != nil {
				return err
			}
			continue
		}
		if stdin == nil {
			return openError(name, errors.New("standard input is not available"))
		}
		if fromStdin {
			return openError(name, errors.New("standard input can be read only once"))
		}
		fromStdin = true
	}
	return nil
}

func checkFile(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return openError(name, err)
	}
	if info.IsDir() {
		return openError(name, errors.New("is a directory; name the captures in it"))
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	c, err := openCapture(name, nil)
	if err != nil {
		return err
	}
	return c.close()
}

// openError says which capture could not be opened; the name is not repeated.
func openError(name string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return &CaptureError{Capture: name, Offset: -1, Err: err}
}
