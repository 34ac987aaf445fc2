package attribution

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/record"
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

// HashOf returns what came of hashing the owner's program so far.
func (r *Resolver) HashOf(o *process.Owner) (sum, why string) {
	if exe := &o.Process.Exe; exe.SHA256 != "" || exe.NoSHA256 != "" {
		return exe.SHA256, exe.NoSHA256
	}
	if h := r.hashes.peek(fileOf(o.Process, r.bootTime(o.Process.Start))); h != nil {
		return h.sum, h.why
	}
	return "", ""
}

// Doubt is contents.doubt.
func Doubt(locked bool, r *record.Process, tick uint64) string {
	c := contents{locked: locked}
	return c.doubt(r, tick)
}

// Tick returns what CLOCK_MONOTONIC_COARSE is now, and when a file would be changed by
// that clock.
func Tick(t *testing.T) (tick uint64, changed int64) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now); err != nil {
		t.Fatal(err)
	}
	changed, ok := coarse(uint64(now.Nano()))
	if !ok {
		t.Fatal("the clocks do not hold still")
	}
	return uint64(now.Nano()), changed
}
