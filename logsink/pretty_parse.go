package logsink

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

var (
	prettyStart  = regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{6} +[A-Z]+ `)
	prettyColour = regexp.MustCompile("\x1b\\[\\d*m")
)

// prettyFields are the fields of the facts behind the names in a line.
func prettyFields() map[string]string {
	return map[string]string{
		"in": "interface.in", "out": "interface.out", "type": "icmp.type", "code": "icmp.code", "uid": "uid",
		"exe": "process.exe", "exe_inside": "process.exe_inside", "comm": "process.comm", "pid": "process.pid",
		"unit": "process.unit", "container": "process.container.id",
	}
}

// IsPretty returns whether a line is one of AppendPretty's.
func IsPretty(line string) bool {
	return prettyStart.MatchString(prettyColour.ReplaceAllString(line, ""))
}

// ParsePretty reads back what a line of AppendPretty's says of a packet. It says
// less than a record: what it does not say is unknown, and which hook it was
// follows from the interfaces. Of a flow's end Cause is empty, as the line does not
// say what was decided.
func ParsePretty(line string) (*Record, error) {
	words, err := prettyWords(prettyColour.ReplaceAllString(line, ""))
	if err != nil {
		return nil, err
	}
	if len(words) < 2 {
		return nil, errors.New("no line of --pretty: want a time, a word and a packet")
	}
	r := &Record{EventType: "verdict"}
	switch words[1] {
	case "ACCEPT":
		r.Action = packet.Accept
	case "DROP":
		r.EventType, r.Action = "drop", packet.Drop
	case "REJECT":
		r.EventType, r.Action = "drop", packet.Reject
	case "END":
		r.EventType = "flow"
	case "NFLOG":
		r.EventType = "packet"
	case "ADMIN", "LOSS", "STATS":
		return nil, fmt.Errorf("line %s %w, want ACCEPT, DROP, REJECT, END or NFLOG", words[1], ErrNoPacket)
	default:
		return nil, fmt.Errorf("no line of --pretty: %.40q, want ACCEPT, DROP, REJECT, END or NFLOG", words[1])
	}
	if len(words) < 6 || words[4] != "->" {
		return nil, errors.New("the line does not say of which packet (one that could not be decoded): give the JSON record")
	}
	r.Src, r.Dst = prettyEnd(words[3]), prettyEnd(words[5])
	flow := slices.Clip(words[2:6])
	said := r.prettyPairs(words[6:])
	switch {
	case said["in"] != "" && said["out"] != "":
		flow = append(flow, "forward")
	case said["out"] != "":
		flow = append(flow, "output")
	case said["in"] != "":
		flow = append(flow, "input")
	}
	for name, field := range prettyFields() {
		if v := said[name]; v != "" && !strings.ContainsAny(v, " \t") {
			flow = append(flow, field, v)
		}
	}
	r.Input, err = rules.ParseFlow(strings.Join(flow, " "))
	return r, err
}

func prettyEnd(word string) netip.AddrPort {
	if end, err := netip.ParseAddrPort(word); err == nil {
		return end
	}
	addr, _ := netip.ParseAddr(word) // ParseFlow says what is wrong with it
	return netip.AddrPortFrom(addr, 0)
}

// prettyPairs reads the pairs NAME=VALUE and returns them.
func (r *Record) prettyPairs(words []string) map[string]string {
	said := map[string]string{}
	for _, w := range words {
		if name, value, ok := strings.Cut(w, "="); ok {
			said[name] = value
		}
	}
	r.Rule, r.Message = said["rule"], said["message"]
	if begin, cut := said["rule_cut"]; cut {
		r.Rule, r.RuleCut = begin, true
	}
	if r.EventType != "flow" {
		r.Cause = said["reason"]
	}
	switch said["would"] {
	case "drop":
		r.Action = packet.Drop
	case "reject":
		r.Action = packet.Reject
	}
	return said
}

// prettyWords splits a line, and takes quotes off.
func prettyWords(line string) (words []string, err error) {
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimLeft(line, " ") {
		end := strings.IndexAny(line, " \"")
		if end < 0 {
			return append(words, line), nil
		}
		word := line[:end]
		line = line[end:]
		if line[0] == '"' {
			quoted, err := strconv.QuotedPrefix(line)
			if err != nil {
				return nil, fmt.Errorf("a quote that does not end in %.40q", line)
			}
			text, err := strconv.Unquote(quoted)
			if err != nil {
				return nil, fmt.Errorf("%.40q: %w", quoted, err)
			}
			word, line = word+text, line[len(quoted):]
		}
		words = append(words, word)
	}
	return words, nil
}
