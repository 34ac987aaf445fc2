package engine

import (
	"crypto/rand"
	"encoding/binary"
	"math/bits"
	"time"
	"unsafe"

	"github.com/verdictd/verdictd/packet"
)

// ways is how many places a flow can be put in. Eight one-byte tags fill one
// word, which is read before any entry is touched.
const ways = 8

// BytesPerFlow is the memory that one flow of Config.Flows costs.
const BytesPerFlow = int(unsafe.Sizeof(entry{})) + 1

// table is a set-associative flow table of fixed size. Find, insert and
// remove look at one set of eight entries, whatever is in the table; the hash
// is keyed, so that nobody outside can choose tuples that meet in one set.
type table struct {
	tags    []uint64 // per set: a byte for each way, 0 if the way is free
	entries []entry
	mask    uint64
	key     [2]uint64
	used    uint64
	swept   uint64 // next set to sweep
}

func newTable(flows int) *table {
	sets := uint64(1)
	for sets*ways < uint64(flows) {
		sets <<= 1
	}
	t := &table{tags: make([]uint64, sets), entries: make([]entry, sets*ways), mask: sets - 1}
	var seed [16]byte
	rand.Read(seed[:]) // never fails
	t.key = [2]uint64{binary.LittleEndian.Uint64(seed[:8]), binary.LittleEndian.Uint64(seed[8:]) | 1}
	return t
}

// hash mixes the key with 128-bit multiplications, a word at a time.
func (t *table) hash(k *flowKey) uint64 {
	h := t.mix(t.mix(t.key[0], k.lo[0]), k.lo[1])
	h = t.mix(t.mix(h, k.hi[0]), k.hi[1])
	h = t.mix(h, uint64(k.loPort)<<48|uint64(k.hiPort)<<32|uint64(k.protocol)<<24|uint64(k.version)<<16|uint64(k.place)<<8|uint64(k.asker))
	hi, lo := bits.Mul64(h, 0x9e3779b97f4a7c15)
	return hi ^ lo
}

func (t *table) mix(h, x uint64) uint64 {
	hi, lo := bits.Mul64(h^x, t.key[1])
	return hi ^ lo ^ bits.RotateLeft64(x, 29)
}

// find returns the entry of k, or nil. The entry is the table's: valid until
// the next insert or sweep.
func (t *table) find(k *flowKey) *entry {
	h := t.hash(k)
	set, tag := h&t.mask, tagOf(h)
	tags := t.tags[set]
	for way := range uint64(ways) {
		if uint8(tags>>(8*way)) != tag {
			continue
		}
		if e := &t.entries[set*ways+way]; e.key == *k {
			return e
		}
	}
	return nil
}

// insert returns a cleared entry for k, which must not be in the table. own says
// that this host begins the flow. The place is a free one, or that of the flow of
// the lowest rank, among these the oldest: see rank. Whoever is removed is given
// to end first. If all eight are to be kept, insert returns nil.
func (t *table) insert(k *flowKey, now int64, own bool, end func(e *entry, why string)) *entry {
	h := t.hash(k)
	set := h & t.mask
	way, why := t.place(set, now, own)
	if way < 0 {
		return nil
	}
	e := &t.entries[set*ways+uint64(way)]
	if why != "" {
		end(e, why)
		t.used--
	}
	*e = entry{key: *k}
	shift := 8 * uint64(way)
	t.tags[set] = t.tags[set]&^(0xff<<shift) | uint64(tagOf(h))<<shift
	t.used++
	return e
}

// Reasons for the end of a flow.
const (
	endTimeout  = "timeout"
	endClosed   = "closed"
	endEvicted  = "evicted"
	endReused   = "reused"
	endShutdown = "shutdown"
)

// rank says who has to give way to a new flow: the lower, the sooner.
type rank uint8

// Ranks. What a stranger can bring about alone, also in another's name, is below
// what this host begins; what both ends have a part in is never removed. An
// answer to a packet that is no TCP shows nothing: it is sent to false addresses
// too. Closed connections go as early as the kernel's connection tracking lets
// them go (tcp_can_early_drop).
const (
	rankExpired  rank = iota
	rankDropped       // the policy accepts nothing of it
	rankHalf          // begun by others and not answered, half a handshake, or closed
	rankAnswered      // begun by others and answered
	rankStream        // the same, for longer than streamAge
	rankOwn           // begun by this host and not answered yet
	rankKept          // a connection, or begun by this host and answered
)

// streamAge is how long a flow that is no TCP goes on before the kernel takes it
// for more than one question (nf_conntrack_udp_packet).
const streamAge = 2 * time.Second

func (e *entry) rank(now int64) rank {
	own := e.hook == packet.Output
	switch {
	case e.expired(now):
		return rankExpired
	case !e.accepted():
		return rankDropped
	case e.closed():
		return rankHalf
	case e.key.protocol == packet.ProtoTCP && e.tcp&connected != 0, e.key.protocol != packet.ProtoTCP && own && e.replied():
		return rankKept
	case own:
		return rankOwn
	case e.key.protocol == packet.ProtoTCP || !e.replied():
		return rankHalf
	case e.last-e.start > int64(streamAge):
		return rankStream
	}
	return rankAnswered
}

// place chooses a way of the set for a new flow, or -1. why is empty if the
// way is free. A flow that others begin takes no place of one that this host
// has begun.
func (t *table) place(set uint64, now int64, own bool) (way int, why string) {
	if way := freeWay(t.tags[set]); way < ways {
		return way, ""
	}
	lowest, oldest := rankOwn, int64(0)
	way = -1
	if own {
		lowest = rankKept
	}
	for i := range ways {
		e := &t.entries[set*ways+uint64(i)]
		if r := e.rank(now); r < lowest || r == lowest && way >= 0 && e.last < oldest {
			way, lowest, oldest = i, r, e.last
		}
	}
	if way >= 0 && lowest == rankExpired {
		return way, t.entries[set*ways+uint64(way)].endReason()
	}
	return way, endEvicted
}

// freeWay returns the first free way by the tags of a set, ways if there is none: the
// lowest byte that is 0. No entry is touched for it.
func freeWay(tags uint64) int {
	const low, high = 0x0101010101010101, 0x8080808080808080
	return bits.TrailingZeros64((tags-low)&^tags&high) / 8
}

func (e *entry) endReason() string {
	if e.closed() {
		return endClosed
	}
	return endTimeout
}

// sweep looks at the next sets for expired flows, gives each to end and
// removes it.
func (t *table) sweep(sets int, now int64, end func(e *entry, why string)) {
	for range min(uint64(sets), t.mask+1) {
		set := t.swept & t.mask
		t.swept++
		if t.tags[set] == 0 {
			continue
		}
		t.removeIf(set, func(e *entry) (string, bool) { return e.endReason(), e.expired(now) }, end)
	}
}

// clear gives every flow to end and empties the table.
func (t *table) clear(end func(e *entry, why string)) {
	for set := range t.tags {
		if t.tags[set] != 0 {
			t.removeIf(uint64(set), func(*entry) (string, bool) { return endShutdown, true }, end)
		}
	}
}

func (t *table) removeIf(set uint64, gone func(e *entry) (string, bool), end func(e *entry, why string)) {
	for way := range uint64(ways) {
		shift := 8 * way
		if uint8(t.tags[set]>>shift) == 0 {
			continue
		}
		e := &t.entries[set*ways+way]
		why, ok := gone(e)
		if !ok {
			continue
		}
		end(e, why)
		t.tags[set] &^= 0xff << shift
		t.used--
	}
}

// tagOf is a byte of the hash that is not used for the set, never 0.
func tagOf(h uint64) uint8 {
	return uint8(h>>56) | 1
}
