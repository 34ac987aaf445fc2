package hook_test

import (
	"context"
	"sync"
	"testing"
	"time"

	nfqueue "github.com/florianl/go-nfqueue/v2"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
)

const wait = 3 * time.Second

// receiver reads queues and accepts every packet, at once or when released.
type receiver struct {
	mu   sync.Mutex
	hold bool
	held []func()
	// answer gives a packet its verdict; nil accepts it.
	answer func(nf *nfqueue.Nfqueue, id uint32) error
	got    []packet
}

type packet struct {
	queue uint16
	hook  uint8
	data  []byte
}

// is says whether the packet is the given hook's and carries the IP protocol,
// which must follow the IP header at once.
func (p packet) is(h hook.Hook, proto uint8) bool {
	return p.hook == uint8(h) && p.proto() == proto
}

func (p packet) proto() uint8 {
	if p.data[0]>>4 == 6 {
		return p.data[6]
	}
	return p.data[9]
}

// receive binds the queues in the namespace until the test ends.
func receive(t *testing.T, ns *lab.Namespace, queues ...uint16) *receiver {
	t.Helper()
	r := &receiver{}
	for _, q := range queues {
		nf, err := nfqueue.Open(&nfqueue.Config{
			NetNS: ns.FD(), NfQueue: q, MaxPacketLen: 0xffff, MaxQueueLen: 4096, Copymode: nfqueue.NfQnlCopyPacket,
		})
		if err != nil {
			t.Fatal(err)
		}
		// The default holds 256 small packets: too few on a busy machine.
		if err := nf.Con.SetReadBuffer(8 << 20); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(func() {
			cancel()
			_ = nf.Close() // the context may have closed it already
		})
		fn := func(a nfqueue.Attribute) int { return r.packet(q, nf, a) }
		if err := nf.RegisterWithErrorFunc(ctx, fn, func(error) int { return 0 }); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r *receiver) packet(q uint16, nf *nfqueue.Nfqueue, a nfqueue.Attribute) int {
	if a.PacketID == nil || a.Payload == nil || a.Hook == nil {
		return 0
	}
	id := *a.PacketID
	accept := func() { _ = nf.SetVerdict(id, nfqueue.NfAccept) } // a lost verdict shows as a lost packet
	r.mu.Lock()
	defer r.mu.Unlock()
	if answer := r.answer; answer != nil {
		accept = func() { _ = answer(nf, id) }
	}
	r.got = append(r.got, packet{queue: q, hook: *a.Hook, data: append([]byte(nil), *a.Payload...)})
	if r.hold {
		r.held = append(r.held, accept)
		return 0
	}
	accept()
	return 0
}

// holdBack keeps the verdicts of all later packets until release.
func (r *receiver) holdBack() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold = true
}

func (r *receiver) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, accept := range r.held {
		accept()
	}
	r.held, r.hold = nil, false
}

// packets returns a copy of the packets that match (nil: all).
func (r *receiver) packets(match func(packet) bool) []packet {
	r.mu.Lock()
	defer r.mu.Unlock()
	var got []packet
	for _, p := range r.got {
		if match == nil || match(p) {
			got = append(got, p)
		}
	}
	return got
}

func (r *receiver) waitFor(n int) bool {
	return lab.Poll(wait, func() bool { return len(r.packets(nil)) >= n })
}
