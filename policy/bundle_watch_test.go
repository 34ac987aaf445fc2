package policy_test

import (
	"context"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/verdictd/verdictd/policy"
)

// events are what a watch of a server reports.
type events struct {
	changes <-chan change
	server  <-chan error
	reload  chan<- struct{}
}

// watchURL watches src until the test ends.
func watchURL(t *testing.T, src policy.Source, current *policy.Policy) events {
	t.Helper()
	changes, server, reload := make(chan change, 64), make(chan error, 64), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- policy.Watch(ctx, policy.WatchConfig{
			Source: src, Current: current, Reload: reload,
			OnChange: func(p *policy.Policy, err error) { changes <- change{p, err} },
			OnServer: func(err error) { server <- err },
		})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("watch ended with %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("watch does not end")
		}
	})
	return events{changes, server, reload}
}

// state waits for a report on the server.
func (e events) state(t *testing.T, want string) {
	t.Helper()
	select {
	case err := <-e.server:
		if got := fmt.Sprint(err); !strings.Contains(got, want) {
			t.Fatalf("server: got %q, want %q", got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("server: got nothing, want %q", want)
	}
}

// quiet checks that nothing is left to be read.
func (e events) quiet(t *testing.T) {
	t.Helper()
	select {
	case c := <-e.changes:
		t.Errorf("unexpected change: %v", c.err)
	case err := <-e.server:
		t.Errorf("unexpected report on the server: %v", err)
	default:
	}
}

// revision waits for a policy of a revision.
func (e events) revision(t *testing.T, want string) *policy.Policy {
	t.Helper()
	c := next(t, e.changes)
	if c.err != nil || c.policy.Origin().Revision != want || c.policy.Origin().Problem != nil {
		t.Fatalf("got %+v, %v, want revision %s", c.policy, c.err, want)
	}
	return c.policy
}

// refused waits for a bundle to be refused.
func (e events) refused(t *testing.T, want string) {
	t.Helper()
	if c := next(t, e.changes); c.policy != nil || c.err == nil || !strings.Contains(c.err.Error(), want) {
		t.Fatalf("got %v, want %q", c.err, want)
	}
}

// until waits for a condition on the server.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func TestWatchServer(t *testing.T) {
	key := ecKey(t)
	signed := func(revision string, with keyPair) []byte {
		return pack(t, sign(t, list(revision), with.private, "ES256", "", ""))
	}
	s, h := serve(t, signed("r1", key), `"1"`)
	src := remote(t, h.URL)
	src.Bundle.Key = policy.BundleKey{Key: key.public, Algorithm: "ES256"}
	e := watchURL(t, src, load(t, src))
	until(t, "304", func() bool { return s.answers(304) >= 3 })
	e.quiet(t)
	if n := s.answers(200); n != 1 {
		t.Errorf("bundle sent %d times, want once", n)
	}
	s.set(signed("r2", key), `"2"`, nil)
	e.revision(t, "r2")
	s.set(signed("r3", ecKey(t)), `"3"`, nil)
	e.refused(t, "verify JWT signature")
	sent := s.answers(304)
	until(t, "304 after a refusal", func() bool { return s.answers(304) >= sent+3 })
	e.quiet(t) // said once, sent once
	s.set(nil, "", status(500))
	e.state(t, "500 Internal Server Error")
	e.reload <- struct{}{}
	e.refused(t, "500 Internal Server Error")
	s.set(nil, "", status(404))
	e.state(t, "404 Not Found")
	s.set(nil, "", cutShort)
	e.state(t, "cut short")
	s.set(signed("r2", key)[:80], `"4"`, nil)
	e.state(t, "<nil>")
	e.refused(t, "cut short")
	if p := load(t, src); !p.Origin().Kept || p.Origin().Revision != "r2" {
		t.Errorf("kept: got %+v, want revision r2", p.Origin())
	}
	s.set(signed("r1", key), `"1"`, nil) // a roll-back
	e.revision(t, "r1")
	e.reload <- struct{}{}
	e.revision(t, "r1")
	e.quiet(t)
}

// TestWatchKeyChanges has the server and a file offer what is signed by a key that
// is not here yet: it is taken when the key is, without a reload.
func TestWatchKeyChanges(t *testing.T) {
	before, after := ecKey(t), ecKey(t)
	signed := func(revision string, with keyPair) []byte {
		return pack(t, sign(t, list(revision), with.private, "ES256", "", ""))
	}
	for _, kind := range []string{"server", "server, long polling", "file"} {
		t.Run(kind, func(t *testing.T) {
			key := filepath.Join(t.TempDir(), "key.pem")
			must(t, os.WriteFile(key, []byte(before.public), 0o600))
			s, h := serve(t, signed("r1", before), `"1"`)
			src := remote(t, h.URL)
			offer := func(packed []byte) { s.set(packed, `"2"`, nil) }
			switch kind {
			case "server, long polling":
				s.longPoll = time.Minute
				src.Bundle.Server.LongPoll = time.Minute
			case "file":
				src = policy.Source{Path: bundleFile(t, signed("r1", before))}
				offer = func(packed []byte) { replace(t, src.Path, packed) }
			}
			src.Bundle.Key = policy.BundleKey{Key: key, Algorithm: "ES256"}
			e := watchURL(t, src, load(t, src))
			offer(signed("r2", after))
			e.refused(t, "verify JWT signature")
			sent := s.answers(200)
			replace(t, key, []byte(after.public))
			e.revision(t, "r2")
			if n := s.answers(200) - sent; n > 1 {
				t.Errorf("the bundle was sent %d times after the key changed, want once", n)
			}
			e.quiet(t)
		})
	}
}

// replace puts a file in the place of another. Who writes into the old one lets the
// watch read half of it.
func replace(t *testing.T, path string, content []byte) {
	t.Helper()
	must(t, os.WriteFile(path+".new", content, 0o600))
	must(t, os.Rename(path+".new", path))
}

// TestWatchServerDies ends the server and starts another one at its address.
func TestWatchServerDies(t *testing.T) {
	s, h := serve(t, pack(t, list("r1")), `"1"`)
	src := remote(t, h.URL)
	load(t, src)
	addr := h.Listener.Addr().String()
	h.CloseClientConnections()
	h.Close()
	p := load(t, src)
	if !p.Origin().Kept {
		t.Fatalf("got %+v, want what was kept", p.Origin())
	}
	e := watchURL(t, src, p)
	comeBack := func() *httptest.Server {
		t.Helper()
		l, err := net.Listen("tcp", addr)
		must(t, err)
		again := httptest.NewUnstartedServer(s)
		again.Listener.Close()
		again.Listener = l
		again.Start()
		return again
	}
	again := comeBack() // with the same bundle
	e.state(t, "<nil>")
	until(t, "304", func() bool { return s.answers(304) > 0 })
	e.quiet(t)
	again.CloseClientConnections()
	again.Close()
	e.state(t, "fetch ")
	s.set(pack(t, list("r2", "192.0.2.9")), `"2"`, nil)
	again = comeBack() // with another
	defer again.Close()
	e.state(t, "<nil>")
	if p := e.revision(t, "r2"); !drops(t, p, "192.0.2.9") {
		t.Error("the new list is not in use")
	}
}

// TestWatchLongPoll changes the bundle while the server holds a request back.
func TestWatchLongPoll(t *testing.T) {
	s, h := serve(t, pack(t, list("r1")), `"1"`)
	s.longPoll = time.Minute
	src := remote(t, h.URL)
	src.Bundle.Server.MinInterval, src.Bundle.Server.MaxInterval, src.Bundle.Server.LongPoll = time.Hour, time.Hour, time.Minute
	e := watchURL(t, src, load(t, src))
	until(t, "request", func() bool { return len(s.requests()) == 2 })
	if r := s.requests()[1]; r.Get("Prefer") != "modes=snapshot;wait=60" || r.Get("If-None-Match") != `"1"` {
		t.Errorf("got Prefer %q, If-None-Match %q", r.Get("Prefer"), r.Get("If-None-Match"))
	}
	s.set(pack(t, list("r2")), `"2"`, nil)
	e.revision(t, "r2")
	e.reload <- struct{}{} // ends a request that is held back, or the wait for it
	e.revision(t, "r2")
	e.quiet(t)
}

// TestWatchServerTimeout has a server that goes silent.
func TestWatchServerTimeout(t *testing.T) {
	s, h := serve(t, pack(t, list("r1")), "") // without ETag: sent each time, taken once
	src := remote(t, h.URL)
	src.Bundle.Server.Timeout = time.Second
	e := watchURL(t, src, nil)
	e.revision(t, "r1")
	until(t, "200", func() bool { return s.answers(200) >= 3 })
	e.quiet(t)
	s.set(nil, "", silent)
	e.state(t, "no whole answer within 1s")
	s.set(pack(t, list("r2")), "", nil)
	e.state(t, "<nil>")
	e.revision(t, "r2")
}
