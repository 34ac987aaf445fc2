package main_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// The tests in lab*_test.go run the real binary on the real kernel queue, in
// network namespaces of their own. What they claim is counted three times: by
// who receives, by the kernel's rules, and by the audit log.

const (
	// wait bounds what must happen; it is long because machines stall.
	wait = 10 * time.Second
	// silence is how long a probe whose packets are dropped goes on.
	silence = 200 * time.Millisecond
	// small is the length below which portsPolicy lets a ping pass.
	small, large = 20, 200
)

// Ports of portsPolicy: two accepted, two not.
const (
	echoPort, sinkPort             = 7001, 7003
	deniedEchoPort, deniedSinkPort = 7002, 7004
)

// Addresses of the two ends of a labtest.Router.
const (
	client4, client6 = "10.99.1.2", "fd99:1::2"
	server4, server6 = "10.99.2.2", "fd99:2::2"
)

const portsPolicy = `package verdictd

decision := {"verdict": "accept", "rule": "port"} if {
	input.dst_port in {7001, 7003}
} else := {"verdict": "accept", "rule": "ping"} if {
	input.icmp.type in {8, 128}
	input.packet.length < 100
}
`

const acceptAll = `package verdictd

decision := {"verdict": "accept", "rule": "open"}
`

// fewer returns n, or a quarter of it under the race detector: there all takes ten times
// as long, and what it looks for shows in a few as well as in many.
func fewer(n int) int {
	if labtest.UnderRace() {
		return n / 4
	}
	return n
}

// setup requires what nearly all tests need, and looks for leaks at the end.
func setup(t *testing.T, more ...labtest.Cap) {
	t.Helper()
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables, labtest.IPTablesBinary)
	labtest.Require(t, more...)
	labtest.Leaks(t)
}

// daemon is a verdictd run with a policy file of its own.
type daemon struct {
	*labtest.Process
	t      *testing.T
	ns     *lab.Namespace
	policy string // path
}

// startDaemon runs verdictd in the namespace and waits until it judges. An empty
// policy stands for the built-in one. With --hook it leaves no rules behind unless
// args say what it leaves.
func startDaemon(t *testing.T, ns *lab.Namespace, policy string, args ...string) *daemon {
	t.Helper()
	d := &daemon{t: t, ns: ns, policy: filepath.Join(t.TempDir(), "policy.rego")}
	if policy != "" {
		writeFile(t, d.policy, policy)
		args = append([]string{"--policy", d.policy}, args...)
	}
	if slices.Contains(args, "--hook") && !slices.Contains(args, "--on-stop") {
		args = append(args, "--on-stop", "open")
	}
	d.Process = labtest.Daemon(t, ns, append([]string{"run"}, args...)...)
	return d
}

// rule adds a rule of the user's, for both families, to the namespace. It comes
// after the daemon, so that no packet is queued for nobody.
func (d *daemon) rule(args ...string) {
	d.t.Helper()
	labtest.BothTables(d.t, d.ns, append([]string{"-A"}, args...)...)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// record is a line of the audit log.
type record struct {
	Seq     uint64     `json:"seq"`
	Type    string     `json:"event_type"`
	FlowID  uint64     `json:"flow_id"`
	In      string     `json:"in_iface"`
	Src     netip.Addr `json:"src_ip"`
	SrcPort uint16     `json:"src_port"`
	Dst     netip.Addr `json:"dest_ip"`
	DstPort uint16     `json:"dest_port"`
	Proto   string     `json:"proto"`
	Verdict struct {
		Action string   `json:"action"`
		Reject []string `json:"reject"`
	} `json:"verdict"`
	Drop struct {
		Reason string `json:"reason"`
		Length int    `json:"len"`
	} `json:"drop"`
	Flow struct {
		ToServer uint64 `json:"pkts_toserver"`
		ToClient uint64 `json:"pkts_toclient"`
		Action   string `json:"action"`
	} `json:"flow"`
	Stats map[string]uint64 `json:"stats"`
	Own   struct {
		Run    string  `json:"run"`
		Queue  uint16  `json:"queue"`
		Hook   string  `json:"hook"`
		Status string  `json:"status"`
		Detail string  `json:"detail"`
		UID    *uint32 `json:"uid"`
		Rule   string  `json:"rule"`
		Reason string  `json:"reason"`
		Mode   string  `json:"mode"`
		Would  string  `json:"would"`
		Header struct {
			Length int `json:"len"`
		} `json:"header"`
		Policy struct {
			Generation uint64 `json:"generation"`
			SHA256     string `json:"sha256"`
		} `json:"policy"`
		Group     uint16 `json:"group"`
		Prefix    string `json:"prefix"`
		Lost      uint64 `json:"lost"`
		LostTotal uint64 `json:"lost_total"`
		Origin    string `json:"origin"`
		Repeat    uint64 `json:"repeat"`
		Admin     string `json:"admin"`
		Message   string `json:"message"`
	} `json:"verdictd"`
}

// decided returns whether the record tells of a decision, and not of repeats.
func (r *record) decided() bool {
	return (r.Type == "verdict" || r.Type == "drop") && r.Own.Repeat == 0
}

// records returns the audit log so far that keep accepts; nil keeps all.
func (d *daemon) records(keep func(*record) bool) []record {
	d.t.Helper()
	all := parse(d.t, d.Stdout())
	if keep == nil {
		return all
	}
	return slices.DeleteFunc(all, func(r record) bool { return !keep(&r) })
}

// parse reads an audit log as far as it is written.
func parse(t *testing.T, text string) (all []record) {
	t.Helper()
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, "\n") {
			break // still being written
		}
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("audit log: %v in %s", err, line)
		}
		all = append(all, r)
	}
	return all
}

// summary is what verdictd says at its end.
type summary struct {
	packets, accepted, dropped, wouldDrop, malformed, lost uint64
}

// summary reads the line that begins the same.
func (d *daemon) summary() summary {
	d.t.Helper()
	_, line, found := strings.Cut(d.Stderr(), "msg=stopped ")
	if !found {
		d.t.Fatalf("no summary in %q", d.Stderr())
	}
	line, _, _ = strings.Cut(line, "\n")
	counts := make(map[string]uint64)
	for _, m := range regexp.MustCompile(`(\w+)=(\d+)`).FindAllStringSubmatch(line, -1) {
		counts[m[1]] = number(d.t, m[2])
	}
	return summary{
		packets: counts["packets"], accepted: counts["accepted"], dropped: counts["dropped"],
		wouldDrop: counts["would_drop"], malformed: counts["malformed"], lost: counts["lost"],
	}
}

func number(t *testing.T, text string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// finish stops the daemon and closes the books: each packet that the kernel's
// rules counted was judged, each judged one was accepted or dropped, the audit
// log accounts for all of them, and none was lost.
func (d *daemon) finish() summary {
	d.t.Helper()
	freeze(d.t, d.ns)
	sent := queued(d.t, d.ns)
	if code := d.Stop(); code != 0 {
		d.t.Errorf("got exit code %d, want 0", code)
	}
	s := d.summary()
	if s.packets != sent || s.lost != 0 {
		d.t.Errorf("got %d packets judged and %d lost, want the %d that the rules counted", s.packets, s.lost, sent)
	}
	if s.accepted+s.dropped != s.packets {
		d.t.Errorf("got %d accepted and %d dropped of %d packets", s.accepted, s.dropped, s.packets)
	}
	var audit uint64
	for _, r := range d.records(nil) {
		switch {
		case r.Type == "loss":
			d.t.Errorf("got a loss in the audit log: %+v", r)
		case r.Type == "flow":
			audit += r.Flow.ToServer + r.Flow.ToClient
		case r.decided() && r.FlowID == 0:
			audit++
		}
	}
	if audit != s.packets {
		d.t.Errorf("got %d packets in the audit log, want %d", audit, s.packets)
	}
	return s
}

// freeze lets nothing more come to the rules of the namespace, so that their
// counters and those of the daemon can be compared: late packets of closing
// TCP connections would move them apart.
func freeze(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	for _, chain := range []string{"PREROUTING", "OUTPUT"} {
		labtest.BothTables(t, ns, "-t", "raw", "-I", chain, "-j", "DROP")
	}
}

// queued returns how many packets the rules of the namespace sent to a queue.
func queued(t *testing.T, ns *lab.Namespace) uint64 {
	t.Helper()
	text, err := hook.Show(hook.Config{NetNS: ns.FD()})
	if err != nil && !errors.Is(err, hook.ErrNotInstalled) {
		t.Fatal(err)
	}
	var sum uint64
	for _, m := range regexp.MustCompile(`counter queued_\w+ \{ packets (\d+) `).FindAllStringSubmatch(text, -1) {
		sum += number(t, m[1])
	}
	for _, chain := range []string{"INPUT", "FORWARD", "OUTPUT"} {
		for _, r := range append(labtest.Counters(t, ns, "", chain), labtest.Counters6(t, ns, "", chain)...) {
			if r.Target == "NFQUEUE" || r.Target == "QUEUE" {
				sum += r.Packets
			}
		}
	}
	return sum
}
