package links

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// downBits is how many low bits of an index tell interfaces apart here.
const downBits = 15

// moment is how long after an interface went down something counts as caused by it.
const moment = 2 * time.Second

// downs remembers when interfaces went down.
type downs struct {
	mu sync.Mutex
	by map[uint32]down // by the low bits of the index
}

type down struct {
	up bool      // by now
	at time.Time // when it went down last; zero: never
}

// note takes note of one RTM_NEWLINK or RTM_DELLINK message.
func (d *downs) note(m netlink.Message, now time.Time) {
	if len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
		return
	}
	index := binary.NativeEndian.Uint32(m.Data[4:8]) & (1<<downBits - 1)
	up := m.Header.Type == unix.RTM_NEWLINK && binary.NativeEndian.Uint32(m.Data[8:12])&unix.IFF_UP != 0
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.by == nil {
		d.by = map[uint32]down{}
	}
	was, known := d.by[index]
	if !up && (was.up || !known) {
		was.at = now
	}
	was.up = up
	d.by[index] = was
}

// WentDown returns whether an interface whose index has these low 15 bits went down
// a moment before at, or has been down since then, as far as Run has read. It may
// be called from any goroutine.
func (t *Table) WentDown(low uint32, at time.Time) bool {
	t.downs.mu.Lock()
	defer t.downs.mu.Unlock()
	d := t.downs.by[low]
	return !d.at.IsZero() && (!d.up || at.Sub(d.at) < moment && d.at.Sub(at) < moment)
}
