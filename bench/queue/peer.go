package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/verdictd/verdictd/bench/measure"
)

// The peers, in the order of the tables.
const (
	noQueue      = "no queue"
	conntrack    = "conntrack only"
	cBatched     = "C batched"
	cSimple      = "C simple"
	cSpin        = "C spinning"
	goNFQueue    = "go-nfqueue"
	verdictdLoop = "verdictd loop"
	verdictd     = "verdictd"
	verdictdSpin = "verdictd spinning"
	verdictdOn   = "verdictd offload"
	verdictdOff  = "verdictd no offload"
)

// spinTime is how long the spinning peers look for packets before they sleep.
const spinTime = 50 * time.Microsecond

func allPeers() []string {
	return []string{noQueue, conntrack, cBatched, cSimple, cSpin, goNFQueue, verdictdLoop, verdictd, verdictdSpin, verdictdOn, verdictdOff}
}

// sleepers are the peers that sleep as soon as nothing is left to answer.
func sleepers() []string {
	return []string{cBatched, cSimple, goNFQueue, verdictdLoop, verdictd}
}

// isC says whether the peer is part of peer.c.
func isC(peer string) bool { return slices.Contains([]string{cBatched, cSimple, cSpin}, peer) }

// isDaemon says whether the peer has the whole engine.
func isDaemon(peer string) bool {
	return slices.Contains([]string{verdictd, verdictdSpin, verdictdOn, verdictdOff}, peer)
}

// ask asks the peer what it has done.
func ask(p *measure.Process) (r report, err error) {
	line, err := p.Ask("report")
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("answer of peer %q: %w", line, err)
	}
	return r, nil
}
