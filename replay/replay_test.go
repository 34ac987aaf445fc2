package replay

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/verdictd/verdictd/packet"
)

// judging decodes with the real decoder and gives verdicts that show every
// column: by destination port, else by status.
type judging struct{ *decoding }

func (j judging) Judge(m *packet.Meta, data []byte) Outcome {
	o := j.decoding.Judge(m, data)
	switch {
	case o.Packet.Status == packet.Malformed || o.Packet.Status == packet.NotIP:
		return o
	case o.Packet.DstPort == 53:
		o.Rule, o.Reason = "dns", "policy"
	case o.Packet.DstPort == 443:
		o.Verdict = packet.Verdict{Action: packet.Reject, SetMark: true, Mark: 7}
		o.Rule, o.Reason, o.Detail = "no \"web\"", "policy", "not\x1b[31m today\n✓\xff"
	default:
		o.Verdict.Action, o.Reason = packet.Drop, "policy"
	}
	return o
}

func newJudging() judging { return judging{newDecoding()} }

// showcase builds a capture with a packet of every kind.
func showcase() []byte {
	o := binary.LittleEndian
	u32 := func(v uint32) []byte { return o.AppendUint32(nil, v) }
	arp, bad := make([]byte, 28), udp4(1, 2, 3, 4, "short")
	bad[0] = 0x44
	ns := uint64(1_700_000_000_000_000_000)
	return bytes.Join([][]byte{
		ngSection(o),
		ngInterface(o, linkEthernet, 0, ngOption(o, optName, []byte("eth0")), ngOption(o, optTsresol, []byte{9})),
		ngInterface(o, linkNFLOG, 0, ngOption(o, optName, []byte("nflog:5")), ngOption(o, optTsresol, []byte{9})),
		ngInterface(o, linkSLL2, 0, ngOption(o, optName, []byte("any")), ngOption(o, optTsresol, []byte{9})),
		ngInterface(o, 127, 0),
		ngEnhanced(o, 0, ns, ethernet(0x0800, udp4(1, 2, 40000, 53, "query")), 60, ngOption(o, optFlags, u32(2))),
		ngEnhanced(o, 0, ns+1_234_567_890, ethernet(0x8100, vlan(6, 0x86dd, tcp6(40001, 443))), 78, ngOption(o, optFlags, u32(1))),
		ngEnhanced(o, 0, ns-500_000, ethernet(0x0800, icmp4(8)), 60),
		ngEnhanced(o, 3, ns, []byte("radio"), 5),
		ngEnhanced(o, 0, ns+3, ethernet(0x0800, fragment4()), 1514),
		ngEnhanced(o, 0, ns+4, ethernet(0x0806, arp), 60),
		ngEnhanced(o, 0, ns+5, ethernet(0x0800, bad), 60),
		ngEnhanced(o, 0, ns+6, ethernet(0x0800, nil)[:9], 60),
		ngBlock(o, blockCustom, make([]byte, 8)),
		ngEnhanced(o, 1, ns+7, nflog(2,
			nflogAttr(o, nflogPacketHeader, []byte{8, 0, byte(packet.Input), 0}),
			nflogAttr(o, nflogPrefix, []byte("in: \x00")), nflogAttr(o, nflogInDev, be32(2)), nflogAttr(o, nflogMark, be32(9)),
			nflogAttr(o, nflogUID, be32(1000)), nflogAttr(o, nflogGID, be32(100)),
			nflogAttr(o, nflogPayload, udp4(3, 4, 5, 53, "logged"))), 108),
		ngEnhanced(o, 2, ns+8, sll2(4, 0x8864, 3, pppoe(17, append([]byte{0, 0x21}, udp4(5, 6, 7, 53, "x")...))), 57),
	}, nil)
}

// report runs over captures and returns what Run wrote.
func report(t *testing.T, o Options, captures ...string) (string, Summary) {
	t.Helper()
	var out bytes.Buffer
	sum, err := Run(t.Context(), o, captures, newJudging(), &out)
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), sum
}

// TestGolden compares reports with testdata/report.txtar. UPDATE_GOLDEN=1
// rewrites it.
func TestGolden(t *testing.T) {
	const golden = "testdata/report.txtar"
	path := save(t, "showcase.pcapng", showcase())
	text, sum := report(t, Options{}, path)
	full, _ := report(t, Options{Absolute: true, Color: true, FixHook: true, Hook: packet.Input}, path)
	lines, _ := report(t, Options{Format: JSON}, path)
	sum.Elapsed = 2 * time.Second
	got := &txtar.Archive{Files: []txtar.File{
		{Name: "text", Data: []byte(text)},
		{Name: "absolute, colour, input", Data: []byte(strings.ReplaceAll(full, "\x1b", "ESC"))},
		{Name: "json", Data: []byte(lines)},
		{Name: "summary", Data: []byte(sum.String())},
	}}
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := txtar.ParseFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(txtar.Format(got)), string(txtar.Format(want))); diff != "" {
		t.Errorf("report (-got +want):\n%s", diff)
	}
}

// TestJSONLines reads every line back.
func TestJSONLines(t *testing.T) {
	path := save(t, "showcase.pcapng", showcase())
	out, sum := report(t, Options{Format: JSON}, path)
	d := json.NewDecoder(strings.NewReader(out))
	var n uint64
	for ; d.More(); n++ {
		var line map[string]any
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"frame", "timestamp", "verdict", "rule", "reason", "length", "hook"} {
			if _, ok := line[key]; !ok {
				t.Errorf("frame %v has no %s", line["frame"], key)
			}
		}
	}
	if n != sum.Packets {
		t.Errorf("got %d lines, want %d", n, sum.Packets)
	}
}

func TestDeterminism(t *testing.T) {
	path := save(t, "showcase.pcapng", showcase())
	for _, o := range []Options{{}, {Format: JSON}} {
		first, _ := report(t, o, path, path)
		again, _ := report(t, o, path, path)
		if first != again {
			t.Errorf("format %d: two runs differ:\n%s\n%s", o.Format, first, again)
		}
	}
}

func TestSeveralCaptures(t *testing.T) {
	a := save(t, "a.pcap", micro(linkRaw, udp4(1, 2, 3, 53, "")))
	b := save(t, "b.pcap.gz", gzipped(t, micro(linkRaw, udp4(1, 2, 3, 53, ""), tcp6(1, 2))))
	out, sum := report(t, Options{Format: JSON, Stdin: bytes.NewReader(micro(linkRaw, icmp4(0)))}, a, "-", b)
	var names []string
	for d := json.NewDecoder(strings.NewReader(out)); d.More(); {
		var line struct {
			Capture string
			Frame   int
		}
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		names = append(names, line.Capture)
	}
	if diff := cmp.Diff(names, []string{a, "-", b, b}); diff != "" {
		t.Errorf("captures (-got +want):\n%s", diff)
	}
	if sum.Captures != 3 || sum.Packets != 4 || sum.Actions[packet.Accept] != 2 || sum.Actions[packet.Drop] != 2 || sum.Rules["dns"] != 2 {
		t.Errorf("summary: %+v", sum)
	}
	if sum.Traffic != time.Millisecond {
		t.Errorf("traffic: got %v, want 1ms", sum.Traffic)
	}
}

// TestBadArguments must fail before anything is judged.
func TestBadArguments(t *testing.T) {
	dir := t.TempDir()
	good := save(t, "good.pcap", micro(linkRaw, udp4(1, 2, 3, 53, "")))
	text := save(t, "notes.txt", []byte("no capture"))
	empty := save(t, "empty.pcap", nil)
	missing := filepath.Join(dir, "missing.pcap")
	tests := []struct {
		name     string
		captures []string
		stdin    io.Reader
		want     string
	}{
		{"missing", []string{good, missing}, nil, "capture " + missing + ": no such file or directory"},
		{"directory", []string{good, dir}, nil, "capture " + dir + ": is a directory; name the captures in it"},
		{"no capture", []string{good, text}, nil, "capture " + text + ": at byte 0: neither pcap nor pcapng, nor one of them compressed with gzip or zstd"},
		{"empty", []string{good, empty}, nil, "capture " + empty + ": at byte 0: empty file"},
		{"no stdin", []string{good, "-"}, nil, "capture -: standard input is not available"},
		{"stdin twice", []string{"-", "-"}, strings.NewReader(""), "capture -: standard input can be read only once"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			_, err := Run(t.Context(), Options{Stdin: tt.stdin}, tt.captures, newJudging(), &out)
			if err == nil || err.Error() != tt.want {
				t.Errorf("error:\ngot  %v\nwant %s", err, tt.want)
			}
			var place *CaptureError
			if !errors.As(err, &place) {
				t.Errorf("error is a %T, want a *CaptureError", err)
			}
			if out.Len() > 0 {
				t.Errorf("wrote %q, want nothing", out.String())
			}
		})
	}
}

// TestErrorsWithin goes on with the next capture after an error within one.
func TestErrorsWithin(t *testing.T) {
	whole := micro(linkRaw, udp4(1, 2, 3, 53, ""), udp4(1, 2, 3, 53, ""))
	cut := save(t, "cut.pcap", whole[:len(whole)-5])
	radio := save(t, "radio.pcap", micro(127, []byte("a"), []byte("b")))
	good := save(t, "good.pcap", whole)
	var out bytes.Buffer
	sum, err := Run(t.Context(), Options{}, []string{cut, radio, good}, newJudging(), &out)
	want := "capture " + cut + ": cut short in packet 2 at byte 68 (23 of 28 bytes)\n" +
		"capture " + radio + ": interface 0: link type 127 (IEEE802_11_RADIOTAP) is not supported (supported: " + supportedLinks + ")"
	if err == nil || err.Error() != want {
		t.Errorf("error:\ngot  %v\nwant %s", err, want)
	}
	var link *LinkTypeError
	if !errors.Is(err, ErrTruncated) || !errors.As(err, &link) {
		t.Errorf("error is neither ErrTruncated nor a *LinkTypeError: %v", err)
	}
	if sum.Packets != 3 || sum.Skipped != 2 || strings.Count(out.String(), "\n") != 3 {
		t.Errorf("got %d packets, %d skipped and\n%s", sum.Packets, sum.Skipped, out.String())
	}
}

// TestWarnings skips the frames of one interface and judges the others.
func TestWarnings(t *testing.T) {
	path := save(t, "showcase.pcapng", showcase())
	var warnings []string
	_, sum := report(t, Options{Warn: func(err error) { warnings = append(warnings, err.Error()) }}, path)
	want := []string{"capture " + path + ": interface 3: link type 127 (IEEE802_11_RADIOTAP) is not supported (supported: " + supportedLinks + ")"}
	if diff := cmp.Diff(warnings, want); diff != "" {
		t.Errorf("warnings (-got +want):\n%s", diff)
	}
	if sum.Packets != 9 || sum.Skipped != 2 {
		t.Errorf("got %d packets and %d skipped, want 9 and 2", sum.Packets, sum.Skipped)
	}
}

// TestMeta checks what the judge is told beside the bytes.
func TestMeta(t *testing.T) {
	tso := udp4(1, 2, 3, 53, "payload")
	tso[2], tso[3] = 0, 0
	path := save(t, "x.pcap", pcapFile(binary.BigEndian, magicNano, 4, linkEthernet,
		captured{sec: 5, frac: 6, data: ethernet(0x0800, udp4(1, 2, 3, 53, "payload"))[:40], length: 49},
		captured{sec: 4, data: ethernet(0x0800, tso)},
	))
	var got []packet.Meta
	j := newDecoding()
	j.seen = func(m *packet.Meta, _ *packet.Packet) { got = append(got, *m) }
	named := map[uint32]string{}
	o := Options{Interface: "eth7", NewInterface: func(i uint32, name string) { named[i] = name }}
	if _, err := Run(t.Context(), o, []string{path}, j, io.Discard); err != nil {
		t.Fatal(err)
	}
	want := []packet.Meta{
		{Time: 5e9 + 6, ID: 1, Hook: packet.Forward, Length: 35, EtherType: 0x0800, In: firstIndex},
		{Time: 4e9, ID: 2, Hook: packet.Forward, Length: 35, EtherType: 0x0800, In: firstIndex, GSO: true},
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("meta (-got +want):\n%s", diff)
	}
	if diff := cmp.Diff(named, map[uint32]string{firstIndex: "eth7"}); diff != "" {
		t.Errorf("interfaces (-got +want):\n%s", diff)
	}
}

func TestProgressAndCancel(t *testing.T) {
	const n = progressEvery + cancelEvery - 1 // frame n+1 is read, but not judged
	path := save(t, "long.pcap", micro(linkRaw, make([][]byte, n+10)...))
	ctx, cancel := context.WithCancel(t.Context())
	var calls []Progress
	o := Options{Progress: func(p Progress) {
		calls = append(calls, p)
		cancel()
	}}
	sum, err := Run(ctx, o, []string{path, path, path}, accepting{}, io.Discard)
	want := []Progress{{Capture: path, Packets: progressEvery, Offset: pcapHeaderLen + pcapRecordLen*progressEvery}}
	if diff := cmp.Diff(calls, want); diff != "" {
		t.Errorf("progress (-got +want):\n%s", diff)
	}
	if !errors.Is(err, context.Canceled) || sum.Packets != n {
		t.Errorf("got %v after %d packets, want %v after %d", err, sum.Packets, context.Canceled, n)
	}
}

// failing is a full disk.
type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestWriteError(t *testing.T) {
	full := errors.New("no space left on device")
	tests := []struct {
		name    string
		packets int
	}{
		{"at the end", 1},
		{"on the way", 10_000},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := save(t, "x.pcap", micro(linkRaw, make([][]byte, tt.packets)...))
			_, err := Run(t.Context(), Options{}, []string{path, path}, accepting{}, failing{full})
			if err == nil || err.Error() != "write report: no space left on device" || !errors.Is(err, full) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestAllocations compares runs of different length: packets must cost none.
func TestAllocations(t *testing.T) {
	for _, format := range []Format{Text, JSON} {
		run := func(packets int) float64 {
			path := save(t, "x.pcap", pcapFile(binary.LittleEndian, magicMicro, 4, linkEthernet, traffic(packets)...))
			j := newJudging()
			return testing.AllocsPerRun(5, func() {
				if _, err := Run(t.Context(), Options{Format: format}, []string{path}, j, io.Discard); err != nil {
					t.Fatal(err)
				}
			})
		}
		if short, long := run(1000), run(5000); long > short+8 {
			t.Errorf("format %d: 1000 packets cost %v allocations, 5000 cost %v", format, short, long)
		}
	}
}

// TestSummaryRules bounds the names that are told apart.
func TestSummaryRules(t *testing.T) {
	sum := Summary{Rules: map[string]uint64{}}
	for i := range maxRules + 5 {
		sum.addRule(strings.Repeat("r", i+1))
	}
	sum.addRule("r")
	if len(sum.Rules) != maxRules+1 || sum.Rules[otherRules] != 5 || sum.Rules["r"] != 2 {
		t.Errorf("got %d rules, %d of others, %d of r", len(sum.Rules), sum.Rules[otherRules], sum.Rules["r"])
	}
	if text := sum.String(); !strings.Contains(text, "4087 more") {
		t.Errorf("summary does not say how many rules it leaves out:\n%s", text)
	}
}

// TestSummaryTraffic survives timestamps that are centuries apart.
func TestSummaryTraffic(t *testing.T) {
	sum := Summary{}
	for range 2 {
		sum.beginCapture()
		sum.seen, sum.first, sum.last = true, -1<<63, 1<<63-1
		sum.endCapture(0, 0)
	}
	if sum.Traffic != 1<<63-1 {
		t.Errorf("got %v, want the longest duration", sum.Traffic)
	}
}
