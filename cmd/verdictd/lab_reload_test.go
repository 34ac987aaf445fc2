package main_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/queue"
)

// Ways to give a running daemon another policy.
const (
	byRename = iota // as editors and package managers do
	byWrite         // into the same file
	byHangup        // SIGHUP: at once
	ways
)

// reload gives the daemon another policy and waits until it is in use.
func (d *daemon) reload(text string, way int) {
	d.t.Helper()
	if way == byWrite {
		writeFile(d.t, d.policy, text)
	} else {
		writeFile(d.t, d.policy+".new", text)
		if err := os.Rename(d.policy+".new", d.policy); err != nil {
			d.t.Fatal(err)
		}
	}
	if way == byHangup {
		d.Signal(unix.SIGHUP)
	}
	p, err := policy.Load(d.t.Context(), policy.Source{Path: d.policy})
	if err != nil {
		d.t.Fatal(err)
	}
	inUse := func() bool { return strings.HasPrefix(p.Hash(), d.loaded("sha256")) && d.loaded("sha256") != "" }
	if !lab.Poll(wait, inUse) {
		d.t.Fatalf("policy %.12s not in use after %s: %s", p.Hash(), wait, d.Stderr())
	}
}

// loaded returns what the latest message about a loaded policy says under key.
func (d *daemon) loaded(key string) string {
	all := regexp.MustCompile(`msg="policy loaded".* `+key+`=(\w+)`).FindAllStringSubmatch(d.Stderr(), -1)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1][1]
}

const dropSink = `package verdictd

decision := {"verdict": "drop", "rule": "closed"} if {
	input.dst_port == 7003
} else := {"verdict": "accept", "rule": "open"}
`

// TestLabReloadUnderTraffic changes the policy 24 times, and once to a broken
// one, while datagrams of both families pass. Each is judged by one policy, and
// none is lost.
func TestLabReloadUnderTraffic(t *testing.T) {
	setup(t)
	const reloads, rate, sources = 24, 1500, 8
	net := labtest.Pair(t)
	d := startDaemon(t, net.Client, acceptAll, "--hook", "output", "--offload", "off")
	got := sink(t, net.Server, sinkPort)
	numbers := &numberLog{}
	capture(t, net.Server, numbers.note)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var floods sync.WaitGroup
	var sent [2]lab.Sent
	for i, addr := range addrs("10.99.0.2", "fd99::2") {
		floods.Go(func() {
			var err error
			from := slices.Repeat([]netip.AddrPort{netip.AddrPortFrom(addrs("10.99.0.1", "fd99::1")[i], 0)}, sources)
			sent[i], err = net.Client.Flood(ctx, lab.Flood{
				To: netip.AddrPortFrom(addr, sinkPort), From: from, Count: familyNumbers, First: uint32(i * familyNumbers), Rate: rate,
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("flood to %s: got %v, want it to go on until told to stop", addr, err)
			}
		})
	}
	for i := range reloads {
		if i == reloads/2 {
			refuseBroken(t, d)
		}
		d.reload([]string{dropSink, acceptAll}[i%2], i%ways)
		judged := `"generation":` + d.loaded("generation") + ","
		if !lab.Poll(wait, func() bool { return strings.Contains(d.Stdout(), judged) }) {
			t.Errorf("no packet was judged by policy %d: %s", i, judged)
		}
	}
	stop()
	floods.Wait()

	s := d.finish()
	multicast := len(d.records(func(r *record) bool { return r.decided() && r.Dst.IsMulticast() }))
	total := sent[0].OK + sent[1].OK
	if s.packets != uint64(total+multicast) || sent[0].Denied+sent[1].Denied != 0 {
		t.Errorf("got %d packets judged, want the %d sent and %d multicast reports", s.packets, total, multicast)
	}
	want(t, got, int(s.accepted)-multicast)
	if gaps := numbers.gaps(total); gaps < 2 || gaps > reloads {
		t.Errorf("got %d gaps in the numbers received, want one for each family and policy that drops: 2 to %d", gaps, reloads)
	}
	checkGenerations(t, d)
	t.Logf("%d datagrams, %d accepted, %d dropped, %d reloads", total, s.accepted, s.dropped, reloads)
}

// refuseBroken writes a policy with a syntax error and waits until it is
// refused, with its place.
func refuseBroken(t *testing.T, d *daemon) {
	t.Helper()
	before := d.loaded("generation")
	writeFile(t, d.policy, "package verdictd\n\ndecision := {\"verdict\": }\n")
	refused := regexp.MustCompile(`policy refused, the old one stays.*policy\.rego:3:\d+: `)
	if !lab.Poll(wait, func() bool { return refused.MatchString(d.Stderr()) }) {
		t.Errorf("got %q, want the broken policy refused with file:line:column", d.Stderr())
	}
	if got := d.loaded("generation"); got != before {
		t.Errorf("got generation %s after a broken policy, want still %s", got, before)
	}
}

// checkGenerations checks that each generation's decisions are those of one
// policy, and that generations follow each other.
func checkGenerations(t *testing.T, d *daemon) {
	t.Helper()
	rules := make(map[string]string) // by SHA-256
	byGeneration := make(map[uint64]string)
	var last uint64
	for _, r := range d.records(func(r *record) bool { return r.decided() && r.DstPort == sinkPort }) {
		p := r.Own.Policy
		action := map[string]string{"open": "accept", "closed": "drop"}[r.Own.Rule]
		if r.Verdict.Action != action || p.Generation < last {
			t.Errorf("got %s by rule %q of generation %d after %d", r.Verdict.Action, r.Own.Rule, p.Generation, last)
		}
		if rules[p.SHA256] == "" {
			rules[p.SHA256] = r.Own.Rule
		}
		if byGeneration[p.Generation] == "" {
			byGeneration[p.Generation] = p.SHA256
		}
		if rules[p.SHA256] != r.Own.Rule || byGeneration[p.Generation] != p.SHA256 {
			t.Errorf("got rule %q of policy %.12s in generation %d: a mixture of policies", r.Own.Rule, p.SHA256, p.Generation)
		}
		last = p.Generation
	}
	if len(rules) != 2 || last < 25 {
		t.Errorf("got decisions of %d policies up to generation %d, want 2 and at least 25", len(rules), last)
	}
}

// familyNumbers is how many numbers the datagrams of one family have.
const familyNumbers = 1 << 20

// numberLog notes the numbers of a flood's datagrams to sinkPort.
type numberLog struct {
	mu  sync.Mutex
	all []uint32
}

// note is for lab.Capture.
func (l *numberLog) note(p []byte) bool {
	header := 20
	if p[0]>>4 == 6 {
		header = 40
	}
	if len(p) < header+12 || binary.BigEndian.Uint16(p[header+2:]) != sinkPort {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, binary.BigEndian.Uint32(p[header+8:]))
	return true
}

// gaps counts the runs of missing numbers between those received. The change
// of family is none.
func (l *numberLog) gaps(sent int) (count int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.all)
	for i := 1; i < len(l.all); i++ {
		a, b := l.all[i-1], l.all[i]
		if b-a > 1 && a/familyNumbers == b/familyNumbers {
			count++
		}
	}
	return count
}

// TestLabReloadEndsFlow lets a policy deny a flow that is under way. Not one
// more packet of it passes, whichever end sends next. That the far end had sent
// something before the flow began does not keep the answers out.
func TestLabReloadEndsFlow(t *testing.T) {
	closed := strings.ReplaceAll(outgoing, "7001", "7009")
	for _, rules := range []string{"own rules", "two queues"} {
		t.Run(rules, func(t *testing.T) {
			setup(t)
			network := labtest.Pair(t)
			var d *daemon
			if rules == "own rules" {
				d = startDaemon(t, network.Client, outgoing, "--hook", "output,input")
			} else {
				d = startDaemon(t, network.Client, outgoing, "--queue", "10-11")
				d.rule("OUTPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "10")
				d.rule("INPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "11")
			}
			server := listen(t, network.Server, echoPort)
			for addr, own := range map[string]string{"10.99.0.2": "10.99.0.1", "fd99::2": "fd99::1"} {
				for _, next := range []string{"near", "far"} {
					client := listen(t, network.Client, 0)
					there := net.UDPAddrFromAddrPort(to(addr, echoPort))
					back := net.UDPAddrFromAddrPort(to(own, client.LocalAddr().(*net.UDPAddr).AddrPort().Port()))
					before := d.queued()
					send(t, server, back, "nobody asked")
					d.waitJudged(before + 1)
					exchange(t, client, server, there, "before")
					d.reload(closed, byHangup)
					before = d.queued()
					const denied = 10
					for range denied {
						if next == "near" {
							send(t, client, there, "denied")
						} else {
							send(t, server, back, "denied")
						}
					}
					d.waitJudged(before + denied)
					d.reload(outgoing, byHangup)
					exchange(t, client, server, there, "after") // and nothing that was sent in between
				}
			}
			d.finish()
		})
	}
}

// queued returns how many packets the kernel has put into the daemon's queues
// so far.
func (d *daemon) queued() (sum uint32) {
	d.t.Helper()
	kernel, err := queue.ReadKernel(d.ns.FD())
	if err != nil {
		d.t.Fatal(err)
	}
	for _, q := range kernel {
		sum += q.LastID
	}
	return sum
}

// waitJudged waits until so many packets were queued and none waits any more.
func (d *daemon) waitJudged(packets uint32) {
	d.t.Helper()
	var kernel []queue.Kernel
	done := lab.Poll(wait, func() bool {
		var err error
		if kernel, err = queue.ReadKernel(d.ns.FD()); err != nil {
			d.t.Fatal(err)
		}
		waiting := slices.ContainsFunc(kernel, func(q queue.Kernel) bool { return q.Depth > 0 })
		return !waiting && d.queued() >= packets
	})
	if !done {
		d.t.Fatalf("got %+v, want %d packets queued and judged", kernel, packets)
	}
}

// exchange sends the text from a to b at there, and back. Each end must get it
// before anything else.
func exchange(t *testing.T, a, b *net.UDPConn, there net.Addr, text string) {
	t.Helper()
	send(t, a, there, text)
	send(t, b, receive(t, b, text), text)
	receive(t, a, text)
}

func send(t *testing.T, c *net.UDPConn, to net.Addr, text string) {
	t.Helper()
	if _, err := c.WriteTo([]byte(text), to); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c *net.UDPConn, text string) net.Addr {
	t.Helper()
	buf := make([]byte, 100)
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	n, from, err := c.ReadFrom(buf)
	if err != nil || string(buf[:n]) != text {
		t.Fatalf("got %q from %v, error %v, want %q", buf[:n], from, err, text)
	}
	return from
}

// listen opens a UDP socket for both families.
func listen(t *testing.T, ns *lab.Namespace, port int) (c *net.UDPConn) {
	t.Helper()
	err := ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestLabReloadKeepsConnections changes the policy 100 times during a TCP
// transfer that all of them accept.
func TestLabReloadKeepsConnections(t *testing.T) {
	setup(t)
	network := labtest.Pair(t)
	d := startDaemon(t, network.Client, outgoing, "--hook", "output,input")
	echo(t, network.Server, echoPort)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var streams sync.WaitGroup
	sizes := make([]int64, 2)
	for i, addr := range []string{"10.99.0.2", "fd99::2"} {
		var conn net.Conn
		err := network.Client.Do(func() (err error) {
			conn, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to(addr, echoPort)))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		streams.Go(func() {
			if sizes[i], err = stream(ctx, conn.(*net.TCPConn)); err != nil {
				t.Errorf("stream to %s after %d bytes: %v", addr, sizes[i], err)
			}
		})
	}
	for i := range 100 {
		d.reload([]string{portsPolicy, outgoing}[i%2], byHangup)
	}
	stop()
	streams.Wait()
	d.finish()
	if bad := d.records(func(r *record) bool { return r.Type == "drop" && !r.Dst.IsMulticast() }); len(bad) != 0 {
		t.Errorf("got %d drops, want none: %+v", len(bad), bad[0])
	}
	t.Logf("%d and %d bytes echoed during 100 reloads", sizes[0], sizes[1])
}

// stream sends random bytes to an echo server until ctx is done and compares
// what comes back.
func stream(ctx context.Context, conn *net.TCPConn) (size int64, err error) {
	back, there := sha256.New(), sha256.New()
	var echoed int64
	done := make(chan error, 1)
	go func() {
		var err error
		echoed, err = io.Copy(back, conn)
		done <- err
	}()
	random, chunk := rand.NewChaCha8([32]byte{}), make([]byte, 16<<10)
	for ctx.Err() == nil && err == nil {
		random.Read(chunk) // never fails
		there.Write(chunk)
		_, err = conn.Write(chunk)
		size += int64(len(chunk))
	}
	err = errors.Join(err, conn.SetReadDeadline(time.Now().Add(wait)), conn.CloseWrite(), <-done)
	if err == nil && (echoed != size || !bytes.Equal(there.Sum(nil), back.Sum(nil))) {
		err = errors.New("what came back is not what was sent")
	}
	return size, err
}
