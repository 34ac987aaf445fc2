package policy

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// watchServer is Watch for a policy on a server.
func watchServer(ctx context.Context, w watch) error {
	server, err := newServer(w.cfg.Source)
	if err != nil {
		return err
	}
	defer server.client.CloseIdleConnections()
	p := poll{watch: w, server: server}
	delay := p.begin()
	for {
		insist := p.wait(ctx, delay)
		if ctx.Err() != nil {
			return nil
		}
		delay = p.turn(ctx, insist)
	}
}

// keyEvery is how often the key's file is looked at while the server's bundle
// stands refused.
const keyEvery = 2 * time.Second

// wait waits until the server is to be asked, and returns whether a reload is
// asked for.
func (p *poll) wait(ctx context.Context, delay time.Duration) (insist bool) {
	timer, look := time.NewTimer(delay), time.NewTicker(keyEvery)
	defer timer.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-p.cfg.Reload:
			return true
		case <-timer.C:
			return false
		case <-look.C:
			if p.rekeyed() {
				return false
			}
		}
	}
}

// poll is the state of a watch on a server.
type poll struct {
	watch
	server   *server
	etag     string // of the bundle last seen, good or not
	refused  bool   // that bundle was refused
	key      string // the key as it was then
	longPoll bool   // the server offers it
	failures int    // in a row
	problem  string // as last reported to OnServer; empty if all is well
}

// begin returns when to ask for the first time.
func (p *poll) begin() time.Duration {
	old := p.old
	if old == nil {
		return 0
	}
	if serr, ok := errors.AsType[*ServerError](old.origin.Problem); ok && old.origin.Kept {
		p.problem, p.failures = kindOf(serr), 1
		return p.backoff()
	}
	p.etag, p.longPoll = old.etag, old.longPoll
	if old.origin.Kept || p.longPoll {
		return 0
	}
	return p.interval()
}

// turn asks the server once and returns when to ask it again.
func (p *poll) turn(ctx context.Context, insist bool) time.Duration {
	start := time.Now()
	a, insist, err := p.ask(ctx, insist)
	if ctx.Err() != nil {
		return 0
	}
	p.report(err)
	if err != nil {
		if insist { // who asked for a reload gets an answer
			p.cfg.OnChange(nil, err)
		}
		p.failures++
		return p.backoff()
	}
	p.failures = 0
	if a.packed != nil {
		p.etag, p.longPoll = a.etag, a.longPoll
		p.take(ctx, a, insist)
	}
	if !p.longPoll {
		return p.interval()
	}
	// A server that says it waits, and does not, is not asked all the time.
	return max(0, p.retry()-time.Since(start))
}

// rekeyed returns whether the bundle last seen was refused and the key is
// another one since: then it may be good.
func (p *poll) rekeyed() bool { return p.refused && p.key != p.cfg.Source.Bundle.Key.current() }

// ask asks the server, and anew when a reload is asked for or the key changes
// meanwhile. It returns whether a reload was.
func (p *poll) ask(ctx context.Context, insist bool) (*answer, bool, error) {
	for {
		etag := p.etag
		if insist || p.rekeyed() {
			etag = ""
		}
		a, again, reload, err := p.askUntilNews(ctx, etag)
		insist = insist || reload
		if !again {
			return a, insist, err
		}
	}
}

func (p *poll) askUntilNews(ctx context.Context, etag string) (a *answer, again, reload bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		a, err = p.server.fetch(ctx, etag, etag != "" && p.longPoll)
	}()
	look := time.NewTicker(keyEvery)
	defer look.Stop()
	for {
		select {
		case <-done:
			return a, false, false, err
		case <-look.C:
			if etag == "" || !p.rekeyed() { // without an ETag the bundle comes anyway
				continue
			}
		case <-p.cfg.Reload:
			reload = true
		}
		cancel()
		<-done
		return nil, true, reload, nil
	}
}

// take hands on the bundle that the server gave, unless it is what was seen
// last, and keeps it if it is good.
func (p *poll) take(ctx context.Context, a *answer, insist bool) {
	p.key = p.cfg.Source.Bundle.Key.current()
	files, errs := p.cfg.Source.Bundle.open(p.server.shown, a.packed)
	accepted := false
	seen := p.see(ctx, files, errs, insist, func(good *Policy) {
		accepted = true
		good.etag, good.longPoll = a.etag, a.longPoll
		good.origin.Problem = keep(p.cfg.Source, a.packed)
	})
	if seen {
		p.refused = !accepted
	}
}

// report tells OnServer when the server's state has changed.
func (p *poll) report(err error) {
	now := ""
	if err != nil {
		now = kindOf(err)
	}
	if now == p.problem {
		return
	}
	p.problem = now
	if p.cfg.OnServer != nil {
		p.cfg.OnServer(err)
	}
}

// kindOf returns which problem err is, without details that change each time.
func kindOf(err error) string {
	if serr, ok := errors.AsType[*ServerError](err); ok && serr.Status != 0 {
		return serr.Err.Error()
	}
	return "no answer"
}

// interval returns a time between the two intervals: many hosts that were
// started at once do not ask at once.
func (p *poll) interval() time.Duration {
	return p.server.MinInterval + rand.N(p.server.MaxInterval-p.server.MinInterval+1)
}

// retry returns the first time of a back-off.
func (p *poll) retry() time.Duration { return min(firstRetry, p.server.MinInterval) }

// backoff returns how long to wait after the failures so far: twice as long
// after each, with as much as half of it left to chance.
func (p *poll) backoff() time.Duration {
	d := p.retry()
	for range p.failures - 1 {
		if d >= p.server.MaxInterval {
			break
		}
		d *= 2
	}
	d = min(d, p.server.MaxInterval)
	return d - rand.N(d/2+1)
}
