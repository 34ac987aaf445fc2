package packet

// Hook is the netfilter hook at which a packet was seen.
//
// Source: enum nf_inet_hooks, include/uapi/linux/netfilter.h.
type Hook uint8

// Hooks, with the kernel's numbers.
const (
	Prerouting  Hook = 0
	Input       Hook = 1
	Forward     Hook = 2
	Output      Hook = 3
	Postrouting Hook = 4
)

// String returns the hook's name in lower case.
func (h Hook) String() string {
	switch h {
	case Prerouting:
		return "prerouting"
	case Input:
		return "input"
	case Forward:
		return "forward"
	case Output:
		return "output"
	case Postrouting:
		return "postrouting"
	}
	return "unknown"
}

// ParseHook returns the hook of that name; ok is false if there is none.
func ParseHook(name string) (h Hook, ok bool) {
	for h := Prerouting; h <= Postrouting; h++ {
		if h.String() == name {
			return h, true
		}
	}
	return 0, false
}

// Direction returns "in", "out" or "forward": the packet's way as seen from
// the host that judges it.
func (h Hook) Direction() string {
	switch h {
	case Output, Postrouting:
		return "out"
	case Forward:
		return "forward"
	}
	return "in"
}

// EtherTypes of the two protocols that verdictd judges.
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeIPv6 = 0x86dd
)

// Meta is what is known of a packet beside its bytes. All fields are in host
// byte order. The zero value stands for a packet of unknown origin seen at
// PREROUTING.
type Meta struct {
	Time   int64  // Unix nanoseconds: arrival, or the capture's timestamp
	ID     uint32 // packet id in its queue (NFQA_PACKET_HDR), or frame number in a capture
	Queue  uint16 // queue number
	Hook   Hook
	Length uint32 // bytes of the IP packet on the wire; more than len(data) if the copy was cut short

	// EtherType is what the link layer or the hook says the packet is:
	// EtherTypeIPv4, EtherTypeIPv6, another protocol, or 0 if nothing says so
	// and the version nibble decides.
	EtherType uint16

	In, Out         uint32 // interface indexes, 0 if there is none
	PhysIn, PhysOut uint32 // bridge ports, 0 if there is none

	Mark     uint32 // skb mark, 0 if unset
	Priority uint32 // skb priority (NFQA_PRIORITY), 0 if unset
	UID, GID uint32 // owner of the local socket that sends or (at INPUT) receives, valid iff HasUID, HasGID
	HasUID   bool
	HasGID   bool

	// GSO says that the packet is a not yet segmented super-packet whose
	// lengths may exceed the MTU, and ChecksumPending that its transport
	// checksum is not yet filled in (NFQA_SKB_INFO).
	GSO             bool
	ChecksumPending bool

	// More says that the packet can be had again with more of its bytes: all, or
	// MaxHeaders. See Again.
	More bool
}
