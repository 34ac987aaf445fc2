package hook_test

import (
	"fmt"
	"log"

	"github.com/verdictd/verdictd/hook"
)

func ExamplePlan() {
	plan, err := hook.Plan(hook.Config{Hooks: []hook.Hook{hook.Output}, QueueLast: 3, Bypass: true})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(plan)
	// Output:
	// table inet verdictd {
	// 	counter queued_output {}
	// 	counter errors {}
	// 	chain verdictd_offload {
	// 		ct state invalid counter comment "counts only: reading conntrack makes fragments arrive whole"
	// 	}
	// 	chain output {
	// 		type filter hook output priority 10; policy accept;
	// 		oif "lo" ct status & 0x20 == 0x0 accept comment "loopback"
	// 		oif "lo" fib daddr type local accept comment "loopback"
	// 		meta nfproto ipv6 ip6 hoplimit 255 meta l4proto 58 icmpv6 type 133-137 accept comment "neighbour discovery"
	// 		ct state related ct status & 0x9 == 0x0 counter name "errors" accept comment "tells a sender of a packet that began no connection; the kernel would not queue it"
	// 		jump verdictd_offload comment "flows already decided"
	// 		counter name "queued_output" queue flags bypass to 0-3 comment "to verdictd"
	// 	}
	// }
}

// A daemon binds its queue, installs, works, and leaves in this order.
func ExampleInstall() {
	rules, err := hook.Install(hook.Config{Hooks: []hook.Hook{hook.Output, hook.Input}})
	if err != nil {
		log.Fatal(err)
	}
	// ... judge packets ...
	if err := rules.Stop(); err != nil { // nothing new is queued
		log.Print(err)
	}
	// ... judge what is still queued ...
	if err := rules.Close(); err != nil { // nothing is left
		log.Print(err)
	}
}
