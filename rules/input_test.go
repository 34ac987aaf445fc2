package rules_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// showInput returns the fields of an input document that are present, and those
// that are unknown, as path=value and path=?.
func showInput(in *rules.Input) []string {
	var all []string
	var v rules.Value
	unknown := in.Unknown()
	for i, f := range in.Fields() {
		switch {
		case f.Get(nil, &v):
			all = append(all, f.Path+"="+v.Text(f.Kind))
		case unknown.Has(i):
			all = append(all, f.Path+"=?")
		}
	}
	return all
}

func TestParseInput(t *testing.T) {
	in, err := rules.ParseInput("f.json", []byte(`{"ip": {"src": "FD00::1", "protocol": "tcp"},
		"tcp": {"dst_port": 443, "flags": {"syn": true, "ack": false}}, "hook": "output", "interface": {"in": "ä"}, "uid": 4294967295, "udp": {}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"ip.src=fd00::1", "ip.protocol=tcp", "tcp.dst_port=443", "tcp.flags.syn=true", "tcp.flags.ack=false",
		"hook=output", "interface.in=ä", "uid=4294967295"}
	if diff := cmp.Diff(want, showInput(in)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseInputErrors(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"empty", "", "f.json:1:1: not JSON: the document ends early"},
		{"cut", "{\"ip\": {\n", "f.json:2:1: not JSON: the document ends early"},
		{"array", "[]", `f.json:1:1: input is not an object, want one such as {"tcp": {"dst_port": 443}}`},
		{"syntax", "{\n  \"mark\": 1,,\n}", "f.json:2:13: not JSON: invalid character ',' looking for beginning of object key string"},
		{"unknown below", "{\n  \"udp\": {\"dprot\": 1}\n}", "f.json:2:11: input.udp.dprot does not exist (input.udp has src_port, dst_port, length)"},
		{"unknown", `{"ipp": {}}`, "f.json:1:2: input.ipp does not exist (input has packet, ip, src_port, dst_port, tcp, udp, icmp, hook, direction, interface, answers_multicast, mark, uid, gid, process, time)"},
		{"string for number", `{"tcp": {"dst_port": "443"}}`, "f.json:1:22: input.tcp.dst_port is a string, want a whole number from 0 to 65535"},
		{"number for string", `{"hook": 3}`, "f.json:1:10: input.hook is a number, want one of prerouting, input, forward, output, postrouting"},
		{"number for bool", `{"tcp":{"flags":{"syn":1}}}`, "f.json:1:24: input.tcp.flags.syn is a number, want true or false"},
		{"bool for address", `{"ip":{"src":true}}`, "f.json:1:14: input.ip.src is true or false, want an IP address without a zone"},
		{"range", `{"ip":{"ttl":256}}`, `f.json:1:14: input.ip.ttl is "256", want a whole number from 0 to 255`},
		{"negative", `{"mark":-1}`, `f.json:1:9: input.mark is "-1", want a whole number from 0 to 4294967295`},
		{"fraction", `{"mark":1.5}`, `f.json:1:9: input.mark is "1.5", want a whole number from 0 to 4294967295`},
		{"enum", `{"hook":"outptu"}`, `f.json:1:9: input.hook is "outptu", want one of prerouting, input, forward, output, postrouting`},
		{"protocol", `{"ip":{"protocol":"TCP"}}`, `f.json:1:19: input.ip.protocol is "TCP", want a protocol as verdictd names it: tcp, udp, icmp ..., or its number if it has no name`},
		{"network", `{"ip":{"src":"10.0.0.0/8"}}`, `f.json:1:14: input.ip.src is "10.0.0.0/8", want an IP address without a zone`},
		{"zone", `{"ip":{"src":"fe80::1%eth0"}}`, `f.json:1:14: input.ip.src is "fe80::1%eth0", want an IP address without a zone`},
		{"empty string", `{"interface":{"in":""}}`, `f.json:1:20: input.interface.in is "", want a string that is not empty`},
		{"null", `{"mark":null}`, "f.json:1:9: input.mark is null, want a whole number from 0 to 4294967295 (leave out what the packet does not have)"},
		{"object for field", `{"mark":{}}`, "f.json:1:9: input.mark is an object, want a whole number from 0 to 4294967295"},
		{"array for field", `{"mark":[1]}`, "f.json:1:9: input.mark is an array, want a whole number from 0 to 4294967295"},
		{"field for object", `{"tcp":443}`, "f.json:1:8: input.tcp is a number, want an object"},
		{"twice", "{\"mark\":1,\n\"mark\":2}", "f.json:2:1: input.mark is given twice"},
		{"rest", "{}\n{}", "f.json:2:1: the document goes on after its JSON value"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := rules.ParseInput("f.json", []byte(tt.text))
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

// FuzzParseInput reads arbitrary documents. An error has a place, and what is
// read can be set again.
func FuzzParseInput(f *testing.F) {
	for _, text := range []string{`{"ip": {"src": "10.0.0.1"}, "mark": 1}`, "{", `{"tcp":{"flags":{"syn":1e3}}}`, "{}x", `{"mark":1,"mark":2}`, "\xff"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		in, err := rules.ParseInput("f", text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Errorf("error without a place: %v", err)
			}
			return
		}
		again := rules.NewInput()
		for _, field := range showInput(in) {
			path, value, _ := strings.Cut(field, "=")
			if err := again.Set(path, value); err != nil {
				t.Error(err)
			}
		}
		if diff := cmp.Diff(showInput(in), showInput(again)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestParseFlow(t *testing.T) {
	tests := []struct {
		text  string
		known string // the rest is unknown
		lacks string // paths of which nothing is said, as such packets lack them
	}{
		{"tcp 10.0.0.1:40000 -> 1.2.3.4:443 output eth0 uid 1000",
			"packet.status=ok ip.version=4 ip.src=10.0.0.1 ip.dst=1.2.3.4 ip.protocol=tcp ip.protocol_number=6 src_port=40000 dst_port=443 tcp.src_port=40000 tcp.dst_port=443 hook=output direction=out interface.out=eth0 uid=1000",
			"udp.length icmp.type"},
		{"icmpv6 fe80::1 -> ff02::1 input wlan0 icmp.type=135 time.hour 3",
			"packet.status=ok ip.version=6 ip.src=fe80::1 ip.dst=ff02::1 ip.protocol=icmpv6 ip.protocol_number=58 icmp.type=135 hook=input direction=in interface.in=wlan0 time.hour=3",
			"src_port tcp.seq"},
		{"udp 10.0.0.1 -> 1.2.3.4 hook=forward interface.in=a interface.out=b",
			"packet.status=fragment ip.version=4 ip.src=10.0.0.1 ip.dst=1.2.3.4 ip.protocol=udp ip.protocol_number=17 ip.fragment=true hook=forward direction=forward interface.in=a interface.out=b",
			"src_port udp.length"},
		{"200 [2001:db8::1] -> 2001:db8::2",
			"packet.status=ok ip.version=6 ip.src=2001:db8::1 ip.dst=2001:db8::2 ip.protocol=200 ip.protocol_number=200", "tcp.seq"},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			in, err := rules.ParseFlow(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			var known []string
			for _, field := range showInput(in) {
				path, value, _ := strings.Cut(field, "=")
				if value != "?" {
					known = append(known, field)
				}
				if slices.Contains(strings.Fields(tt.lacks), path) {
					t.Errorf("%s: such a packet lacks it", field)
				}
			}
			if diff := cmp.Diff(strings.Fields(tt.known), known); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseFlowErrors(t *testing.T) {
	tests := []struct{ text, want string }{
		{"tcp 1.2.3.4", "want PROTOCOL SOURCE[:PORT] -> DESTINATION[:PORT]"},
		{"tpc 1.2.3.4:1 -> 1.2.3.4:2", `there is no protocol "tpc"`},
		{"tcp host:1 -> 1.2.3.4:2", `"host:1" is no address with or without a port`},
		{"tcp 1.2.3.4:1 -> 1.2.3.4:99999", `"1.2.3.4:99999" is no address with or without a port`},
		{"tcp 1.2.3.4:1 -> 1.2.3.4", "one end has a port and the other has none"},
		{"tcp 1.2.3.4:1 -> [::1]:1", "source and destination are of different families"},
		{"gre 1.2.3.4:1 -> 1.2.3.4:2", "protocol gre has no ports"},
		{"tcp 1.2.3.4:1 -> 1.2.3.4:2 eth0", `"eth0" is no key, no field and no hook`},
		{"tcp 1.2.3.4:1 -> 1.2.3.4:2 output eth0 eth1", `"eth1" is no key and no field, and interface.out is eth0 already`},
		{"tcp 1.2.3.4:1 -> 1.2.3.4:2 uid", "uid has no value"},
		{"tcp 1.2.3.4:1 -> 1.2.3.4:2 uid root", `input.uid is "root", want a whole number from 0 to 4294967295`},
		{"tcp 1.2.3.4:1 -> 1.2.3.4:2 usr=1", `there is no key "usr", want flags, time, answers-multicast, cgroup, `},
		{"tcp 1.2.3.4:1 -> 1.2.3.4:2 process.usr=1", "input.process.usr does not exist (input.process has "},
		{"tcp 1.2.3.4:1 -> 1.2.3.4:2 ttl=256", "want a whole number from 0 to 255"},
		{"tcp 1.2.3.4:1 -> 1.2.3.4:2 type=8", "a packet of this protocol has no icmp.type"},
		{"icmp 1.2.3.4 -> 1.2.3.5 type=echo", `input.icmp.type is "echo", want`},
		{"tcp 1.2.3.4:1 -> 1.2.3.4:2 time=9", "want it such as 2026-"},
		{"udp 1.2.3.4:1 -> 1.2.3.4:2 flags=syn", "a packet of this protocol has no tcp.flags."},
		{"tcp 1.2.3.4:1 -> 1.2.3.4:2 flags=sin", `there is no TCP flag "sin"`},
		{"tcp 1.2.3.4:1 -> 1.2.3.4:2 icmp.type 1", "a packet of this protocol has no icmp.type"},
		{"tcp 1.2.3.4:1 -> 1.2.3.4:2 dst_port 1", "dst_port follows from what stands before it"},
	}
	for _, tt := range tests {
		if _, err := rules.ParseFlow(tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q in it", tt.text, err, tt.want)
		}
	}
}

func TestInputOf(t *testing.T) {
	f := &rules.Facts{Meta: &packet.Meta{Hook: packet.Input, HasUID: true, UID: 7}, InInterface: "eth0", Packet: &packet.Packet{
		Status: packet.OK, Version: 4, Protocol: packet.ProtoUDP, HasPorts: true, DstPort: 53,
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"),
	}}
	in := rules.InputOf(f)
	var v, w rules.Value
	copied := in.Fields()
	for i, field := range rules.Fields() {
		has, want := copied[i].Get(nil, &v), field.Get(f, &w)
		if has != want || has && v.Text(field.Kind) != w.Text(field.Kind) {
			t.Errorf("%s: got %v %s, want %v %s", field.Path, has, v.Text(field.Kind), want, w.Text(field.Kind))
		}
	}
	if in.Unknown() != (rules.FieldSet{}) {
		t.Error("something of a packet at hand is unknown")
	}
}
