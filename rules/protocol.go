package rules

import (
	"strconv"

	"github.com/verdictd/verdictd/packet"
)

// ProtocolName returns the name of an IP protocol as policies, reports and
// audit records spell it; a protocol without a name here is its number in
// decimal. It allocates nothing.
func ProtocolName(proto uint8) string {
	switch proto {
	case packet.ProtoICMP:
		return "icmp"
	case 2:
		return "igmp"
	case 4:
		return "ipip"
	case packet.ProtoTCP:
		return "tcp"
	case packet.ProtoUDP:
		return "udp"
	case packet.ProtoDCCP:
		return "dccp"
	case 41:
		return "ipv6"
	case 47:
		return "gre"
	case 50:
		return "esp"
	case 51:
		return "ah"
	case packet.ProtoICMPv6:
		return "icmpv6"
	case packet.ProtoSCTP:
		return "sctp"
	case packet.ProtoUDPLite:
		return "udplite"
	}
	if proto < 100 {
		return strconv.Itoa(int(proto)) // a constant of strconv: no allocation
	}
	i := 3 * (int(proto) - 100)
	return from100[i : i+3]
}

// from100 holds the numbers 100 to 255, three digits each.
const from100 = "" +
	"100101102103104105106107108109110111112113114115116117118119" +
	"120121122123124125126127128129130131132133134135136137138139" +
	"140141142143144145146147148149150151152153154155156157158159" +
	"160161162163164165166167168169170171172173174175176177178179" +
	"180181182183184185186187188189190191192193194195196197198199" +
	"200201202203204205206207208209210211212213214215216217218219" +
	"220221222223224225226227228229230231232233234235236237238239" +
	"240241242243244245246247248249250251252253254255"
