package logsink

import (
	"strconv"
	"time"

	"github.com/verdictd/verdictd/internal/terminal"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// AppendPretty appends e as one line for people, newline included, and
// returns the longer buffer:
//
//	16:20:00.123456 DROP    tcp     10.0.0.1:40000 -> 10.0.0.2:23 in=eth0 rule=no-telnet reason=policy uid=1000
//
// Times are UTC. What is not one plain word of ASCII is quoted (terminal.Word), so
// that what a packet, a process or a rule says cannot write to the terminal or
// look like another field. A value that is only the beginning has another name,
// exe_cut instead of exe; a line about a packet has at most MaxPretty bytes. With colour, the verdict is coloured by ANSI sequences.
func AppendPretty(b []byte, e *Event, colour bool) []byte {
	b = append(clock(b, time.Unix(0, e.Time).UTC()), ' ')
	what, code := prettyWord(e)
	if colour {
		b = append(append(append(b, "\x1b["...), code...), 'm')
	}
	b = column(b, what, 8)
	if colour {
		b = append(b, "\x1b[0m"...)
	}
	if !e.aboutPacket() {
		return append(prettyAdmin(b, e), '\n')
	}
	b = prettyTuple(b, e)
	b = word(b, "in", e.In)
	b = word(b, "out", e.Out)
	b = word(b, "prefix", e.NFLogLabel)
	if d := e.Decision; d != nil {
		b = word(b, "rule", d.Rule)
		b = word(b, "message", d.Reason)
		if e.Monitor && d.Action != packet.Accept {
			b = word(b, "would", d.Action.String())
		}
	}
	b = word(b, "reason", e.Reason)
	if e.Status != packet.OK {
		b = word(b, "status", e.Status.String())
	}
	b = word(b, "detail", e.Text)
	if e.HasUID {
		b = count(b, "uid", uint64(e.UID))
	}
	b = prettyOwner(b, e)
	switch e.Kind {
	case FlowRepeat:
		b = count(b, "repeat", e.Packets[0])
	case FlowEnd:
		b = count(b, "packets", e.Packets[0]+e.Packets[1])
		b = count(b, "bytes", e.Bytes[0]+e.Bytes[1])
		b = pair(b, "end", e.EndReason)
		if e.Offloaded {
			b = pair(b, "offloaded", "yes")
		}
	}
	return append(b, '\n')
}

// prettyWord returns what happened and the ANSI colour for it.
func prettyWord(e *Event) (word, colour string) {
	switch e.Kind {
	case FlowEnd:
		return "END", "2"
	case NFLog:
		return "NFLOG", "36"
	case Loss:
		return "LOSS", "35"
	case Admin:
		return "ADMIN", "34"
	case Stats:
		return "STATS", "34"
	}
	switch {
	case e.Action == packet.Reject:
		return "REJECT", "31"
	case e.Action == packet.Drop:
		return "DROP", "31"
	case e.Monitor && e.Decision != nil && e.Decision.Action != packet.Accept:
		return "ACCEPT", "33"
	}
	return "ACCEPT", "32"
}

func prettyTuple(b []byte, e *Event) []byte {
	if !e.Src.IsValid() || !e.Dst.IsValid() {
		return append(b, '-')
	}
	proto := "-"
	if e.Status == packet.OK || e.Status == packet.Fragment {
		proto = rules.ProtocolName(e.Protocol)
	}
	b = column(b, proto, 8)
	b = endpoint(b, e, true)
	b = append(b, " -> "...)
	b = endpoint(b, e, false)
	if e.isICMP() {
		b = count(b, "type", uint64(e.ICMPType))
		b = count(b, "code", uint64(e.ICMPCode))
	}
	return b
}

func endpoint(b []byte, e *Event, src bool) []byte {
	addr, port := e.Dst.Unmap(), e.DstPort
	if src {
		addr, port = e.Src.Unmap(), e.SrcPort
	}
	addr = addr.WithZone("")
	if !e.HasPorts {
		return addr.AppendTo(b)
	}
	if addr.Is4() {
		b = addr.AppendTo(b)
	} else {
		b = append(addr.AppendTo(append(b, '[')), ']')
	}
	return strconv.AppendUint(append(b, ':'), uint64(port), 10)
}

func prettyAdmin(b []byte, e *Event) []byte {
	switch e.Kind {
	case Loss:
		b = strconv.AppendUint(b, e.Packets[0], 10)
		b = append(b, " lost"...)
		b = count(b, "total", e.Packets[1])
	case Admin:
		b = terminal.AppendWord(b, e.Reason)
	case Stats:
		b = terminal.AppendWord(b, e.Origin)
		for i := range e.Counters {
			if c := &e.Counters[i]; c.Value != 0 { // a line that people can read
				b = count(b, c.Name, c.Value)
			}
		}
		return b
	}
	b = pair(b, "origin", e.Origin)
	return pair(b, "message", e.Text)
}

// column appends s and blanks up to width.
func column(b []byte, s string, width int) []byte {
	b = append(b, s...)
	for range width - len(s) {
		b = append(b, ' ')
	}
	return b
}

// pair appends " name=value", or nothing if the value is empty.
func pair(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(append(append(b, ' '), name...), '=')
	return terminal.AppendWord(b, value)
}

func count(b []byte, name string, value uint64) []byte {
	b = append(append(append(b, ' '), name...), '=')
	return strconv.AppendUint(b, value, 10)
}
