package replay

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/verdictd/verdictd/packet"
)

// ANSI sequences of coloured verdicts.
const (
	colorAccept = "\x1b[32m"
	colorReject = "\x1b[33m"
	colorDrop   = "\x1b[31m"
	colorOff    = "\x1b[0m"
)

const (
	textColumns = 8  // all but the last are aligned
	maxColumn   = 60 // a column never grows wider than this
)

// textEncoder writes aligned lines. A column is as wide as its widest cell so
// far in the run, so lines may shift to the right but never back.
type textEncoder struct {
	color, absolute bool

	started bool
	start   int64 // time of the capture's first packet
	widths  [textColumns]int
	cell    []byte
}

func (e *textEncoder) begin() { e.started = false }

func (e *textEncoder) line(b []byte, r *record) []byte {
	if !e.started {
		e.started, e.start = true, r.link.Time
	}
	if r.several {
		b = append(appendPrintable(b, r.capture), ' ')
	}
	b = e.right(b, 0, 5, strconv.AppendUint(e.cell[:0], r.frame.number, 10))
	b = e.right(b, 1, 10, e.time(e.cell[:0], r.link.Time))
	b = e.left(b, 2, 7, append(e.cell[:0], r.link.Hook.String()...))
	b = e.left(b, 3, 5, interfaceCell(e.cell[:0], r))
	b = e.left(b, 4, 8, protoCell(e.cell[:0], r))
	b = e.left(b, 5, 40, addressCell(e.cell[:0], r.Packet))
	b = e.verdict(b, r.Verdict.Action)
	b = e.left(b, 7, 12, appendPrintable(e.cell[:0], orDash(r.Rule)))
	b = appendPrintable(b, orDash(r.Reason))
	if r.Detail != "" {
		b = appendPrintable(append(b, ": "...), r.Detail)
	}
	return append(b, '\n')
}

// left appends a cell that fills its column from the left.
func (e *textEncoder) left(b []byte, column, least int, cell []byte) []byte {
	b = append(b, cell...)
	return append(pad(b, e.widen(column, least, cell)), "  "...)
}

// right appends a cell that fills its column from the right.
func (e *textEncoder) right(b []byte, column, least int, cell []byte) []byte {
	b = pad(b, e.widen(column, least, cell))
	return append(append(b, cell...), "  "...)
}

// widen makes a column wide enough for a cell and returns how much of it the
// cell leaves free. It keeps the cell's memory for the next one.
func (e *textEncoder) widen(column, least int, cell []byte) int {
	e.cell = cell
	n := utf8.RuneCount(cell)
	e.widths[column] = max(e.widths[column], least, min(n, maxColumn))
	return e.widths[column] - n
}

func pad(b []byte, n int) []byte {
	for range n {
		b = append(b, ' ')
	}
	return b
}

func (e *textEncoder) verdict(b []byte, a packet.Action) []byte {
	if !e.color {
		return e.left(b, 6, 6, append(e.cell[:0], a.String()...))
	}
	sequence := colorDrop
	switch a {
	case packet.Accept:
		sequence = colorAccept
	case packet.Reject:
		sequence = colorReject
	}
	b = append(b, sequence...)
	b = e.left(b, 6, 6, append(e.cell[:0], a.String()...))
	return append(b, colorOff...)
}

// time appends seconds since the first packet, or the time of day with its
// date.
func (e *textEncoder) time(b []byte, t int64) []byte {
	if e.absolute {
		return time.Unix(0, t).UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	}
	micros := t/1000 - e.start/1000
	if micros < 0 {
		b, micros = append(b, '-'), -micros
	}
	b = strconv.AppendInt(b, micros/1e6, 10)
	b = append(b, '.')
	for unit := int64(1e5); unit > 0; unit /= 10 {
		b = append(b, '0'+byte(micros/unit%10))
	}
	return b
}

// interfaceCell appends the interface by which the packet came or leaves, by
// name or else by number.
func interfaceCell(b []byte, r *record) []byte {
	name, index := r.in, r.link.In
	if name == "" && index == 0 {
		name, index = r.out, r.link.Out
	}
	switch {
	case name != "":
		return appendPrintable(b, name)
	case index != 0:
		return strconv.AppendUint(append(b, '#'), uint64(index), 10)
	}
	return append(b, '-')
}

// protoCell appends the protocol, with the type of an ICMP message.
func protoCell(b []byte, r *record) []byte {
	b = append(b, orDash(r.Proto)...)
	switch {
	case r.Packet.Status == packet.Fragment:
		b = append(b, "/frag"...)
	case r.Packet.IsICMP():
		b = strconv.AppendUint(append(b, '/'), uint64(r.Packet.ICMPType), 10)
	}
	return b
}

func addressCell(b []byte, p *packet.Packet) []byte {
	if !p.Src.IsValid() {
		return append(b, '-')
	}
	b = appendEndpoint(b, p.Src, p.SrcPort, p.HasPorts)
	b = append(b, " → "...)
	return appendEndpoint(b, p.Dst, p.DstPort, p.HasPorts)
}

func appendEndpoint(b []byte, a netip.Addr, port uint16, hasPort bool) []byte {
	if hasPort {
		return netip.AddrPortFrom(a, port).AppendTo(b)
	}
	return a.AppendTo(b)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// appendPrintable appends s with everything escaped that a terminal might
// obey: parts of captures and policies end up here.
func appendPrintable(b []byte, s string) []byte {
	for i := 0; i < len(s); {
		if c := s[i]; c >= ' ' && c <= '~' {
			b = append(b, c)
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, '\\', 'x', hexDigits[s[i]>>4], hexDigits[s[i]&15])
		case strconv.IsPrint(r):
			b = append(b, s[i:i+n]...)
		default:
			q := strconv.QuoteRuneToASCII(r)
			b = append(b, q[1:len(q)-1]...)
		}
		i += n
	}
	return b
}
