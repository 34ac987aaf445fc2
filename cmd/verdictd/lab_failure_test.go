package main_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/queue"
)

// TestLabKill kills verdictd and sees what becomes of packets, with rules that
// close and rules that open, until another one runs. Every packet is counted, so
// none is to pass by the queue.
func TestLabKill(t *testing.T) {
	tests := []struct {
		name string
		args []string
		rule string // the user's, if not empty
		pass bool   // with nobody at the queue
	}{
		{"own rules, closed", []string{"--hook", "output", "--offload", "off"}, "", false},
		{"own rules, open", []string{"--hook", "output", "--fail", "open", "--offload", "off"}, "", true},
		{"user's rules", nil, "OUTPUT -j NFQUEUE --queue-num 0", false},
		{"user's rules, bypass", nil, "OUTPUT -j NFQUEUE --queue-num 0 --queue-bypass", true},
		{"-j QUEUE", nil, "OUTPUT -j QUEUE", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			setup(t)
			net := labtest.Pair(t)
			good, bad := sink(t, net.Server, sinkPort), sink(t, net.Server, deniedSinkPort)
			const count = 100
			send := func(first uint32) {
				floodAll(t, net.Client, lab.Flood{Count: count, First: first}, addrs("10.99.0.2", "fd99::2"), bad, good)
			}
			d := startDaemon(t, net.Client, portsPolicy, tt.args...)
			if tt.rule != "" {
				d.rule(strings.Fields(tt.rule)...)
			}
			send(0)
			want(t, good, 2*count)

			// What waits for a verdict is dropped, whatever the rules say.
			stopProcess(t, d)
			flood(t, net.Client, lab.Flood{To: to("10.99.0.2", sinkPort), Count: count, First: 10_000})
			if got := waiting(t, net.Client); got < count {
				t.Fatalf("got %d packets waiting, want at least %d", got, count)
			}
			d.Kill()
			send(20_000)
			passed := 0
			if tt.pass {
				passed = 2 * count
				want(t, bad, passed)
			}
			want(t, good, 2*count+passed)

			// The next one takes over the rules that were left behind.
			d = startDaemon(t, net.Client, portsPolicy, tt.args...)
			labtest.BothTables(t, net.Client, "-Z")
			send(30_000)
			want(t, good, 4*count+passed)
			if s := d.finish(); s.accepted != 2*count || s.dropped != 2*count {
				t.Errorf("got %+v, want %d accepted and dropped", s, 2*count)
			}
			want(t, good, 4*count+passed)
			want(t, bad, passed)
		})
	}
}

// stopProcess stops the daemon and waits until all its threads stand still.
func stopProcess(t *testing.T, d *daemon) {
	t.Helper()
	d.Signal(syscall.SIGSTOP)
	stopped := func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", d.PID()))
		if err != nil || len(threads) == 0 {
			t.Fatal("no threads", err)
		}
		return !slices.ContainsFunc(threads, func(path string) bool {
			stat, err := os.ReadFile(path)
			return err != nil || !strings.Contains(string(stat), ") T ")
		})
	}
	if !lab.Poll(wait, stopped) {
		t.Fatal("the daemon does not stop")
	}
}

// waiting returns how many packets wait in the queues of the namespace.
func waiting(t *testing.T, ns *lab.Namespace) (depth int) {
	t.Helper()
	kernel, err := queue.ReadKernel(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range kernel {
		depth += int(q.Depth)
	}
	return depth
}

// TestLabQueueFull lets the queue overflow: what has no room is lost, or with
// --fail open passes, and is counted.
func TestLabQueueFull(t *testing.T) {
	for _, fail := range []string{"closed", "open"} {
		t.Run(fail, func(t *testing.T) {
			setup(t)
			const count, room = 100, 10
			net := labtest.Pair(t)
			got := sink(t, net.Server, sinkPort)
			d := startDaemon(t, net.Client, portsPolicy, "--fail", fail, "--queue-length", fmt.Sprint(room))
			d.rule("OUTPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "0")
			stopProcess(t, d)
			flood(t, net.Client, lab.Flood{To: to("10.99.0.2", sinkPort), Count: count})
			if fail == "open" {
				want(t, got, count-room)
			}
			d.Signal(syscall.SIGCONT)
			d.waitJudged(room)
			code, lost, arrived := d.Stop(), uint64(count-room), room
			if fail == "open" {
				lost, arrived = 0, count
			}
			want(t, got, arrived)
			if s := d.summary(); code != 0 || s.packets != room || s.accepted != room || s.lost != lost {
				t.Errorf("got exit code %d and %+v, want 0, %d packets accepted and %d lost", code, s, room, lost)
			}
		})
	}
}

// TestLabStopLeavesNothing compares a namespace with rules of its user before
// and after.
func TestLabStopLeavesNothing(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			setup(t, labtest.NFTBinary, labtest.NFLog)
			net := labtest.Pair(t)
			labtest.BothTables(t, net.Client, "-A", "OUTPUT", "-p", "sctp", "-j", "DROP")
			labtest.Output(t, net.Client, "nft", "add table inet mine; add chain inet mine out { type filter hook output priority 0; }")
			state := func() string {
				return labtest.Output(t, net.Client, "nft", "list", "ruleset") +
					labtest.IPTables(t, net.Client, "-S") + labtest.IP6Tables(t, net.Client, "-S")
			}
			before := state()
			d := startDaemon(t, net.Client, portsPolicy, "--hook", "output,input,forward", "--queue", "4-5", "--nflog-group", "5")
			echo(t, net.Server, echoPort)
			answered(t, net.Client, "10.99.0.2:7001")
			if during := state(); during == before {
				t.Error("got the same rules while verdictd runs, want its table")
			}
			d.Signal(sig)
			if code := d.Wait(); code != 0 {
				t.Errorf("got exit code %d, want 0", code)
			}
			if after := state(); after != before {
				t.Errorf("got rules\n%s\nwant as before\n%s", after, before)
			}
			if left, err := queue.ReadKernel(net.Client.FD()); err != nil || len(left) != 0 {
				t.Errorf("got queues %+v, error %v, want none", left, err)
			}
			answered(t, net.Client, "10.99.0.2:7001")
		})
	}
}

// TestLabStartAndStopUnderTraffic starts and stops verdictd while datagrams
// pass that its policy accepts. None is lost, judged or not.
func TestLabStartAndStopUnderTraffic(t *testing.T) {
	setup(t)
	const rounds, rate, sources = 3, 20_000, 4
	net := labtest.Pair(t)
	got := sink(t, net.Server, sinkPort)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var floods sync.WaitGroup
	var sent lab.Sent
	floods.Go(func() {
		var err error
		sent, err = net.Client.Flood(ctx, lab.Flood{
			To: to("10.99.0.2", sinkPort), From: slices.Repeat([]netip.AddrPort{to("10.99.0.1", 0)}, sources), Count: familyNumbers, Rate: rate,
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want the flood to go on until told to stop", err)
		}
	})
	var judged uint64
	for range rounds {
		d := startDaemon(t, net.Client, portsPolicy, "--hook", "output", "--offload", "off")
		const enough = 200
		if !lab.Poll(wait, func() bool { return d.queued() >= enough }) {
			t.Errorf("got %d packets queued, want at least %d", d.queued(), enough)
		}
		if code := d.Stop(); code != 0 {
			t.Errorf("got exit code %d, want 0", code)
		}
		s := d.summary()
		judged += s.accepted
		if s.accepted < enough || s.lost != 0 {
			t.Errorf("got %+v, want at least %d accepted and none lost", s, enough)
		}
	}
	stop()
	floods.Wait()
	want(t, got, sent.OK)
	if sent.Denied != 0 {
		t.Errorf("got %d datagrams refused by OUTPUT, want none", sent.Denied)
	}
	t.Logf("%d datagrams, %d of them judged", sent.OK, judged)
}

// TestLabTwoInstances starts a second verdictd on the queue of the first.
func TestLabTwoInstances(t *testing.T) {
	setup(t)
	net := labtest.Pair(t)
	echo(t, net.Server, echoPort)
	d := startDaemon(t, net.Client, portsPolicy, "--hook", "output", "--queue", "6")
	answered(t, net.Client, "10.99.0.2:7001")
	for _, args := range [][]string{{"--queue", "6"}, {"--queue", "5-6", "--hook", "input"}} {
		exit := labtest.Run(t, net.Client, append([]string{"run"}, args...)...)
		told := regexp.MustCompile(fmt.Sprintf(`^verdictd: bind queue 6: already bound by .*\b%d\b.*choose another --queue`, d.PID()))
		if exit.Code != 1 || !told.MatchString(exit.Stderr) {
			t.Errorf("second instance %v: got exit code %d and %q, want 1 and like %q", args, exit.Code, exit.Stderr, told)
		}
	}
	answered(t, net.Client, "[fd99::2]:7001")
	d.finish()
}

// TestLabWithoutRights runs commands as root with no capability left.
func TestLabWithoutRights(t *testing.T) {
	setup(t)
	binary := labtest.Binary(t)
	tests := []struct{ command, needs string }{
		{"run --queue 0", "(needs CAP_NET_ADMIN)"},
		{"run --hook output", "(needs CAP_NET_ADMIN)"},
		{"hook install", "(needs CAP_NET_ADMIN)"},
		{"hook remove", "(needs CAP_NET_ADMIN)"},
		{"hook show", "(needs CAP_NET_ADMIN)"},
		{"demo", "CAP_SYS_ADMIN"},
	}
	for _, tt := range tests {
		t.Run(tt.command, func(t *testing.T) {
			ns := namespace(t, "without rights")
			p := labtest.Start(t, labtest.DaemonConfig{
				NS: ns, Path: "setpriv",
				Args: slices.Concat([]string{"--bounding-set=-all", "--inh-caps=-all", "--", binary}, strings.Fields(tt.command)),
			})
			if code := p.Wait(); code != 1 || !strings.Contains(p.Stderr(), tt.needs) {
				t.Errorf("got exit code %d and %q, want 1 and what is missing: %s", code, p.Stderr(), tt.needs)
			}
			if n := strings.Count(p.Stderr(), "\n"); n != 1 || !strings.HasPrefix(p.Stderr(), "verdictd: ") {
				t.Errorf("got %q, want one line that begins with the program's name", p.Stderr())
			}
			if _, err := hook.Show(hook.Config{NetNS: ns.FD()}); !errors.Is(err, hook.ErrNotInstalled) {
				t.Errorf("got %v, want that nothing was installed", err)
			}
		})
	}
}
