package main_test

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabHooks sends TCP, UDP and ICMP of both families through each hook, to
// the queue by verdictd's own rules and by the user's.
func TestLabHooks(t *testing.T) {
	hooks := []struct {
		name string
		at   func(*lab.Network) *lab.Namespace
	}{
		{"output", func(n *lab.Network) *lab.Namespace { return n.Client }},
		{"input", func(n *lab.Network) *lab.Namespace { return n.Server }},
		{"forward", func(n *lab.Network) *lab.Namespace { return n.Router }},
	}
	for _, h := range hooks {
		t.Run(h.name+"/own rules", func(t *testing.T) {
			setup(t)
			net := labtest.Router(t)
			judgeHook(t, net, startDaemon(t, h.at(net), portsPolicy, "--hook", h.name), h.name)
		})
		for _, target := range []string{"NFQUEUE --queue-num 3", "QUEUE"} {
			t.Run(h.name+"/-j "+target, func(t *testing.T) {
				setup(t)
				net := labtest.Router(t)
				var args []string // -j QUEUE is queue 0, which is the default
				if target != "QUEUE" {
					args = []string{"--queue", "3"}
				}
				d := startDaemon(t, h.at(net), portsPolicy, args...)
				d.rule(append([]string{strings.ToUpper(h.name), "-j"}, strings.Fields(target)...)...)
				judgeHook(t, net, d, h.name)
			})
		}
	}
}

// judgeHook sends from the client to the server what portsPolicy accepts and
// what it drops, and checks both sides and the audit log.
func judgeHook(t *testing.T, net *lab.Network, d *daemon, hook string) {
	t.Helper()
	const count = 200
	servers := addrs(server4, server6)
	echo(t, net.Server, echoPort, deniedEchoPort)
	good, bad := sink(t, net.Server, sinkPort), sink(t, net.Server, deniedSinkPort)
	floodAll(t, net.Client, lab.Flood{Count: count}, servers, bad, good)
	ask(t, questions(net.Client, servers...))
	want(t, good, 2*count)
	s := d.finish()
	want(t, bad, 0)

	// A flow has one record of its decision. Replies have none, nor have they
	// any of their own where they are judged: in FORWARD.
	got := make(map[string]int)
	var multicast, syn uint64
	for _, r := range d.records((*record).decided) {
		if r.Dst.IsMulticast() { // the kernel's own listener reports
			multicast++
			continue
		}
		got[fmt.Sprint(r.Own.Hook, " ", r.Dst, " ", r.Proto, " ", r.DstPort, " ", r.Verdict.Action, " ", r.Own.Rule)]++
	}
	for _, r := range d.records(func(r *record) bool { return r.Type == "flow" && r.DstPort == deniedEchoPort && r.Proto == "TCP" }) {
		syn += r.Flow.ToServer
	}
	wanted := make(map[string]int)
	for _, addr := range servers {
		ping := "ICMP"
		if addr.Is6() {
			ping = "IPv6-ICMP"
		}
		for _, line := range []string{
			"TCP 7001 accept port", "UDP 7001 accept port", "UDP 7003 accept port", ping + " 0 accept ping",
			"TCP 7002 drop default", "UDP 7002 drop default", "UDP 7004 drop default", ping + " 0 drop default",
		} {
			wanted[fmt.Sprint(hook, " ", addr, " ", line)] = 1
		}
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Errorf("decisions in the audit log (-want +got):\n%s", diff)
	}
	// Dropped are both floods, both UDP probes and both pings, and each SYN as
	// often as TCP sent it.
	if dropped := 2*(count+1+1) + syn + multicast; syn < 2 || s.dropped != dropped {
		t.Errorf("got %d packets dropped, want %d (of them %d SYN)", s.dropped, dropped, syn)
	}
}

// TestLabFragmentsWhole sends datagrams in fragments. With verdictd's own rules
// the kernel puts them together: one packet is judged, by its port.
func TestLabFragmentsWhole(t *testing.T) {
	for _, hook := range []string{"input", "forward"} {
		t.Run(hook, func(t *testing.T) {
			setup(t)
			net := labtest.Router(t)
			ns := net.Server
			if hook == "forward" {
				ns = net.Router
			}
			d := startDaemon(t, ns, portsPolicy, "--hook", hook, "--offload", "off") // each packet is counted
			const count, size = 50, 3000
			good, bad := sink(t, net.Server, sinkPort), sink(t, net.Server, deniedSinkPort)
			var fragments []*lab.Capture
			for _, addr := range addrs(server4, server6) {
				fragments = append(fragments, capture(t, net.Server, isFragmentTo(addr)))
			}
			floodAll(t, net.Client, lab.Flood{Count: count, Size: size}, addrs(server4, server6), bad, good)
			want(t, good, 2*count)
			s := d.finish()
			want(t, bad, 0)
			multicast := len(d.records(func(r *record) bool { return r.decided() && r.Dst.IsMulticast() }))
			if s.accepted != 2*count || s.dropped != uint64(2*count+multicast) {
				t.Errorf("got %d accepted and %d dropped, want %d and %d", s.accepted, s.dropped, 2*count, 2*count+multicast)
			}
			headers := map[bool]int{true: 20 + 8, false: 40 + 8} // by whether it is IPv4
			for _, r := range d.records(func(r *record) bool { return r.decided() && r.Proto == "UDP" }) {
				if whole := headers[r.Dst.Is4()] + size; r.Own.Status != "" || r.Drop.Length+r.Own.Header.Length != whole {
					t.Errorf("got %+v, want a whole packet of %d bytes", r, whole)
				}
			}
			// The server sees the fragments before its own hooks: three of each
			// datagram, and in FORWARD only of those accepted.
			wanted := 3 * 2 * count
			if hook == "forward" {
				wanted = 3 * count
			}
			for _, c := range fragments {
				if got := c.Wait(wanted, wait); got != wanted {
					t.Errorf("got %d fragments at the server, want %d", got, wanted)
				}
			}
		})
	}
}

// isFragmentTo matches fragments, first ones and others, to an address.
func isFragmentTo(to netip.Addr) func([]byte) bool {
	return func(p []byte) bool {
		if !isTo(p, to.String()) {
			return false
		}
		return to.Is4() && (p[6]&0x3f != 0 || p[7] != 0) || to.Is6() && p[6] == unix.IPPROTO_FRAGMENT
	}
}

// TestLabFragmentsApart sends datagrams in fragments past a rule without
// connection tracking: each fragment is judged, and only the first has ports.
func TestLabFragmentsApart(t *testing.T) {
	const fragmentsToo = portsPolicy + `else := {"verdict": "accept", "rule": "fragment"} if input.packet.status == "fragment"
`
	tests := []struct {
		name, policy     string
		datagrams, parts int // of each datagram, what arrives
		rules            map[string]int
	}{
		{"port policy", portsPolicy, 0, 1, map[string]int{"accept port": 2, "drop default": 2 * 2}},
		{"fragments accepted", fragmentsToo, 1, 3, map[string]int{"accept port": 2, "accept fragment": 2 * 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			setup(t)
			net := labtest.Router(t)
			d := startDaemon(t, net.Router, tt.policy, "--queue", "7")
			d.rule("FORWARD", "-j", "NFQUEUE", "--queue-num", "7")
			const count = 40
			got := sink(t, net.Server, sinkPort)
			var fragments []*lab.Capture
			for _, addr := range addrs(server4, server6) {
				fragments = append(fragments, capture(t, net.Server, isFragmentTo(addr)))
			}
			floodAll(t, net.Client, lab.Flood{Count: count, Size: 3000}, addrs(server4, server6), got)
			for _, c := range fragments {
				if got := c.Wait(tt.parts*count, wait); got != tt.parts*count {
					t.Errorf("got %d fragments at the server, want %d", got, tt.parts*count)
				}
			}
			want(t, got, 2*tt.datagrams*count)
			s := d.finish()
			if s.packets != 2*3*count || s.accepted != uint64(2*tt.parts*count) {
				t.Errorf("got %d fragments judged and %d accepted, want %d and %d", s.packets, s.accepted, 2*3*count, 2*tt.parts*count)
			}
			// First fragments are one flow, each other one has its own record.
			wanted := maps.Clone(tt.rules)
			for key := range wanted {
				if key != "accept port" {
					wanted[key] *= count
				}
			}
			rules := make(map[string]int)
			for _, r := range d.records((*record).decided) {
				rules[r.Verdict.Action+" "+r.Own.Rule]++
			}
			if diff := cmp.Diff(wanted, rules); diff != "" {
				t.Errorf("decisions in the audit log (-want +got):\n%s", diff)
			}
		})
	}
}
