package logsink

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// Record is what a line of the audit log says about a packet: what an Encoder
// wrote, read back.
type Record struct {
	EventType string // verdict, drop, flow or packet

	// Input are the facts of the packet. Those that the log does not carry are
	// unknown.
	Input *rules.Input

	Src, Dst netip.AddrPort // as in Input; port 0 without ports

	// What was decided. Of a flow's end, a reject reads as drop.
	Action    packet.Action // what the policy said, also where monitor mode did not do it
	Rule      string        // empty if the policy was not asked
	Message   string        // the policy's reason
	Cause     string        // policy, established, related, malformed, policy_error ...; empty if the record has none
	Policy    string        // SHA-256, hex; may be empty
	RuleCut   bool          // Rule is only the beginning of its name
	LatencyNS int64         // 0 if not known
	NoHash    string        // why the program has no hash; may be empty
}

// line has the keys of a record that ParseRecord reads. See Encoder for what
// they mean.
type line struct {
	Timestamp string  `json:"timestamp"`
	EventType string  `json:"event_type"`
	InIface   string  `json:"in_iface"`
	Src       string  `json:"src_ip"`
	SrcPort   *uint16 `json:"src_port"`
	Dst       string  `json:"dest_ip"`
	DstPort   *uint16 `json:"dest_port"`
	Proto     string  `json:"proto"`
	Version   uint8   `json:"ip_v"`
	ICMPType  *uint8  `json:"icmp_type"`
	ICMPCode  *uint8  `json:"icmp_code"`
	Verdict   struct {
		Action string   `json:"action"`
		Reject []string `json:"reject"`
	} `json:"verdict"`
	Drop *header `json:"drop"`
	Flow struct {
		Action string `json:"action"`
	} `json:"flow"`
	Own ownLine `json:"verdictd"`
}

// ownLine is the part of a record that is verdictd's own.
type ownLine struct {
	Queue    *uint16    `json:"queue"`
	Hook     string     `json:"hook"`
	OutIface string     `json:"out_iface"`
	Status   string     `json:"status"`
	Mark     uint32     `json:"mark"`
	UID      *uint32    `json:"uid"`
	GID      *uint32    `json:"gid"`
	Process  *ownerLine `json:"process"`
	Rule     string     `json:"rule"`
	Message  string     `json:"message"`
	Reason   string     `json:"reason"`
	Policy   struct {
		SHA256 string `json:"sha256"`
	} `json:"policy"`
	Would   string  `json:"would"`
	Latency int64   `json:"latency_ns"`
	Header  *header `json:"header"`

	Cut []string `json:"cut"`
}

// header has the keys of appendHeader.
type header struct {
	Len      *uint32 `json:"len"`
	TOS      uint8   `json:"tos"`
	TTL      *uint8  `json:"ttl"`
	TC       uint8   `json:"tc"`
	HopLimit *uint8  `json:"hoplimit"`
	Seq      *uint32 `json:"tcpseq"`
	Ack      uint32  `json:"tcpack"`
	Window   uint16  `json:"tcpwin"`
	SYN      bool    `json:"syn"`
	ACK      bool    `json:"ack"`
	PSH      bool    `json:"psh"`
	RST      bool    `json:"rst"`
	URG      bool    `json:"urg"`
	FIN      bool    `json:"fin"`
	NS       uint8   `json:"tcpres"`
	UDPLen   *uint16 `json:"udplen"`
	EchoID   *uint16 `json:"icmp_id"`
	EchoSeq  uint16  `json:"icmp_seq"`
}

// ErrNoPacket says that a record speaks of verdictd itself.
var ErrNoPacket = errors.New("is about no packet")

// ParseRecord reads a line of the audit log that is about a packet. The error
// says what is wrong with it; the line's place is the caller's.
func ParseRecord(text []byte) (*Record, error) {
	var l line
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, recordError(err)
	}
	switch l.EventType {
	case "verdict", "drop", "flow", "packet":
	case "":
		return nil, errors.New("has no event_type: no record of the audit log")
	default:
		return nil, fmt.Errorf("record of type %q %w, want verdict, drop, flow or packet", l.EventType, ErrNoPacket)
	}
	f, err := l.facts()
	if err != nil {
		return nil, err
	}
	r := &Record{
		EventType: l.EventType, Input: rules.InputOf(f), Action: l.action(), Rule: l.Own.Rule, Message: l.Own.Message,
		Cause: l.Own.Reason, Policy: l.Own.Policy.SHA256, LatencyNS: l.Own.Latency,
		RuleCut: slices.Contains(l.Own.Cut, "rule"),
	}
	if p := f.Owner.Process; p != nil {
		r.NoHash = p.Exe.NoSHA256
	}
	r.Input.Forget(l.carries)
	r.Src, r.Dst = netip.AddrPortFrom(f.Packet.Src, f.Packet.SrcPort), netip.AddrPortFrom(f.Packet.Dst, f.Packet.DstPort)
	return r, nil
}

func recordError(err error) error {
	if terr, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && terr.Field != "" {
		return fmt.Errorf("%s is a %s, want a %s", terr.Field, terr.Value, terr.Type)
	}
	return fmt.Errorf("not JSON: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// action returns what the policy said.
func (l *line) action() packet.Action {
	word := l.Own.Would
	if word == "" && l.EventType == "flow" {
		word = l.Flow.Action
	}
	switch {
	case word == "reject" || word == "" && len(l.Verdict.Reject) > 0:
		return packet.Reject
	case word == "accept" || word == "" && l.Verdict.Action == "accept":
		return packet.Accept
	}
	return packet.Drop
}

// facts returns the packet that the record is about. It has every field that
// the packet can have had; carries says which of them the record gives.
func (l *line) facts() (*rules.Facts, error) {
	m := &packet.Meta{Mark: l.Own.Mark}
	p := &packet.Packet{Version: l.Version}
	var ok bool
	if m.Hook, ok = packet.ParseHook(l.Own.Hook); !ok {
		return nil, fmt.Errorf("verdictd.hook is %q: no record of verdictd", l.Own.Hook)
	}
	at, err := time.Parse("2006-01-02T15:04:05.999999-0700", l.Timestamp)
	if err != nil {
		return nil, fmt.Errorf("timestamp is %q, want one such as 2026-11-23T16:20:00.123456+0000", l.Timestamp)
	}
	m.Time = at.UnixNano()
	if l.Own.Queue != nil {
		m.Queue = *l.Own.Queue
	}
	if l.Own.UID != nil {
		m.UID, m.HasUID = *l.Own.UID, true
	}
	if l.Own.GID != nil {
		m.GID, m.HasGID = *l.Own.GID, true
	}
	if err := l.packet(p); err != nil {
		return nil, err
	}
	f := &rules.Facts{Meta: m, Packet: p, InInterface: l.InIface, OutInterface: l.Own.OutIface, InPort: "?", OutPort: "?", Owner: l.Own.Process.owner()}
	if l.EventType == "flow" { // it names no interfaces, though its packets had some
		f.InInterface, f.OutInterface = "?", "?"
	}
	return f, nil
}

// packet fills in p.
func (l *line) packet(p *packet.Packet) error {
	switch l.Own.Status {
	case "":
		p.Status = packet.OK
	case packet.Fragment.String():
		p.Status, p.FragmentOffset = packet.Fragment, 8
	default:
		return fmt.Errorf("the packet was %s: no policy is asked about those", l.Own.Status)
	}
	for _, end := range []struct {
		key, text string
		to        *netip.Addr
	}{{"src_ip", l.Src, &p.Src}, {"dest_ip", l.Dst, &p.Dst}} {
		addr, err := netip.ParseAddr(end.text)
		if err != nil || addr.Zone() != "" {
			return fmt.Errorf("%s is %.80q, want an IP address", end.key, end.text)
		}
		*end.to = addr
	}
	var ok bool
	if p.Protocol, ok = parseEveProto(l.Proto); !ok {
		return fmt.Errorf("proto is %.80q, which is no protocol that verdictd writes", l.Proto)
	}
	if l.SrcPort != nil && l.DstPort != nil {
		p.HasPorts, p.SrcPort, p.DstPort = true, *l.SrcPort, *l.DstPort
	}
	if l.ICMPType != nil && l.ICMPCode != nil {
		p.ICMPType, p.ICMPCode = *l.ICMPType, *l.ICMPCode
	}
	if h := l.header(); h != nil {
		h.fill(p)
	}
	if l.EventType == "flow" {
		p.Echo = p.IsICMP() // may be one: then its fields are unknown, not absent
	}
	return nil
}

// fill adds to p what the header says.
func (h *header) fill(p *packet.Packet) {
	p.TOS = h.TOS | h.TC
	for _, ttl := range []*uint8{h.TTL, h.HopLimit} {
		if ttl != nil {
			p.TTL = *ttl
		}
	}
	if h.Len != nil {
		p.TotalLength = *h.Len
	}
	if h.UDPLen != nil {
		p.UDPLength = *h.UDPLen
	}
	if h.EchoID != nil {
		p.Echo, p.EchoID, p.EchoSeq = true, *h.EchoID, h.EchoSeq
	}
	if h.Seq == nil {
		return
	}
	p.Seq, p.AckNum, p.Window = *h.Seq, h.Ack, h.Window
	for _, bit := range []struct {
		set  bool
		flag packet.TCPFlags
	}{
		{h.SYN, packet.SYN}, {h.ACK, packet.ACK}, {h.PSH, packet.PSH}, {h.RST, packet.RST},
		{h.URG, packet.URG}, {h.FIN, packet.FIN}, {h.NS != 0, packet.NS},
	} {
		if bit.set {
			p.TCPFlags |= bit.flag
		}
	}
}

// header returns the packet's header, nil if the record has none.
func (l *line) header() *header {
	if l.Drop != nil {
		return l.Drop
	}
	return l.Own.Header
}

// carries returns whether the record gives the field at path, of those that
// the packet has.
func (l *line) carries(path string) bool {
	group, _, _ := strings.Cut(path, ".")
	switch path {
	case "packet.queue":
		return l.Own.Queue != nil
	case "ip.fragment":
		return l.Own.Status != "" // the first fragment looks like a whole packet
	case "ip.ttl", "ip.dscp", "ip.ecn", "packet.length", "udp.length":
		return l.header() != nil
	case "tcp.flags.ece", "tcp.flags.cwr", "answers_multicast", "icmp.related", "interface.in_port", "interface.out_port":
		return false
	case "tcp.src_port", "tcp.dst_port":
		return true
	}
	switch group {
	case "process":
		return l.Own.Process != nil && !slices.Contains(l.Own.Process.Cut, strings.TrimPrefix(path, "process."))
	case "tcp":
		return l.header() != nil
	case "icmp":
		return l.ICMPType != nil
	case "time", "mark", "interface":
		return l.EventType != "flow" // a flow's end is about many packets
	}
	return true
}

// parseEveProto returns the number of the protocol that eveProto calls name.
func parseEveProto(name string) (proto uint8, ok bool) {
	for n := range 256 {
		if eveProto(uint8(n)) == name {
			return uint8(n), true
		}
	}
	return 0, false
}
