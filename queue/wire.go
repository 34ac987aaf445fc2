package queue

import (
	"encoding/binary"
	"syscall"

	"github.com/florianl/go-nfqueue/v2"

	"github.com/verdictd/verdictd/internal/nfnl"
	"github.com/verdictd/verdictd/packet"
)

const subsystem = 3 // NFNL_SUBSYS_QUEUE

// Messages: enum nfqnl_msg_types.
const (
	msgPacket  = 0
	msgVerdict = 1
	msgConfig  = 2
	msgBatch   = 3 // NFQNL_MSG_VERDICT_BATCH
)

// Attributes of packets and verdicts: enum nfqnl_attr_type.
const (
	attrPacketHdr  = 1
	attrVerdictHdr = 2
	attrMark       = 3
	attrIn         = 5
	attrOut        = 6
	attrPhysIn     = 7
	attrPhysOut    = 8
	attrPayload    = 10
	attrCapLen     = 13
	attrSkbInfo    = 14
	attrUID        = 16
	attrGID        = 17
	attrPriority   = 21
)

// Bits of attrSkbInfo.
const (
	skbChecksumNotReady = 1 << 0 // NFQA_SKB_CSUMNOTREADY
	skbGSO              = 1 << 1 // NFQA_SKB_GSO
)

// Attributes of configuration: enum nfqnl_attr_config.
const (
	cfgCmd    = 1
	cfgParams = 2
	cfgMaxLen = 3
	cfgMask   = 4
	cfgFlags  = 5

	cmdBind = 1 // NFQNL_CFG_CMD_BIND
)

// decodePacket fills in all of meta but Time from the attributes of a packet
// message and returns the packet's bytes, a part of m. ok is false if there is
// no packet id: then no verdict is possible. whole is false if attributes are
// cut short; what stands before the cut is filled in.
func decodePacket(m *nfnl.Message, meta *packet.Meta) (payload []byte, ok, whole bool) {
	*meta = packet.Meta{Queue: m.ResID}
	a := nfnl.NewAttrs(m.Attrs)
	for a.Next() {
		switch a.Type() {
		case attrPacketHdr:
			ok = decodeHeader(a.Bytes(), meta) || ok
		case attrPayload:
			payload = a.Bytes()
		case attrMark:
			meta.Mark = a.Uint32()
		case attrIn:
			meta.In = a.Uint32()
		case attrOut:
			meta.Out = a.Uint32()
		case attrCapLen:
			meta.Length = a.Uint32()
		case attrUID:
			meta.UID, meta.HasUID = a.Uint32(), true
		case attrGID:
			meta.GID, meta.HasGID = a.Uint32(), true
		default:
			decodeRare(&a, meta)
		}
	}
	if meta.Length == 0 {
		meta.Length = uint32(len(payload))
	}
	if meta.EtherType == 0 {
		meta.EtherType = etherType(m.Family)
	}
	return payload, ok, a.Err() == nil
}

// decodeHeader decodes struct nfqnl_msg_packet_hdr.
func decodeHeader(b []byte, meta *packet.Meta) bool {
	if len(b) < 7 {
		return false
	}
	meta.ID = binary.BigEndian.Uint32(b)
	meta.EtherType = binary.BigEndian.Uint16(b[4:])
	meta.Hook = packet.Hook(b[6])
	return true
}

// decodeRare decodes the attributes that few packets have.
func decodeRare(a *nfnl.Attrs, meta *packet.Meta) {
	switch a.Type() {
	case attrSkbInfo:
		info := a.Uint32()
		meta.GSO = info&skbGSO != 0
		meta.ChecksumPending = info&skbChecksumNotReady != 0
	case attrPriority:
		meta.Priority = a.Uint32()
	case attrPhysIn:
		meta.PhysIn = a.Uint32()
	case attrPhysOut:
		meta.PhysOut = a.Uint32()
	}
}

// etherType returns the protocol of a hook's family, for the packet that does
// not name its own.
func etherType(family uint8) uint16 {
	switch family {
	case syscall.AF_INET:
		return packet.EtherTypeIPv4
	case syscall.AF_INET6:
		return packet.EtherTypeIPv6
	}
	return 0
}

// appendVerdict appends the verdict for packet id of a queue.
//
// The kernel ignores sequence number and port id of a verdict and repeats both
// if it refuses it. So they carry what the refusal must tell: the packet, its
// interfaces and what was to become of it.
func appendVerdict(w *nfnl.Writer, queue uint16, m *packet.Meta, v packet.Verdict) {
	h := nfnl.Header{
		Type:   nfnl.Type(subsystem, msgVerdict),
		Flags:  nfnl.FlagRequest,
		Seq:    m.ID,
		PortID: uint32(v.Action) | interfacesOf(m)<<actionBits,
	}
	w.Begin(h, syscall.AF_UNSPEC, queue)
	w.Uint32s(attrVerdictHdr, kernelVerdict(v), m.ID)
	if v.SetMark {
		w.Uint32(attrMark, v.Mark)
	}
	w.End()
}

const (
	actionBits    = 2  // of a verdict's port id
	interfaceBits = 15 // each for the interface that the packet came in and goes out by
	interfaceMask = 1<<interfaceBits - 1
)

// interfacesOf returns the low bits of the interfaces that a packet is lost with
// if they go down: of a bridge, its ports.
func interfacesOf(m *packet.Meta) uint32 {
	in, out := m.In, m.Out
	if m.PhysIn != 0 {
		in = m.PhysIn
	}
	if m.PhysOut != 0 {
		out = m.PhysOut
	}
	return in&interfaceMask | out&interfaceMask<<interfaceBits
}

// kernelVerdict returns what the kernel is told. A rejected packet is dropped
// here unless the ruleset is to reject it: telling its sender is not the queue's.
func kernelVerdict(v packet.Verdict) uint32 {
	switch {
	case v.Repeat:
		return nfqueue.NfRepeat
	case v.Action == packet.Accept:
		return nfqueue.NfAccept
	}
	return nfqueue.NfDrop
}

// appendConfig appends the message that configures a queue, and with bind
// binds it too, all at once. Between separate messages the queue would exist
// without a copy mode, and the kernel drops packets for such a queue even under
// --queue-bypass.
func appendConfig(w *nfnl.Writer, cfg *Config, bind bool) {
	flags := uint32(nfqueue.NfQaCfgFlagGSO | nfqueue.NfQaCfgFlagUIDGid)
	mask := flags | nfqueue.NfQaCfgFlagFailOpen
	if cfg.FailOpen {
		flags = mask
	}
	w.Begin(nfnl.Header{Type: nfnl.Type(subsystem, msgConfig), Flags: nfnl.FlagRequest}, syscall.AF_UNSPEC, cfg.Num)
	if bind {
		w.Attr(cfgCmd, cmdBind, 0, 0, 0)
	}
	w.Attr(cfgParams, append(binary.BigEndian.AppendUint32(nil, cfg.CopyRange), nfqueue.NfQnlCopyPacket)...)
	w.Uint32(cfgMaxLen, cfg.MaxLen)
	w.Uint32(cfgMask, mask)
	w.Uint32(cfgFlags, flags)
	w.End()
}

// appendRepeat appends the verdict that sends all packets up to id, in the
// order of the queue, through their hook again.
func appendRepeat(w *nfnl.Writer, queue uint16, id uint32) {
	w.Begin(nfnl.Header{Type: nfnl.Type(subsystem, msgBatch), Flags: nfnl.FlagRequest, Seq: id}, syscall.AF_UNSPEC, queue)
	w.Uint32s(attrVerdictHdr, nfqueue.NfRepeat, id)
	w.End()
}
