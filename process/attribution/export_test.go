package attribution

import "context"

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
