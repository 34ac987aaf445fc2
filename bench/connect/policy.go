package main

import (
	"fmt"
	"strings"
)

// rulesOfPolicy is how many rules a policy has. All but the last one or two are
// asked in vain for each connection.
const rulesOfPolicy = 50

// policies returns the policies by their file names.
func (b *bench) policies() map[string]string {
	known := fmt.Sprintf("input.process.exe == %q\n\tinput.process.user == \"root\"\n\tinput.tcp.dst_port == %d", b.cClient, serverPort)
	anybody := fmt.Sprintf("input.ip.protocol == \"tcp\"\n\tinput.dst_port == %d\n\tto_internal", serverPort)
	byProcess := append(bodies(rulesOfPolicy-2, true), known, anybody)
	return map[string]string{
		"plain.rego": policy(append(bodies(rulesOfPolicy-1, false), anybody), false),
		// Who is not known is judged by the last rule, and that is logged, to be counted.
		"process.rego": policy(byProcess, true),
	}
}

// bodies returns the conditions of rules that do not hold, of the kinds that
// people write.
func bodies(n int, process bool) []string {
	var all []string
	for i := range n {
		port := 20 + 7*i
		address := []string{
			fmt.Sprintf("input.ip.protocol == \"tcp\"\n\tinput.dst_port in {%d, %d, %d}", port, port+1, port+1000),
			fmt.Sprintf("net.cidr_contains(\"10.%d.0.0/16\", input.ip.dst)\n\tinput.dst_port == %d", i, port),
			fmt.Sprintf("input.ip.dst == \"203.0.113.%d\"\n\tinput.direction == \"out\"", i),
			fmt.Sprintf("input.uid == %d\n\tto_internal\n\tinput.dst_port != %d", 1000+i, port),
			fmt.Sprintf("input.ip.protocol == \"udp\"\n\tinput.dst_port == %d\n\tto_internal", port),
		}
		owner := []string{
			fmt.Sprintf("input.process.exe == \"/usr/bin/program%d\"\n\tinput.ip.protocol == \"tcp\"", i),
			fmt.Sprintf("input.process.unit == \"service%d.service\"\n\tinput.dst_port == %d", i, port),
			fmt.Sprintf("input.process.user == \"user%d\"\n\tto_internal", i),
		}
		kind := i % len(address)
		if process && kind < len(owner) {
			all = append(all, owner[kind])
			continue
		}
		all = append(all, address[kind])
	}
	return all
}

const helpers = `
internal_nets := {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"}

to_internal if {
	some n in internal_nets
	net.cidr_contains(n, input.ip.dst)
}
`

// policy makes rules of conditions: the first that holds decides. The last two
// accept, all others drop; whether the last logs is said.
func policy(bodies []string, logLast bool) string {
	var b strings.Builder
	b.WriteString("package verdictd\n\ndefault decision := {\"verdict\": \"drop\", \"rule\": \"default\"}\n\ndecision := ")
	for i, body := range bodies {
		verdict, log := "drop", true
		if i >= len(bodies)-2 {
			verdict, log = "accept", logLast && i == len(bodies)-1
		}
		if i > 0 {
			b.WriteString(" else := ")
		}
		fmt.Fprintf(&b, "{\"verdict\": %q, \"rule\": \"r%02d\", \"log\": %t} if {\n\t%s\n}", verdict, i+1, log, body)
	}
	return b.String() + "\n" + helpers
}
