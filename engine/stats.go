package engine

// Stats count packets, except where a name says otherwise.
type Stats struct {
	Packets   uint64 // handled; the sum of the next three
	Accepted  uint64
	Dropped   uint64
	Rejected  uint64
	WouldDrop uint64 // accepted only because the mode is monitor

	Known        uint64 // answered from the flow table
	Established  uint64 // accepted as the reply direction of an accepted flow
	Related      uint64 // ICMP errors accepted because they speak about an accepted flow
	Evaluated    uint64 // evaluations of the policy
	PolicyErrors uint64 // evaluations that ended in an error
	Malformed    uint64

	Holding uint64 // packets that are held now: they wait for a fact about their owner
	Held    uint64 // packets that waited for a fact about their owner
	Lacking uint64 // decisions without a fact that was not known in time

	Offloaded uint64 // flows of which a packet was sent round with the mark that lets the rest pass by
	Returned  uint64 // packets that came back with their mark: no rule knew it
	Remarked  uint64 // packets of flows that the kernel was told to let pass by, and does not: somebody else overwrites connection marks

	Flows       uint64 // flows in the table now
	FlowsNew    uint64 // flows ever put into it
	FlowsEvict  uint64 // flows removed early to make room for a newer one
	FlowsNoRoom uint64 // flows not remembered because their place was taken by established ones
	EventsLost  uint64 // events that found the log's ring full
}

func (s *Stats) add(t *Stats) {
	s.Packets += t.Packets
	s.Accepted += t.Accepted
	s.Dropped += t.Dropped
	s.Rejected += t.Rejected
	s.WouldDrop += t.WouldDrop
	s.Known += t.Known
	s.Established += t.Established
	s.Related += t.Related
	s.Evaluated += t.Evaluated
	s.PolicyErrors += t.PolicyErrors
	s.Malformed += t.Malformed
	s.Holding += t.Holding
	s.Held += t.Held
	s.Lacking += t.Lacking
	s.Offloaded += t.Offloaded
	s.Returned += t.Returned
	s.Remarked += t.Remarked
	s.Flows += t.Flows
	s.FlowsNew += t.FlowsNew
	s.FlowsEvict += t.FlowsEvict
	s.FlowsNoRoom += t.FlowsNoRoom
	s.EventsLost += t.EventsLost
}
