package replay

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/verdictd/verdictd/packet"
)

const hexDigits = "0123456789abcdef"

// jsonEncoder writes one JSON object per packet. Names that Suricata's EVE
// format has are used where it has them. Keys stand in a fixed order; a key
// whose value is not known is absent, but verdict, rule and reason are always
// there.
type jsonEncoder struct{}

func (jsonEncoder) begin() {}

func (jsonEncoder) line(b []byte, r *record) []byte {
	b = strconv.AppendUint(append(b, `{"frame":`...), r.frame.number, 10)
	b = append(b, `,"timestamp":"`...)
	b = append(time.Unix(0, r.link.Time).UTC().AppendFormat(b, time.RFC3339Nano), '"')
	if r.several {
		b = jsonString(b, "capture", r.capture)
	}
	if r.Flow != 0 {
		b = jsonNumber(b, "flow_id", r.Flow)
	}
	b = jsonFlow(b, r)
	b = jsonString(b, "verdict", r.Verdict.Action.String())
	b = jsonString(b, "rule", r.Rule)
	b = jsonString(b, "reason", r.Reason)
	b = jsonOptional(b, "detail", r.Detail)
	if r.Verdict.SetMark {
		b = jsonNumber(b, "set_mark", uint64(r.Verdict.Mark))
	}
	b = jsonPacket(b, r)
	b = jsonPlace(b, r)
	b = jsonLink(b, r.link)
	return append(b, '}', '\n')
}

// jsonFlow appends the five-tuple.
func jsonFlow(b []byte, r *record) []byte {
	p := r.Packet
	if p.Src.IsValid() {
		b = append(b, `,"src_ip":"`...)
		b = append(p.Src.AppendTo(b), '"')
	}
	if p.HasPorts {
		b = jsonNumber(b, "src_port", uint64(p.SrcPort))
	}
	if p.Dst.IsValid() {
		b = append(b, `,"dest_ip":"`...)
		b = append(p.Dst.AppendTo(b), '"')
	}
	if p.HasPorts {
		b = jsonNumber(b, "dest_port", uint64(p.DstPort))
	}
	return jsonOptional(b, "proto", r.Proto)
}

// jsonPacket appends what else is known of the packet itself. captured is there
// if the capture holds less than length bytes of it.
func jsonPacket(b []byte, r *record) []byte {
	p := r.Packet
	if p.Status != packet.OK {
		b = jsonString(b, "status", p.Status.String())
	}
	if p.IsICMP() {
		b = jsonNumber(b, "icmp_type", uint64(p.ICMPType))
		b = jsonNumber(b, "icmp_code", uint64(p.ICMPCode))
	}
	length, captured := packetLength(r), uint32(len(r.link.rest))
	b = jsonNumber(b, "length", uint64(length))
	if captured < length {
		b = jsonNumber(b, "captured", uint64(captured))
	}
	return b
}

// packetLength returns the length of the IP packet by its header, or else
// what the link layer carried.
func packetLength(r *record) uint32 {
	if r.Packet.TotalLength > 0 {
		return r.Packet.TotalLength
	}
	return r.link.Length
}

// jsonPlace appends where the packet was judged and what the kernel noted.
func jsonPlace(b []byte, r *record) []byte {
	l := r.link
	b = jsonString(b, "hook", l.Hook.String())
	b = jsonInterface(b, "in_iface", "in_ifindex", r.in, l.In)
	b = jsonInterface(b, "out_iface", "out_ifindex", r.out, l.Out)
	if l.Mark != 0 {
		b = jsonNumber(b, "mark", uint64(l.Mark))
	}
	if l.HasUID {
		b = jsonNumber(b, "uid", uint64(l.UID))
	}
	if l.HasGID {
		b = jsonNumber(b, "gid", uint64(l.GID))
	}
	return b
}

// jsonLink appends what the link layer said.
func jsonLink(b []byte, l *link) []byte {
	if t := l.EtherType; t != 0 && t != etherNone && t != packet.EtherTypeIPv4 && t != packet.EtherTypeIPv6 {
		b = append(b, `,"ether_type":"0x`...)
		b = append(b, hexDigits[t>>12], hexDigits[t>>8&15], hexDigits[t>>4&15], hexDigits[t&15], '"')
	}
	if l.vlanCount > 0 {
		b = append(b, `,"vlan":[`...)
		for i, id := range l.vlans[:l.vlanCount] {
			if i > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendUint(b, uint64(id), 10)
		}
		b = append(b, ']')
	}
	if l.hasPPPoE {
		b = jsonNumber(b, "pppoe_session", uint64(l.session))
	}
	if len(l.prefix) > 0 {
		b = jsonString(b, "nflog_prefix", string(l.prefix))
	}
	return b
}

func jsonInterface(b []byte, nameKey, indexKey, name string, index uint32) []byte {
	switch {
	case name != "":
		return jsonString(b, nameKey, name)
	case index != 0:
		return jsonNumber(b, indexKey, uint64(index))
	}
	return b
}

func jsonNumber(b []byte, key string, n uint64) []byte {
	return strconv.AppendUint(jsonKey(b, key), n, 10)
}

func jsonOptional(b []byte, key, s string) []byte {
	if s == "" {
		return b
	}
	return jsonString(b, key, s)
}

func jsonKey(b []byte, key string) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	return append(b, '"', ':')
}

// jsonString appends a key and a string. Control characters are escaped, and
// bytes that are not UTF-8 become U+FFFD.
func jsonString(b []byte, key, s string) []byte {
	b = append(jsonKey(b, key), '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < 0x7f && c != '"' && c != '\\' {
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		b = append(b, s[start:i]...)
		b = jsonRune(b, r)
		i += n
		start = i
	}
	return append(append(b, s[start:]...), '"')
}

func jsonRune(b []byte, r rune) []byte {
	switch {
	case r == '"', r == '\\':
		return append(b, '\\', byte(r))
	case r < ' ', r >= 0x7f && r < 0xa0: // C1 controls, too: terminals obey them
		return append(b, '\\', 'u', '0', '0', hexDigits[r>>4], hexDigits[r&15])
	}
	return utf8.AppendRune(b, r)
}
