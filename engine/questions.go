package engine

import (
	"net/netip"
	"sync/atomic"

	"github.com/verdictd/verdictd/packet"
)

// answerTime is how long after a question by multicast its answers are known as
// such: devices wait up to the MX seconds of an SSDP search, three as a rule, and
// half a second for mDNS (RFC 6762, 6).
const answerTime = int64(3e9)

// questions are the latest UDP packets that local sockets sent to a multicast
// group or to 255.255.255.255, by port and interface: who answers has an address
// that no flow knows. A new question takes the place of an older one that has
// the same place, so the memory is fixed; whose question is lost that way gets no
// answer. It is safe for concurrent use and takes no lock: a reader that meets a
// writer finds nothing.
type questions struct {
	places [1024]questionPlace
}

type questionPlace struct {
	version atomic.Uint64    // odd while a writer is at work
	at      atomic.Int64     // Unix nanoseconds
	where   atomic.Uint64    // port and interface of the socket that asked
	words   [4]atomic.Uint64 // address of that socket, and of the group
}

// isQuestion returns whether a packet is one that many may answer.
func isQuestion(p *packet.Packet) bool {
	return p.Is(packet.ProtoUDP) && p.HasPorts && (p.Dst.IsMulticast() || p.Dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}))
}

// note remembers a packet that was accepted, if it is a question.
func (q *questions) note(m *packet.Meta, p *packet.Packet) {
	if m.Hook.Direction() != "out" || !isQuestion(p) {
		return
	}
	where := place(p.Version, p.SrcPort, m.Out)
	s := q.at(where)
	v := s.version.Load()
	if v&1 != 0 || !s.version.CompareAndSwap(v, v+1) {
		return // another worker writes here
	}
	src, dst := p.Src.As16(), p.Dst.As16()
	s.at.Store(m.Time)
	s.where.Store(where)
	for i := range 2 {
		s.words[i].Store(word(&src, i))
		s.words[2+i].Store(word(&dst, i))
	}
	s.version.Store(v + 2)
}

// answered returns whether a packet answers a question: it came in soon after,
// by the interface that the question left by, for the port that asked and for
// its address or the group that was asked.
func (q *questions) answered(m *packet.Meta, p *packet.Packet) bool {
	if !p.Is(packet.ProtoUDP) || !p.HasPorts || m.Hook.Direction() != "in" {
		return false
	}
	where := place(p.Version, p.DstPort, m.In)
	s := q.at(where)
	v := s.version.Load()
	age := m.Time - s.at.Load()
	if v == 0 || v&1 != 0 || age < 0 || age > answerTime || s.where.Load() != where {
		return false
	}
	to := p.Dst.As16()
	asker, group := true, true
	for i := range 2 {
		w := word(&to, i)
		asker = asker && s.words[i].Load() == w
		group = group && s.words[2+i].Load() == w
	}
	return (asker || group) && s.version.Load() == v
}

// place tells sockets that ask apart; interfaces by the lower 32 bits.
func place(version uint8, port uint16, iface uint32) uint64 {
	return uint64(version)<<48 | uint64(port)<<32 | uint64(iface)
}

func (q *questions) at(where uint64) *questionPlace {
	const golden = 0x9e3779b97f4a7c15 // Fibonacci hashing: Knuth, TAOCP 3, 6.4
	return &q.places[where*golden>>54]
}

func word(a *[16]byte, i int) (w uint64) {
	for _, b := range a[8*i : 8*i+8] {
		w = w<<8 | uint64(b)
	}
	return w
}
