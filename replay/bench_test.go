package replay

import (
	"encoding/binary"
	"io"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/packet"
)

// accepting accepts everything without looking at it.
type accepting struct{}

func (accepting) Judge(*packet.Meta, []byte) Outcome {
	return Outcome{Verdict: packet.Verdict{Action: packet.Accept}, Reason: "policy", Rule: "all"}
}

// traffic builds n Ethernet frames of 64 to 1500 bytes.
func traffic(n int) []captured {
	packets := make([]captured, n)
	for i := range packets {
		payload := strings.Repeat("x", 22+i*37%1400)
		packets[i] = captured{
			sec: 1_700_000_000 + uint32(i)/1e5, frac: uint32(i) % 1e5 * 10,
			data: ethernet(packet.EtherTypeIPv4, udp4(byte(i), byte(i>>8), 1024+uint16(i), 53, payload)),
		}
	}
	return packets
}

func trafficNg(n int) []byte {
	o := binary.LittleEndian
	b := append(ngSection(o), ngInterface(o, linkEthernet, 0)...)
	for _, p := range traffic(n) {
		b = append(b, ngEnhanced(o, 0, uint64(p.sec)*1e6+uint64(p.frac), p.data, p.wire())...)
	}
	return b
}

// BenchmarkRun reports ns per packet.
func BenchmarkRun(b *testing.B) {
	const n = 50_000
	pcap := pcapFile(binary.LittleEndian, magicMicro, 4, linkEthernet, traffic(n)...)
	files := map[string][]byte{"pcap": pcap, "pcapng": trafficNg(n), "pcap.gz": gzipped(b, pcap), "pcap.zst": zstded(b, pcap)}
	tests := []struct {
		name, file string
		format     Format
		judge      Judge
	}{
		{"accept/text", "pcap", Text, accepting{}},
		{"accept/json", "pcap", JSON, accepting{}},
		{"decode/text", "pcap", Text, newDecoding()},
		{"decode/json", "pcap", JSON, newDecoding()},
		{"decode/json", "pcapng", JSON, newDecoding()},
		{"decode/json", "pcap.gz", JSON, newDecoding()},
		{"decode/json", "pcap.zst", JSON, newDecoding()},
	}
	for _, tt := range tests {
		b.Run(tt.name+"/"+tt.file, func(b *testing.B) {
			path := save(b, tt.file, files[tt.file])
			var packets uint64
			for b.Loop() {
				sum, err := Run(b.Context(), Options{Format: tt.format}, []string{path}, tt.judge, io.Discard)
				if err != nil {
					b.Fatal(err)
				}
				packets += sum.Packets
			}
			b.ReportMetric(float64(packets)/b.Elapsed().Seconds()/1e6, "Mpkt/s")
		})
	}
}

// BenchmarkRead reads and takes the link layer off, nothing else.
func BenchmarkRead(b *testing.B) {
	const n = 50_000
	for name, file := range map[string][]byte{
		"pcap":   pcapFile(binary.LittleEndian, magicMicro, 4, linkEthernet, traffic(n)...),
		"pcapng": trafficNg(n),
	} {
		b.Run(name, func(b *testing.B) {
			path := save(b, name, file)
			var f frame
			var l link
			for b.Loop() {
				c, err := openCapture(path, nil)
				if err != nil {
					b.Fatal(err)
				}
				for {
					err := c.next(&f)
					if err == io.EOF {
						break
					}
					if err != nil {
						b.Fatal(err)
					}
					l.strip(&f)
				}
				if err := c.close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds()/1e6, "Mpkt/s")
		})
	}
}
