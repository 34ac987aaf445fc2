package hook

import (
	"fmt"
	"math/bits"
	"slices"
)

// DefaultMask are the bits of packet and connection marks that are verdictd's
// unless told otherwise, or others use them.
const DefaultMask = 0xff000000

// Marks are the values that verdictd and the ruleset tell each other things
// with, in those bits of a mark that Mask names. Nobody else may use these bits;
// all other bits are left as they are. The zero value means no marks at all.
//
// A packet mark Reject or Accept comes with the verdict NF_REPEAT: the packet
// goes through the same hook once more, and there the ruleset carries it out. A
// connection mark Accept lets all packets of the connection pass by the queue.
type Marks struct {
	Mask   uint32
	Reject uint32 // tell the sender and drop; as a connection mark: its sender was told
	Reply  uint32 // set by the ruleset: an answer in the eyes of conntrack, to what comes by Config.Hooks too
	// Related is set by the ruleset: an ICMP error, in the eyes of conntrack, about
	// a flow that passes by the queue.
	Related uint32
	Accept  uint32 // pass, and the rest of the flow too; 0: no flow passes by the queue
	// Last is the greatest value of Accept: the numbers come round after it.
	Last uint32
}

// Numbers of the marks, in units of the mask's lowest bit. From firstAccept to
// the greatest that fits, each stands for one generation of decisions.
const (
	rejectNumber = 1 + iota
	replyNumber
	relatedNumber
	firstAccept
)

// minMaskBits leaves room for minGenerations, so that a number comes back long
// after the last packet that was given it.
const (
	minMaskBits    = 4
	minGenerations = 1<<minMaskBits - firstAccept
)

// NewMarks returns the marks of the first generation. The mask must be one run
// of 4 to 32 bits.
func NewMarks(mask uint32) (Marks, error) {
	shift, n := bits.TrailingZeros32(mask), bits.OnesCount32(mask)
	if n < minMaskBits || n != bits.Len32(mask)-shift {
		return Marks{}, fmt.Errorf("mask %#x: want one run of at least %d bits, such as %#x", mask, minMaskBits, uint32(DefaultMask))
	}
	return Marks{
		Mask: mask, Reject: rejectNumber << shift, Reply: replyNumber << shift, Related: relatedNumber << shift, Accept: firstAccept << shift, Last: mask,
	}, nil
}

// Avoiding returns marks of the first generation, of which none ever has the bits of
// Mask as they are in value, somebody else's mark. It returns false if too few are
// left for that.
func (m Marks) Avoiding(value uint32) (Marks, bool) {
	value &= m.Mask
	if value == 0 || value > m.Last {
		return m, true
	}
	unit := m.Mask & -m.Mask
	if value/unit < firstAccept+minGenerations {
		return m, false
	}
	m.Last = value - unit
	return m, true
}

// Next returns the marks of the generation after m's. The numbers come round after
// Last: see ClearMarks.
func (m Marks) Next() Marks {
	shift := bits.TrailingZeros32(m.Mask)
	next := uint64(m.Accept)>>shift + 1
	if next > uint64(m.Last>>shift) {
		next = firstAccept
	}
	m.Accept = uint32(next << shift)
	return m
}

// CanOffload says why flows cannot pass by the queue under this configuration,
// nil if they can. Connection marks do not say at which hook they were set. So
// the packets of a flow must come by one hook only in each direction: else what
// was accepted at one would pass unseen at the other.
func (c Config) CanOffload() error {
	has := func(h Hook) bool { return slices.Contains(c.Hooks, h) }
	switch {
	case len(c.Hooks) > 1 && has(Prerouting), len(c.Hooks) > 1 && has(Postrouting):
		return fmt.Errorf("offload with hooks %v: a packet passes several of them, and what one accepts would pass the others unseen: leave out prerouting and postrouting, or offload", c.Hooks)
	case c.Loopback && has(Input) && has(Output):
		return fmt.Errorf("offload with hooks input and output over loopback: a packet passes both, and what one accepts would pass the other unseen: leave out loopback, or offload")
	}
	return nil
}

// defaultMarks checks Mask and Offload.
func (c *Config) defaultMarks() error {
	if c.Mask == 0 {
		if c.Offload {
			return fmt.Errorf("offload without a mask: it needs bits of the connection mark")
		}
		return nil
	}
	if _, err := NewMarks(c.Mask); err != nil {
		return err
	}
	if c.OwnMark&c.Mask != 0 {
		return fmt.Errorf("own mark %#x is in the mask %#x of the ruleset's marks: choose other bits", c.OwnMark, c.Mask)
	}
	if c.Offload {
		return c.CanOffload()
	}
	return nil
}

// marks returns the marks that a new ruleset begins with.
func (c *Config) marks() Marks {
	m, err := NewMarks(c.Mask)
	if err != nil {
		return Marks{} // checked by defaultMarks: there is no mask
	}
	if !c.Offload {
		m.Accept = 0
	}
	return m
}

// seesBoth says whether the packets that those at hook h answer come by one of
// the hooks too.
func (c *Config) seesBoth(h Hook) bool {
	reverse := map[Hook]Hook{Prerouting: Postrouting, Input: Output, Forward: Forward, Output: Input, Postrouting: Prerouting}
	return slices.Contains(c.Hooks, reverse[h])
}
