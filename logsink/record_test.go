package logsink

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/rules"
)

// recordTests are packets, and the fields of each that its records lack.
func recordTests() map[string]struct {
	m     packet.Meta
	p     packet.Packet
	lacks string
} {
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")
	meta := packet.Meta{Time: testTime / 1000 * 1000, Queue: 3, Hook: packet.Output, Mark: 16, HasUID: true, UID: 1000}
	return map[string]struct {
		m     packet.Meta
		p     packet.Packet
		lacks string
	}{
		"tcp": {meta, packet.Packet{Status: packet.OK, Version: 4, Src: v4, Dst: v4, Protocol: packet.ProtoTCP, HasPorts: true, SrcPort: 1, DstPort: 2,
			TTL: 64, TOS: 18, TotalLength: 60, TCPFlags: packet.SYN | packet.NS | packet.URG, Seq: 7, AckNum: 8, Window: 9}, "ip.fragment tcp.flags.ece tcp.flags.cwr interface.in_port interface.out_port answers_multicast"},
		"udp over ipv6": {meta, packet.Packet{Status: packet.OK, Version: 6, Src: v6, Dst: v6, Protocol: packet.ProtoUDP, HasPorts: true, DstPort: 53,
			TTL: 1, TOS: 255, TotalLength: 90, UDPLength: 50}, "ip.fragment interface.in_port interface.out_port answers_multicast"},
		"echo": {packet.Meta{Time: meta.Time, Hook: packet.Input, HasGID: true}, packet.Packet{Status: packet.OK, Version: 6, Src: v6, Dst: v6,
			Protocol: packet.ProtoICMPv6, ICMPType: 128, Echo: true, EchoID: 5, EchoSeq: 6}, "ip.fragment icmp.related interface.in_port interface.out_port answers_multicast"},
		"fragment": {meta, packet.Packet{Status: packet.Fragment, Version: 4, Src: v4, Dst: v4, Protocol: packet.ProtoTCP, FragmentOffset: 8}, "interface.in_port interface.out_port answers_multicast"},
		"gre":      {meta, packet.Packet{Status: packet.OK, Version: 4, Src: v4, Dst: v4, Protocol: 47}, "ip.fragment interface.in_port interface.out_port answers_multicast"},
		"unnamed":  {meta, packet.Packet{Status: packet.OK, Version: 4, Src: v4, Dst: v4, Protocol: 200}, "ip.fragment interface.in_port interface.out_port answers_multicast"},
	}
}

// TestParseRecord reads back what an Encoder wrote: each field is as the
// packet has it, or unknown because the log does not carry it.
func TestParseRecord(t *testing.T) {
	owners := map[string]*process.Owner{}
	for i, o := range ownerTests() {
		owners[[]string{"tcp", "udp over ipv6", "echo", "fragment"}[i]] = o
	}
	for name, tt := range recordTests() {
		owner := owners[name]
		if owner == nil {
			owner = &process.Owner{}
		}
		t.Run(name, func(t *testing.T) {
			for _, action := range []packet.Action{packet.Drop, packet.Accept, packet.Reject} {
				e := Event{
					Kind: FlowDecision, In: "eth0", Out: "wan", Action: action, Reason: "policy", Generation: 1, Policy: "ab", LatencyNS: 9,
					Decision: &rules.Decision{Action: action, Rule: "r", Reason: "why"}, Owner: owner,
				}
				e.SetPacket(&tt.m, &tt.p)
				r, err := ParseRecord(NewEncoder(EncoderConfig{}).Append(nil, &e))
				if err != nil {
					t.Fatal(err)
				}
				f := &rules.Facts{Meta: &tt.m, Packet: &tt.p, InInterface: e.In, OutInterface: e.Out, Owner: owner}
				compareInput(t, r.Input, f, strings.Fields(tt.lacks))
				want := Record{EventType: "drop", Action: action, Rule: "r", Message: "why", Cause: "policy", Policy: "ab", LatencyNS: 9}
				if action == packet.Accept {
					want.EventType = "verdict"
				}
				if r.Src != netip.AddrPortFrom(tt.p.Src, tt.p.SrcPort) || r.Dst != netip.AddrPortFrom(tt.p.Dst, tt.p.DstPort) {
					t.Errorf("got %v -> %v", r.Src, r.Dst)
				}
				r.Input, r.Src, r.Dst = nil, netip.AddrPort{}, netip.AddrPort{}
				if diff := cmp.Diff(want, *r, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

// ownerTests are owners of every kind.
func ownerTests() []*process.Owner {
	curl := &process.Process{
		PID: 4711, Start: 1790000000e9, Comm: "curl", Cmdline: "curl \"-s\" https://\xc3\xbc", TTY: "pts/3",
		Exe:     process.Exe{Path: "/usr/bin/curl", Inside: "/usr/bin/curl", Inode: 1 << 40, Device: 2049, SHA256: strings.Repeat("ab", 32)},
		Parents: []process.Parent{{PID: 4000, Comm: "bash", Exe: "/usr/bin/bash"}, {PID: 1, Comm: "systemd"}},
	}
	gone := &process.Process{PID: 5, Exe: process.Exe{Inside: "/app", Deleted: true}}
	for range process.MaxParents {
		gone.Parents = append(gone.Parents, process.Parent{PID: 9, Exe: "/p", Comm: "p"})
	}
	return []*process.Owner{
		{ID: 1, Source: process.BPFFlow, UID: 0, GID: 0, HasUID: true, HasGID: true, User: "root", Process: curl,
			Cgroup: process.Cgroup{ID: 7, Path: "/system.slice/ci.service", Unit: "ci.service", UserUnit: "x.service", Slice: "system.slice"}},
		{ID: 2, Source: process.Diag, UID: 1000, HasUID: true, Process: gone,
			Cgroup: process.Cgroup{Path: "/docker/x", ContainerID: strings.Repeat("0f", 32), Runtime: "docker", PodUID: "a-b"}},
		{ID: 3, Source: process.Kernel},
		{ID: 4, Source: process.UIDOnly, UID: 1<<32 - 1, HasUID: true},
	}
}

func compareInput(t *testing.T, got *rules.Input, f *rules.Facts, lacks []string) {
	t.Helper()
	var v, w rules.Value
	var missing []string
	unknown, fields := got.Unknown(), got.Fields()
	for i, field := range rules.Fields() {
		has, want := fields[i].Get(nil, &v), field.Get(f, &w)
		if unknown.Has(i) {
			missing = append(missing, field.Path)
			continue
		}
		if has != want || has && v.Text(field.Kind) != w.Text(field.Kind) {
			t.Errorf("%s: got %v %s, want %v %s", field.Path, has, v.Text(field.Kind), want, w.Text(field.Kind))
		}
	}
	if diff := cmp.Diff(lacks, append([]string{}, missing...)); diff != "" {
		t.Errorf("unknown fields (-want +got):\n%s", diff)
	}
}

// TestParseRecordKinds reads the records of other kinds of events.
func TestParseRecordKinds(t *testing.T) {
	tests := encoderTests()
	parse := func(name string) *Record {
		t.Helper()
		e := tests[name]
		r, err := ParseRecord(NewEncoder(EncoderConfig{}).Append(nil, &e))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return r
	}
	if r := parse("monitor"); r.EventType != "verdict" || r.Action != packet.Drop || r.Rule != "default" {
		t.Errorf("monitor: got %+v, want what would have been done", r)
	}
	if r := parse("nflog"); r.EventType != "packet" || r.Cause != "" || r.Rule != "" {
		t.Errorf("nflog: got %+v, want no decision", r)
	}
	r := parse("flow end")
	if r.EventType != "flow" || r.Action != packet.Accept {
		t.Errorf("flow end: got %+v", r)
	}
	unknown := r.Input.Unknown()
	for i, f := range rules.Fields() {
		if wants := f.Scope == rules.PerOwner || f.Scope == rules.PerPacket && f.Path != "packet.status" && !strings.HasPrefix(f.Path, "udp.") && !strings.HasPrefix(f.Path, "icmp."); wants != unknown.Has(i) {
			t.Errorf("flow end: %s unknown is %v, want %v", f.Path, unknown.Has(i), wants)
		}
	}
}

func TestParseRecordErrors(t *testing.T) {
	const good = `{"timestamp":"2026-11-23T16:20:00.123456+0000","event_type":"drop","src_ip":"10.0.0.1","dest_ip":"10.0.0.2","proto":"TCP","ip_v":4,"verdictd":{"hook":"output"}}`
	if _, err := ParseRecord([]byte(good)); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, old, new, want string }{
		{"cut", `"}}`, "", "not JSON: unexpected end of JSON input"},
		{"type", `"ip_v":4`, `"ip_v":"4"`, "ip_v is a string, want a uint8"},
		{"no type", `"event_type":"drop",`, "", "has no event_type: no record of the audit log"},
		{"other type", `"drop"`, `"stats"`, `record of type "stats" is about no packet, want verdict, drop, flow or packet`},
		{"hook", `"output"`, `"ouput"`, `verdictd.hook is "ouput": no record of verdictd`},
		{"time", "2026-", "26-", `timestamp is "26-11-23T16:20:00.123456+0000", want one such as 2026-11-23T16:20:00.123456+0000`},
		{"address", "10.0.0.2", "host", `dest_ip is "host", want an IP address`},
		{"protocol", "TCP", "tcpp", `proto is "tcpp", which is no protocol that verdictd writes`},
		{"malformed", `"hook"`, `"status":"malformed","hook"`, "the packet was malformed: no policy is asked about those"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseRecord([]byte(strings.Replace(good, tt.old, tt.new, 1)))
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

// FuzzParseRecord reads arbitrary lines.
func FuzzParseRecord(f *testing.F) {
	for _, e := range encoderTests() {
		f.Add(NewEncoder(EncoderConfig{}).Append(nil, &e))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := ParseRecord(line)
		if (r == nil) != (err != nil) || r != nil && r.Input == nil {
			t.Errorf("got %v and %v", r, err)
		}
	})
}
