package packet

// Action is what happens to a packet. The zero value is Drop, so a verdict
// that nobody filled in lets nothing through.
type Action uint8

// Actions.
const (
	// Drop discards the packet without telling its sender.
	Drop Action = iota
	// Accept lets the packet go on to the next hook.
	Accept
	// Reject discards the packet and tells its sender: TCP RST, or ICMP
	// administratively prohibited.
	Reject
	// Again is no end: it asks for the packet once more, with more of its bytes. Only
	// where Meta.More says that there are more; nothing else of a Verdict counts then.
	Again
	// Hold is no verdict yet: it is told later, by the packet's id. Only a Handler
	// that was given a way to do so holds packets.
	Hold
)

// String returns "drop", "accept", "reject" or "hold". The first three are the
// spelling used in policies, audit records and reports.
func (a Action) String() string {
	switch a {
	case Accept:
		return "accept"
	case Reject:
		return "reject"
	case Hold:
		return "hold"
	default:
		return "drop"
	}
}

// Verdict is the answer for one packet. The zero value is Drop.
type Verdict struct {
	Action  Action
	SetMark bool   // Mark replaces the packet's mark
	Mark    uint32 // valid iff SetMark

	// Repeat sends the packet through the same hook once more, with its new
	// mark, for the ruleset there to carry Action out. It needs a ruleset that
	// knows the mark; Action is what is counted.
	Repeat bool
}

// A Handler judges packets.
//
// m and data are lent: valid until Handle returns, which may change m. Handle is
// called by one goroutine at a time, must not block, and is the only code between the
// receipt of a packet and its verdict.
type Handler interface {
	Handle(m *Meta, data []byte) Verdict
}
