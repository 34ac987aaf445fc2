package attribution

import (
	"context"
	"time"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/sockdiag"
)

// Sockets gives every TCP, UDP and UDP-Lite socket of the namespace to yield, with
// its owner, each once. The socket is lent.
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
	return diag.Dump(ctx, func(s *sockdiag.Socket) error {
		if s.Protocol == sockdiag.ProtoRaw || s.Cookie != 0 && seen[s.Cookie] {
			return nil
		}
		seen[s.Cookie] = true
		return yield(s, a.ownerOf(s, &packet.Meta{Time: time.Now().UnixNano()}))
	})
}

// ownerOf returns the owner of a socket that sock_diag has found, for the packet m
// or for none.
func (a *Attributor) ownerOf(s *sockdiag.Socket, m *packet.Meta) *process.Owner {
	if a.r.rec != nil && s.Cookie != 0 && a.r.rec.Owner(s.Cookie, &a.owner) {
		return a.recorded(&a.owner, process.BPFCookie)
	}
	if o := a.held(s, m.Time); o != nil {
		return o
	}
	if s.Inode == 0 {
		return a.r.nobody // not accepted yet, or closed: then its user says nothing
	}
	return a.bySocketUser(s, m)
}
