package queue

// Pulse says how far Run is, for who watches over it.
type Pulse struct {
	Running bool   // Run has begun and not returned
	Busy    bool   // it has work; else it waits for a packet, for at most Idle
	Beat    uint64 // another one whenever work begins or ends
}

// What Run is at.
const (
	ended uint64 = iota
	waiting
	busy
)

// Pulse may be called from any goroutine.
func (q *Queue) Pulse() Pulse {
	p := q.pulse.Load()
	return Pulse{Running: p&3 != ended, Busy: p&3 == busy, Beat: p >> 2}
}

// enter notes what Run is at now.
func (q *Queue) enter(at uint64) { q.pulse.Store(q.pulse.Load()&^3 + 4 | at) }

// wait reads a batch, and waits for one until the read deadline.
func (q *Queue) wait() error {
	q.enter(waiting)
	defer q.enter(busy)
	return q.conn.Recv()
}
