// Package lab builds throw-away networks out of anonymous network namespaces
// and veth pairs, and sends bounded traffic through them. It serves
// `verdictd demo` and, through internal/lab/labtest, the tests.
//
// It owns namespaces, links, routes, sysctls inside a namespace, and traffic:
// probes, numbered floods, echo servers, raw injection and capture. It must
// not know verdictd: no queue, no policy, no ruleset. It does not import
// testing and runs no external program.
//
// Nothing is written under /run/netns and nothing outside the namespaces
// changes, so a crash leaves nothing behind: the kernel destroys a namespace,
// its links and its rules when the last process, socket and descriptor in it
// is gone.
//
// # Use
//
//	net, err := lab.Router() // Client -- Router -- Server
//	defer net.Close()
//	srv, err := net.Server.Echo(ctx, netip.MustParseAddrPort("10.99.2.2:80"))
//	defer srv.Close()
//	got, err := net.Client.Probe(lab.Probe{Proto: lab.TCP, To: srv.Addr()})
//	// got is lab.Answered, lab.Refused, lab.Unreachable, lab.Denied or lab.Silent
//
// Any code runs inside a namespace with Do. Sockets belong to the namespace of
// the thread that creates them and child processes to that of the thread that
// starts them, so it is enough to open or start them inside:
//
//	ns.Do(func() error { conn, err = net.Dial("tcp", "10.99.0.2:80"); return err })
//	ns.Do(cmd.Start) // an exec.Cmd, running in the namespace
//
// A goroutine started inside Do does not inherit the namespace. Inside Do read
// /proc/thread-self/net, not /proc/net, which shows the namespace of the
// process's first thread.
//
// # Addresses
//
//	Pair    Client eth0 10.99.0.1/24 fd99::1/64    Server eth0 10.99.0.2/24 fd99::2/64
//	Router  Client eth0 10.99.1.2/24 fd99:1::2/64  Router eth0 10.99.1.1/24 fd99:1::1/64
//	        Server eth0 10.99.2.2/24 fd99:2::2/64  Router eth1 10.99.2.1/24 fd99:2::1/64
//
// Links have no duplicate address detection and no router discovery, and the
// two ends know each other as permanent neighbours: no ARP and no neighbour
// discovery disturbs a packet count. What IPv6 still sends unasked are
// multicast listener reports (ICMPv6 after a hop-by-hop header, to ff02::16),
// milliseconds after a link is made: an exact count names what it counts.
//
// # Bounds
//
// Every sender ends by count and by context, every probe by its timeout, every
// server and capture by Close, by its context and after MaxLife.
//
// Everything needs CAP_SYS_ADMIN (to enter a namespace) and CAP_NET_ADMIN;
// raw packets need CAP_NET_RAW.
package lab
