package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/internal/control"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// datagrams sends datagrams to the server's sink until the function it returns is
// called, which tells how many.
func datagrams(t *testing.T, net *lab.Network, rate int, first uint32) (stop func() int) {
	t.Helper()
	const most = 1 << 20
	ctx, cancel := context.WithCancel(t.Context())
	var sent lab.Sent
	var wg sync.WaitGroup
	wg.Go(func() {
		var err error
		sent, err = net.Client.Flood(ctx, lab.Flood{To: to("10.99.0.2", sinkPort), Count: most, First: first, Rate: rate})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("datagrams: got %v, want it to go on until told to stop", err)
		}
	})
	stop = sync.OnceValue(func() int {
		cancel()
		wg.Wait()
		return sent.OK + sent.Denied
	})
	t.Cleanup(func() { stop() })
	return stop
}

// TestLabLedgerUnderTraffic does to a daemon what costs packets or might, while
// they flow, and closes the books afterwards.
func TestLabLedgerUnderTraffic(t *testing.T) {
	const times = 5
	start := func(t *testing.T, net *lab.Network) *observed {
		return observe(t, net.Client, acceptAll, "--hook", "output")
	}
	t.Run("hook flush", func(t *testing.T) {
		setup(t, labtest.NFTBinary)
		net := labtest.Pair(t)
		quiet(t, net.Client)
		got := sink(t, net.Server, sinkPort)
		d := start(t, net)
		stop := datagrams(t, net, 3000, 0)
		for i := range times {
			got.Wait(got.Received().Distinct+200, wait)
			stopProcess(t, d.daemon)
			lab.Poll(wait, func() bool { return waiting(t, net.Client) >= 50*(i+1) })
			rebuildOther(t, net.Client)
			d.Signal(syscall.SIGCONT)
		}
		l := d.balance(stop(), 0, got)
		if lost := l.Total.Lost.HookFlush; lost < 50*times || lost != l.Total.Lost.Sum() {
			t.Errorf("got %+v, want packets lost by hook flushes alone", l.Total.Lost)
		}
		t.Logf("%d sent, %d lost by hook flush", l.Total.Queued, l.Total.Lost.HookFlush)
	})
	t.Run("reload", func(t *testing.T) {
		setup(t)
		net := labtest.Pair(t)
		quiet(t, net.Client)
		got := sink(t, net.Server, sinkPort)
		d := start(t, net)
		stop := datagrams(t, net, 3000, 0)
		for i := range times {
			got.Wait(got.Received().Distinct+200, wait)
			exit := labtest.Run(t, nil, "reload", "--control", d.socket)
			if want := fmt.Sprintf("policy loaded: generation %d, sha256 ", i+2); exit.Code != 0 || !strings.HasPrefix(exit.Stdout, want) {
				t.Errorf("reload: got %+v, want %s", exit, want)
			}
		}
		l := d.balance(stop(), 0, got)
		if l.Total.Accepted != l.Total.Queued {
			t.Errorf("got %+v, want all accepted", l.Total)
		}
	})
	t.Run("rules removed by others", func(t *testing.T) {
		setup(t, labtest.NFTBinary)
		net := labtest.Pair(t)
		quiet(t, net.Client)
		got := sink(t, net.Server, sinkPort)
		d := start(t, net)
		stop := datagrams(t, net, 1000, 0)
		got.Wait(200, wait)
		before := d.status().Packets.Total.Queued
		labtest.Output(t, net.Client, "nft", "flush", "ruleset")
		d.WaitStderr("rules changed, put in again")
		if !lab.Poll(wait, func() bool { return d.status().Packets.Total.Queued > before+200 }) {
			t.Errorf("nothing is judged after the rules were removed: %+v", d.status().Packets)
		}
		sent := stop()
		l := d.books(0)
		if a := l.Total; !l.Rules || a.Foreign != 0 || a.Accepted+a.Lost.Sum() != a.Queued || a.Queued > uint64(sent) {
			t.Errorf("got %+v of %d sent", l, sent)
		}
	})
	t.Run("another takes over", func(t *testing.T) {
		setup(t)
		net := labtest.Pair(t)
		quiet(t, net.Client)
		got := sink(t, net.Server, sinkPort)
		d := start(t, net)
		stop := datagrams(t, net, 3000, 0)
		got.Wait(200, wait)
		d.Kill()
		d = start(t, net)
		got.Wait(got.Received().Distinct+500, wait)
		stop()
		l := d.books(0)
		if a := l.Total; !l.Rules || a.Foreign != 0 || a.Accepted != a.Queued {
			t.Errorf("got %+v, want the books of the second daemon alone", l)
		}
	})
}

// TestLabStatus asks a daemon by the command, in text and JSON, and serves
// metrics.
func TestLabStatus(t *testing.T) {
	setup(t)
	net := labtest.Pair(t)
	quiet(t, net.Client)
	got := sink(t, net.Server, sinkPort)
	d := observe(t, net.Client, portsPolicy, "--hook", "output", "--stats-interval", "1s", "--metrics", "127.0.0.1:9477")
	both(t, net, sinkPort, 20, 0, lab.Flood{})
	both(t, net, deniedSinkPort, 30, 0, lab.Flood{})
	want(t, got, 40)
	d.books(100)

	// From any namespace: the socket is a file.
	exit := labtest.Run(t, nil, "status", "--control", d.socket)
	for _, want := range []string{
		fmt.Sprintf("pid %d, ", d.PID()), "mode enforce, fail closed, own rules at output\n", "generation 1, sha256 ",
		"\nqueued                                   100         100\n",
		"\naccepted                                  40          40\n",
		"\ndropped                                   60          60\n",
		"\nlost, queue full                           0           0\n",
		"\nthe books close: every packet is accounted for\n",
	} {
		if exit.Code != 0 || !strings.Contains(exit.Stdout, want) {
			t.Errorf("status: got exit code %d and %s\nwant %q in it", exit.Code, exit.Stdout, want)
		}
	}
	exit = labtest.Run(t, nil, "status", "--json", "--control", d.socket)
	var st told
	if err := json.Unmarshal([]byte(exit.Stdout), &st); err != nil || exit.Code != 0 || st.PID != d.PID() || st.Packets.Total.Accepted != 40 {
		t.Errorf("status --json: got %+v of %+v, error %v", st, exit, err)
	}
	if metrics := fetch(t, net.Client, "http://127.0.0.1:9477/metrics"); !strings.Contains(metrics, "\nverdictd_packets_accepted_total{queue=\"0\"} 40\n") {
		t.Errorf("got metrics\n%s", metrics)
	}
	isStats := func(r *record) bool {
		return r.Type == "stats" && r.Stats["packets_dropped"] == 60 && r.Stats["packets_queued"] == 100
	}
	if !lab.Poll(wait, func() bool { return len(d.records(isStats)) > 1 }) {
		t.Errorf("got no stats records each second: %s", d.Stdout())
	}
	if code := d.Stop(); code != 0 {
		t.Errorf("got exit code %d", code)
	}
	if _, err := os.Lstat(d.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that the socket is gone", err)
	}
	exit = labtest.Run(t, nil, "status", "--control", d.socket)
	if want := fmt.Sprintf("verdictd: no verdictd answers at %s (start one with verdictd run, or give --control)\n", d.socket); exit.Code != 1 || exit.Stderr != want {
		t.Errorf("after the end: got %+v, want code 1 and %q", exit, want)
	}
}

// fetch reads an address from inside the namespace.
func fetch(t *testing.T, ns *lab.Namespace, url string) string {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = ns.Do(func() error {
			var d net.Dialer
			c, err = d.DialContext(ctx, network, addr)
			return err
		})
		return c, err
	}}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport, Timeout: wait}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatal(response.Status, err)
	}
	return string(body)
}

// TestLabControlSocket replaces a dead daemon's socket and lets a living one's
// alone; one that was killed answers nobody.
func TestLabControlSocket(t *testing.T) {
	setup(t)
	socket := filepath.Join(t.TempDir(), "sock")
	run := func(ns *lab.Namespace) labtest.DaemonConfig {
		return labtest.DaemonConfig{NS: ns, Args: []string{"run", "--control", socket}}
	}
	first := labtest.StartDaemon(t, run(namespace(t, "first")))
	second := labtest.Run(t, namespace(t, "second"), "run", "--control", socket)
	if want := "verdictd: make control socket " + socket + ": another verdictd answers there\n"; second.Code != 1 || second.Stderr != want {
		t.Errorf("second daemon: got %+v, want code 1 and %q", second, want)
	}
	first.Kill()
	if err := control.Call(t.Context(), socket, "status", new(told)); !errors.Is(err, control.ErrNobody) {
		t.Errorf("killed daemon: got %v, want %v", err, control.ErrNobody)
	}
	third := labtest.StartDaemon(t, run(namespace(t, "third")))
	var st told
	if err := control.Call(t.Context(), socket, "status", &st); err != nil || st.PID != third.PID() {
		t.Errorf("third daemon: got %+v, %v, want pid %d", st, err, third.PID())
	}
	if code := third.Stop(); code != 0 {
		t.Errorf("got exit code %d", code)
	}
}

// TestLabSeveralDaemons finds the only daemon of a host without being told
// where, and lists them if there are several. The host's own /run is not
// touched: the test has one of its own.
func TestLabSeveralDaemons(t *testing.T) {
	setup(t)
	const script = `
set -e
mount -t tmpfs none /run
start() { unshare --net "$V" run >/dev/null 2>"$DIR/$1" & while ! grep -q ready "$DIR/$1"; do kill -0 $!; sleep 0.01; done; }
show() { code=0; "$V" status --json >"$DIR/out" 2>&1 || code=$?; echo "$code $(sed 's/.*"pid":\([0-9]*\).*/\1/' "$DIR/out")"; }
start a; a=$!; echo "first $a"; show
start b; b=$!; echo "second $b"; show
kill $a; wait $a; show
kill -9 $b; wait $b || true; show
start c; c=$!; echo "third $c"; show
ls /run/verdictd
kill $c; wait $c
ls /run/verdictd
`
	p := labtest.Start(t, labtest.DaemonConfig{
		Path: "unshare", Args: []string{"--mount", "sh", "-c", script}, Env: []string{"V=" + labtest.Binary(t), "DIR=" + t.TempDir()},
	})
	if code := p.Wait(); code != 0 {
		t.Fatalf("got exit code %d: %s %s", code, p.Stdout(), p.Stderr())
	}
	var a, b, c int
	lines := strings.Split(p.Stdout(), "\n")
	for i, n := range map[int]*int{0: &a, 2: &b, 6: &c} {
		if _, err := fmt.Sscanf(lines[i][strings.Index(lines[i], " "):], "%d", n); err != nil {
			t.Fatalf("%v in %s", err, p.Stdout())
		}
	}
	const first = "/run/verdictd/verdictd.sock"
	want := fmt.Sprintf(`first %d
0 %[1]d
second %d
2 verdictd: several verdictd run: give --control with one of /run/verdictd/verdictd-%[2]d.sock, %[4]s
0 %[2]d
1 verdictd: no verdictd answers at %[4]s (start one with verdictd run, or give --control)
third %[3]d
0 %[3]d
upgrade
verdictd.sock
`, a, b, c, first)
	if diff := cmp.Diff(want, p.Stdout()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestLabReloadCommand is told what came of each reload, by the exit code too.
func TestLabReloadCommand(t *testing.T) {
	setup(t)
	ns := namespace(t, "reload")
	d := observe(t, ns, acceptAll)
	steps := []struct {
		name, policy   string
		code           int
		stdout, stderr string
	}{
		{"unchanged", acceptAll, 0, "policy loaded: generation 2, sha256 ", ""},
		{"does not parse", acceptAll + "\nverdict :=\n", 2, "", "verdictd: policy refused, generation "},
		{"own test fails", acceptAll + "\ntest_it if decision.verdict == \"drop\"\n", 2, "", "test_it"},
		{"another", dropSink, 0, "policy loaded: generation ", ""},
	}
	for _, s := range steps {
		// By rename: a half-written file is never seen.
		writeFile(t, d.policy+".new", s.policy)
		if err := os.Rename(d.policy+".new", d.policy); err != nil {
			t.Fatal(err)
		}
		exit := labtest.Run(t, nil, "reload", "--control", d.socket)
		if exit.Code != s.code || !strings.HasPrefix(exit.Stdout, s.stdout) || !strings.Contains(exit.Stderr, s.stderr) {
			t.Errorf("%s: got %+v, want code %d, stdout %q, stderr with %q", s.name, exit, s.code, s.stdout, s.stderr)
		}
		if s.code == 2 && !strings.Contains(exit.Stderr, "verdictd: "+d.policy+":") {
			t.Errorf("%s: got %q, want the place of the error", s.name, exit.Stderr)
		}
		if s.code == 0 {
			if sum := d.status().Policy.SHA256; !strings.Contains(exit.Stdout, sum) {
				t.Errorf("%s: got %q, but %s is in use", s.name, exit.Stdout, sum)
			}
		}
	}
	// Many at once: each is answered.
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			var r struct{ Accepted bool }
			if err := control.Call(t.Context(), d.socket, "reload", &r); err != nil || !r.Accepted {
				t.Errorf("got %+v, %v, want that the policy is accepted", r, err)
			}
		})
	}
	wg.Wait()
	if code := d.Stop(); code != 0 {
		t.Errorf("got exit code %d", code)
	}
}

// TestLabOverload is warned once of each kind of loss, with the remedy, in the
// audit log and on standard error, however often it comes.
func TestLabOverload(t *testing.T) {
	setup(t)
	const slow = `package verdictd

decision := {"verdict": "accept", "rule": "slow"} if {
	count([n | some n in numbers.range(1, 8000); n % 7 == 0]) > 0
	input.dst_port > 0
}
`
	const room, sources = 32, 800
	net := labtest.Pair(t)
	quiet(t, net.Client)
	d := observe(t, net.Client, slow, "--hook", "output", "--queue-length", fmt.Sprint(room), "--policy-budget", "1m")
	ctx, cancel := context.WithTimeout(t.Context(), 2*wait)
	defer cancel()
	sent := make(chan int, 1)
	go func() {
		s, _ := net.Client.Flood(ctx, lab.Flood{To: to("10.99.0.2", sinkPort), From: make([]netip.AddrPort, sources), Count: 1 << 20, Rate: 2000}) // ends with ctx
		sent <- s.OK + s.Denied
	}()
	lossOf := func(r *record) bool { return r.Type == "loss" && r.Own.Origin == "queue 0" }
	nearly := func(r *record) bool { return r.Own.Admin == "queue_nearly_full" }
	both := func() bool { return len(d.records(lossOf)) > 0 && len(d.records(nearly)) > 0 }
	if !lab.Poll(wait, both) {
		t.Fatalf("no records of the overload: %s", d.Stdout())
	}
	first := d.records(lossOf)[0].Own
	lab.Poll(5*time.Second, func() bool { return d.status().Packets.Total.Lost.QueueFull > 2*first.Lost })
	cancel()
	total := uint64(<-sent)
	if n := len(d.records(lossOf)); n != 1 {
		t.Errorf("got %d records of losses within a minute, want 1", n)
	}
	if !strings.Contains(first.Message, "queue_full (raise --queue-length, ") {
		t.Errorf("got message %q, want cause and remedy", first.Message)
	}
	for _, want := range []string{`msg="queue nearly full"`, `msg="packets lost" origin="queue 0" cause=queue_full `, `remedy="raise --queue-length`} {
		if n := strings.Count(d.Stderr(), want); n == 0 || n > 2 {
			t.Errorf("got %d times on stderr, want it once for each warning: %s\n%s", n, want, d.Stderr())
		}
	}
	l := d.books(0)
	if code := d.Stop(); code != 0 {
		t.Errorf("got exit code %d", code)
	}
	// What was not told yet is told at the end.
	all := d.records(lossOf)
	if last := all[len(all)-1].Own; last.LostTotal != l.Total.Lost.QueueFull || l.Total.Queued != total {
		t.Errorf("got %d lost in the last record, and %d queued, want %d of %d", last.LostTotal, l.Total.Queued, l.Total.Lost.QueueFull, total)
	}
}
