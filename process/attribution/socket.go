package attribution

import (
	"context"
	"time"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/sockdiag"
)

// socketPatience is how long Sockets waits in all for what is to be looked up of
// owners.
const socketPatience = 2 * time.Second

// Sockets gives every TCP, UDP and UDP-Lite socket of the namespace to yield, with
// its owner, each once. What cannot be looked up in time is left out. The socket is
// lent.
func (r *Resolver) Sockets(ctx context.Context, yield func(s *sockdiag.Socket, o *process.Owner) error) error {
	r.scan(ctx)
	diag, err := r.openDiag()
	if err != nil {
		return err
	}
	defer diag.Close()
	a := r.New()
	defer a.Close()
	seen := map[uint64]bool{}
	end := time.Now().Add(socketPatience)
	return diag.Dump(ctx, func(s *sockdiag.Socket) error {
		if s.Protocol == sockdiag.ProtoRaw || s.Cookie != 0 && seen[s.Cookie] {
			return nil
		}
		seen[s.Cookie] = true
		m := &packet.Meta{Time: time.Now().UnixNano()}
		o, pending := a.ownerOf(s, m)
		for pending&^process.FactHash != 0 && time.Now().Before(end) && ctx.Err() == nil {
			time.Sleep(100 * time.Microsecond)
			o, pending = a.ownerOf(s, m)
		}
		return yield(s, o)
	})
}
