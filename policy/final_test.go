package policy

import (
	"math/rand/v2"
	"testing"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// final returns whether a decision about a packet holds for the whole flow: it
// read no field that could still change.
func final(fields []rules.Field, d *rules.Decision, f *rules.Facts) bool {
	for i := range fields {
		if d.Reads.Has(i) && !fields[i].Final(f.Packet.Protocol, f.Meta.HasUID) {
			return false
		}
	}
	return true
}

// naturalPolicies are written the way people write them; each says about which
// of the packets the decision must be final at the first packet.
func naturalPolicies() []struct{ name, text, final string } {
	return []struct{ name, text, final string }{
		{"ports", `verdict := "accept" if input.tcp.dst_port in {80, 443}`, "web telnet dns ping"},
		{"addresses and ports", `verdict := "accept" if {
	net.cidr_contains("10.0.0.0/8", input.ip.dst)
	input.dst_port == 53
}`, "web telnet dns ping"},
		{"hook and protocol", `verdict := "accept" if {
	input.direction == "out"
	input.ip.protocol != "icmp"
}`, "web telnet dns ping"},
		{"user, TCP only", `verdict := "accept" if {
	input.tcp.dst_port == 443
	input.uid == 1000
}`, "web telnet dns ping"},
		{"user, any protocol", `verdict := "accept" if input.uid == 1000`, "web telnet"},
		{"ports before lengths", `decision := {"verdict": "accept", "rule": "web"} if {
	input.tcp.dst_port == 443
} else := {"verdict": "drop", "rule": "big"} if {
	input.packet.length > 1000
}`, "web"},
		{"flags of TCP", `verdict := "drop" if input.tcp.flags.urg`, "dns ping"},
		{"kinds of ICMP", `verdict := "accept" if input.icmp.type == 8`, "web telnet dns"},
		{"time of day", `verdict := "accept" if input.time.hour < 12`, ""},
	}
}

func naturalPackets() map[string]*rules.Facts {
	udp := tcpTo(53)
	udp.Packet.Protocol = packet.ProtoUDP
	ping := tcpTo(0)
	ping.Packet.Protocol, ping.Packet.HasPorts, ping.Packet.ICMPType, ping.Packet.Echo = packet.ProtoICMP, false, packet.ICMPEchoRequest, true
	all := map[string]*rules.Facts{"web": tcpTo(443), "telnet": tcpTo(23), "dns": udp, "ping": ping}
	for _, f := range all {
		f.Meta.HasUID, f.Meta.UID = true, 1000
	}
	return all
}

func TestFinalAtTheFirstPacket(t *testing.T) {
	fields := rules.Fields()
	for _, tt := range naturalPolicies() {
		t.Run(tt.name, func(t *testing.T) {
			p := load1(t, source("package verdictd\n"+tt.text+"\n"))
			got := ""
			for _, name := range []string{"web", "telnet", "dns", "ping"} {
				f := naturalPackets()[name]
				var d rules.Decision
				if err := p.Evaluate(f, &d); err != nil {
					t.Fatal(err)
				}
				if !final(fields, &d, f) {
					continue
				}
				if got != "" {
					got += " "
				}
				got += name
			}
			if got != tt.final {
				t.Errorf("final for %q, want %q", got, tt.final)
			}
		})
	}
}

// A decision that is called final is the same for whatever comes later in the
// flow: every field that may still change is changed at random.
func TestFinalDecisionsStay(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	fields := rules.Fields()
	finals := 0
	for _, tt := range naturalPolicies() {
		p := load1(t, source("package verdictd\n"+tt.text+"\n"))
		for name, f := range naturalPackets() {
			var first rules.Decision
			if err := p.Evaluate(f, &first); err != nil {
				t.Fatal(err)
			}
			if !final(fields, &first, f) {
				continue
			}
			finals++
			for range 200 {
				m, pkt := *f.Meta, *f.Packet
				later := rules.Facts{Meta: &m, Packet: &pkt, OutInterface: "eth" + string(rune('0'+r.IntN(10)))}
				m.Mark, m.Time, m.Queue, m.Out = r.Uint32(), r.Int64(), uint16(r.Uint32()), r.Uint32()
				m.HasUID = m.HasUID && r.IntN(2) == 0 || pkt.Protocol == packet.ProtoTCP
				pkt.TotalLength, pkt.TTL, pkt.TOS, pkt.MoreFragments = r.Uint32(), uint8(r.Uint32()), uint8(r.Uint32()), r.IntN(2) == 0
				pkt.TCPFlags, pkt.Seq, pkt.AckNum, pkt.Window = packet.TCPFlags(r.Uint32()&0x1ff), r.Uint32(), r.Uint32(), uint16(r.Uint32())
				pkt.UDPLength, pkt.ICMPType, pkt.ICMPCode, pkt.EchoSeq = uint16(r.Uint32()), uint8(r.Uint32()), uint8(r.Uint32()), uint16(r.Uint32())
				var d rules.Decision
				if err := p.Evaluate(&later, &d); err != nil || !sameDecision(&d, &first) {
					t.Fatalf("%s, %s: got %+v (%v) after the final %+v", tt.name, name, d, err, first)
				}
			}
		}
	}
	if finals < 20 {
		t.Errorf("only %d final decisions: they say little", finals)
	}
}
