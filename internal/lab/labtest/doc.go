// Package labtest gives tests the networks of internal/lab, the real verdictd
// binary inside them, and skips that name what the machine lacks.
//
// It owns requirements, cleanup and the handling of external programs in
// tests. It must not know queues or policies. Only tests import it.
//
//	func TestForwardDrop(t *testing.T) {
//		labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.IPTablesBinary)
//		labtest.Leaks(t)
//		net := labtest.Router(t)
//		labtest.IPTables(t, net.Router, "-A", "FORWARD", "-j", "NFQUEUE", "--queue-num", "0")
//		d := labtest.Daemon(t, net.Router, "run", "--queue", "0", "--policy", "p.rego")
//		got, err := net.Client.Probe(lab.Probe{Proto: lab.TCP, To: netip.MustParseAddrPort("10.99.2.2:80")})
//		...
//		if code := d.Stop(); code != 0 { t.Error(code, d.Stderr()) }
//	}
//
// VERDICTD_LAB=require turns every skip of Require and Lacks into a failure; CI sets it.
// Corpus is the exception: it may be absent on a user's machine.
//
// Call Leaks first: cleanups run in reverse order, so it looks last.
package labtest
