package logsink

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

var testTime = time.Date(2026, 11, 23, 16, 20, 0, 123456789, time.UTC).UnixNano()

// tcpEvent returns a dropped SYN.
func tcpEvent() Event {
	return Event{
		Kind: FlowDecision, Time: testTime, Flow: 77, Queue: 3, PacketID: 9, Hook: packet.Output, Out: "eth0",
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Protocol: 6, Status: packet.OK,
		HasPorts: true, SrcPort: 40000, DstPort: 23, Mark: 16, HasUID: true, UID: 1000, HasGID: true, GID: 100,
		Length: 60, TTL: 64, TOS: 16, IPID: 4660, TCPFlags: packet.SYN, Seq: 1, Ack: 2, Window: 64240, UrgentPtr: 5,
		LatencyNS: 1234, Action: packet.Drop, Reason: "policy", Generation: 2, Policy: "abcd",
		Decision: &rules.Decision{Rule: "no-telnet", Reason: "telnet is \"plain\""},
	}
}

func icmp6Event() Event {
	return Event{
		Kind: NFLog, Time: testTime, Queue: 5, Hook: packet.Forward, In: "eth0", Out: "eth1", NFLogLabel: "to the moon: ",
		Src: netip.MustParseAddr("2001:db8::1"), Dst: netip.MustParseAddr("2001:db8::2"), Protocol: 58, Status: packet.OK,
		Length: 104, TTL: 63, FlowLabel: 700, ICMPType: 128, Echo: true, EchoID: 8, EchoSeq: 9,
	}
}

func with(e Event, change func(*Event)) Event {
	change(&e)
	return e
}

// encoderTests are the events whose records testdata/eve.txtar holds.
func encoderTests() map[string]Event {
	return map[string]Event{
		"dropped syn": tcpEvent(),
		"owned":       with(tcpEvent(), func(e *Event) { e.Owner = ownerTests()[0] }),
		"contained":   with(tcpEvent(), func(e *Event) { e.Owner = ownerTests()[1] }),
		"rejected, with host": with(tcpEvent(), func(e *Event) {
			e.Action, e.Decision.Action = packet.Reject, packet.Reject
			e.Protocol, e.UDPLength = 17, 20
		}),
		"monitor": with(icmp6Event(), func(e *Event) {
			e.Kind, e.Monitor, e.Action, e.Reason = FlowDecision, true, packet.Accept, "policy"
			e.Decision = &rules.Decision{Rule: "default", SetMark: true, Mark: 3}
		}),
		"repeat": with(tcpEvent(), func(e *Event) {
			e.Kind, e.Packets[0], e.Bytes[0], e.Decision, e.Generation = FlowRepeat, 12, 720, nil, 0
			e.Status, e.HasPorts = packet.Fragment, false
		}),
		"flow end": with(tcpEvent(), func(e *Event) {
			e.Kind, e.Packets, e.Bytes = FlowEnd, [2]uint64{3, 4}, [2]uint64{300, 400}
			e.FlowStart, e.EndReason, e.Action, e.Flow = e.Time-2_500_000_000, "timeout", packet.Accept, 1<<60+5
		}),
		"end of an icmp flow, policy error": with(icmp6Event(), func(e *Event) {
			e.Kind, e.FlowStart, e.Text, e.Reason = FlowEnd, e.Time, "p.rego:3: division by zero", "policy_error"
		}),
		"nflog":     icmp6Event(),
		"malformed": {Time: testTime, Length: 7, Reason: "malformed", Text: "short header"},
		"loss":      {Kind: Loss, Time: testTime, Origin: "ring queue 0", Packets: [2]uint64{7, 9}, Text: "full"},
		"admin":     {Kind: Admin, Time: testTime, Reason: "policy_loaded", Text: "p.rego", Generation: 4, Policy: "ff"},
		"stats":     {Kind: Stats, Time: testTime, Origin: "log", Counters: []Counter{{"a", 1}, {"b", 1 << 63}}},
	}
}

func TestEncoder(t *testing.T) {
	golden, err := txtar.ParseFile("testdata/eve.txtar")
	if err != nil {
		t.Fatal(err)
	}
	tests := encoderTests()
	if len(golden.Files) != len(tests) {
		t.Errorf("got %d records, want %d", len(golden.Files), len(tests))
	}
	for _, want := range golden.Files {
		t.Run(want.Name, func(t *testing.T) {
			var cfg EncoderConfig
			if strings.HasSuffix(want.Name, "with host") {
				cfg = EncoderConfig{Host: "h\n1", BootID: "b", PacketSource: "pcap"}
			}
			e := tests[want.Name]
			got := NewEncoder(cfg).Append(nil, &e)
			if diff := cmp.Diff(string(want.Data), string(got)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if !json.Valid(got) {
				t.Errorf("not JSON: %s", got)
			}
		})
	}
}

func TestEncoderSeq(t *testing.T) {
	x, e := NewEncoder(EncoderConfig{}), tcpEvent()
	for want := uint64(1); want <= 3; want++ {
		var got struct{ Seq uint64 }
		if err := json.Unmarshal(x.Append(nil, &e), &got); err != nil {
			t.Fatal(err)
		}
		if got.Seq != want {
			t.Errorf("seq: got %d, want %d", got.Seq, want)
		}
	}
}

func TestEncodeAllocatesNothing(t *testing.T) {
	x := NewEncoder(EncoderConfig{Host: "host", BootID: "boot"})
	buf := make([]byte, 0, 2*MaxRecord)
	for name, e := range map[string]Event{
		"tcp": tcpEvent(), "icmp6": icmp6Event(),
		"flow end": with(tcpEvent(), func(e *Event) { e.Kind = FlowEnd }),
		"cut text": longEvent("\x01"),
		"bad text": with(icmp6Event(), func(e *Event) { e.NFLogLabel = "\xff\x00\"\\ü" }),
	} {
		if n := testing.AllocsPerRun(100, func() { buf = x.Append(buf[:0], &e) }); n != 0 {
			t.Errorf("%s: JSON: got %v allocations, want 0", name, n)
		}
		if n := testing.AllocsPerRun(100, func() { buf = AppendPretty(buf[:0], &e, true) }); n != 0 {
			t.Errorf("%s: pretty: got %v allocations, want 0", name, n)
		}
	}
}

// FuzzEncoder checks that any strings and numbers give one line of valid JSON
// that encoding/json reads back as it would write them.
func FuzzEncoder(f *testing.F) {
	f.Add("prefix", "rule", "reason", uint8(3), uint64(1), []byte{10, 0, 0, 1})
	f.Add("\xff\xfe\x00\x1f\"\\", "\u2028</script>", "\x7f\r\n\t", uint8(0), uint64(1)<<63, make([]byte, 16))
	f.Fuzz(func(t *testing.T, prefix, rule, reason string, kind uint8, number uint64, addr []byte) {
		e := tcpEvent()
		e.Kind, e.Protocol, e.Status = EventKind(kind%7), kind, packet.Status(kind>>2%4)
		e.Action, e.Time, e.Flow, e.Packets[0] = packet.Action(kind%3), int64(number), number, number
		e.NFLogLabel, e.Text, e.Reason, e.In = prefix, reason, reason, prefix
		e.Decision = &rules.Decision{Rule: rule, Reason: reason}
		e.Src, _ = netip.AddrFromSlice(addr)
		line := NewEncoder(EncoderConfig{Host: prefix}).Append(nil, &e)
		checkRoundTrip(t, line, &e)
		pretty := AppendPretty(nil, &e, false)
		if i := strings.IndexFunc(string(pretty), func(r rune) bool { return r < ' ' || r == 0x7f }); i != len(pretty)-1 {
			t.Errorf("pretty: control character at byte %d of %q", i, pretty)
		}
	})
}

func checkRoundTrip(t *testing.T, line []byte, e *Event) {
	t.Helper()
	if strings.IndexByte(string(line), '\n') != len(line)-1 {
		t.Fatalf("not one line: %q", line)
	}
	var got struct {
		Seq      uint64
		Flow     uint64 `json:"flow_id"`
		Host     string
		Verdictd struct{ Prefix, Rule, Message, Reason string }
	}
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	if got.Host != viaJSON(t, e.In) || got.Seq != 1 || got.Flow != e.Flow&(1<<53-1) {
		t.Errorf("got host %q flow %d, want %q %d", got.Host, got.Flow, viaJSON(t, e.In), e.Flow)
	}
	if e.Kind == NFLog && got.Verdictd.Prefix != viaJSON(t, e.NFLogLabel) {
		t.Errorf("prefix: got %q, want %q", got.Verdictd.Prefix, e.NFLogLabel)
	}
	if e.Kind <= FlowEnd && (got.Verdictd.Rule != viaJSON(t, e.Decision.Rule[:fits(e.Decision.Rule, maxRule-2)]) || got.Verdictd.Reason != viaJSON(t, e.Reason)) {
		t.Errorf("rule, reason: got %q %q, want %q %q", got.Verdictd.Rule, got.Verdictd.Reason, e.Decision.Rule, e.Reason)
	}
}

// viaJSON returns what encoding/json makes of s.
func viaJSON(t *testing.T, s string) string {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var out string
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPretty(t *testing.T) {
	tests := []struct {
		name   string
		e      Event
		colour bool
		want   string
	}{
		{"drop", tcpEvent(), false,
			`16:20:00.123456 DROP    tcp     10.0.0.1:40000 -> 10.0.0.2:23 out=eth0 rule=no-telnet message="telnet is \"plain\"" reason=policy uid=1000`},
		{"coloured", with(tcpEvent(), func(e *Event) { e.Decision, e.Action = nil, packet.Accept }), true,
			"16:20:00.123456 \x1b[32mACCEPT  \x1b[0mtcp     10.0.0.1:40000 -> 10.0.0.2:23 out=eth0 reason=policy uid=1000"},
		{"monitor", with(tcpEvent(), func(e *Event) { e.Action, e.Monitor = packet.Accept, true; e.Decision.Reason = "" }), false,
			`16:20:00.123456 ACCEPT  tcp     10.0.0.1:40000 -> 10.0.0.2:23 out=eth0 rule=no-telnet would=drop reason=policy uid=1000`},
		{"ipv6 ports", with(tcpEvent(), func(e *Event) {
			e.Src, e.Dst, e.Decision = netip.MustParseAddr("::1"), netip.MustParseAddr("fe80::2"), nil
			e.Kind, e.Packets[0] = FlowRepeat, 4
		}), false,
			`16:20:00.123456 DROP    tcp     [::1]:40000 -> [fe80::2]:23 out=eth0 reason=policy uid=1000 repeat=4`},
		{"nflog", icmp6Event(), false,
			`16:20:00.123456 NFLOG   icmpv6  2001:db8::1 -> 2001:db8::2 type=128 code=0 in=eth0 out=eth1 prefix="to the moon: "`},
		{"malformed", Event{Time: testTime, Reason: "malformed", Text: "short\x1b[2J"}, false,
			`16:20:00.123456 DROP    - reason=malformed status=malformed detail="short\x1b[2J"`},
		{"end", with(tcpEvent(), func(e *Event) { e.Kind, e.Packets, e.EndReason, e.Decision = FlowEnd, [2]uint64{1, 2}, "timeout", nil }), false,
			`16:20:00.123456 END     tcp     10.0.0.1:40000 -> 10.0.0.2:23 out=eth0 reason=policy uid=1000 packets=3 bytes=0 end=timeout`},
		{"loss", Event{Kind: Loss, Time: testTime, Origin: "ring a", Packets: [2]uint64{7, 9}}, false,
			`16:20:00.123456 LOSS    7 lost total=9 origin="ring a"`},
		{"admin", Event{Kind: Admin, Time: testTime, Reason: "start", Text: "v1"}, false,
			`16:20:00.123456 ADMIN   start message=v1`},
		{"stats", Event{Kind: Stats, Time: testTime, Origin: "log", Counters: []Counter{{"a", 1}}}, false,
			`16:20:00.123456 STATS   log a=1`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := string(AppendPretty(nil, &tt.e, tt.colour))
			if diff := cmp.Diff(tt.want+"\n", got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}
