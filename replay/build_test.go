package replay

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// order is a byte order that can also append.
type order interface {
	binary.ByteOrder
	binary.AppendByteOrder
}

// captured is a packet of a capture that a test builds.
type captured struct {
	sec, frac uint32
	data      []byte
	length    uint32 // 0: len(data)
}

func (c captured) wire() uint32 {
	if c.length == 0 {
		return uint32(len(c.data))
	}
	return c.length
}

// pcapFile builds a pcap file of version 2.minor.
func pcapFile(o order, magic uint32, minor uint16, linkType uint32, packets ...captured) []byte {
	b := o.AppendUint32(nil, magic)
	b = o.AppendUint16(b, 2)
	b = o.AppendUint16(b, minor)
	for _, v := range []uint32{0, 0, 262144, linkType} {
		b = o.AppendUint32(b, v)
	}
	for _, p := range packets {
		for _, v := range []uint32{p.sec, p.frac, uint32(len(p.data)), p.wire()} {
			b = o.AppendUint32(b, v)
		}
		b = append(b, p.data...)
	}
	return b
}

// micro builds an ordinary pcap file.
func micro(linkType uint32, frames ...[]byte) []byte {
	var packets []captured
	for i, f := range frames {
		packets = append(packets, captured{sec: 1_700_000_000, frac: uint32(i) * 1000, data: f})
	}
	return pcapFile(binary.LittleEndian, magicMicro, 4, linkType, packets...)
}

// ngBlock builds a pcapng block.
func ngBlock(o order, kind uint32, body ...[]byte) []byte {
	all := bytes.Join(body, nil)
	for len(all)%4 != 0 {
		all = append(all, 0)
	}
	length := uint32(12 + len(all))
	b := o.AppendUint32(nil, kind)
	b = o.AppendUint32(b, length)
	return o.AppendUint32(append(b, all...), length)
}

func ngOption(o order, code uint16, value []byte) []byte {
	b := o.AppendUint16(nil, code)
	b = o.AppendUint16(b, uint16(len(value)))
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func ngSection(o order) []byte {
	b := o.AppendUint32(nil, byteOrderMagic)
	b = o.AppendUint16(b, 1)
	b = o.AppendUint16(b, 0)
	return ngBlock(o, blockSection, o.AppendUint64(b, 1<<64-1))
}

func ngInterface(o order, linkType uint16, snaplen uint32, options ...[]byte) []byte {
	b := o.AppendUint16(nil, linkType)
	b = o.AppendUint16(b, 0)
	return ngBlock(o, blockInterface, o.AppendUint32(b, snaplen), bytes.Join(options, nil))
}

func ngEnhanced(o order, id uint32, ts uint64, data []byte, length uint32, options ...[]byte) []byte {
	var b []byte
	for _, v := range []uint32{id, uint32(ts >> 32), uint32(ts), uint32(len(data)), length} {
		b = o.AppendUint32(b, v)
	}
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return ngBlock(o, blockEnhanced, b, bytes.Join(options, nil))
}

func ngSimple(o order, data []byte, length uint32) []byte {
	return ngBlock(o, blockSimple, o.AppendUint32(nil, length), data)
}

func ngPacket(o order, id uint16, ts uint64, data []byte) []byte {
	b := o.AppendUint16(nil, id)
	b = o.AppendUint16(b, 0)
	for _, v := range []uint32{uint32(ts >> 32), uint32(ts), uint32(len(data)), uint32(len(data))} {
		b = o.AppendUint32(b, v)
	}
	return ngBlock(o, blockPacket, b, data)
}

// udp4 and the others build packets without checksums: replay reads none.
func udp4(src, dst byte, sport, dport uint16, payload string) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 192, 0, 2, src, 192, 0, 2, dst}
	b = binary.BigEndian.AppendUint16(b, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(append(b, 0, 0), payload...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

func tcp6(sport, dport uint16) []byte {
	b := []byte{0x60, 0, 0, 0, 0, 20, 6, 64}
	b = append(b, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
	b = append(b, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2)
	b = binary.BigEndian.AppendUint16(b, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	return append(b, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0)
}

func icmp4(kind byte) []byte {
	b := []byte{0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2}
	return append(b, kind, 0, 0, 0, 0x12, 0x34, 0, 1)
}

// fragment4 builds a non-first fragment.
func fragment4() []byte {
	b := udp4(1, 2, 0, 0, "rest of a datagram")
	b[7] = 185
	return b
}

func ethernet(etherType uint16, payload []byte) []byte {
	b := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}
	return append(binary.BigEndian.AppendUint16(b, etherType), payload...)
}

func vlan(id, etherType uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	return append(binary.BigEndian.AppendUint16(b, etherType), payload...)
}

func pppoe(session uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x11, 0}, session)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(payload))), payload...)
}

func sll(kind, hardware, protocol uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	b = binary.BigEndian.AppendUint16(b, hardware)
	b = append(b, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0)
	return append(binary.BigEndian.AppendUint16(b, protocol), payload...)
}

func sll2(kind byte, protocol uint16, ifindex uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, protocol)
	b = binary.BigEndian.AppendUint32(append(b, 0, 0), ifindex)
	return append(append(b, 0, 1, kind, 6, 2, 0, 0, 0, 0, 1, 0, 0), payload...)
}

// nflog builds an NFLOG record; attributes come from nflogAttr.
func nflog(family byte, attributes ...[]byte) []byte {
	return append([]byte{family, 0, 0, 5}, bytes.Join(attributes, nil)...)
}

func nflogAttr(o order, kind uint16, value []byte) []byte {
	b := o.AppendUint16(nil, uint16(4+len(value)))
	b = append(o.AppendUint16(b, kind), value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// save writes a capture to a file of that name in a directory of the test.
func save(t testing.TB, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
