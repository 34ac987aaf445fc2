package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/verdictd/verdictd/logsink"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

// inquiry is one run of why: it takes its questions one after the other, and
// keeps none.
type inquiry struct {
	cmd     *cobra.Command
	env     env
	from    *policyFlags
	control string
	nearest int
	asJSON  bool

	explainer       *policy.Explainer
	asked, differed int
}

// run answers what the arguments ask.
func (w *inquiry) run(args []string) error {
	if err := w.askAll(args); err != nil {
		return err
	}
	if w.differed > 0 {
		return fmt.Errorf("%d of %d records say something else than the policy does now", w.differed, w.asked)
	}
	return nil
}

func (w *inquiry) askAll(args []string) error {
	text := strings.Join(args, " ")
	switch {
	case logsink.IsPretty(text):
		q, err := parseQuestion(text)
		if err != nil {
			return badInput(err)
		}
		return w.ask(q)
	case strings.Contains(text, "->") && !strings.HasPrefix(text, "{"):
		in, err := rules.ParseFlow(text)
		if err != nil {
			return badInput(err)
		}
		return w.ask(&question{in: in})
	}
	for _, arg := range args {
		var err error
		switch host, port, ok := splitEndpoint(arg); {
		case strings.HasPrefix(strings.TrimSpace(arg), "{"):
			err = w.askLines("record", strings.NewReader(arg))
		case ok:
			err = w.askLast(host, port)
		default:
			err = w.askFile(arg)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ask answers one question.
func (w *inquiry) ask(q *question) error {
	if w.explainer == nil {
		var err error
		if w.explainer, err = w.from.explainer(w.cmd); err != nil {
			return err
		}
	}
	same, err := answer(w.cmd, w.env, w.explainer, q, w.nearest, w.asJSON)
	if err != nil {
		return err
	}
	w.asked++
	if !same {
		w.differed++
	}
	return nil
}

// askFile asks about each packet in a file.
func (w *inquiry) askFile(path string) error {
	if path == "-" {
		return w.askLines("standard input", w.env.stdin)
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%.80q is no record (a JSON object), no flow (tcp 10.0.0.1:40000 -> 1.2.3.4:443), no HOST:PORT and no file: %w", path, os.ErrNotExist)
	}
	if err != nil {
		return badInput(err)
	}
	defer f.Close()
	return w.askLines(path, f)
}

// askLines asks about each line that speaks of a packet.
func (w *inquiry) askLines(name string, r io.Reader) error {
	before := w.asked
	passedOver, err := eachQuestion(name, r, w.ask)
	if err != nil || w.asked > before {
		return err
	}
	if passedOver == nil {
		passedOver = fmt.Errorf("%s holds no record", name)
	}
	return badInput(passedOver)
}

// maxLine is how long a line of a log may be.
const maxLine = 1 << 20

// eachQuestion calls do for each line that speaks of a packet. passedOver says what
// the last of the others is.
func eachQuestion(name string, r io.Reader, do func(*question) error) (passedOver, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		place := fmt.Sprintf("%s:%d", name, n)
		q, err := parseQuestion(line)
		if errors.Is(err, logsink.ErrNoPacket) {
			passedOver = fmt.Errorf("%s: %w", place, err)
			continue
		}
		if err != nil {
			return passedOver, badInput(fmt.Errorf("%s: %w", place, err))
		}
		q.place = place
		if err := do(q); err != nil {
			return passedOver, err
		}
	}
	if err := lines.Err(); err != nil {
		return passedOver, badInput(fmt.Errorf("%s: %w", name, err))
	}
	return passedOver, nil
}

// parseQuestion reads a line of the audit log.
func parseQuestion(line string) (*question, error) {
	if !logsink.IsPretty(line) {
		r, err := logsink.ParseRecord([]byte(line))
		if err != nil {
			return nil, err
		}
		return &question{in: r.Input, record: r, src: r.Src, dst: r.Dst}, nil
	}
	r, err := logsink.ParsePretty(line)
	if err != nil {
		return nil, err
	}
	q := &question{in: r.Input, record: r, src: r.Src, dst: r.Dst}
	if r.EventType == "flow" {
		q.record = nil // the line does not say what was decided
	}
	return q, nil
}

// splitEndpoint reads HOST:PORT, unless a file has that name.
func splitEndpoint(arg string) (host string, port uint16, ok bool) {
	host, text, err := net.SplitHostPort(arg)
	if err != nil || host == "" {
		return "", 0, false
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if _, statErr := os.Stat(arg); err != nil || statErr == nil {
		return "", 0, false
	}
	return host, uint16(n), true
}

// askLast asks about the last record of the running daemon to or from an endpoint.
func (w *inquiry) askLast(host string, port uint16) error {
	const patience = 5 * time.Second
	ips, err := net.DefaultResolver.LookupNetIP(w.cmd.Context(), "ip", host)
	if err != nil {
		return badInput(fmt.Errorf("%s: %w", host, err))
	}
	ends := map[netip.AddrPort]bool{}
	for _, ip := range ips {
		ends[netip.AddrPortFrom(ip.Unmap().WithZone(""), port)] = true
	}
	var st status
	if err := ask(w.cmd.Context(), w.control, commandStatus, patience, &st); err != nil {
		return err
	}
	if w.from.path == "" {
		if w.from.path = st.Policy.Path; w.from.path == "" {
			return badInput(errors.New("the daemon has no policy: name one with --policy"))
		}
	}
	if st.Audit.File == "" {
		return badInput(errors.New("the audit log of the daemon is no file: give the record"))
	}
	q, err := lastOf(st.Audit.File, ends)
	if err != nil {
		return err
	}
	if q == nil {
		return badInput(fmt.Errorf("no record to or from %s in %s nor in %s.1: nothing new came since, or the policy does not log it (give the flow in words)",
			net.JoinHostPort(host, strconv.Itoa(int(port))), st.Audit.File, st.Audit.File))
	}
	return w.ask(q)
}

// lastOf returns the last question of a log file, or else of the one before it,
// about a packet to or from one of the ends.
func lastOf(path string, ends map[netip.AddrPort]bool) (last *question, err error) {
	for _, name := range []string{path, path + ".1"} {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) && name != path {
			return nil, nil
		}
		if err != nil {
			return nil, badInput(err)
		}
		_, err = eachQuestion(name, f, func(q *question) error {
			if ends[q.src] || ends[q.dst] {
				last = q
			}
			return nil
		})
		f.Close()
		if err != nil || last != nil {
			return last, err
		}
	}
	return nil, nil
}
