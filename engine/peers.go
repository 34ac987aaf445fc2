package engine

import "sync"

// peers is where workers tell each other of flows they accepted, for rule
// sets that send the two directions of a flow to different queues. A worker
// writes here when it accepts a flow, and reads when it would drop the first
// packet of a flow it does not know: decided flows never come here.
//
// It is a meeting place and not a second flow table: once a worker has found
// a flow it remembers it in its own. So a fixed number of places is enough,
// and the newest flow takes the place of an older one.
type peers struct {
	stripes [64]peerStripe
	hasher  *table // for its keyed hash
}

type peerStripe struct {
	mu     sync.Mutex
	places [1024]peerPlace
}

type peerPlace struct {
	key   flowKey
	epoch uint32
	dir   uint8
	log   bool // what the policy said
}

func newPeers() *peers { return &peers{hasher: newTable(0)} }

func (p *peers) at(k *flowKey) (*peerStripe, *peerPlace) {
	h := p.hasher.hash(k)
	s := &p.stripes[h>>58]
	return s, &s.places[h%uint64(len(s.places))]
}

// tell notes that the flow's direction dir was accepted in epoch, and whether
// the policy wants it logged.
func (p *peers) tell(k *flowKey, dir int, epoch uint32, log bool) {
	s, place := p.at(k)
	s.mu.Lock()
	*place = peerPlace{key: *k, epoch: epoch, dir: uint8(dir), log: log}
	s.mu.Unlock()
}

// accepted returns whether some worker accepted the flow's direction dir in
// epoch, and if so whether it is to be logged.
func (p *peers) accepted(k *flowKey, dir int, epoch uint32) (log, ok bool) {
	s, place := p.at(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return place.log, place.epoch == epoch && place.dir == uint8(dir) && place.key == *k
}
