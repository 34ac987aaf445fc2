package packet_test

import (
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
)

// TestKernelOracle compares Decode with what Linux did with the same packets.
// What the kernel delivered is decoded as that, or fails closed; a single
// packet may not fail closed.
func TestKernelOracle(t *testing.T) {
	dir := labtest.Corpus(t, "kernel-oracle")
	var frames []packet.Packet
	d := packet.NewDecoder()
	d.LetPanicsThrough()
	err := readCapture(filepath.Join(dir, "kernel.pcap"), func(c capturedPacket) {
		var p packet.Packet
		d.Decode(&c.meta, c.data, &p)
		p.Payload = nil // lent
		frames = append(frames, p)
	})
	if err != nil {
		t.Fatal(err)
	}
	type verdict struct {
		Case   string
		Frames []int
		L4     string
		DPort  uint16
		Kernel string
	}
	exact, closed := 0, 0
	eachLine(t, filepath.Join(dir, "kernel.jsonl"), func(v verdict) {
		if v.Kernel != "accepted" {
			return
		}
		proto := map[string]uint8{"tcp": packet.ProtoTCP, "udp": packet.ProtoUDP}[v.L4]
		for _, frame := range v.Frames {
			p := frames[frame-1]
			switch {
			case p.Is(proto) && p.DstPort == v.DPort:
				exact++
			case p.Status == packet.OK:
				t.Errorf("%s: frame %d is %d port %d, the kernel delivered %s port %d", v.Case, frame, p.Protocol, p.DstPort, v.L4, v.DPort)
			case len(v.Frames) == 1:
				t.Errorf("%s: frame %d is %v (%s), the kernel accepted it", v.Case, frame, p.Status, p.Reason)
			default:
				closed++
			}
		}
	})
	if exact == 0 {
		t.Error("no accepted case in the corpus")
	}
	t.Logf("%d frames exact, %d failed closed (fragments of accepted packets)", exact, closed)
}

// truth is what tshark says about an IP packet. Ports are nil if it saw none.
// Of a datagram in fragments it shows the ports where it can put it together.
type truth struct {
	Capture  string
	Frame    int
	Src, Dst netip.Addr
	Proto    *uint8
	SPort    *uint16
	DPort    *uint16
	Frag     *int // offset; nil if it is no fragment
}

// misnumbered are captures in which tshark counts blocks as frames that pcapgo
// passes over, so that frame numbers do not match.
var misnumbered = []string{"__test018.pcapng", "__test102.pcapng", "__test202.pcapng"}

// notWrong are packets that decode where tshark gives up, rightly so.
var notWrong = map[string]string{
	"captures/suricata-verify/tests__firewall__tcp-session-decode-malformed-ipv4__input.pcap frame 8": "the kernel does not read the security option that tshark refuses",
}

// TestPublicCaptures compares Decode with tshark on real traffic. All that
// decodes must be right. Some packets are malformed on purpose, so that tshark
// still names what Decode refuses: they count as differences.
func TestPublicCaptures(t *testing.T) {
	dir := labtest.Corpus(t, "public")
	want := map[string]map[int]truth{}
	eachLine(t, filepath.Join(dir, "packets.jsonl.gz"), func(v truth) {
		if slices.ContainsFunc(misnumbered, func(end string) bool { return strings.HasSuffix(v.Capture, end) }) {
			return
		}
		if want[v.Capture] == nil {
			want[v.Capture] = map[int]truth{}
		}
		want[v.Capture][v.Frame] = v
	})
	s := score{d: packet.NewDecoder()}
	s.d.LetPanicsThrough()
	for _, capture := range slices.Sorted(maps.Keys(want)) {
		frames := want[capture]
		err := readCapture(filepath.Join(dir, capture), func(c capturedPacket) { s.add(t, capture, c, frames) })
		if err != nil && len(frames) > 0 {
			t.Logf("%s: %d packets unread: %v", capture, len(frames), err)
		}
		s.unread += len(frames)
	}
	right := 100 * (1 - float64(s.refused)/float64(s.packets))
	t.Logf("%d packets, %d refused (%.4f %% right); %d of other link types, %d that pcapgo does not read",
		s.packets, s.refused, right, s.other, s.unread)
	if s.packets < 70000 || right < 99.95 {
		t.Errorf("5-tuple right on %.4f %% of %d packets, want 99.95 %%", right, s.packets)
	}
}

// score counts packets: those compared, of them those refused though tshark
// knows better, and those not compared for their link type or for pcapgo.
type score struct {
	d                               *packet.Decoder
	packets, refused, other, unread int
}

// add compares one packet and takes its truth out of frames.
func (s *score) add(t *testing.T, capture string, c capturedPacket, frames map[int]truth) {
	v, ok := frames[c.frame]
	if !ok {
		return
	}
	delete(frames, c.frame)
	if !c.known {
		s.other++
		return
	}
	s.packets++
	var p packet.Packet
	s.d.Decode(&c.meta, c.data, &p)
	diff, place := v.compare(&p), fmt.Sprintf("%s frame %d", capture, c.frame)
	switch {
	case diff == "":
	case p.Status == packet.Malformed:
		s.refused++
		t.Logf("%s: %s", place, diff)
	case notWrong[place] == "":
		t.Errorf("%s: %s", place, diff)
	}
}

// compare returns how p differs from the truth, or "".
func (v *truth) compare(p *packet.Packet) string {
	switch {
	case p.Status == packet.Malformed && v.SPort == nil && v.Proto == nil:
		return "" // tshark could not read on either
	case p.Status == packet.Malformed:
		return "refused: " + p.Reason
	case p.Src != v.Src || p.Dst != v.Dst:
		return fmt.Sprintf("got %v > %v, want %v > %v", p.Src, p.Dst, v.Src, v.Dst)
	case v.Proto != nil && p.Protocol != *v.Proto:
		return fmt.Sprintf("got protocol %d, want %d", p.Protocol, *v.Proto)
	}
	return v.comparePorts(p)
}

func (v *truth) comparePorts(p *packet.Packet) string {
	switch {
	case v.Frag != nil && (v.SPort == nil || !p.HasPorts), p.Protocol == packet.ProtoSCTP:
		return "" // no SCTP ports in the truth
	case (v.SPort != nil) != p.HasPorts:
		return fmt.Sprintf("got %v, has ports %v, want %v", p.Status, p.HasPorts, v.SPort != nil)
	case v.SPort != nil && (p.SrcPort != *v.SPort || p.DstPort != *v.DPort):
		return fmt.Sprintf("got ports %d > %d, want %d > %d", p.SrcPort, p.DstPort, *v.SPort, *v.DPort)
	}
	return ""
}

// TestCorpusNoCrash decodes all that can be read from all captures, from the
// link header on and from behind it, and compares it with the flat decoder.
func TestCorpusNoCrash(t *testing.T) {
	d := packet.NewDecoder()
	d.LetPanicsThrough()
	captures, packets := 0, 0
	check := func(m packet.Meta, data []byte) {
		var p packet.Packet
		d.Decode(&m, data, &p)
		checkPacket(t, data, &p)
		if want := flatDecode(m, data); want.Status != p.Status || want.Status == packet.OK && want.Key() != p.Key() {
			t.Errorf("Decode(% x) = %v %v, flat decoder %v %v", data, p.Status, p.Key(), want.Status, want.Key())
		}
		packets++
	}
	err := filepath.WalkDir(labtest.Corpus(t), func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil || entry.IsDir():
			return err
		case strings.Contains(path, "crashers"):
			return eachCrasher(path, func(data []byte) { check(packet.Meta{}, data) })
		case !strings.Contains(path, "captures"+string(filepath.Separator)):
			return nil
		}
		captures++
		readErr := readCapture(path, func(c capturedPacket) {
			check(packet.Meta{}, c.raw)
			if c.known {
				check(c.meta, c.data)
			}
		})
		_ = readErr // many are cut or damaged on purpose
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if captures == 0 {
		t.Error("no captures in the corpus")
	}
	t.Logf("%d captures, %d decodes", captures, packets)
}
