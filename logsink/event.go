package logsink

import (
	"net/netip"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/rules"
)

// EventKind says what happened.
type EventKind uint8

// Event kinds.
const (
	// FlowDecision is the first decision about a flow, or about a packet that
	// belongs to no flow.
	FlowDecision EventKind = iota
	// FlowRepeat sums up later packets of a dropped flow: Packets[0] and
	// Bytes[0] since the last event about it.
	FlowRepeat
	// FlowEnd closes a flow, with its counters.
	FlowEnd
	// NFLog is a packet that an NFLOG rule of the kernel reported.
	NFLog
	// Loss says that events or packets were lost: Packets[0] of them since the
	// last such event of the same Origin, Packets[1] since the start. Text says
	// why.
	Loss
	// Admin is a change of the daemon itself: start, stop, policy loaded or
	// refused. Reason is a word for it ("start"), Text says more.
	Admin
	// Stats is a set of counters: those of Origin.
	Stats
)

// Counter is a named number in a Stats event.
type Counter struct {
	Name  string // lower case with underscores
	Value uint64
}

// Event is one thing to be logged. It is copied into a ring by value; the
// strings and the Decision it points to are immutable.
type Event struct {
	Kind EventKind
	Time int64  // Unix nanoseconds
	Flow uint64 // flow id, 0 if none; its low 53 bits are logged, so that readers which keep numbers as float64 get it right

	// The packet. Valid for FlowDecision, FlowRepeat, FlowEnd and NFLog.
	Queue      uint16 // queue, or NFLOG group
	PacketID   uint32
	Hook       packet.Hook
	In, Out    string // interface names, empty if none
	Src, Dst   netip.Addr
	HasPorts   bool
	SrcPort    uint16
	DstPort    uint16
	Protocol   uint8
	Status     packet.Status
	Mark       uint32
	HasUID     bool
	HasGID     bool
	UID, GID   uint32
	Owner      *process.Owner // of the local socket; nil if nobody was asked
	OtherOwner *process.Owner // FlowDecision: who owned it when the flow was judged before; FlowEnd: who owns it at the end; nil if it is Owner
	Length     uint32
	TTL, TOS   uint8
	IPID       uint32
	FlowLabel  uint32
	TCPFlags   packet.TCPFlags
	Seq, Ack   uint32
	Window     uint16
	UrgentPtr  uint16
	UDPLength  uint16
	ICMPType   uint8
	ICMPCode   uint8
	Echo       bool
	EchoID     uint16
	EchoSeq    uint16
	FlowStart  int64 // Unix nanoseconds; FlowEnd and FlowRepeat
	Packets    [2]uint64
	Bytes      [2]uint64
	Offloaded  bool  // FlowEnd: the kernel let packets pass that Packets and Bytes do not count
	LatencyNS  int64 // from receipt to decision; FlowDecision
	EndReason  string
	NFLogLabel string // NFLOG prefix

	// The verdict. Valid for FlowDecision, FlowRepeat and FlowEnd.
	Action     packet.Action   // what happened to the packet
	Decision   *rules.Decision // what the policy said; nil if it was not asked
	Reason     string          // "policy", "established", "related", "malformed", "policy_error", ...
	Monitor    bool            // Action is Accept whatever Decision says
	Generation uint64          // policy generation
	Policy     string          // policy SHA-256, hex

	Text     string    // Admin, Loss: what happened; packets: what is malformed, or the policy's error
	Origin   string    // Loss, Stats: whose, "ring queue 0", "nflog group 5", "output eve.json"
	Counters []Counter // Stats; immutable
}

// isICMP returns whether ICMPType and ICMPCode are valid: not in a FlowEnd,
// which is about more than one packet.
func (e *Event) isICMP() bool {
	if e.Status != packet.OK || e.Kind == FlowEnd {
		return false
	}
	return e.Protocol == packet.ProtoICMP && e.Src.Unmap().Is4() ||
		e.Protocol == packet.ProtoICMPv6 && !e.Src.Unmap().Is4()
}

// is returns whether the fields of the transport protocol proto are valid.
func (e *Event) is(proto uint8) bool { return e.Status == packet.OK && e.Protocol == proto }

// SetPacket fills in the fields that describe the packet.
func (e *Event) SetPacket(m *packet.Meta, p *packet.Packet) {
	e.Time, e.Queue, e.PacketID, e.Hook = m.Time, m.Queue, m.ID, m.Hook
	e.Mark, e.HasUID, e.HasGID, e.UID, e.GID = m.Mark, m.HasUID, m.HasGID, m.UID, m.GID
	e.Src, e.Dst, e.Protocol, e.Status, e.Text = p.Src, p.Dst, p.Protocol, p.Status, p.Reason
	e.HasPorts, e.SrcPort, e.DstPort = p.HasPorts, p.SrcPort, p.DstPort
	e.Length, e.TTL, e.TOS, e.IPID, e.FlowLabel = p.TotalLength, p.TTL, p.TOS, p.ID, p.FlowLabel
	e.TCPFlags, e.Seq, e.Ack, e.Window, e.UrgentPtr = p.TCPFlags, p.Seq, p.AckNum, p.Window, p.UrgentPtr
	e.UDPLength = p.UDPLength
	e.ICMPType, e.ICMPCode, e.Echo, e.EchoID, e.EchoSeq = p.ICMPType, p.ICMPCode, p.Echo, p.EchoID, p.EchoSeq
}
