package main_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// icmpMessage returns an ICMP message of that type that quotes a packet and has
// some bytes more.
func icmpMessage(typ byte, quoted []byte, more int) []byte {
	b := append([]byte{typ, 1, 0, 0, 0, 0, 0, 0}, quoted...)
	b = append(b, make([]byte, more)...)
	sum := uint32(0)
	for i := range b {
		sum += uint32(b[i]) << (8 * (1 - i&1))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	return b
}

// TestLabRelated: of ICMP errors about an accepted flow, those pass that such a
// flow brings about, whether the flow passes by the queue or not.
func TestLabRelated(t *testing.T) {
	for _, offload := range []string{"on", "off"} {
		t.Run("offload "+offload, func(t *testing.T) {
			setup(t)
			net := labtest.Router(t)
			d := startDaemon(t, net.Router, portsPolicy, "--hook", "forward", "--offload", offload)
			arrived := capture(t, net.Server, func(p []byte) bool { return isTo(p, server4) })
			client, server := netip.MustParseAddrPort(client4+":40000"), netip.MustParseAddrPort(server4+":7003")
			there, err := lab.UDPPacket(client, server, []byte("x"))
			if err != nil {
				t.Fatal(err)
			}
			back, err := lab.UDPPacket(server, client, []byte("x"))
			if err != nil {
				t.Fatal(err)
			}
			inject := func(p []byte) {
				t.Helper()
				if err := net.Client.Inject("eth0", p); err != nil {
					t.Fatal(err)
				}
			}
			inject(there)
			if n := arrived.Wait(1, wait); n != 1 {
				t.Fatalf("%d datagrams arrived, want 1", n)
			}
			if err := net.Server.Inject("eth0", back); err != nil {
				t.Fatal(err)
			}
			message := func(typ byte, quoted []byte, more int) []byte {
				return ipPacket(t, client4, server4, unix.IPPROTO_ICMP, icmpMessage(typ, quoted, more))
			}
			d.waitJudged(0)
			inject(message(5, back, 0))    // redirect
			inject(message(4, back, 0))    // source quench
			inject(message(3, back, 1000)) // longer than such errors are
			inject(message(3, there, 0))   // to who did not send it
			inject(message(3, back, 0))
			inject(message(11, back, 500))
			// The client's kernel tells of the closed port as well.
			if n := arrived.Wait(5, silence); n != 4 {
				t.Errorf("%d packets arrived, want the datagram and three errors", n)
			}
			d.finish()
			logged := d.records(func(r *record) bool { return r.decided() && r.Own.Reason == "related" })
			if len(logged) != 1 {
				t.Errorf("%d errors are logged, want the first one", len(logged))
			}
		})
	}
}
