package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
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

	Cut   *cutReport   `json:"cut,omitempty"`   // established connections that the policy cuts
	Trial *trialStatus `json:"trial,omitempty"` // the policy has to be confirmed
}

// order is a request to load the policy again.
type order struct {
	outcome chan<- reloadResult // with room for it; nil: nobody waits
	confirm time.Duration       // the policy goes on trial for so long; 0: as the settings say
	own     []uint32            // inodes of sockets of who asked
	strict  bool                // refuse a policy that check warns of
}

// reloader asks policy.Watch to load the policy again, and finds out what came
// of it.
type reloader struct {
	ask chan struct{} // unbuffered: Watch receives only while it loads nothing

	mu    sync.Mutex
	order order // that brought about the load under way; the zero value: a changed file
}

// reloadPause is how long to wait for a load that is under way before asking
// again.
const reloadPause = time.Millisecond

// request makes Watch load the policy, and returns false if ctx ended before.
// The outcome goes to o.outcome, if it is not nil.
func (r *reloader) request(ctx context.Context, o order) bool {
	for !r.handOver(o) {
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
// the order is in its place: done needs the lock.
func (r *reloader) handOver(o order) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case r.ask <- struct{}{}:
		r.order = o
		return true
	default:
		return false
	}
}

// done tells what came of a load, if somebody waits for it.
func (r *reloader) done(result reloadResult) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.order.outcome != nil {
		r.order.outcome <- result
	}
	r.order = order{}
}

// current returns what brought about the load under way.
func (r *reloader) current() order {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.order
}

// run asks for a load and waits for what comes of it.
func (r *reloader) run(ctx context.Context, o order) (*reloadResult, error) {
	outcome := make(chan reloadResult, 1)
	o.outcome = outcome
	if r.request(ctx, o) {
		select {
		case result := <-outcome:
			return &result, nil
		case <-ctx.Done():
		}
	}
	return nil, errors.New("verdictd is stopping")
}

// String writes the order as the arguments of the command that carries it.
func (o order) String() string {
	text := ""
	if o.confirm > 0 {
		text += " confirm=" + o.confirm.String()
	}
	if o.strict {
		text += " strict"
	}
	if own := o.own[:min(len(o.own), maxOwn)]; len(own) > 0 {
		text += " own=" + strings.Trim(strings.ReplaceAll(fmt.Sprint(own), " ", ","), "[]")
	}
	return text
}

// maxOwn bounds the sockets that an order names.
const maxOwn = 200

// parseOrder reads what String wrote.
func parseOrder(text string) (o order, err error) {
	for word := range strings.FieldsSeq(text) {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "strict":
			o.strict = true
		case "confirm":
			if o.confirm, err = parseConfirm(name, value); err != nil {
				return o, err
			}
		case "own":
			for number := range strings.SplitSeq(value, ",") {
				n, err := strconv.ParseUint(number, 10, 32)
				if err != nil || len(o.own) == maxOwn {
					return o, fmt.Errorf("own=%s: want up to %d inodes of sockets", value, maxOwn)
				}
				o.own = append(o.own, uint32(n))
			}
		default:
			return o, fmt.Errorf("unknown argument %q of reload", word)
		}
	}
	return o, nil
}

// write tells people that the policy was loaded and what that means.
func (r *reloadResult) write(w io.Writer, now time.Time) error {
	lines := []string{fmt.Sprintf("policy loaded: generation %d, sha256 %s", r.Generation, r.SHA256)}
	lines = append(lines, r.Cut.lines()...)
	if r.Trial != nil {
		lines = append(lines, r.Trial.text(now))
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

// policyErrors returns the errors of a refused policy one by one.
func policyErrors(err error) []*policy.Error {
	if all, ok := errors.AsType[policy.Errors](err); ok {
		return all
	}
	return []*policy.Error{{File: "policy", Msg: err.Error()}}
}
