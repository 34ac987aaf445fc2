package ledger

// Account says what became of the packets of one queue, or of all. Every number
// counts packets since the start, except where it says otherwise.
//
// Each packet is in exactly one place:
//
//	Queued = Accepted + Dropped + Rejected + Lost + Unjudged + Waiting + Unexplained
type Account struct {
	Queued   uint64 `json:"queued"`   // sent to the queue by the kernel's rules
	Received uint64 `json:"received"` // of them, read by verdictd: Accepted, Dropped, Rejected, and HookFlush, InterfaceDown and Unsent of Lost

	Accepted uint64 `json:"accepted"` // went on
	Dropped  uint64 `json:"dropped"`  // by a decision
	Rejected uint64 `json:"rejected"` // by a decision

	Lost     Losses `json:"lost"`     // dropped, though nobody decided so
	Unjudged Passes `json:"unjudged"` // went on, though nobody decided so: only under "fail open"

	Waiting     uint64 `json:"waiting"`     // have no verdict yet; not a sum but now
	Unexplained int64  `json:"unexplained"` // are in none of the other places; 0 if the account closes

	// Not part of the sum.
	LateDrops uint64 `json:"late_drops"` // of Dropped and Rejected, discarded by the kernel before the verdict came: no loss
	Foreign   uint64 `json:"foreign"`    // of Queued, sent to the queue by rules that are not verdictd's
	Refused   uint64 `json:"refused"`    // verdicts that the kernel refused: these packets go on waiting
	Overruns  uint64 `json:"overruns"`   // ENOBUFS errors, each for an unknown number of messages
	Malformed uint64 `json:"malformed"`  // messages of the kernel that could not be read whole
}

// Losses are packets that were dropped by no decision, by cause.
type Losses struct {
	QueueFull     uint64 `json:"queue_full"`     // --queue-length packets were waiting
	ReceiveBuffer uint64 `json:"receive_buffer"` // the socket had no room for their messages
	HookFlush     uint64 `json:"hook_flush"`     // accepted, but somebody had removed a base chain, and with it what was queued
	InterfaceDown uint64 `json:"interface_down"` // accepted, but an interface of theirs had gone down, and with it what was queued
	NotQueued     uint64 `json:"not_queued"`     // the rules sent them to the queue, and the kernel did not queue them; counted with verdictd's own rules only
	Unsent        uint64 `json:"unsent"`         // the kernel had no memory for the verdict
}

// Sum returns the packets lost for any cause.
func (l *Losses) Sum() uint64 {
	return l.QueueFull + l.ReceiveBuffer + l.HookFlush + l.InterfaceDown + l.NotQueued + l.Unsent
}

// Passes are packets that went on unjudged under "fail open", by cause.
type Passes struct {
	QueueFull     uint64 `json:"queue_full"`
	ReceiveBuffer uint64 `json:"receive_buffer"`
}

// Sum returns the packets that passed unjudged for any cause.
func (p *Passes) Sum() uint64 { return p.QueueFull + p.ReceiveBuffer }

// Closes returns whether every packet is accounted for. Between the readings of
// its numbers packets move: see Ledger.Settled.
func (a *Account) Closes() bool {
	return a.Unexplained == 0 && a.Queued == a.placed()
}

// placed returns the packets whose place is known.
func (a *Account) placed() uint64 {
	return a.Accepted + a.Dropped + a.Rejected + a.Lost.Sum() + a.Unjudged.Sum() + a.Waiting
}

func (a *Account) add(b *Account) {
	sum, more := a.counters(), b.counters()
	for i := range sum {
		*sum[i] += *more[i]
	}
	a.Unexplained += b.Unexplained
}

// counters returns all but Unexplained.
func (a *Account) counters() []*uint64 {
	return []*uint64{
		&a.Queued, &a.Received, &a.Accepted, &a.Dropped, &a.Rejected,
		&a.Lost.QueueFull, &a.Lost.ReceiveBuffer, &a.Lost.HookFlush, &a.Lost.InterfaceDown, &a.Lost.NotQueued, &a.Lost.Unsent,
		&a.Unjudged.QueueFull, &a.Unjudged.ReceiveBuffer,
		&a.Waiting, &a.LateDrops, &a.Foreign, &a.Refused, &a.Overruns, &a.Malformed,
	}
}

// QueueAccount is the account of one queue.
type QueueAccount struct {
	Queue  uint16 `json:"queue"`
	Length uint32 `json:"length"` // packets that may wait
	Account
}

// Ledger is what a Book said at one moment.
type Ledger struct {
	// Settled says that no packet moved while the numbers were read. If not,
	// Waiting includes the packets under way, and the next reading may differ.
	Settled bool `json:"settled"`
	// Closes says that it is settled and that all accounts close.
	Closes bool `json:"closes"`
	// Rules says that Total counts from the rules on, which are verdictd's own.
	// If not, it counts from the queues on, and under "fail open" packets that
	// a full queue let pass are in no account.
	Rules bool `json:"rules"`

	Total  Account        `json:"total"`
	Queues []QueueAccount `json:"queues"`
}

// Field is a number of an Account with its name.
type Field struct {
	Name  string // "lost"
	Cause string // "queue_full", or empty
	Now   bool   // says how it is now, and so can fall
	Help  string
	Value func(*Account) uint64
}

// Fields returns the numbers of an Account that are worth recording, in order.
// Their names do not change.
func Fields() []Field {
	return []Field{
		{"queued", "", false, "packets that the kernel's rules sent to the queue", func(a *Account) uint64 { return a.Queued }},
		{"received", "", false, "packets read from the queue", func(a *Account) uint64 { return a.Received }},
		{"accepted", "", false, "packets accepted, that went on", func(a *Account) uint64 { return a.Accepted }},
		{"dropped", "", false, "packets dropped by a decision", func(a *Account) uint64 { return a.Dropped }},
		{"rejected", "", false, "packets rejected by a decision", func(a *Account) uint64 { return a.Rejected }},
		{"lost", "queue_full", false, "packets dropped by no decision", func(a *Account) uint64 { return a.Lost.QueueFull }},
		{"lost", "receive_buffer", false, "", func(a *Account) uint64 { return a.Lost.ReceiveBuffer }},
		{"lost", "hook_flush", false, "", func(a *Account) uint64 { return a.Lost.HookFlush }},
		{"lost", "interface_down", false, "", func(a *Account) uint64 { return a.Lost.InterfaceDown }},
		{"lost", "not_queued", false, "", func(a *Account) uint64 { return a.Lost.NotQueued }},
		{"lost", "unsent", false, "", func(a *Account) uint64 { return a.Lost.Unsent }},
		{"unjudged", "queue_full", false, "packets that passed by no decision, under fail open", func(a *Account) uint64 { return a.Unjudged.QueueFull }},
		{"unjudged", "receive_buffer", false, "", func(a *Account) uint64 { return a.Unjudged.ReceiveBuffer }},
		{"waiting", "", true, "packets that have no verdict yet", func(a *Account) uint64 { return a.Waiting }},
		{"late_drops", "", false, "dropped packets that the kernel had discarded before the verdict", func(a *Account) uint64 { return a.LateDrops }},
		{"foreign", "", false, "packets that rules of others sent to the queue", func(a *Account) uint64 { return a.Foreign }},
		{"refused_verdicts", "", false, "verdicts that the kernel refused", func(a *Account) uint64 { return a.Refused }},
		{"overruns", "", false, "receive errors ENOBUFS", func(a *Account) uint64 { return a.Overruns }},
	}
}
