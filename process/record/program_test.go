package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
)

// requirePrograms opens a recorder or skips; with VERDICTD_LAB=require it fails.
func requirePrograms(t testing.TB) *Recorder {
	t.Helper()
	r, err := Open(Config{Flows: 4096, Owners: 64, Processes: 64})
	if err != nil {
		labtest.Lacks(t, labtest.BPF, err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestFlowProgramReadsLikePacket runs the flow program over packets, whole and
// broken, and holds what it records against the decoder.
func TestFlowProgramReadsLikePacket(t *testing.T) {
	r := requirePrograms(t)
	random := rand.New(rand.NewPCG(1, 2))
	seen := map[string]int{}
	const packets = 20000
	for i := range packets {
		b := randomPacket(random)
		p := decoded(b)
		k := p.Key()
		before := r.Changes(&k)
		if err := clearFlows(r); err != nil {
			t.Fatal(err)
		}
		if err := runFlow(r, b); err != nil {
			t.Fatal(err)
		}
		var f Flow
		found := r.Flow(&k, 0, NoUser, &f)
		kind := fmt.Sprintf("v%d %s, recorded %t", p.Version, p.Status, found)
		seen[kind]++
		switch {
		case p.Status == packet.OK && !found && p.ExtHeaders <= maxExtensions:
			t.Fatalf("packet %d: % x: decoded as %+v, not recorded", i, b, p)
		case p.Status == packet.Fragment && found:
			t.Fatalf("packet %d: % x: a fragment is recorded: %+v", i, b, f)
		case p.Status == packet.OK && found && r.Changes(&k) != before+1:
			t.Fatalf("packet %d: changes are %d after %d", i, r.Changes(&k), before)
		case p.Status == packet.OK && found && f.HasOwner:
			t.Fatalf("packet %d: %+v has an owner", i, f)
		}
	}
	for kind, n := range seen {
		t.Logf("%6d %s", n, kind)
	}
	if len(seen) < 6 {
		t.Error("the packets are not various enough")
	}
}

func decoded(b []byte) *packet.Packet {
	var p packet.Packet
	ether := uint16(unix.ETH_P_IP)
	if b[0]>>4 == 6 {
		ether = unix.ETH_P_IPV6
	}
	packet.NewDecoder().Decode(&packet.Meta{EtherType: ether, Length: uint32(len(b))}, b, &p)
	return &p
}

// runFlow lets the kernel run the flow program over an IP packet.
func runFlow(r *Recorder, b []byte) error {
	const etherHeader, least = 14, 14 + 20
	in := make([]byte, etherHeader, least+len(b))
	binary.BigEndian.PutUint16(in[12:], unix.ETH_P_IP)
	if b[0]>>4 == 6 {
		binary.BigEndian.PutUint16(in[12:], unix.ETH_P_IPV6)
	}
	got, err := r.flow.Run(&ebpf.RunOptions{Data: append(in, b...)})
	if err == nil && got != 0 {
		err = fmt.Errorf("the program matched: %d", got)
	}
	return err
}

func clearFlows(r *Recorder) error {
	var k flowKey
	for {
		err := r.maps.flows.NextKey(nil, unsafe.Pointer(&k))
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err == nil {
			err = r.maps.flows.Delete(unsafe.Pointer(&k))
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
}

// randomPacket makes an IP packet with a chance of everything the program looks
// at: options, extension headers, fragments, all transports, truncation.
func randomPacket(r *rand.Rand) []byte {
	protos := []byte{1, 6, 17, 33, 58, 132, 136, 47, 50, 51, 59, 0}
	proto := protos[r.IntN(len(protos))]
	payload := make([]byte, 40+r.IntN(20))
	for i := range payload {
		payload[i] = byte(r.IntN(256))
	}
	fix(r, proto, payload)
	if r.IntN(2) == 0 {
		return random4(r, proto, payload)
	}
	return random6(r, proto, payload)
}

// fix makes some payloads a header that decoders accept.
func fix(r *rand.Rand, proto byte, payload []byte) {
	switch proto {
	case packet.ProtoTCP:
		payload[12], payload[13] = 0x50, 2
	case packet.ProtoUDP, packet.ProtoUDPLite:
		binary.BigEndian.PutUint16(payload[4:], uint16(len(payload)))
	case packet.ProtoICMP, packet.ProtoICMPv6:
		types := []byte{0, 8, 3, 11, 128, 129, 1, 4, 135}
		payload[0] = types[r.IntN(len(types))]
	}
}

func random4(r *rand.Rand, proto byte, payload []byte) []byte {
	words := 5
	if r.IntN(4) == 0 {
		words += r.IntN(11)
	}
	b := make([]byte, words*4, words*4+len(payload))
	b[0], b[8], b[9] = 0x40|byte(words), 64, proto
	if r.IntN(4) == 0 {
		binary.BigEndian.PutUint16(b[6:], uint16(r.IntN(4))|uint16(r.IntN(2))<<13)
	}
	copy(b[12:], []byte{10, byte(r.IntN(2)), 0, 1, 10, 0, byte(r.IntN(2)), 2})
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

func random6(r *rand.Rand, proto byte, payload []byte) []byte {
	b := make([]byte, 40)
	b[0], b[7] = 0x60, 64
	b[8], b[24] = 0xfd, 0xfd
	b[23], b[39] = byte(r.IntN(4)), byte(r.IntN(4))
	next := 6 // where the type of the next header is to be written
	for n := r.IntN(10); n > 0 && r.IntN(3) > 0; n-- {
		kinds := []byte{hopByHop, routing, fragment, destination, destination, destination}
		kind := kinds[r.IntN(len(kinds))]
		b[next] = kind
		next = len(b)
		header := make([]byte, 8*(1+r.IntN(3)))
		if kind == fragment {
			header = header[:8]
			header[1] = byte(r.IntN(256))
			binary.BigEndian.PutUint16(header[2:], uint16(r.IntN(2)*r.IntN(3))<<3|uint16(r.IntN(2)))
		} else {
			header[1] = byte(len(header)/8 - 1)
		}
		b = append(b, header...)
	}
	b[next] = proto
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	return b
}

// TestWithoutOffsets: where nothing is known of kernel structures, owners and
// flows are recorded all the same.
func TestWithoutOffsets(t *testing.T) {
	requirePrograms(t)
	r := &Recorder{}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := r.maps.open(Config{Flows: 64, Owners: 64, Processes: 64}); err != nil {
		t.Fatal(err)
	}
	dir, err := r.cgroup("")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := r.attachAll(dir, btf.NewCache(), Config{Forward: true}); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	var o Owner
	if !r.Owner(cookie, &o) || o.PID != uint32(os.Getpid()) || o.Start != 0 || o.CgroupID == 0 || o.NetNS != OwnNetNS() {
		t.Errorf("got %+v", o)
	}
	const programs = 13
	if s := r.Stats(); len(s.Programs) != programs {
		t.Errorf("got %+v", s.Programs)
	}
}
