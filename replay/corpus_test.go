package replay

import (
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
)

// decoding accepts every packet that the real decoder can decode.
type decoding struct {
	decoder *packet.Decoder
	packet  packet.Packet
	seen    func(m *packet.Meta, p *packet.Packet) // may be nil
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
		err := d.Decode(&v)
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		each(v)
	}
}

// frameKey names a frame of the corpus.
type frameKey struct {
	capture string
	frame   uint64
}

// tuple is what the truth says of a packet.
type tuple struct {
	status       packet.Status
	src, dst     netip.Addr
	proto        uint8
	hasPorts     bool
	sport, dport uint16
	later        bool // a fragment, but not the first
}

// truth is a line of packets.jsonl.gz. proto is null where the oracle gives
// none; ports are those of the reassembled packet for fragments.
type truth struct {
	Capture      string
	Frame        uint64
	Src, Dst     netip.Addr
	Proto        *uint8
	Sport, Dport *uint16
	Frag         *int
}

// agrees compares a decoded packet with all that the truth says of it.
func (w truth) agrees(g tuple) bool {
	switch {
	case g.src != w.Src, g.dst != w.Dst:
		return false
	case w.Proto != nil && g.proto != *w.Proto:
		return false
	case g.later:
		return !g.hasPorts && w.Frag != nil
	case w.Frag == nil && w.Sport != nil:
		return g.hasPorts && g.sport == *w.Sport && g.dport == *w.Dport
	}
	return true
}

// refusedFrames are the IP packets of the public corpus under link types that
// are not supported.
var refusedFrames = map[string]int{
	"captures/zeek/llc.pcap":      1333, // FDDI
	"captures/zeek/radiotap.pcap": 3,
}

// notIP are the captures whose IP packets stand behind an encapsulation of
// their own EtherType or of LLC. Linux takes that off outside of the IP hooks,
// if at all, so to the hooks they are no IP packets.
var notIP = map[string]int{
	"captures/ndpi/default__BGP_redist.pcap":                            1,  // MPLS
	"captures/ndpi/default__ajp.pcap":                                   12, // Cisco FabricPath
	"captures/suricata-verify/tests__decode-dce__input.pcap":            31, // Cisco DCE
	"captures/suricata-verify/tests__decode-etag-01__input.pcap":        1,  // 802.1BR
	"captures/suricata-verify/tests__decode-etag-02__input.pcap":        1,
	"captures/suricata-verify/tests__decode-nsh-type1__input.pcap":      1, // network service header
	"captures/suricata-verify/tests__decode-nsh-type2__input.pcap":      1,
	"captures/zeek/cisco-fabric-path.pcap":                              64,
	"captures/zeek/mixed-vlan-mpls.pcap":                                11,
	"captures/zeek/mpls-in-vlan.pcap":                                   2,
	"captures/zeek/pbb-recursive-frames.pcapng":                         1, // 802.1ah
	"captures/zeek/pbb.pcap":                                            10,
	"captures/zeek/snap-tcp.pcap":                                       8, // 802.3 with SNAP
	"captures/zeek/trunc__mpls-6in6-6in6-4in6-trunc.pcap":               1,
	"captures/zeek/tunnels__mpls-6in6-6in6-4in6-invalid-version-4.pcap": 1,
	"captures/zeek/tunnels__mpls-6in6-6in6-invalid-version-6.pcap":      1,
}

// TestCorpusPublic compares frame counts and five-tuples with the truth.
func TestCorpusPublic(t *testing.T) {
	dir := labtest.Corpus(t, "public")
	decoded := map[frameKey]tuple{}
	var total Summary
	readJSONLines(t, filepath.Join(dir, "captures.jsonl"), func(want struct {
		Capture string
		Packets uint64
	}) {
		j := newDecoding()
		j.seen = func(m *packet.Meta, p *packet.Packet) {
			decoded[frameKey{want.Capture, uint64(m.ID)}] = tuple{
				p.Status, p.Src, p.Dst, p.Protocol, p.HasPorts, p.SrcPort, p.DstPort, p.FragmentOffset > 0,
			}
		}
		sum := runQuietly(t, filepath.Join(dir, want.Capture), j)
		if got := sum.Packets + sum.Skipped; got != want.Packets {
			t.Errorf("%s: got %d frames, want %d", want.Capture, got, want.Packets)
		}
		total.Packets += sum.Packets
		total.Elapsed += sum.Elapsed
	})
	t.Logf("%d packets judged, %.0f packets/s with opening", total.Packets, total.Rate())
	compareTuples(t, filepath.Join(dir, "packets.jsonl.gz"), decoded)
}

func compareTuples(t *testing.T, path string, decoded map[frameKey]tuple) {
	t.Helper()
	var supported, wrong int
	refused, other := map[string]int{}, map[string]int{}
	readJSONLines(t, path, func(want truth) {
		got, judged := decoded[frameKey{want.Capture, want.Frame}]
		switch {
		case !judged:
			refused[want.Capture]++
			return
		case got.status == packet.NotIP:
			other[want.Capture]++
			return
		}
		supported++
		if want.agrees(got) {
			return
		}
		wrong++
		if got.status != packet.Malformed { // malformed packets fail closed, any other is judged as what it is not
			t.Errorf("%s frame %d: got %+v, which is not what it is", want.Capture, want.Frame, got)
		}
	})
	if diff := cmp.Diff(refused, refusedFrames); diff != "" {
		t.Errorf("packets not judged (-got +want):\n%s", diff)
	}
	if diff := cmp.Diff(other, notIP); diff != "" {
		t.Errorf("packets that are not IP to the hooks (-got +want):\n%s", diff)
	}
	t.Logf("%d of %d five-tuples differ", wrong, supported)
	if wrong*1000 > supported {
		t.Errorf("%d of %d five-tuples differ, want at most one in a thousand", wrong, supported)
	}
}

// runQuietly runs over one capture. Errors within it are allowed: the corpus
// has broken captures.
func runQuietly(t *testing.T, path string, j Judge) Summary {
	t.Helper()
	sum, err := Run(t.Context(), Options{Format: JSON}, []string{path}, j, io.Discard)
	var place *CaptureError
	var link *LinkTypeError
	if err != nil && !errors.As(err, &place) && !errors.As(err, &link) {
		t.Errorf("%s: error without a place: %v", path, err)
	}
	return sum
}

// TestCorpusRuns judges every capture there is, twice, and compares the two
// reports.
func TestCorpusRuns(t *testing.T) {
	for _, part := range []string{"public", "robustness", "kernel-oracle"} {
		t.Run(part, func(t *testing.T) {
			dir := labtest.Corpus(t, part)
			var total Summary
			var broken int
			err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() || isTruth(path) {
					return err
				}
				sum, problem := compareRuns(t, path)
				if problem != nil {
					broken++
				}
				total.Captures++
				total.Packets += sum.Packets
				total.Skipped += sum.Skipped
				total.Elapsed += sum.Elapsed
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if total.Packets == 0 {
				t.Error("no packet was judged")
			}
			t.Logf("%d captures (%d with errors), %d packets judged, %d frames skipped, %.0f packets/s with opening",
				total.Captures, broken, total.Packets, total.Skipped, total.Rate())
		})
	}
}

// isTruth returns whether a file of the corpus is not a capture.
func isTruth(path string) bool {
	ext := filepath.Ext(path)
	return ext == ".jsonl" || ext == ".gz" && filepath.Ext(path[:len(path)-3]) == ".jsonl"
}

func compareRuns(t *testing.T, path string) (Summary, error) {
	t.Helper()
	var reports [2]string
	var sum Summary
	var err error
	for i := range reports {
		h := sha256.New()
		sum, err = Run(t.Context(), Options{Format: JSON}, []string{path}, newDecoding(), h)
		reports[i] = fmt.Sprintf("%x %v", h.Sum(nil), err)
	}
	if reports[0] != reports[1] {
		t.Errorf("%s: two runs differ:\n%s\n%s", path, reports[0], reports[1])
	}
	return sum, err
}
