package main_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/internal/control"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// flowsTold is what the tests read of a status about flows and marks.
type flowsTold struct {
	Flows struct {
		Remarked uint64 `json:"remarked"`
		Marks    struct {
			Mask     string   `json:"mask"`
			Chosen   string   `json:"chosen"`
			Conflict []string `json:"conflicts"`
			Overwrit []string `json:"overwritten_by"`
		} `json:"marks"`
	} `json:"flows"`
}

// TestLabMarksChosen starts where others use bits of the default mask, or numbers in
// it. The daemon takes bits, or numbers, that are free, and says which; those that
// it is told to use, but others do, it refuses.
func TestLabMarksChosen(t *testing.T) {
	setup(t, labtest.NFTBinary)
	for _, tt := range []struct {
		name, others, mask, chosen string
	}{
		{"none", "true", "0xff000000", ""},
		{"a number", "ip rule add not fwmark 0x6d6f6c65 lookup 99", "0xff000000", ""},
		{"ip rule", "ip -6 rule add fwmark 0x1000000/0xff000000 priority 40 lookup 99", "0xff0000", "ip -6 rule 40: bits 0xff000000"},
		{"Calico", "iptables-legacy -t mangle -A PREROUTING -j MARK --set-xmark 0/0xffff0000", "0xff00", "as Calico"},
		{"kube-proxy and others", "nft add table inet k; nft add chain inet k c; nft 'add rule inet k c meta mark set mark and 0xffff3fff or 0x4000'; " +
			"ip rule add fwmark 0x3000000 priority 41 lookup 99", "0xf0000000", "ip rule 41: mark 0x3000000"},
	} {
		lan := labtest.Pair(t)
		echo(t, lan.Server, echoPort)
		labtest.Output(t, lan.Client, "sh", "-ec", tt.others)
		socket := filepath.Join(t.TempDir(), "sock")
		d := startDaemon(t, lan.Client, acceptAll, "--hook", "output,input", "--control", socket)
		for _, addr := range []string{"10.99.0.2", "fd99::2"} {
			if !asks(t, lan.Client, addr, 0) {
				t.Errorf("%s: %s does not answer", tt.name, addr)
			}
		}
		if offloaded(t, lan.Client) == 0 {
			t.Errorf("%s: nothing passed by the queue", tt.name)
		}
		var st flowsTold
		if err := control.Call(t.Context(), socket, "status", &st); err != nil {
			t.Fatal(err)
		}
		m := st.Flows.Marks
		if m.Mask != tt.mask || !strings.Contains(m.Chosen, tt.chosen) || (m.Chosen == "") != (tt.chosen == "") || len(m.Conflict) > 0 {
			t.Errorf("%s: got %+v, want mask %s, chosen because of %q", tt.name, m, tt.mask, tt.chosen)
		}
		d.Stop()
		if tt.chosen == "" {
			continue
		}
		e := labtest.Run(t, lan.Client, "run", "--policy", d.policy, "--hook", "output", "--offload-mask", "0xff000000")
		if e.Code != 1 || !strings.Contains(e.Stderr, tt.chosen) || !strings.Contains(e.Stderr, "--offload-mask "+tt.mask) {
			t.Errorf("%s: got exit code %d, %s want a refusal that names %q and %s", tt.name, e.Code, e.Stderr, tt.chosen, tt.mask)
		}
		if e := labtest.Run(t, lan.Client, "doctor", "--control", "none"); !strings.Contains(e.Stdout, "verdictd run takes "+tt.mask) {
			t.Errorf("%s: doctor does not say what is taken: %s", tt.name, e.Stdout)
		}
	}
}

// TestLabRemarked lets a rule overwrite whole connection marks, as those of wg-quick
// do. Each packet of a flow that is decided comes up again: that is counted, exactly,
// and told with the name of who does it.
func TestLabRemarked(t *testing.T) {
	setup(t, labtest.NFTBinary)
	lan := labtest.Pair(t)
	nft(t, lan.Client, "add table inet wg-quick-wg0 { chain postmangle { type filter hook postrouting priority mangle; meta l4proto udp ct mark set mark; }; }")
	socket := filepath.Join(t.TempDir(), "sock")
	d := startDaemon(t, lan.Client, acceptAll, "--hook", "output", "--control", socket)
	got := sink(t, lan.Server, sinkPort)
	from := []netip.AddrPort{to("10.99.0.1", 40001)}
	flood(t, lan.Client, lab.Flood{From: from, To: to("10.99.0.2", sinkPort), Count: 1})
	want(t, got, 1)
	time.Sleep(2100 * time.Millisecond) // the beginning of a flow may still be under way
	const count = 20
	flood(t, lan.Client, lab.Flood{From: from, To: to("10.99.0.2", sinkPort), Count: count, First: 1, Rate: 1000})
	want(t, got, 1+count)
	const who = "nf_tables, table wg-quick-wg0, chain postmangle"
	var st flowsTold
	if !lab.Poll(wait, func() bool {
		return control.Call(t.Context(), socket, "status", &st) == nil && st.Flows.Remarked == count
	}) {
		t.Errorf("got %d packets counted, want %d", st.Flows.Remarked, count)
	}
	if diff := cmp.Diff([]string{who}, st.Flows.Marks.Overwrit); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	d.WaitStderr("packets come up though their flow is decided")
	if n := strings.Count(d.Stderr(), "packets come up though their flow is decided"); n != 1 {
		t.Errorf("told %d times, want once: %s", n, d.Stderr())
	}
	// How many there were by then depends on when the daemon looked.
	told := regexp.MustCompile(fmt.Sprintf(`packets come up .* total=([1-9]|1[0-9]|%d) who=%q`, count, who))
	if !told.MatchString(d.Stderr()) {
		t.Errorf("the warning lacks %s: %s", told, d.Stderr())
	}
	if e := labtest.Run(t, lan.Client, "doctor", "--control", socket); !strings.Contains(e.Stdout, "connection marks are overwritten by: "+who) {
		t.Errorf("doctor does not tell of it: %s", e.Stdout)
	}
	d.finish()
}
