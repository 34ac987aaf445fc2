package main

import (
	"encoding/json"
	"fmt"

	"github.com/verdictd/verdictd/bench/measure"
)

// The peers, in the order of the tables.
const (
	noQueue      = "no queue"
	cBatched     = "C batched"
	cSimple      = "C simple"
	goNFQueue    = "go-nfqueue"
	verdictdLoop = "verdictd loop"
	verdictd     = "verdictd"
)

func allPeers() []string {
	return []string{noQueue, cBatched, cSimple, goNFQueue, verdictdLoop, verdictd}
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
