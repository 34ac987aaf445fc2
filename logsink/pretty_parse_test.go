package logsink

import (
	"errors"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/packet"
)

// What AppendPretty writes of a packet is read back, with colour and without; what
// the packet or the policy chose cannot stand for another field.
func TestParsePretty(t *testing.T) {
	base := tcpEvent()
	forged := base
	d := *base.Decision
	d.Rule, d.Reason = "ssh rule=other", "say \"no\" in=eth9 -> \x1b[31m"
	forged.Decision = &d
	for name, e := range map[string]Event{"plain": base, "forged": forged} {
		for _, colour := range []bool{false, true} {
			line := string(AppendPretty(nil, &e, colour))
			if !IsPretty(line) {
				t.Fatalf("%s: not taken for a pretty line: %q", name, line)
			}
			r, err := ParsePretty(line)
			if err != nil {
				t.Fatalf("%s: %v in %q", name, err, line)
			}
			if r.Rule != e.Decision.Rule || r.Message != e.Decision.Reason || r.Cause != e.Reason || r.Action != e.Action ||
				r.Src.Addr() != e.Src || r.Dst.Port() != e.DstPort {
				t.Errorf("%s: got %+v of %q", name, r, line)
			}
		}
	}
}

func TestParsePrettyErrors(t *testing.T) {
	admin := Event{Kind: Admin, Reason: "start", Text: "tcp 10.0.0.1:1 -> 10.0.0.2:2"}
	if _, err := ParsePretty(string(AppendPretty(nil, &admin, false))); !errors.Is(err, ErrNoPacket) {
		t.Errorf("a line about verdictd: got %v", err)
	}
	for line, want := range map[string]string{
		"16:20:00.123456 DROP -":                                "could not be decoded",
		"16:20:00.123456 MAYBE tcp 10.0.0.1:1 -> 10.0.0.2:2":    "MAYBE",
		"16:20:00.123456 DROP tcp 10.0.0.1:1 -> 10.0.0:2":       "10.0.0:2",
		`16:20:00.123456 DROP tcp 10.0.0.1:1 -> 1.1.1.1:2 a="b`: "does not end",
		"16:20": "want a time",
	} {
		if _, err := ParsePretty(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", line, err, want)
		}
	}
	if r, err := ParsePretty("16:20:00.123456 ACCEPT tcp 10.0.0.1:1 -> 10.0.0.2:22 out=eth0 rule=x would=drop reason=policy"); err != nil || r.Action != packet.Drop {
		t.Errorf("monitor mode: got %+v, %v, want what the policy said", r, err)
	}
}
