package replay

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/verdictd/verdictd/packet"
)

func corpus(t testing.TB) string {
	dir := os.Getenv("VERDICTD_CORPUS")
	if dir == "" {
		dir = "../../shared/corpus"
	}
	if _, err := os.Stat(dir); err != nil {
		t.Skip("no corpus")
	}
	return dir
}

// decoding accepts every packet that the real decoder can decode.
type decoding struct {
	decoder *packet.Decoder
	packet  packet.Packet
	seen    func(m *packet.Meta, p *packet.Packet)
}

func newDecoding() *decoding { return &decoding{decoder: packet.NewDecoder()} }

func (d *decoding) Judge(m *packet.Meta, data []byte) Outcome {
	d.decoder.Decode(m, data, &d.packet)
	if d.seen != nil {
		d.seen(m, &d.packet)
	}
	o := Outcome{Packet: &d.packet, Reason: d.packet.Status.String(), Detail: d.packet.Reason}
	if s := d.packet.Status; s == packet.OK || s == packet.Fragment {
		o.Verdict.Action, o.Proto = packet.Accept, protoName(d.packet.Protocol)
	}
	return o
}

func protoName(proto uint8) string {
	switch proto {
	case packet.ProtoTCP:
		return "tcp"
	case packet.ProtoUDP:
		return "udp"
	case packet.ProtoICMP:
		return "icmp"
	case packet.ProtoICMPv6:
		return "icmpv6"
	}
	return "other"
}

// readJSONLines calls each with every line of a file, which may be compressed.
func readJSONLines[T any](t *testing.T, path string, each func(T)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r io.Reader = f
	if filepath.Ext(path) == ".gz" {
		if r, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	for d := json.NewDecoder(bufio.NewReader(r)); ; {
		var v T
		if err := d.Decode(&v); err == io.EOF {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		each(v)
	}
}

type captureLine struct {
	Capture string
	Packets uint64
}

type packetLine struct {
	Capture      string
	Frame        uint64
	Src, Dst     netip.Addr
	Proto        uint8
	Sport, Dport *uint16
}

type frameKey struct {
	capture string
	frame   uint64
}

type tuple struct {
	status   packet.Status
	src, dst netip.Addr
	proto    uint8
	ports    bool
	sport    uint16
	dport    uint16
}

// TestCorpusPublic compares frame counts and five-tuples with the truth.
func TestCorpusPublic(t *testing.T) {
	dir := filepath.Join(corpus(t), "public")
	got := map[frameKey]tuple{}
	total := Summary{}
	readJSONLines(t, filepath.Join(dir, "captures.jsonl"), func(c captureLine) {
		j := newDecoding()
		j.seen = func(m *packet.Meta, p *packet.Packet) {
			got[frameKey{c.Capture, uint64(m.ID)}] = tuple{p.Status, p.Src, p.Dst, p.Protocol, p.HasPorts, p.SrcPort, p.DstPort}
		}
		sum, err := Run(t.Context(), Options{Format: JSON}, []string{filepath.Join(dir, c.Capture)}, j, io.Discard)
		if err != nil {
			t.Logf("%v", err)
		}
		if n := sum.Packets + sum.Skipped; n != c.Packets {
			t.Errorf("%s: %d frames, want %d", c.Capture, n, c.Packets)
		}
		total.Packets += sum.Packets
		total.Elapsed += sum.Elapsed
	})
	t.Logf("%d packets, %.0f packets/s", total.Packets, total.Rate())
	var all, wrong int
	readJSONLines(t, filepath.Join(dir, "packets.jsonl.gz"), func(want packetLine) {
		all++
		g, ok := got[frameKey{want.Capture, want.Frame}]
		if !ok {
			wrong++
			t.Logf("%s frame %d: not judged", want.Capture, want.Frame)
			return
		}
		w := tuple{g.status, want.Src, want.Dst, want.Proto, want.Sport != nil, 0, 0}
		if want.Sport != nil {
			w.sport, w.dport = *want.Sport, *want.Dport
		}
		if g != w {
			wrong++
			t.Logf("%s frame %d: got %v, want %v", want.Capture, want.Frame, g, w)
		}
	})
	t.Logf("%d of %d wrong", wrong, all)
}
