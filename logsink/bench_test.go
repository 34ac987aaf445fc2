package logsink

import (
	"encoding/json"
	"io"
	"log/slog"
	"testing"
	"time"
)

func BenchmarkEncode(b *testing.B) {
	e := tcpEvent()
	end := with(tcpEvent(), func(e *Event) { e.Kind = FlowEnd })
	nflog := icmp6Event()
	owned := with(e, func(e *Event) { e.Owner = ownerTests()[0] })
	for _, bb := range []struct {
		name string
		e    *Event
	}{{"drop", &e}, {"owned", &owned}, {"flow", &end}, {"nflog", &nflog}} {
		b.Run(bb.name, func(b *testing.B) {
			x, buf := NewEncoder(EncoderConfig{}), make([]byte, 0, 4096)
			b.ReportAllocs()
			for b.Loop() {
				buf = x.Append(buf[:0], bb.e)
			}
			b.SetBytes(int64(len(buf)))
		})
	}
	b.Run("pretty", func(b *testing.B) {
		buf := make([]byte, 0, 4096)
		b.ReportAllocs()
		for b.Loop() {
			buf = AppendPretty(buf[:0], &e, false)
		}
	})
}

// BenchmarkPeers writes the same members as the drop record with the standard
// library.
func BenchmarkPeers(b *testing.B) {
	e := tcpEvent()
	line := NewEncoder(EncoderConfig{}).Append(nil, &e)
	var r eveDrop
	if err := json.Unmarshal(line, &r); err != nil {
		b.Fatal(err)
	}
	b.Run("encoding-json", func(b *testing.B) {
		enc := json.NewEncoder(io.Discard)
		b.ReportAllocs()
		for b.Loop() {
			if err := enc.Encode(&r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("slog", func(b *testing.B) {
		log := slog.New(slog.NewJSONHandler(io.Discard, nil))
		b.ReportAllocs()
		for b.Loop() {
			logSlog(log, &r)
		}
	})
}

// eveDrop has the members of a drop record.
type eveDrop struct {
	Timestamp   string         `json:"timestamp"`
	Seq         uint64         `json:"seq"`
	FlowID      uint64         `json:"flow_id"`
	EventType   string         `json:"event_type"`
	SrcIP       string         `json:"src_ip"`
	SrcPort     uint16         `json:"src_port"`
	DestIP      string         `json:"dest_ip"`
	DestPort    uint16         `json:"dest_port"`
	Proto       string         `json:"proto"`
	IPVersion   int            `json:"ip_v"`
	PktSrc      string         `json:"pkt_src"`
	Direction   string         `json:"direction"`
	CommunityID string         `json:"community_id"`
	Verdict     eveVerdict     `json:"verdict"`
	Drop        eveDropHeader  `json:"drop"`
	Verdictd    eveVerdictdOwn `json:"verdictd"`
}

type eveVerdict struct {
	Action string `json:"action"`
}

type eveDropHeader struct {
	Len, TOS, TTL, IPID, TCPSeq, TCPAck, TCPWin uint32
	Syn, Ack, Psh, Rst, Urg, Fin                bool
	TCPRes, TCPUrgP                             uint32
	Reason                                      string
}

type eveVerdictdOwn struct {
	Queue, PacketID           uint32
	Hook, Direction, OutIface string
	Mark, UID, GID            uint32
	Rule, Message, Reason     string
	Policy                    struct {
		Generation uint64
		SHA256     string
	}
	LatencyNS uint64
}

func logSlog(log *slog.Logger, r *eveDrop) {
	d, v := &r.Drop, &r.Verdictd
	log.Info("drop", "seq", r.Seq, "flow_id", r.FlowID, "event_type", r.EventType, "src_ip", r.SrcIP, "src_port", r.SrcPort,
		"dest_ip", r.DestIP, "dest_port", r.DestPort, "proto", r.Proto, "ip_v", r.IPVersion, "pkt_src", r.PktSrc,
		"direction", r.Direction, "community_id", r.CommunityID, slog.Group("verdict", "action", r.Verdict.Action),
		slog.Group("drop", "len", d.Len, "tos", d.TOS, "ttl", d.TTL, "ipid", d.IPID, "tcpseq", d.TCPSeq, "tcpack", d.TCPAck,
			"tcpwin", d.TCPWin, "syn", d.Syn, "ack", d.Ack, "psh", d.Psh, "rst", d.Rst, "urg", d.Urg, "fin", d.Fin,
			"tcpres", d.TCPRes, "tcpurgp", d.TCPUrgP, "reason", d.Reason),
		slog.Group("verdictd", "queue", v.Queue, "packet_id", v.PacketID, "hook", v.Hook, "direction", v.Direction,
			"out_iface", v.OutIface, "mark", v.Mark, "uid", v.UID, "gid", v.GID, "rule", v.Rule, "message", v.Message,
			"reason", v.Reason, slog.Group("policy", "generation", v.Policy.Generation, "sha256", v.Policy.SHA256),
			"latency_ns", v.LatencyNS))
}

func BenchmarkRing(b *testing.B) {
	e := tcpEvent()
	b.Run("put and drain", func(b *testing.B) {
		r, seen := NewRing(1024), 0
		b.ReportAllocs()
		for b.Loop() {
			*r.Next() = e
			r.Commit()
			r.Drain(func(*Event) { seen++ })
		}
	})
	b.Run("full", func(b *testing.B) {
		r := NewRing(1)
		*r.Next() = e
		r.Commit()
		b.ReportAllocs()
		for b.Loop() {
			if r.Next() != nil {
				b.Fatal("not full")
			}
		}
	})
}

// BenchmarkLog takes an event through ring, encoder and output buffer.
func BenchmarkLog(b *testing.B) {
	l, err := New(Config{Outputs: []Output{{Path: "discard", Writer: io.Discard}}})
	if err != nil {
		b.Fatal(err)
	}
	r, e, now := l.Ring("bench"), tcpEvent(), time.Now()
	b.ReportAllocs()
	for b.Loop() {
		slot := r.Next()
		if slot == nil {
			l.pass(now, 0)
			slot = r.Next()
		}
		*slot = e
		r.Commit()
	}
}

// BenchmarkNFLog takes an event from the kernel's message to the ring.
func BenchmarkNFLog(b *testing.B) {
	n := newReader(b, 5)
	m := fullMessage(5, 0)
	n.cfg.InterfaceName = func(uint32) string { return "eth0" }
	b.ReportAllocs()
	for b.Loop() {
		n.handle(m, 1)
		n.ring.Drain(func(*Event) {})
	}
}
