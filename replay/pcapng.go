package replay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
)

// Block types of pcapng. Wireshark gives frame numbers also to some blocks
// that are not packets: custom, systemd journal and sysdig blocks.
//
// Source: draft-ietf-opsawg-pcapng, section 11.1, and Wireshark 4.0.
const (
	blockSection      = 0x0a0d0d0a
	blockInterface    = 0x00000001
	blockPacket       = 0x00000002
	blockSimple       = 0x00000003
	blockEnhanced     = 0x00000006
	blockJournal      = 0x00000009
	blockSysdigEvent  = 0x00000204
	blockSysdigFlags  = 0x00000208
	blockSysdigV2     = 0x00000216
	blockSysdigV2Flag = 0x00000217
	blockCustom       = 0x00000bad
	blockCustomNoCopy = 0x40000bad
)

// Options that are read.
const (
	optEnd      = 0
	optFlags    = 2  // epb_flags, also of the obsolete packet block
	optName     = 2  // if_name
	optTsresol  = 9  // if_tsresol
	optTsoffset = 14 // if_tsoffset
)

const (
	byteOrderMagic = 0x1a2b3c4d
	// maxInterfaces bounds the interfaces of a section, maxName their names.
	maxInterfaces = 4096
	maxName       = 255
)

// ngReader reads a pcapng file.
type ngReader struct {
	src    *source
	order  binary.ByteOrder
	ifaces []*iface
	number uint64
	last   int64 // time of the last packet, for simple packet blocks, which have none
}

func newNgReader(src *source) *ngReader { return &ngReader{src: src, order: binary.LittleEndian} }

func (r *ngReader) frames() uint64 { return r.number }

func (r *ngReader) next(f *frame) error {
	for {
		r.src.mark()
		f.number = 0
		h, err := r.src.take(8)
		if err != nil {
			return err
		}
		if binary.BigEndian.Uint32(h) == blockSection { // reads the same in both orders
			if err := r.section([4]byte(h[4:8])); err != nil {
				return err
			}
			continue
		}
		kind, length := r.order.Uint32(h), r.order.Uint32(h[4:])
		packet, err := r.block(f, kind, length)
		if packet || err != nil {
			return err
		}
	}
}

// section reads a section header from its byte-order magic on.
func (r *ngReader) section(length [4]byte) error {
	magic, err := r.src.need(4)
	if err != nil {
		return err
	}
	switch {
	case binary.LittleEndian.Uint32(magic) == byteOrderMagic:
		r.order = binary.LittleEndian
	case binary.BigEndian.Uint32(magic) == byteOrderMagic:
		r.order = binary.BigEndian
	default:
		return fmt.Errorf("section header with byte-order magic %#x", magic)
	}
	body, err := r.body(r.order.Uint32(length[:]), 12)
	if err != nil {
		return err
	}
	if len(body) < 12 {
		return errors.New("section header is too short")
	}
	if major := r.order.Uint16(body); major != 1 {
		return fmt.Errorf("pcapng version %d.%d is not supported (supported: 1.x)", major, r.order.Uint16(body[2:]))
	}
	r.ifaces = r.ifaces[:0]
	return nil
}

// block reads the rest of a block after its kind and length; packet says that
// f is filled in.
func (r *ngReader) block(f *frame, kind, length uint32) (packet bool, err error) {
	var parse func(*ngReader, *frame, []byte) error
	switch kind {
	case blockInterface:
		body, err := r.body(length, 8)
		if err != nil {
			return false, err
		}
		return false, r.describe(body)
	case blockEnhanced:
		parse = (*ngReader).enhanced
	case blockPacket:
		parse = (*ngReader).packet
	case blockSimple:
		parse = (*ngReader).simple
	case blockJournal, blockSysdigEvent, blockSysdigFlags, blockSysdigV2, blockSysdigV2Flag, blockCustom, blockCustomNoCopy:
		r.number++
		return false, r.pass(length)
	default:
		return false, r.pass(length)
	}
	f.number = r.number + 1
	body, err := r.body(length, 8)
	if err != nil {
		return false, err
	}
	if err := parse(r, f, body); err != nil {
		return false, err
	}
	f.length = max(f.length, uint32(len(f.data)))
	r.number++
	r.last = f.time
	return true, nil
}

// body returns what is between the first read bytes of a block and its
// trailing length, which it checks.
func (r *ngReader) body(length, read uint32) ([]byte, error) {
	if err := checkLength(length); err != nil {
		return nil, err
	}
	if length > maxRecord {
		return nil, fmt.Errorf("block of %d bytes is over the limit of %d", length, maxRecord)
	}
	if length < read+4 {
		return nil, fmt.Errorf("block of %d bytes is too short", length)
	}
	b, err := r.src.need(int(length - read))
	if err != nil {
		return nil, err
	}
	n := len(b) - 4
	return b[:n], r.checkTrailer(length, b[n:])
}

// pass passes over a block after its kind and length.
func (r *ngReader) pass(length uint32) error {
	if err := checkLength(length); err != nil {
		return err
	}
	if err := r.src.skip(int64(length) - 12); err != nil {
		return err
	}
	b, err := r.src.need(4)
	if err != nil {
		return err
	}
	return r.checkTrailer(length, b)
}

func checkLength(length uint32) error {
	if length < 12 || length%4 != 0 {
		return fmt.Errorf("block length %d is not a multiple of 4 from 12 on", length)
	}
	return nil
}

func (r *ngReader) checkTrailer(length uint32, b []byte) error {
	if again := r.order.Uint32(b); again != length {
		return fmt.Errorf("block length is %d at its start and %d at its end", length, again)
	}
	return nil
}

// describe reads an interface description block.
func (r *ngReader) describe(b []byte) error {
	if len(b) < 8 {
		return errors.New("interface description is too short")
	}
	if len(r.ifaces) == maxInterfaces {
		return fmt.Errorf("more than %d interfaces in a section", maxInterfaces)
	}
	linkType := uint32(r.order.Uint16(b))
	i := &iface{
		id: len(r.ifaces), linkType: linkType, strip: stripperOf(linkType),
		order: r.order, snaplen: r.order.Uint32(b[4:]), units: 1e6,
	}
	for b = b[8:]; len(b) > 0; {
		code, value, rest, err := r.option(b)
		if err != nil {
			return err
		}
		if err := i.set(code, value); err != nil {
			return err
		}
		b = rest
	}
	r.ifaces = append(r.ifaces, i)
	return nil
}

// set applies an option of an interface description.
func (i *iface) set(code uint16, value []byte) error {
	switch {
	case code == optName:
		i.name = string(value[:min(len(value), maxName)])
	case code == optTsresol && len(value) == 1:
		return i.setResolution(value[0])
	case code == optTsoffset && len(value) == 8:
		i.offset = int64(i.order.Uint64(value))
	case code == optTsresol, code == optTsoffset:
		return fmt.Errorf("interface %d: option %d of %d bytes", i.id, code, len(value))
	}
	return nil
}

// setResolution sets the timestamp units: a negative power of 10, or of 2 if
// the top bit is set.
func (i *iface) setResolution(v byte) error {
	exponent := v & 0x7f
	switch {
	case v&0x80 != 0 && exponent < 64:
		i.units = 1 << exponent
	case v&0x80 == 0 && exponent < 20:
		i.units = 1
		for range exponent {
			i.units *= 10
		}
	default:
		return fmt.Errorf("interface %d: timestamp resolution %#x is finer than 64 bits can count", i.id, v)
	}
	return nil
}

// time returns a timestamp of the interface in Unix nanoseconds. What does
// not fit (the years before 1678 and after 2262) becomes the nearest that does.
func (i *iface) time(ts uint64) int64 {
	sec := int64(ts / i.units) // at most 2^64/2^0: negative only for units of a second
	hi, lo := bits.Mul64(ts%i.units, 1e9)
	nanos, _ := bits.Div64(hi, lo, i.units)
	const limit = math.MaxInt64/1_000_000_000 - 1
	if sec < 0 || sec > limit || i.offset > limit-sec {
		return math.MaxInt64
	}
	if i.offset < -limit {
		return math.MinInt64
	}
	return (sec+i.offset)*1e9 + int64(nanos)
}

// option splits the first option off b. The last one need not be followed by
// an end-of-options mark.
func (r *ngReader) option(b []byte) (code uint16, value, rest []byte, err error) {
	if len(b) < 4 {
		return 0, nil, nil, fmt.Errorf("option header of %d bytes", len(b))
	}
	code, n := r.order.Uint16(b), int(r.order.Uint16(b[2:]))
	if code == optEnd {
		return optEnd, nil, nil, nil
	}
	if n > len(b)-4 {
		return 0, nil, nil, fmt.Errorf("option %d of %d bytes overruns its block", code, n)
	}
	end := min(4+pad4(n), len(b))
	return code, b[4 : 4+n], b[end:], nil
}

func pad4(n int) int { return (n + 3) &^ 3 }

// enhanced reads an enhanced packet block.
func (r *ngReader) enhanced(f *frame, b []byte) error {
	if len(b) < 20 {
		return errors.New("enhanced packet block is too short")
	}
	return r.timed(f, b, r.order.Uint32(b))
}

// packet reads an obsolete packet block. It differs from the enhanced one in
// the 16 bits of its interface number.
func (r *ngReader) packet(f *frame, b []byte) error {
	if len(b) < 20 {
		return errors.New("packet block is too short")
	}
	return r.timed(f, b, uint32(r.order.Uint16(b)))
}

// timed reads the common part of both: timestamp, lengths, data and options.
func (r *ngReader) timed(f *frame, b []byte, id uint32) error {
	if err := r.choose(f, id); err != nil {
		return err
	}
	f.time = f.iface.time(uint64(r.order.Uint32(b[4:]))<<32 | uint64(r.order.Uint32(b[8:])))
	captured := r.order.Uint32(b[12:])
	f.length = r.order.Uint32(b[16:])
	b = b[20:]
	if uint64(captured) > uint64(len(b)) {
		return fmt.Errorf("captured length %d overruns its block, which has %d bytes", captured, len(b))
	}
	f.data = b[:captured]
	for b = b[min(pad4(int(captured)), len(b)):]; len(b) > 0; {
		code, value, rest, err := r.option(b)
		if err != nil {
			return err
		}
		if code == optFlags && len(value) == 4 {
			f.way = wayOf(r.order.Uint32(value))
		}
		b = rest
	}
	return nil
}

// simple reads a simple packet block. It has no timestamp: the packet is taken
// to be as old as the one before it.
func (r *ngReader) simple(f *frame, b []byte) error {
	if len(b) < 4 {
		return errors.New("simple packet block is too short")
	}
	if err := r.choose(f, 0); err != nil {
		return err
	}
	f.time = r.last
	f.length = r.order.Uint32(b)
	captured := min(uint64(f.length), uint64(len(b)-4))
	if f.iface.snaplen > 0 {
		captured = min(captured, uint64(f.iface.snaplen))
	}
	f.data = b[4 : 4+captured]
	return nil
}

// choose sets the interface of a frame.
func (r *ngReader) choose(f *frame, id uint32) error {
	if uint64(id) >= uint64(len(r.ifaces)) {
		return fmt.Errorf("interface %d is not described; the section has %d so far", id, len(r.ifaces))
	}
	f.iface, f.way = r.ifaces[id], wayUnknown
	return nil
}

// wayOf reads the direction bits of epb_flags.
func wayOf(flags uint32) way {
	return [...]way{wayUnknown, wayIn, wayOut, wayUnknown}[flags&3]
}
