package packet_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/verdictd/verdictd/packet"
)

// capturedPacket is an IP packet in a capture: Data is behind the link header.
// It is lent until the next packet.
type capturedPacket struct {
	frame int
	meta  packet.Meta
	data  []byte
	known bool   // the link header could be read, and what follows is IP
	raw   []byte // with the link header
}

// readCapture calls each for every frame that pcapgo can read and returns the
// error that ended it, or nil at the capture's end.
func readCapture(path string, each func(capturedPacket)) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	next, err := openCapture(bufio.NewReaderSize(file, 1<<16))
	if err != nil {
		return err
	}
	for frame := 1; ; frame++ {
		raw, ci, link, err := next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c := capturedPacket{frame: frame, raw: raw}
		offset := 0
		c.meta.EtherType, offset, c.known = stripLink(link, raw)
		if c.known {
			c.data = raw[offset:]
			c.meta.Length = uint32(max(ci.Length-offset, 0))
		}
		each(c)
	}
}

type nextFunc func() ([]byte, gopacket.CaptureInfo, layers.LinkType, error)

func openCapture(r *bufio.Reader) (nextFunc, error) {
	magic, err := r.Peek(4)
	if err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(magic) == 0x0a0d0d0a {
		ng, err := pcapgo.NewNgReader(r, pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
		if err != nil {
			return nil, err
		}
		return func() ([]byte, gopacket.CaptureInfo, layers.LinkType, error) {
			data, ci, err := ng.ZeroCopyReadPacketData()
			if err != nil || len(ci.AncillaryData) == 0 {
				return data, ci, ng.LinkType(), err
			}
			link, _ := ci.AncillaryData[0].(layers.LinkType)
			return data, ci, link, nil
		}, nil
	}
	old, err := pcapgo.NewReader(r)
	if err != nil {
		return nil, err
	}
	return func() ([]byte, gopacket.CaptureInfo, layers.LinkType, error) {
		data, ci, err := old.ZeroCopyReadPacketData()
		return data, ci, old.LinkType(), err
	}, nil
}

// stripLink returns the ethertype of a frame and where its packet starts. It
// knows the simple link headers, which most captures have.
func stripLink(link layers.LinkType, b []byte) (etherType uint16, offset int, ok bool) {
	switch link {
	case layers.LinkTypeEthernet:
		return stripEthernet(b, 12)
	case layers.LinkTypeLinuxSLL:
		return stripEthernet(b, 14)
	case layers.LinkTypeRaw, layers.LinkTypeIPv4, layers.LinkTypeIPv6, 12, 14:
		return 0, 0, true
	case layers.LinkTypeNull, layers.LinkTypeLoop:
		return 0, 4, len(b) > 4 && (b[4]>>4 == 4 || b[4]>>4 == 6)
	}
	return 0, 0, false
}

// stripEthernet reads an ethertype at offset and passes over VLAN tags.
func stripEthernet(b []byte, offset int) (etherType uint16, end int, ok bool) {
	for len(b) >= offset+2 {
		etherType = binary.BigEndian.Uint16(b[offset:])
		switch etherType {
		case 0x8100, 0x88a8, 0x9100:
			offset += 4
		case packet.EtherTypeIPv4, packet.EtherTypeIPv6:
			return etherType, offset + 2, true
		default:
			return 0, 0, false
		}
	}
	return 0, 0, false
}

// eachCrasher calls each for the byte slices in a corpus file of Go's fuzzer.
func eachCrasher(path string, each func([]byte)) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		quoted, ok := strings.CutPrefix(strings.TrimSpace(line), "[]byte(")
		if !ok {
			continue
		}
		data, err := strconv.Unquote(strings.TrimSuffix(quoted, ")"))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		each([]byte(data))
	}
	return nil
}

// eachLine calls each for every JSON line of a file, which may be gzipped.
func eachLine[T any](t *testing.T, path string, each func(T)) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var r io.Reader = bytes.NewReader(data)
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(r); err != nil {
			t.Fatal(err)
		}
	}
	for dec := json.NewDecoder(r); ; {
		var v T
		err := dec.Decode(&v)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("%s: offset %d: %v", path, dec.InputOffset(), err)
		}
		each(v)
	}
}
