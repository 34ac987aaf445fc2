package main_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// TestLabTunnelOwner: the packets that a tunnel sends and receives are the kernel's, and
// those inside are of who sends them, whether the tunnel is older than the daemon or
// not.
func TestLabTunnelOwner(t *testing.T) {
	setup(t, labtest.BPF)
	for _, test := range []struct{ name, link string }{
		{"vxlan", "vxlan id 7 dstport 4789"}, {"geneve", "geneve id 7 dstport 6081"},
		{"gre", "gre ttl 64"}, {"ipip", "ipip ttl 64"},
	} {
		t.Run(test.name, func(t *testing.T) { tunnelOwner(t, test.name, test.link, true) })
	}
	t.Run("vxlan younger", func(t *testing.T) { tunnelOwner(t, "vxlan", "vxlan id 7 dstport 4789", false) })
}

func tunnelOwner(t *testing.T, name, link string, older bool) {
	lan := labtest.Pair(t)
	build := func() {
		for i, ns := range []*lab.Namespace{lan.Client, lan.Server} {
			ends := fmt.Sprintf("local 10.99.0.%d remote 10.99.0.%d", 1+i, 2-i)
			if name == "geneve" {
				ends = fmt.Sprintf("remote 10.99.0.%d", 2-i)
			}
			cmd := exec.Command("ip", strings.Fields("link add tunnel type "+link+" "+ends)...)
			var text []byte
			if err := ns.Do(func() (err error) { text, err = cmd.CombinedOutput(); return err }); err != nil {
				t.Skipf("needs tunnels of type %s: %s", name, text) // most kernels of labs lack some
			}
			labtest.Output(t, ns, "ip", "address", "add", fmt.Sprintf("192.168.77.%d/24", 1+i), "dev", "tunnel")
			labtest.Output(t, ns, "ip", "link", "set", "tunnel", "up")
		}
	}
	if older {
		build()
	}
	d := startDaemon(t, lan.Client, acceptAll, "--hook", "output,input")
	if !older {
		build()
	}
	echo, err := lan.Server.Echo(t.Context(), netip.MustParseAddrPort("192.168.77.2:53"))
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	for _, proto := range []lab.Proto{lab.UDP, lab.TCP} {
		p := lab.Probe{Proto: proto, To: netip.MustParseAddrPort("192.168.77.2:53"), Timeout: wait}
		if out, err := lan.Client.Probe(p); err != nil || out != lab.Answered {
			t.Fatalf("%v through the tunnel: %v, %v", proto, out, err)
		}
	}
	d.Stop()
	seen := map[string]int{}
	for line := range strings.Lines(d.Stdout()) {
		var r struct {
			Type string `json:"event_type"`
			Dst  string `json:"dest_ip"`
			Own  struct {
				Process   struct{ Source string }
				Direction string
			} `json:"verdictd"`
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if r.Type == "verdict" && r.Own.Process.Source != "" && !strings.HasPrefix(r.Dst, "ff") {
			seen[r.Dst+" "+r.Own.Process.Source]++
		}
	}
	want := map[string]bool{
		"192.168.77.2 looked-up": true, "10.99.0.2 kernel": true, "10.99.0.1 kernel": true, // this process is older than the daemon
		"10.99.0.1 unknown": !older, // as long as nobody has looked what a new socket is for
	}
	for who := range seen {
		if !want[who] {
			t.Errorf("got %v; want what is outside of the kernel, both ways", seen)
		}
	}
	if seen["192.168.77.2 looked-up"] != 2 || seen["10.99.0.2 kernel"] == 0 {
		t.Errorf("got %v; want 2 flows inside, and those outside", seen)
	}
}
