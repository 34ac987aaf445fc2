package record

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/packet"
)

// TestKeyIsPacketKey: the words that the programs write are those of packet.Key
// with ports in network order.
func TestKeyIsPacketKey(t *testing.T) {
	k := packet.Key{SrcPort: 0x0102, DstPort: 0x0304, Protocol: 17, Version: 6}
	for i := range 16 {
		k.Src[i], k.Dst[i] = byte(i), byte(0x80+i)
	}
	var f flowKey
	f.encode(&k, 0, NoUser)
	b := *(*[keySize]byte)(unsafe.Pointer(&f))
	want := append(append(k.Src[:], k.Dst[:]...), 1, 2, 3, 4, 17, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	if keySize != 48 || string(b[:]) != string(want) {
		t.Errorf("got % x, want % x", b, want)
	}
}

// TestHashSpreads: keys that differ in little end in different buckets.
func TestHashSpreads(t *testing.T) {
	const flows = 8 * buckets
	for _, test := range []struct {
		name string
		key  func(i int) packet.Key
	}{
		{"source port", func(i int) packet.Key { return packet.Key{SrcPort: uint16(i), DstPort: 443, Protocol: 6, Version: 4} }},
		{"echo id", func(i int) packet.Key {
			return packet.Key{SrcPort: uint16(i), DstPort: uint16(i), Protocol: 1, Version: 4}
		}},
		{"address", func(i int) packet.Key {
			return packet.Key{Dst: [16]byte{14: byte(i >> 8), 15: byte(i)}, SrcPort: 53, DstPort: 53, Protocol: 17, Version: 4}
		}},
	} {
		var load [buckets]int
		for i := range flows {
			k := test.key(i)
			load[hash(&k)>>bucketShift]++
		}
		worst, used := 0, 0
		for _, n := range load {
			worst = max(worst, n)
			if n > 0 {
				used++
			}
		}
		t.Logf("%s: %d of %d buckets used, at most %d flows of %d in one", test.name, used, buckets, worst, flows)
		if used < buckets/4 || worst > 64 {
			t.Errorf("%s: badly spread", test.name)
		}
	}
}

func TestOwnerRecord(t *testing.T) {
	want := Owner{Cookie: 1, PID: 2, TID: 3, UID: 4, GID: 5, CgroupID: 6, NetNS: 7, Start: 8,
		Comm: [16]byte{'x'}, Hook: HookBind, Seeded: true}
	var r ownerRecord
	r.encode(&want, 99)
	var got Owner
	if !r.decode(1, &got) || got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if r.decode(2, &got) {
		t.Error("a record of another socket was taken")
	}
	r.Stamp++
	if r.decode(1, &got) {
		t.Error("a torn record was taken")
	}
}

func TestTexts(t *testing.T) {
	for _, test := range []struct {
		components    string
		cut, detached bool
		want          string
	}{
		{"bash\x00bin\x00usr\x00", false, false, "/usr/bin/bash"},
		{"bash\x00bin\x00", true, false, ".../bin/bash"},
		{"memfd:x\x00", false, true, "memfd:x"},
		{"", false, false, ""},
		{"a b\x00", false, false, "/a b"},
	} {
		if got := path([]byte(test.components), test.cut, test.detached); got != test.want {
			t.Errorf("path(%q): got %q, want %q", test.components, got, test.want)
		}
	}
	for in, want := range map[string]string{"pts3": "pts/3", "tty1": "tty1", "": "", "pts": "pts"} {
		if got := terminal(in); got != want {
			t.Errorf("terminal(%q): got %q, want %q", in, got, want)
		}
	}
	if got := arguments([]byte("a\x00b c\x00\x00")); got != "a b c" {
		t.Errorf("got %q", got)
	}
	if got, want := device(8<<20|0x12345), unix.Mkdev(8, 0x12345); got != want {
		t.Errorf("got %x, want %x", got, want)
	}
}
