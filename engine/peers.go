package engine

import "sync"

// peers is where workers tell each other of flows they accepted, for rule
// sets that send the two directions of a flow to different queues. A worker
// writes here when it accepts a flow, and reads when it would drop a packet:
// those of accepted flows never come here.
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

// peerPlace is what an entry of the worker that accepted says.
type peerPlace struct {
	key      flowKey
	epoch    uint32
	uid, gid uint32
	dir      uint8
	known    uint8
	log      bool // the policy wants the flow logged
	owned    bool // see slot
}

func newPeers() *peers { return &peers{hasher: newTable(0)} }

func (p *peers) at(k *flowKey) (*peerStripe, *peerPlace) {
	h := p.hasher.hash(k)
	s := &p.stripes[h>>58]
	return s, &s.places[h%uint64(len(s.places))]
}

// tell notes that the flow's direction dir was accepted in epoch.
func (p *peers) tell(e *entry, dir int, epoch uint32, log bool) {
	s, place := p.at(&e.key)
	s.mu.Lock()
	*place = peerPlace{key: e.key, epoch: epoch, uid: e.uid, gid: e.gid, dir: uint8(dir), known: e.known, log: log, owned: e.slot[dir].owned}
	s.mu.Unlock()
}

// accepted returns what was told of the flow's direction dir; ok is false if no
// worker accepted it in epoch.
func (p *peers) accepted(k *flowKey, dir int, epoch uint32) (told peerPlace, ok bool) {
	s, place := p.at(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return *place, place.epoch == epoch && place.dir == uint8(dir) && place.key == *k
}
