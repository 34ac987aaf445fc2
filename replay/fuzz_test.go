package replay

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/netip"
	"testing"
	"unicode"
)

// FuzzRun runs over a capture of any bytes: it must end without a panic, with
// one well-formed line per packet, and every error must say its place.
func FuzzRun(f *testing.F) {
	f.Add(showcase())
	f.Add(mixedNg(binary.BigEndian))
	f.Add(micro(linkEthernet, ethernet(0x8864, pppoe(1, udp4(1, 2, 3, 4, "x")))))
	f.Add(pcapFile(binary.BigEndian, magicNano, 2, linkNFLOG, captured{data: nflog(2, nflogAttr(binary.BigEndian, nflogPayload, icmp4(8)))}))
	f.Add(gzipped(f, micro(linkSLL, sll(4, 1, 0x86dd, tcp6(1, 2)))))
	f.Add(zstded(f, micro(linkNull, append([]byte{2, 0, 0, 0}, udp4(1, 2, 3, 4, "x")...))))
	j := newJudging()
	f.Fuzz(func(t *testing.T, file []byte) {
		for _, o := range []Options{
			{Format: JSON, Local: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
			{Absolute: len(file)%2 == 0, Interface: "eth0"},
		} {
			o.Stdin = bytes.NewReader(file)
			var out bytes.Buffer
			sum, err := Run(t.Context(), o, []string{"-"}, j, &out)
			var place *CaptureError
			var link *LinkTypeError
			if err != nil && !errors.As(err, &place) && !errors.As(err, &link) {
				t.Errorf("error without a place: %v", err)
			}
			if got := uint64(bytes.Count(out.Bytes(), []byte("\n"))); got != sum.Packets {
				t.Errorf("got %d lines for %d packets", got, sum.Packets)
			}
			checkReport(t, o.Format, out.Bytes())
		}
	})
}

// checkReport looks for lines that are no JSON or that a terminal would obey.
func checkReport(t *testing.T, format Format, report []byte) {
	t.Helper()
	for line := range bytes.Lines(report) {
		if format == JSON && !json.Valid(line) {
			t.Errorf("no JSON: %s", line)
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		if bytes.ContainsFunc(line, unicode.IsControl) {
			t.Errorf("control characters in %q", line)
		}
	}
}
