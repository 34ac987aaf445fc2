package replay

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Magic numbers of pcap files, as read in the file's own byte order.
//
// Source: draft-ietf-opsawg-pcap, section 4.
const (
	magicMicro = 0xa1b2c3d4
	magicNano  = 0xa1b23c4d
)

const (
	pcapHeaderLen = 24
	pcapRecordLen = 16
	// pcapLinkMask leaves away the length of the frame check sequence, which
	// shares the field with the link type.
	pcapLinkMask = 0x03ffffff
)

var errMagic = errors.New("neither pcap nor pcapng, nor one of them compressed with gzip or zstd")

// pcapReader reads a pcap file.
type pcapReader struct {
	src    *source
	order  binary.ByteOrder
	iface  iface
	tick   int64 // nanoseconds per unit of the timestamp's fraction
	old    bool  // minor version below 4: the two lengths may be swapped
	number uint64
}

func newPcapReader(src *source) (*pcapReader, error) {
	magic, err := src.r.Peek(4)
	if err != nil {
		return nil, shortage(err, len(magic), pcapHeaderLen)
	}
	r := &pcapReader{src: src, tick: 1}
	switch le, be := binary.LittleEndian.Uint32(magic), binary.BigEndian.Uint32(magic); {
	case le == magicMicro, le == magicNano:
		r.order = binary.LittleEndian
	case be == magicMicro, be == magicNano:
		r.order = binary.BigEndian
	default:
		return nil, errMagic
	}
	h, err := src.need(pcapHeaderLen)
	if err != nil {
		return nil, err
	}
	if r.order.Uint32(h) == magicMicro {
		r.tick = 1000
	}
	major, minor := r.order.Uint16(h[4:]), r.order.Uint16(h[6:])
	if major != 2 {
		return nil, fmt.Errorf("pcap version %d.%d is not supported (supported: 2.x)", major, minor)
	}
	r.old = minor < 4
	linkType := r.order.Uint32(h[20:]) & pcapLinkMask
	r.iface = iface{linkType: linkType, strip: stripperOf(linkType), order: r.order}
	return r, nil
}

func (r *pcapReader) frames() uint64 { return r.number }

func (r *pcapReader) next(f *frame) error {
	r.src.mark()
	f.number = r.number + 1
	h, err := r.src.take(pcapRecordLen)
	if err != nil {
		return err
	}
	f.time = int64(r.order.Uint32(h))*1e9 + int64(r.order.Uint32(h[4:]))*r.tick
	captured, length := r.order.Uint32(h[8:]), r.order.Uint32(h[12:])
	if r.old && captured > length {
		captured, length = length, captured
	}
	if captured > maxRecord {
		return fmt.Errorf("captured length %d is over the limit of %d bytes", captured, maxRecord)
	}
	f.data, err = r.src.need(int(captured))
	if err != nil {
		return err
	}
	f.length = max(length, captured)
	f.iface, f.way = &r.iface, wayUnknown
	r.number++
	return nil
}
