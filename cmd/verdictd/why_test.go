package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
)

// livePolicy reads facts of every kind that the log carries.
const livePolicy = `package verdictd

decision := {"verdict": "drop", "rule": "syn", "reason": sprintf("to port %d", [input.tcp.dst_port])} if {
	input.tcp.flags.syn
	input.tcp.dst_port < 100
} else := {"verdict": "accept", "rule": "user", "mark": 7} if {
	input.uid == 1000
	input.time.hour >= 0
	input.ip.ttl > 60
} else := {"verdict": "reject", "rule": "lan", "reason": input.interface.out} if {
	net.cidr_contains("10.0.0.0/9", input.ip.dst)
	input.interface.out == "eth2"
} else := {"verdict": "accept", "rule": "long"} if {
	input.packet.length > 60
	not input.mark == 1
	input.ip.dscp < 20
} else := {"verdict": "drop", "rule": "echo"} if {
	input.icmp.type == 8
	input.icmp.id > 30000
} else := {"verdict": "accept", "rule": "echo2"} if input.icmp.seq > 1000
`

// TestWhySaysWhatTheLogSays judges random packets as the daemon does, writes
// the audit log, and asks why about each record: with its own policy the
// answer is the record's.
func TestWhySaysWhatTheLogSays(t *testing.T) {
	dir := t.TempDir()
	own := filepath.Join(dir, "live.rego")
	if err := os.WriteFile(own, []byte(livePolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{own, filepath.Join(labtest.Repository(t), "policy.rego.example")} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			met := map[string]int{}
			log := liveLog(t, path)
			x, err := policy.NewExplainer(context.Background(), policy.Source{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range log {
				q, err := parseQuestion(string(line))
				if err != nil {
					t.Fatalf("%v: %s", err, line)
				}
				e, err := x.Explain(context.Background(), q.in, 1)
				if err != nil {
					t.Fatal(err)
				}
				r := compare(q.record, e)
				if r.Compared && (!r.Same || r.OtherHash) {
					t.Fatalf("%s\n%s\n%+v", r.Says, line, e)
				}
				if got, want := e.Decision.Reason, q.record.Message; r.Compared && got != want {
					t.Errorf("reason %q, the record says %q", got, want)
				}
				met[r.Rule]++
			}
			if len(log) < 200 || len(met) < 5 {
				t.Errorf("%d records, by rules %v: too few to show anything", len(log), met)
			}
		})
	}
}

// liveLog returns the records of a daemon that judges random packets.
func liveLog(t *testing.T, path string) (lines [][]byte) {
	t.Helper()
	loaded, err := policy.Load(context.Background(), policy.Source{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	eng := engine.New(engine.Config{Links: func() engine.Links {
		return engine.FixedLinks(func(i uint32) string { return fmt.Sprintf("eth%d", i) })
	}})
	eng.Publish(engine.Snapshot{Policy: loaded, Hash: loaded.Hash(), Generation: 1})
	ring := logsink.NewRing(16)
	worker, encoder := eng.NewWorker(ring), logsink.NewEncoder(logsink.EncoderConfig{})
	r := rand.New(rand.NewPCG(1, 9))
	for i := range 500 {
		m := &packet.Meta{
			Time: 1_700_000_000_000_000_000 + int64(i)*7_000_000_000, ID: uint32(i), Hook: packet.Output, Out: uint32(1 + r.IntN(2)),
			Mark: uint32(r.IntN(2)), HasUID: r.IntN(3) > 0, UID: 999 + uint32(r.IntN(2)),
		}
		data := randomPacket(t, r)
		m.Length = uint32(len(data))
		worker.Handle(m, data)
		ring.Drain(func(e *logsink.Event) { lines = append(lines, encoder.Append(nil, e)) })
	}
	return lines
}

// randomPacket returns the bytes of an IPv4 packet.
func randomPacket(t *testing.T, r *rand.Rand) []byte {
	t.Helper()
	dst := netip.AddrFrom4([4]byte{10, byte(r.IntN(256)), byte(r.IntN(256)), 9})
	ip := &layers.IPv4{Version: 4, TTL: uint8(58 + r.IntN(6)), TOS: uint8(r.IntN(256)), SrcIP: []byte{10, 99, 0, 1}, DstIP: dst.AsSlice()}
	port := []uint16{22, 23, 53, 80, 123, 443, 8080}[r.IntN(7)]
	stack := []gopacket.SerializableLayer{ip}
	switch r.IntN(4) {
	case 0:
		ip.Protocol = layers.IPProtocolICMPv4
		stack = append(stack, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: uint16(r.Uint32()), Seq: uint16(r.IntN(2000))})
	case 1:
		ip.Protocol = layers.IPProtocolUDP
		udp := &layers.UDP{SrcPort: 40000, DstPort: layers.UDPPort(port)}
		if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		stack = append(stack, udp)
	case 2:
		ip.Protocol = layers.IPProtocolGRE
	default:
		ip.Protocol = layers.IPProtocolTCP
		tcp := &layers.TCP{SrcPort: 40000, DstPort: layers.TCPPort(port), SYN: r.IntN(2) == 0, ACK: r.IntN(2) == 0, Seq: r.Uint32(), Window: 9}
		if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		stack = append(stack, tcp)
	}
	stack = append(stack, gopacket.Payload(make([]byte, r.IntN(60))))
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestCompareWords says what each outcome of a comparison reads like.
func TestCompareWords(t *testing.T) {
	x := &policy.Explanation{Hash: "aa", Decision: policy.Outcomes{Verdict: "drop", Rule: "r"}}
	tests := []struct {
		record logsink.Record
		want   string
		same   bool
	}{
		{logsink.Record{Rule: "r", Cause: "policy", Policy: "aa"}, "drop by rule r: the same", true},
		{logsink.Record{Rule: "r", Cause: "policy", Action: packet.Accept}, "accept by rule r: NOT the same", false},
		{logsink.Record{Rule: "q", Cause: "policy", Policy: "bb"}, "drop by rule q: not the same, but by another policy (sha256 bb)", false},
		{logsink.Record{Rule: "r", Cause: "policy", EventType: "flow", Action: packet.Drop}, "drop by rule r: the same", true},
		{logsink.Record{Cause: "policy_error"}, "the policy made no decision: NOT the same", false},
		{logsink.Record{}, "nothing: the kernel reported the packet, no policy was asked", false},
	}
	for _, tt := range tests {
		got := compare(&tt.record, x)
		if diff := cmp.Diff([]any{tt.want, tt.same}, []any{got.Says, got.Same}); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.record, diff)
		}
	}
}
