package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/verdictd/verdictd/internal/terminal"
	"github.com/verdictd/verdictd/ledger"
	"github.com/verdictd/verdictd/logsink"
)

// number is a number of a status besides those of the packets.
type number struct {
	name  string // in the audit log; as a metric with verdictd_ before it and, if it only grows, _total behind
	now   bool   // says how it is now, and so can fall
	help  string
	value func(*status) uint64
}

// numbers are recorded and served. Their names do not change.
func numbers() []number {
	return append(ownNumbers(), attributionNumbers()...)
}

func ownNumbers() []number {
	return []number{
		{"policy_generation", true, "generation of the policy in use", func(s *status) uint64 { return s.Policy.Generation }},
		{"enforcing", true, "1 if the policy is enforced on what rules send to the queues; 0 in mode monitor, without a policy, without such a rule, or if that is not known", func(s *status) uint64 { return s.Enforced.number() }},
		{"policy_refused_time", true, "Unix time at which a policy or bundle was refused that no good one has followed; 0 if there is none", func(s *status) uint64 { return s.Policy.Refused.since() }},
		{"unconfirmed", true, "1 while something waits for verdictd confirm", func(s *status) uint64 { return s.Trial.waits() }},
		{"policy_evaluations", false, "evaluations of the policy", func(s *status) uint64 { return s.Policy.Evaluations }},
		{"policy_errors", false, "evaluations that ended in an error", func(s *status) uint64 { return s.Policy.Errors }},
		{"policy_overruns", false, "evaluations that took longer than the budget", func(s *status) uint64 { return s.Policy.Overruns }},
		{"policy_compared", false, "decisions that were compared with OPA's", func(s *status) uint64 { return s.Policy.Compared }},
		{"policy_mismatches", false, "decisions that were not OPA's", func(s *status) uint64 { return s.Policy.Mismatches }},
		{"malformed", false, "packets that could not be decoded", func(s *status) uint64 { return s.Judged.Malformed }},
		{"would_drop", false, "packets accepted only because the mode is monitor", func(s *status) uint64 { return s.Judged.WouldDrop }},
		{"flows", true, "flows remembered", func(s *status) uint64 { return s.Flows.Now }},
		{"flows_new", false, "flows ever remembered", func(s *status) uint64 { return s.Flows.New }},
		{"flows_evicted", false, "flows forgotten early to make room for newer ones", func(s *status) uint64 { return s.Flows.Evicted }},
		{"flows_offloaded", false, "flows that the kernel lets pass by the queue", func(s *status) uint64 { return s.Flows.Offloaded }},
		{"offloaded_packets", false, "packets that passed by the queue", func(s *status) uint64 { return s.Flows.OffloadedPackets }},
		{"error_packets", false, "messages of this host's kernel that it queues for nobody: they pass", func(s *status) uint64 { return s.Flows.ErrorPackets }},
		{"remarked_packets", false, "packets of offloaded flows whose connection mark somebody has overwritten", func(s *status) uint64 { return s.Flows.Remarked }},
		{"flows_no_room", false, "flows that found no room", func(s *status) uint64 { return s.Flows.NoRoom }},
		{"queues_hanging", true, "queues whose goroutine does not come back", func(s *status) uint64 { return uint64(len(s.Watchdog.Hanging)) }},
		{"hangs", false, "processes, and goroutines of queues, that did not come back", func(s *status) uint64 { return s.Watchdog.Count }},
		{"hangs_replaced", false, "processes that the supervisor ended for it", func(s *status) uint64 { return s.Watchdog.Replaced }},
		{"audit_events", false, "events of the audit log", func(s *status) uint64 { return s.Audit.Events }},
		{"audit_lost", false, "events that found the ring full", func(s *status) uint64 { return s.Audit.Lost }},
		{"audit_unwritten", false, "records that could not be written", func(s *status) uint64 { return s.Audit.Unwritten }},
		{"audit_write_errors", false, "failed writes of the audit log", func(s *status) uint64 { return s.Audit.WriteErrors }},
	}
}

// counters returns what a stats record of the audit log says: packets of all
// queues, and the rest.
func (st *status) counters(now time.Time) []logsink.Counter {
	list := []logsink.Counter{{Name: "uptime", Value: uint64(since(st.Started, now) / time.Second)}}
	for _, f := range ledger.Fields() {
		name := "packets_" + f.Name
		if f.Cause != "" {
			name += "_" + f.Cause
		}
		list = append(list, logsink.Counter{Name: name, Value: f.Value(&st.Packets.Total)})
	}
	for _, n := range numbers() {
		list = append(list, logsink.Counter{Name: n.name, Value: n.value(st)})
	}
	return list
}

// appendMetrics appends the status in the text format of Prometheus, version
// 0.0.4. Packets are counted per queue; what is known only of all of them
// together has queue="".
func (st *status) appendMetrics(b []byte) []byte {
	b = head(b, "verdictd_info", "gauge", "version and policy")
	b = fmt.Appendf(b, "verdictd_info{version=%q,mode=%q,fail=%q,sha256=%q} 1\n", st.Version, st.Mode, st.Fail, st.Policy.SHA256)
	if r := st.Policy.Refused; r != nil {
		b = head(b, "verdictd_policy_refused_info", "gauge", "why the policy or bundle was refused that was offered last")
		b = fmt.Appendf(b, "verdictd_policy_refused_info{reason=%q} 1\n", terminal.Line(r.first()))
	}
	b = head(b, "verdictd_start_time_seconds", "gauge", "Unix time of the start")
	b = fmt.Appendf(b, "verdictd_start_time_seconds %d\n", st.Started.Unix())
	last := ""
	for _, f := range ledger.Fields() {
		name, kind := "verdictd_packets_"+f.Name+"_total", "counter"
		if f.Now {
			name, kind = "verdictd_packets_"+f.Name, "gauge"
		}
		if name != last {
			b = head(b, name, kind, f.Help)
		}
		last = name
		var known uint64
		for i := range st.Packets.Queues {
			q := &st.Packets.Queues[i]
			known += f.Value(&q.Account)
			b = sample(b, name, strconv.Itoa(int(q.Queue)), f.Cause, f.Value(&q.Account))
		}
		if total := f.Value(&st.Packets.Total); total != known || f.Name == "unjudged" && f.Cause == "queue_full" {
			b = sample(b, name, "", f.Cause, total-min(known, total))
		}
	}
	b = head(b, "verdictd_packets_unexplained", "gauge", "packets whose whereabouts are not known")
	b = fmt.Appendf(b, "verdictd_packets_unexplained %d\n", st.Packets.Total.Unexplained)
	for _, n := range numbers() {
		name, kind := "verdictd_"+n.name+"_total", "counter"
		if n.now {
			name, kind = "verdictd_"+n.name, "gauge"
		}
		b = fmt.Appendf(head(b, name, kind, n.help), "%s %d\n", name, n.value(st))
	}
	return b
}

func head(b []byte, name, kind, help string) []byte {
	return fmt.Appendf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func sample(b []byte, name, queue, cause string, value uint64) []byte {
	if cause != "" {
		return fmt.Appendf(b, "%s{queue=%q,cause=%q} %d\n", name, queue, cause, value)
	}
	return fmt.Appendf(b, "%s{queue=%q} %d\n", name, queue, value)
}

func (d *daemon) listenMetrics() error {
	if d.Metrics == "" {
		return nil
	}
	var err error
	if d.observer.metrics, err = net.Listen("tcp", d.Metrics); err != nil {
		return fmt.Errorf("serve metrics at %s: %w", d.Metrics, err)
	}
	return nil
}

// serveMetrics serves the counters for Prometheus.
func (d *daemon) serveMetrics(ctx context.Context, l net.Listener) error {
	const slow, most = 5 * time.Second, 16 << 10
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		st, err := d.status()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(st.appendMetrics(nil)) // the client's loss
	})
	server := &http.Server{
		Handler: mux, ReadTimeout: slow, WriteTimeout: slow, IdleTimeout: slow, MaxHeaderBytes: most,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), slow)
		defer cancel()
		_ = server.Shutdown(grace) // its listener is closed either way
	})
	err := server.Serve(l)
	if stop() {
		return fmt.Errorf("serve metrics at %s: %w", l.Addr(), err)
	}
	<-ended
	return nil
}

func (d *daemon) closeMetrics() {
	if m := d.observer.metrics; m != nil {
		m.Close()
	}
	d.observer.metrics = nil
}
