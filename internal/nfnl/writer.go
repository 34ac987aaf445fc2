package nfnl

import "encoding/binary"

// Writer builds messages one after the other in one buffer:
//
//	w.Begin(h, family, queue)
//	w.Uint32(attrMark, mark)
//	w.End()
//
// The buffer is kept by Reset, so a Writer that is reused does not allocate.
// The zero value is ready.
type Writer struct {
	buf   []byte
	start int // of the message that Begin opened
	n     int // messages
}

// NewWriter returns a Writer whose buffer holds size bytes without growing.
func NewWriter(size int) Writer { return Writer{buf: make([]byte, 0, size)} }

// Reset forgets all messages.
func (w *Writer) Reset() { w.buf, w.n = w.buf[:0], 0 }

// Len returns how many messages End has closed since Reset.
func (w *Writer) Len() int { return w.n }

// Bytes returns the messages, valid until the next Begin or Reset.
func (w *Writer) Bytes() []byte { return w.buf }

// Begin opens a message with a nfgenmsg of that family and resource id (queue
// or group number).
func (w *Writer) Begin(h Header, family uint8, resID uint16) {
	w.start = len(w.buf)
	b := binary.NativeEndian.AppendUint32(w.buf, 0)
	b = binary.NativeEndian.AppendUint16(b, h.Type)
	b = binary.NativeEndian.AppendUint16(b, h.Flags)
	b = binary.NativeEndian.AppendUint32(b, h.Seq)
	b = binary.NativeEndian.AppendUint32(b, h.PortID)
	b = append(b, family, 0) // NFNETLINK_V0
	w.buf = binary.BigEndian.AppendUint16(b, resID)
}

// attr appends an attribute header for a value of size bytes.
func (w *Writer) attr(typ uint16, size int) {
	b := binary.NativeEndian.AppendUint16(w.buf, uint16(attrLen+size))
	w.buf = binary.NativeEndian.AppendUint16(b, typ)
}

// Uint32 appends an attribute of one integer, big endian on the wire.
func (w *Writer) Uint32(typ uint16, v uint32) {
	w.attr(typ, 4)
	w.buf = binary.BigEndian.AppendUint32(w.buf, v)
}

// Uint32s appends an attribute of two integers, big endian on the wire.
func (w *Writer) Uint32s(typ uint16, v0, v1 uint32) {
	w.attr(typ, 8)
	w.buf = binary.BigEndian.AppendUint32(w.buf, v0)
	w.buf = binary.BigEndian.AppendUint32(w.buf, v1)
}

// Attr appends an attribute of raw bytes, padded. len(v) must be below 64 KiB.
func (w *Writer) Attr(typ uint16, v ...byte) {
	w.attr(typ, len(v))
	w.buf = append(w.buf, v...)
	for len(w.buf)%4 != 0 {
		w.buf = append(w.buf, 0)
	}
}

// End closes the message.
func (w *Writer) End() {
	binary.NativeEndian.PutUint32(w.buf[w.start:], uint32(len(w.buf)-w.start))
	w.n++
}
