package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/verdictd/verdictd/policy"
)

// reloadResult says what came of a request to load the policy again.
type reloadResult struct {
	Accepted   bool            `json:"accepted"`
	Generation uint64          `json:"generation"` // in use now
	SHA256     string          `json:"sha256"`     // of the policy in use now
	Errors     []*policy.Error `json:"errors,omitempty"`
	Config     configResult    `json:"config"`
}

// reloader asks policy.Watch to load the policy again, and finds out what came
// of it.
type reloader struct {
	ask chan struct{} // unbuffered: Watch receives only while it loads nothing

	mu      sync.Mutex
	outcome chan<- reloadResult // who waits for the load under way; nil: nobody
}

// reloadPause is how long to wait for a load that is under way before asking
// again.
const reloadPause = time.Millisecond

// request makes Watch load the policy, and returns false if ctx ended before.
// The outcome goes to outcome, if it is not nil, which must have room for it.
func (r *reloader) request(ctx context.Context, outcome chan<- reloadResult) bool {
	for !r.handOver(outcome) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(reloadPause):
		}
	}
	return true
}

// handOver gives the request to Watch if it waits for one. Whatever Watch
// loaded before is told by then, and what it loads now cannot be told before
// outcome is in its place: done needs the lock.
func (r *reloader) handOver(outcome chan<- reloadResult) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case r.ask <- struct{}{}:
		r.outcome = outcome
		return true
	default:
		return false
	}
}

// done tells what came of a load, if somebody waits for it.
func (r *reloader) done(result reloadResult) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.outcome != nil {
		r.outcome <- result
		r.outcome = nil
	}
}

// run asks for a load and waits for what comes of it.
func (r *reloader) run(ctx context.Context) (*reloadResult, error) {
	outcome := make(chan reloadResult, 1)
	if r.request(ctx, outcome) {
		select {
		case result := <-outcome:
			return &result, nil
		case <-ctx.Done():
		}
	}
	return nil, errors.New("verdictd is stopping")
}

// policyErrors returns the errors of a refused policy one by one.
func policyErrors(err error) []*policy.Error {
	if all, ok := errors.AsType[policy.Errors](err); ok {
		return all
	}
	return []*policy.Error{{File: "policy", Msg: err.Error()}}
}
