package replay

import (
	"net/netip"
	"slices"

	"github.com/verdictd/verdictd/packet"
)

// firstIndex is the index of the first interface that a run knows by name.
// It lies above the indexes that kernels give, which NFLOG and SLL2 captures
// carry.
const firstIndex = 1 << 31

// interfaces numbers the names of interfaces over all captures of a run.
type interfaces struct {
	names  []string
	byName map[string]uint32
	added  func(index uint32, name string) // may be nil
}

// index returns the index of a name, 0 if it is empty or the maxInterfaces
// that a run can tell apart are used up.
func (t *interfaces) index(name string) uint32 {
	if name == "" {
		return 0
	}
	if i, ok := t.byName[name]; ok {
		return i
	}
	if len(t.names) == maxInterfaces {
		return 0
	}
	i := uint32(firstIndex + len(t.names))
	t.names = append(t.names, name)
	t.byName[name] = i
	if t.added != nil {
		t.added(i, name)
	}
	return i
}

// name returns the name of an index, empty if it is not known.
func (t *interfaces) name(index uint32) string {
	if index < firstIndex || index-firstIndex >= uint32(len(t.names)) {
		return ""
	}
	return t.names[index-firstIndex]
}

// place sets the hook and the interfaces of a packet.
func (o *Options) place(l *link, captured uint32) {
	l.assumed = false
	switch {
	case o.FixHook:
		l.Hook = o.Hook
	case !l.hasHook:
		l.Hook = o.guessHook(l)
		l.assumed = len(o.Local) == 0 && l.way == wayUnknown
	}
	if l.placed {
		return
	}
	if l.ifindex != 0 {
		captured = l.ifindex
	}
	out := l.Hook == packet.Output || l.Hook == packet.Postrouting || l.Hook == packet.Forward && l.way == wayOut
	if out {
		l.Out = captured
		return
	}
	l.In = captured
}

// guessHook applies the rules of the package documentation.
func (o *Options) guessHook(l *link) packet.Hook {
	if len(o.Local) > 0 {
		src, dst := addresses(l.rest)
		switch {
		case o.isLocal(src):
			return packet.Output
		case o.isLocal(dst), isGroup(dst):
			return packet.Input
		}
		return packet.Forward
	}
	switch l.way {
	case wayIn:
		return packet.Input
	case wayOut:
		return packet.Output
	}
	return packet.Forward
}

func (o *Options) isLocal(a netip.Addr) bool {
	return a.IsLoopback() || slices.ContainsFunc(o.Local, func(p netip.Prefix) bool { return p.Contains(a) })
}

// isGroup returns whether a packet to a is for every host that hears it.
func isGroup(a netip.Addr) bool {
	return a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// addresses returns the addresses of an IP packet, invalid ones if its header
// is not there. They serve to choose a hook only; the judge decodes the packet.
func addresses(b []byte) (src, dst netip.Addr) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	case len(b) >= 40 && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	}
	return src, dst
}
