package engine

import (
	"sync"

	"github.com/verdictd/verdictd/packet"
)

// peers is where workers tell each other of flows they accepted, for rule
// sets that send the two directions of a flow to different queues. A worker
// writes here when it accepts a flow, and reads when it would drop a packet:
// those of accepted flows never come here.
//
// It is a meeting place and not a second flow table: once a worker has found
// a flow it remembers it in its own. So a fixed number of places is enough. Who
// has to give way to a new flow goes by what a stranger can bring about alone:
// flows that others begin take no place of one that this host begins.
type peers struct {
	stripes [64]peerStripe
	hasher  *table // for its keyed hash
}

type peerStripe struct {
	mu   sync.Mutex
	sets [128][ways]peerPlace
}

// peerPlace is what an entry of the worker that accepted says.
type peerPlace struct {
	key      flowKey
	told     int64 // Unix nanoseconds
	epoch    uint32
	uid, gid uint32
	dir      uint8
	known    uint8
	own      bool // this host began the flow
	log      bool // the policy wants the flow logged
	owned    bool // see slot
	answered bool // or not begun by what is known: a SYN of the other end does not belong to it
}

// peerHold is how long the first answer to a flow of this host is waited for.
const peerHold = int64(holdTCPNew)

func newPeers() *peers { return &peers{hasher: newTable(0)} }

func (p *peers) at(k *flowKey) (*peerStripe, *[ways]peerPlace) {
	h := p.hasher.hash(k)
	s := &p.stripes[h>>58]
	return s, &s.sets[h%uint64(len(s.sets))]
}

// tell notes that the flow's direction dir was accepted in epoch, at the time of
// its last packet, which is the flow's first of that direction and begins a
// connection if fresh is set. It returns false if there is no place for it.
func (p *peers) tell(e *entry, dir int, epoch uint32, log, fresh bool) bool {
	s, set := p.at(&e.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	told := peerPlace{
		key: e.key, told: e.last, epoch: epoch, uid: e.uid, gid: e.gid, dir: uint8(dir), known: e.known,
		own: e.hook == packet.Output, log: log, owned: e.slot[dir].owned, answered: !fresh || e.offloaded,
	}
	way := told.choose(set)
	if way < 0 {
		return false
	}
	if place := &set[way]; !fresh && place.key == told.key && place.dir == told.dir {
		told.answered = place.answered
	}
	set[way] = told
	return true
}

// choose returns the way of a set that is the flow's already or that gives way to
// it, -1 if none does: the oldest of those that count no more, else of those that
// others began, else, for a flow of this host, of all.
func (t *peerPlace) choose(set *[ways]peerPlace) int {
	way, lowest, oldest := -1, 1, int64(0)
	if t.own {
		lowest = 2
	}
	for i := range set {
		place, rank := &set[i], 1
		switch {
		case place.key == t.key && place.dir == t.dir:
			return i
		case place.epoch != t.epoch || t.told-place.told > peerHold:
			rank = 0
		case place.own:
			rank = 2
		}
		if rank < lowest || rank == lowest && (way < 0 || place.told < oldest) {
			way, lowest, oldest = i, rank, place.told
		}
	}
	return way
}

// accepted returns what was told of the flow's direction dir; ok is false if no
// worker accepted it in epoch, or if that had to give way. answer says that the
// packet at hand belongs to the flow, so that the flow is answered.
func (p *peers) accepted(k *flowKey, dir int, epoch uint32, answer bool) (told peerPlace, ok bool) {
	s, set := p.at(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range set {
		if place := &set[i]; place.epoch == epoch && place.dir == uint8(dir) && place.key == *k {
			place.answered = place.answered || answer
			return *place, true
		}
	}
	return peerPlace{}, false
}

// answer notes that the flow, whose direction dir was told of, is answered.
func (p *peers) answer(k *flowKey, dir int) {
	s, set := p.at(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range set {
		if place := &set[i]; place.dir == uint8(dir) && place.key == *k {
			place.answered = true
		}
	}
}
