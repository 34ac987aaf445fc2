package logsink

import (
	"net/netip"
	"testing"

	"github.com/verdictd/verdictd/packet"
)

// TestCommunityID checks the examples that come with the specification and
// its reference implementation.
func TestCommunityID(t *testing.T) {
	tests := []struct {
		name             string
		proto            uint8
		src, dst         string
		srcPort, dstPort uint16 // type and code for ICMP
		seed             uint16
		want             string
	}{
		{"tcp", 6, "128.232.110.120", "66.35.250.204", 34855, 80, 0, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="},
		{"tcp reply", 6, "66.35.250.204", "128.232.110.120", 80, 34855, 0, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="},
		{"tcp seed", 6, "128.232.110.120", "66.35.250.204", 34855, 80, 1, "1:3V71V58M3Ksw/yuFALMcW0LAHvc="},
		{"udp", 17, "8.8.8.8", "192.168.1.52", 53, 54585, 0, "1:d/FP5EW3wiY1vCndhwleRRKHowQ="},
		{"sctp", 132, "192.168.170.8", "192.168.170.56", 7, 7, 0, "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs="},
		{"icmp echo", 1, "192.168.0.89", "192.168.0.1", 8, 0, 0, "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="},
		{"icmp echo seed", 1, "192.168.0.89", "192.168.0.1", 8, 0, 1, "1:03g6IloqVBdcZlPyX8r0hgoE7kA="},
		{"icmp echo reply", 1, "192.168.0.1", "192.168.0.89", 0, 20, 0, "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="},
		{"icmp one-way", 1, "192.168.0.89", "192.168.0.1", 20, 0, 0, "1:3o2RFccXzUgjl7zDpqmY7yJi8rI="},
		{"icmp one-way code", 1, "192.168.0.89", "192.168.0.1", 20, 1, 0, "1:tz/fHIDUHs19NkixVVoOZywde+I="},
		{"icmpv6 router advertisement", 58, "fe80::260:97ff:fe07:69ea", "ff02::1", 134, 0, 0, "1:pkvHqCL88/tg1k4cPigmZXUtL00="},
		{"icmpv6 neighbour", 58, "fe80::200:86ff:fe05:80da", "fe80::260:97ff:fe07:69ea", 135, 0, 0, "1:dGHyGvjMfljg6Bppwm3bg0LO8TY="},
		{"gre", 47, "10.1.2.3", "10.4.5.6", 0, 0, 0, "1:hjmHR9XFBjHCDWCa1JnWlrW+aJY="},
		{"gre back", 47, "10.4.5.6", "10.1.2.3", 0, 0, 0, "1:hjmHR9XFBjHCDWCa1JnWlrW+aJY="},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := Event{
				Src: netip.MustParseAddr(tt.src), Dst: netip.MustParseAddr(tt.dst),
				Protocol: tt.proto, Status: packet.OK,
			}
			switch tt.proto {
			case packet.ProtoICMP, packet.ProtoICMPv6:
				e.ICMPType, e.ICMPCode = uint8(tt.srcPort), uint8(tt.dstPort)
			case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP:
				e.HasPorts, e.SrcPort, e.DstPort = true, tt.srcPort, tt.dstPort
			}
			c := communityID{seed: tt.seed}
			if got := string(c.append(nil, &e)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}
