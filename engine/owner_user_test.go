package engine_test

import (
	"testing"
	"time"

	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
)

// byUser is an Attributor that tells the owner by the user of the packet.
type byUser struct {
	registry
	owners map[uint32]*process.Owner // by uid
}

func (r *byUser) Owner(m *packet.Meta, _ *packet.Packet) (*process.Owner, process.Facts) {
	r.asked++
	if !m.HasUID {
		return &process.Owner{ID: 9}, 0
	}
	return r.owners[m.UID], 0
}

// Packets of two users that wait together are each judged for their own, though
// nothing has changed since the first of them was judged.
func TestEachUserIsJudged(t *testing.T) {
	r := &byUser{owners: map[uint32]*process.Owner{1: program(1, "/curl"), 2: program(2, "/evil")}}
	r.changes = 1
	b := newBench(t, engine.Config{Attributor: func() engine.Attributor { return r }}, &byExe{t: t, exe: "/curl"})
	for i, test := range []struct {
		meta packet.Meta
		want packet.Action
	}{
		{packet.Meta{Hook: packet.Output, HasUID: true, UID: 1}, packet.Accept},
		{packet.Meta{Hook: packet.Output, HasUID: true, UID: 1}, packet.Accept},
		{packet.Meta{Hook: packet.Output, HasUID: true, UID: 2}, packet.Drop},
		{packet.Meta{Hook: packet.Output}, packet.Drop}, // a socket that is closed
		{packet.Meta{Hook: packet.Output, HasUID: true, UID: 1}, packet.Accept},
		{packet.Meta{Hook: packet.Output, HasUID: true, UID: 2}, packet.Drop},
	} {
		b.now += int64(time.Second)
		if got, reason := b.sendMeta(test.meta, udp(client, server)); got != test.want {
			t.Errorf("packet %d: got %v (%s), want %v", i, got, reason, test.want)
		}
	}
	if r.asked != 5 {
		t.Errorf("asked for the owner %d times, want 5", r.asked)
	}
}
