package policy_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

// essentialCases are packets of each kind that a host needs, and next to each
// packets that are not it. The verdict is that of the policy.
func essentialCases() map[string]bool {
	return map[string]bool{
		"icmpv6 fe80::1 -> ff02::1:ff00:2 output icmp.type 135 ip.ttl 255": true,
		"icmpv6 fe80::1 -> fe80::2 input icmp.type 136 ip.ttl 255":         true,
		"icmpv6 fe80::1 -> fe80::2 input icmp.type 136 ip.ttl 254":         false,
		"icmpv6 fe80::1 -> fe80::2 forward icmp.type 136 ip.ttl 255":       false,
		"icmpv6 fe80::1 -> fe80::2 input icmp.type 128 ip.ttl 255":         false,

		"icmpv6 fe80::1 -> ff02::16 output icmp.type 143 ip.ttl 1":    true,
		"icmpv6 :: -> ff02::16 output icmp.type 143 ip.ttl 1":         true,
		"icmpv6 fe80::9 -> ff02::1 input icmp.type 130 ip.ttl 1":      true,
		"icmpv6 2001:db8::9 -> ff02::1 input icmp.type 130 ip.ttl 64": false,

		"igmp 192.0.2.1 -> 224.0.0.22 output ip.ttl 1": true,
		"igmp 192.0.2.9 -> 224.0.0.1 input ip.ttl 1":   true,
		"igmp 192.0.2.9 -> 192.0.2.1 input ip.ttl 1":   false,
		"igmp 192.0.2.9 -> 224.0.0.1 input ip.ttl 2":   false,
		"igmp 192.0.2.9 -> 224.0.0.1 forward ip.ttl 1": false,

		"udp 192.0.2.1:68 -> 192.0.2.9:67 output":       true,
		"udp 192.0.2.1:68 -> 255.255.255.255:67 output": true,
		"udp 192.0.2.9:67 -> 192.0.2.1:68 input":        true,
		"udp 192.0.2.9:67 -> 192.0.2.1:69 input":        false,
		"udp 192.0.2.9:68 -> 192.0.2.1:67 input":        false,
		"udp 192.0.2.1:69 -> 192.0.2.9:67 output":       false,

		"udp [fe80::1]:546 -> [ff02::1:2]:547 output":     true,
		"udp [fe80::9]:547 -> [fe80::1]:546 input":        true,
		"udp [2001:db8::9]:547 -> [fe80::1]:546 input":    false,
		"udp [fe80::1]:546 -> [2001:db8::9]:547 output":   false,
		"udp [fe80::9]:547 -> [fe80::1]:546 forward":      false,
		"udp 192.0.2.1:40000 -> 224.0.0.251:5353 output":  true,
		"udp 192.0.2.9:5353 -> 224.0.0.251:5353 input":    false,
		"udp 192.0.2.1:40000 -> 192.0.2.9:5353 output":    false,
		"udp [fe80::1]:5353 -> [ff02::fb]:5353 output":    true,
		"udp 192.0.2.1:1 -> 239.255.255.250:1900 output":  true,
		"udp [fe80::1]:1 -> [ff02::c]:1900 output":        true,
		"udp 192.0.2.1:1 -> 239.255.255.250:1900 forward": false,

		"udp 192.0.2.9:1900 -> 192.0.2.1:40000 input answers_multicast true":   true,
		"udp 192.0.2.9:1900 -> 192.0.2.1:40000 input answers_multicast false":  false,
		"udp 192.0.2.9:1900 -> 192.0.2.1:40000 output answers_multicast true":  false,
		"tcp 192.0.2.9:1900 -> 192.0.2.1:40000 input answers_multicast true":   false,
		"udp 192.0.2.9:1900 -> 192.0.2.1:40000 forward answers_multicast true": false,
	}
}

// TestEssential judges by the library, by the essential rules of a rules file,
// and by the examples.
func TestEssential(t *testing.T) {
	sources := map[string]policy.Source{
		"library":       source("package verdictd\n\nverdict := \"accept\" if data.std.essential.name\n"),
		"rules":         {FS: fstest.MapFS{"rules.yaml": {Data: []byte("essential: yes\n")}}},
		"Rego example":  {Path: "../policy.rego.example"},
		"rules example": {Path: "../rules.yaml.example"},
	}
	for name, src := range sources {
		t.Run(name, func(t *testing.T) {
			x := explainer(t, src)
			for text, want := range essentialCases() {
				in := parseFlow(t, text+" process.source unknown")
				d, unknown := x.Decide(in)
				if example := strings.HasSuffix(name, "example"); example && !want {
					continue // which accept more
				}
				if got := d.Action() == packet.Accept; got != want || d.Error != "" {
					t.Errorf("%s: got %+v (unknown %v), want accepted: %v", text, d, unknown, want)
				}
			}
		})
	}
}

// The library is part of what a policy says: two versions of it are two
// policies.
func TestLibraryIsHashed(t *testing.T) {
	const asks = "package verdictd\n\nimport data.std.essential\n\nverdict := \"accept\" if essential.name\n"
	report, err := policy.Check(t.Context(), source(asks))
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Files) != 2 || report.Engine != "compiled" || len(report.Findings) > 0 {
		t.Errorf("got %+v, want the library as second file, compiled, and no finding", report)
	}
	plain := load(t, policy.Source{FS: fstest.MapFS{"rules.yaml": {Data: []byte("essential: yes\n")}}})
	none := load(t, policy.Source{FS: fstest.MapFS{"rules.yaml": {Data: []byte("essential: no\ndefault: drop\n")}}})
	if plain.Hash() == none.Hash() {
		t.Error("essential rules do not change the hash")
	}
	if got := rules.Essential(); !strings.Contains(got, "essential-igmp") {
		t.Errorf("essential rules are %q", got)
	}
}
