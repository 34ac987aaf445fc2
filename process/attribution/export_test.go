package attribution

import (
	"context"
	"time"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
)

// Settled is Owner once nothing is pending any more but the hash.
func (a *Attributor) Settled(m *packet.Meta, p *packet.Packet) *process.Owner {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Microsecond) {
		if o, pending := a.Owner(m, p); pending&^process.FactHash == 0 || time.Now().After(end) {
			return o
		}
	}
}

// Owned is Owner alone.
func (a *Attributor) Owned(m *packet.Meta, p *packet.Packet) *process.Owner {
	o, _ := a.Owner(m, p)
	return o
}

// ForgetProcesses makes every process one that was not seen before. What is known
// of others, such as their parents, stays.
func (a *Attributor) ForgetProcesses() {
	clear(a.images)
	clear(a.present)
	clear(a.owners)
}

// Tables tells whether holders of sockets are read from the kernel's tables.
func (r *Resolver) Tables() bool { return r.tables }

// List finds out who holds which socket and returns of how many sockets.
func (r *Resolver) List(ctx context.Context, tables bool) (int, error) {
	found, err := r.list(ctx, tables)
	return len(found), err
}
