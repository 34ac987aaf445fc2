package replay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// read is a frame as a test sees it.
type read struct {
	Number uint64
	Time   int64
	Data   string
	Length uint32
	Link   uint32
	Iface  string
	Way    way
}

// readAll reads a capture to its end.
func readAll(b []byte) (frames []read, numbers uint64, err error) {
	c, err := openCapture("-", bytes.NewReader(b))
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	var f frame
	for {
		err := c.next(&f)
		if err == io.EOF {
			return frames, c.reader.frames(), nil
		}
		if err != nil {
			return frames, c.reader.frames(), err
		}
		frames = append(frames, read{f.number, f.time, string(f.data), f.length, f.iface.linkType, f.iface.name, f.way})
	}
}

func TestReadPcap(t *testing.T) {
	le, be := binary.LittleEndian, binary.BigEndian
	packets := []captured{
		{sec: 1, frac: 2, data: []byte("first")},
		{sec: 0xffffffff, frac: 3, data: []byte("cut"), length: 1500},
		{sec: 0, frac: 0},
	}
	want := func(tick int64, link uint32) []read {
		return []read{
			{Number: 1, Time: 1e9 + 2*tick, Data: "first", Length: 5, Link: link},
			{Number: 2, Time: 0xffffffff*1e9 + 3*tick, Data: "cut", Length: 1500, Link: link},
			{Number: 3, Link: link},
		}
	}
	swapped := pcapFile(le, magicMicro, 2, 1, captured{data: []byte("abc"), length: 5})
	le.PutUint32(swapped[pcapHeaderLen+8:], 5)
	le.PutUint32(swapped[pcapHeaderLen+12:], 3)
	tests := []struct {
		name string
		file []byte
		want []read
	}{
		{"little endian, microseconds", pcapFile(le, magicMicro, 4, 1, packets...), want(1000, 1)},
		{"big endian, microseconds", pcapFile(be, magicMicro, 4, 1, packets...), want(1000, 1)},
		{"little endian, nanoseconds", pcapFile(le, magicNano, 4, 1, packets...), want(1, 1)},
		{"big endian, nanoseconds", pcapFile(be, magicNano, 4, 1, packets...), want(1, 1)},
		{"link type over 8 bits", pcapFile(le, magicMicro, 4, 276, packets...), want(1000, 276)},
		{"frame check sequence", pcapFile(le, magicMicro, 4, 0x34000001, packets...), want(1000, 1)},
		{"minor version 1", pcapFile(le, magicMicro, 1, 1, packets...), want(1000, 1)},
		{"minor version 2, lengths swapped", swapped, []read{{Number: 1, Data: "abc", Length: 5, Link: 1}}},
		{"captured more than the wire had", pcapFile(le, magicMicro, 4, 1, captured{data: []byte("12345"), length: 3}),
			[]read{{Number: 1, Data: "12345", Length: 5, Link: 1}}},
		{"gzip", gzipped(t, pcapFile(le, magicMicro, 4, 1, packets...)), want(1000, 1)},
		{"zstd", zstded(t, pcapFile(le, magicMicro, 4, 1, packets...)), want(1000, 1)},
		{"no packets", micro(1), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _, err := readAll(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, tt.want); diff != "" {
				t.Errorf("frames (-got +want):\n%s", diff)
			}
		})
	}
}

// mixedNg builds a pcapng capture with most of what the format has.
func mixedNg(o order) []byte {
	u32 := func(v uint32) []byte { return o.AppendUint32(nil, v) }
	u64 := func(v uint64) []byte { return o.AppendUint64(nil, v) }
	return bytes.Join([][]byte{
		ngSection(o),
		ngInterface(o, 1, 0, ngOption(o, optName, []byte("eth0")), ngOption(o, 1, []byte("a comment"))),
		ngInterface(o, 276, 4, ngOption(o, optTsresol, []byte{9}), ngOption(o, optTsoffset, u64(100)), ngOption(o, optEnd, nil)),
		ngEnhanced(o, 0, 5_000_001, []byte("abcde"), 5),
		ngEnhanced(o, 1, 7, []byte("ab"), 60, ngOption(o, 1, []byte("x")), ngOption(o, optFlags, u32(2)), ngOption(o, optEnd, nil)),
		ngBlock(o, 0x00000005, make([]byte, 40)), // interface statistics
		ngBlock(o, blockCustom, make([]byte, 8)), // a frame number, but no packet
		ngSimple(o, []byte("simple"), 6),
		ngEnhanced(o, 0, 1, nil, 0, ngOption(o, optFlags, u32(1))),
		ngPacket(o, 1, 8, []byte("old")),
		ngSection(o), // forgets the interfaces
		ngInterface(o, 101, 3, ngOption(o, optTsresol, []byte{0x80 | 10})),
		ngSimple(o, []byte("snapped"), 7),
		ngEnhanced(o, 0, 3<<10|512, []byte("!"), 1),
	}, nil)
}

func TestReadPcapng(t *testing.T) {
	want := []read{
		{Number: 1, Time: 5_000_001_000, Data: "abcde", Length: 5, Link: 1, Iface: "eth0"},
		{Number: 2, Time: 100_000_000_007, Data: "ab", Length: 60, Link: 276, Way: wayOut},
		{Number: 4, Time: 100_000_000_007, Data: "simple", Length: 6, Link: 1, Iface: "eth0"},
		{Number: 5, Time: 1000, Link: 1, Iface: "eth0", Way: wayIn},
		{Number: 6, Time: 100_000_000_008, Data: "old", Length: 3, Link: 276},
		{Number: 7, Time: 100_000_000_008, Data: "sna", Length: 7, Link: 101},
		{Number: 8, Time: 3_500_000_000, Data: "!", Length: 1, Link: 101},
	}
	tests := []struct {
		name string
		file []byte
	}{
		{"little endian", mixedNg(binary.LittleEndian)},
		{"big endian", mixedNg(binary.BigEndian)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, numbers, err := readAll(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, want); diff != "" {
				t.Errorf("frames (-got +want):\n%s", diff)
			}
			if numbers != 8 {
				t.Errorf("frame numbers: got %d, want 8", numbers)
			}
		})
	}
}

// TestReadMixedOrder reads sections of both byte orders in one file.
func TestReadMixedOrder(t *testing.T) {
	got, _, err := readAll(append(mixedNg(binary.LittleEndian), mixedNg(binary.BigEndian)...))
	if err != nil || len(got) != 14 {
		t.Errorf("got %d frames and %v, want 14", len(got), err)
	}
}

// errorCase is a broken capture and the error it must give.
type errorCase struct {
	name string
	file []byte
	want string // without the name of the capture
}

func checkErrors(t *testing.T, tests []errorCase) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := readAll(tt.file)
			if err == nil || err.Error() != "capture -: "+tt.want {
				t.Errorf("error:\ngot  %v\nwant capture -: %s", err, tt.want)
			}
			var place *CaptureError
			if !errors.As(err, &place) {
				t.Errorf("error is a %T, want a *CaptureError", err)
			}
			if cut := strings.Contains(tt.want, "cut short"); errors.Is(err, ErrTruncated) != cut {
				t.Errorf("errors.Is(err, ErrTruncated): got %t, want %t", !cut, cut)
			}
		})
	}
}

func TestPcapErrors(t *testing.T) {
	huge := micro(1, []byte("abc"))
	binary.LittleEndian.PutUint32(huge[pcapHeaderLen+8:], maxRecord+1)
	major := micro(1)
	major[4] = 3
	badGzip := gzipped(t, micro(1, []byte("abc")))
	badGzip[len(badGzip)-5] ^= 1 // checksum
	two := micro(1, []byte("ok"), []byte("abc"))
	checkErrors(t, []errorCase{
		{"empty", nil, "at byte 0: empty file"},
		{"text", []byte("hello, world"), "at byte 0: neither pcap nor pcapng, nor one of them compressed with gzip or zstd"},
		{"short magic", []byte{0xd4, 0xc3}, "cut short at byte 0 (2 of 4 bytes)"},
		{"short header", two[:20], "cut short at byte 0 (20 of 24 bytes)"},
		{"short record", two[:30], "cut short in packet 1 at byte 24 (6 of 16 bytes)"},
		{"no data", two[:58], "cut short in packet 2 at byte 42 (0 of 3 bytes)"},
		{"short data", two[:59], "cut short in packet 2 at byte 42 (1 of 3 bytes)"},
		{"version", major, "at byte 0: pcap version 3.4 is not supported (supported: 2.x)"},
		{"huge packet", huge, "in packet 1 at byte 24: captured length 16777217 is over the limit of 16777216 bytes"},
		{"gzip checksum", badGzip, "in packet 2 at byte 43: read: gzip: invalid checksum"},
		{"gzip cut", gzipped(t, two)[:5], "cut short at byte 0 (0 of 10 bytes)"},
	})
}

func TestPcapngErrors(t *testing.T) {
	o := binary.LittleEndian
	ng := func(blocks ...[]byte) []byte {
		return append(append(ngSection(o), ngInterface(o, 1, 0)...), bytes.Join(blocks, nil)...)
	}
	trailer := ng(ngSimple(o, []byte("abcd"), 4))
	trailer[len(trailer)-1] = 1
	major := ngSection(o)
	major[12] = 2
	magic := ngSection(o)
	magic[8] = 0
	noData := ngBlock(o, blockEnhanced, make([]byte, 12), []byte{9, 0, 0, 0}, make([]byte, 4))
	checkErrors(t, []errorCase{
		{"version", major, "at byte 0: pcapng version 2.0 is not supported (supported: 1.x)"},
		{"byte order", magic, "at byte 0: section header with byte-order magic 0x003c2b1a"},
		{"short section", ngBlock(o, blockSection, o.AppendUint32(nil, byteOrderMagic)), "at byte 0: section header is too short"},
		{"unknown interface", ng(ngEnhanced(o, 7, 0, nil, 0)), "in packet 1 at byte 48: interface 7 is not described; the section has 1 so far"},
		{"no interface", append(ngSection(o), ngSimple(o, nil, 0)...), "in packet 1 at byte 28: interface 0 is not described; the section has 0 so far"},
		{"trailing length", trailer, "in packet 1 at byte 48: block length is 20 at its start and 16777236 at its end"},
		{"odd length", ng([]byte{9, 9, 0, 0, 13, 0, 0, 0}), "at byte 48: block length 13 is not a multiple of 4 from 12 on"},
		{"no length", ng([]byte{6, 0, 0, 0, 0, 0, 0, 0}), "in packet 1 at byte 48: block length 0 is not a multiple of 4 from 12 on"},
		{"huge block", ng([]byte{6, 0, 0, 0, 0, 0, 0, 2}), "in packet 1 at byte 48: block of 33554432 bytes is over the limit of 16777216"},
		{"skipped huge block", ng([]byte{9, 9, 0, 0, 0, 0, 0, 0x80}), "cut short at byte 48 (0 of 2147483636 bytes)"},
		{"short enhanced", ng(ngBlock(o, blockEnhanced, make([]byte, 16))), "in packet 1 at byte 48: enhanced packet block is too short"},
		{"short packet", ng(ngBlock(o, blockPacket, make([]byte, 16))), "in packet 1 at byte 48: packet block is too short"},
		{"short simple", ng(ngBlock(o, blockSimple)), "in packet 1 at byte 48: simple packet block is too short"},
		{"short interface", ng(ngBlock(o, blockInterface)), "at byte 48: interface description is too short"},
		{"captured length", ng(noData), "in packet 1 at byte 48: captured length 9 overruns its block, which has 0 bytes"},
		{"option overrun", ng(ngInterface(o, 1, 0, []byte{2, 0, 9, 0})), "at byte 48: option 2 of 9 bytes overruns its block"},
		{"empty resolution", ng(ngInterface(o, 1, 0, ngOption(o, optTsresol, nil))), "at byte 48: interface 1: option 9 of 0 bytes"},
		{"short offset", ng(ngInterface(o, 1, 0, ngOption(o, optTsoffset, []byte{1}))), "at byte 48: interface 1: option 14 of 1 bytes"},
		{"resolution", ng(ngInterface(o, 1, 0, ngOption(o, optTsresol, []byte{20}))), "at byte 48: interface 1: timestamp resolution 0x14 is finer than 64 bits can count"},
		{"interfaces", ng(bytes.Repeat(ngInterface(o, 1, 0), maxInterfaces)), "at byte 81948: more than 4096 interfaces in a section"},
	})
}

// TestTruncation cuts captures at every byte: what comes before the cut is
// read, the cut is an error unless it falls between records.
func TestTruncation(t *testing.T) {
	tests := []struct {
		name string
		file []byte
	}{
		{"pcap", micro(1, []byte("one"), []byte("two22"), nil)},
		{"pcapng", mixedNg(binary.LittleEndian)},
		{"pcapng, big endian", mixedNg(binary.BigEndian)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			whole, _, err := readAll(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			clean := recordEnds(t, tt.file)
			for n := 1; n < len(tt.file); n++ {
				got, _, err := readAll(tt.file[:n])
				if diff := cmp.Diff(got, whole[:len(got)], cmpopts.EquateEmpty()); diff != "" {
					t.Fatalf("cut at %d, frames (-got +want):\n%s", n, diff)
				}
				if clean[n] != (err == nil) || err != nil && !errors.Is(err, ErrTruncated) {
					t.Fatalf("cut at %d: got error %v, want a truncation %t", n, err, !clean[n])
				}
			}
		})
	}
}

// recordEnds returns where records of a capture end.
func recordEnds(t *testing.T, file []byte) map[int]bool {
	t.Helper()
	src := newSource(bytes.NewReader(file))
	r, err := newReader(src)
	if err != nil {
		t.Fatal(err)
	}
	ends := map[int]bool{int(src.off): src.off > 0}
	if _, ok := r.(*pcapReader); ok {
		for f := (frame{}); r.next(&f) == nil; {
			ends[int(src.off)] = true
		}
		return ends
	}
	var o binary.ByteOrder = binary.LittleEndian
	if file[8] == 0x1a {
		o = binary.BigEndian
	}
	for at := 0; at < len(file); {
		at += int(o.Uint32(file[at+4:]))
		ends[at] = true
	}
	return ends
}

// TestTruncatedCompression cuts compressed captures at every byte.
func TestTruncatedCompression(t *testing.T) {
	plain := micro(1, []byte("one"), []byte("two"))
	for name, file := range map[string][]byte{"gzip": gzipped(t, plain), "zstd": zstded(t, plain)} {
		t.Run(name, func(t *testing.T) {
			for n := 1; n < len(file); n++ {
				if _, _, err := readAll(file[:n]); err == nil {
					t.Errorf("cut at %d of %d: no error", n, len(file))
				}
			}
		})
	}
}

func TestTimestamps(t *testing.T) {
	tests := []struct {
		name   string
		units  uint64
		offset int64
		ts     uint64
		want   int64
	}{
		{"microseconds", 1e6, 0, 1_700_000_000_123_456, 1_700_000_000_123_456_000},
		{"nanoseconds", 1e9, 0, 1_700_000_000_123_456_789, 1_700_000_000_123_456_789},
		{"seconds", 1, 0, 17, 17e9},
		{"picoseconds", 1e12, 0, 1_999, 1},
		{"finest decimal", 1e19, 0, 15e18, 1_500_000_000},
		{"halves", 2, 0, 3, 1_500_000_000},
		{"finest binary", 1 << 63, 0, 3 << 62, 1_500_000_000},
		{"offset", 1e6, -3, 5e6, 2e9},
		{"before 1970", 1e6, -3, 1, -3e9 + 1000},
		{"overflow", 1, 0, math.MaxUint64, math.MaxInt64},
		{"overflow by offset", 1, math.MaxInt64, 1, math.MaxInt64},
		{"underflow by offset", 1e6, math.MinInt64, 1, math.MinInt64},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			i := iface{units: tt.units, offset: tt.offset}
			if got := i.time(tt.ts); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

// TestPcapgo reads what another implementation wrote.
func TestPcapgo(t *testing.T) {
	var want []read
	var plain, ng bytes.Buffer
	w := pcapgo.NewWriterNanos(&plain)
	if err := w.WriteFileHeader(65536, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	nw, err := pcapgo.NewNgWriter(&ng, layers.LinkTypeEthernet)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		data := bytes.Repeat([]byte{byte(i)}, 60+i)
		ci := gopacket.CaptureInfo{Timestamp: time.Unix(int64(i), int64(i)), CaptureLength: len(data), Length: len(data) + i}
		if err := errors.Join(w.WritePacket(ci, data), nw.WritePacket(ci, data)); err != nil {
			t.Fatal(err)
		}
		want = append(want, read{uint64(i + 1), ci.Timestamp.UnixNano(), string(data), uint32(ci.Length), 1, "", wayUnknown})
	}
	if err := nw.Flush(); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string][]byte{"pcap": plain.Bytes(), "pcapng": ng.Bytes()} {
		t.Run(name, func(t *testing.T) {
			got, _, err := readAll(file)
			if err != nil {
				t.Fatal(err)
			}
			for i := range got {
				got[i].Iface = "" // pcapgo names it intf0
			}
			if diff := cmp.Diff(got, want); diff != "" {
				t.Errorf("frames (-got +want):\n%s", diff)
			}
		})
	}
}

// TestHugeRecord reads packets larger than the read buffer.
func TestHugeRecord(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), bufferSize/5)
	got, _, err := readAll(micro(1, data, []byte("next"), data))
	if err != nil || len(got) != 3 {
		t.Fatalf("got %d frames and %v, want 3", len(got), err)
	}
	if got[0].Data != string(data) || got[1].Data != "next" || got[2].Data != string(data) {
		t.Error("data differs from what was written")
	}
}
