package feed

import (
	"encoding/binary"
	"testing"
)

// attr returns an attribute.
func attr(typ uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, typ), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

func join(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// TestRead reads expressions as the kernel writes them, and cut short at each
// byte: nothing that is cut is read as another queue.
func TestRead(t *testing.T) {
	expression := func(name string, data ...[]byte) []byte {
		return attr(1, join(attr(exprName, append([]byte(name), 0)...), attr(exprData, join(data...)...))...)
	}
	verdict := func(code uint32) []byte {
		return attr(immediateData, attr(dataVerdict, attr(verdictCode, binary.BigEndian.AppendUint32(nil, code)...)...)...)
	}
	tests := []struct {
		name         string
		expression   []byte
		queue, never uint16
		feeds        bool
	}{
		{"queue", expression("queue", attr(queueNumber, 0, 7), attr(queueTotal, 0, 1)), 7, 8, true},
		{"queues", expression("queue", attr(queueNumber, 0, 7), attr(queueTotal, 0, 3)), 9, 10, true},
		{"queue by register", expression("queue", attr(queueRegister, 0, 0, 0, 8)), 4711, 0, true},
		{"-j QUEUE", expression("immediate", verdict(verdictQueue)), 0, 1, true},
		{"another verdict", expression("immediate", verdict(1)), 0, 1, false},
		{"a jump", expression("immediate", verdict(0xfffffffd)), 0, 1, false},
		{"xt target", expression("target", attr(targetName, []byte("NFQUEUE\x00")...), attr(targetInfo, 5, 0, 2, 0, 0, 0, 0, 0)), 6, 7, true},
		{"another target", expression("target", attr(targetName, []byte("MARK\x00")...), attr(targetInfo, 5, 0, 2, 0)), 6, 7, false},
		{"counter", expression("counter", attr(1, 0, 0)), 0, 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			message := join(attr(ruleTable, []byte("filter\x00")...), attr(ruleChain, []byte("OUTPUT\x00")...), attr(ruleExpressions, tt.expression...))
			rules := appendRule(nil, message)
			if got := len(rules) == 1 && rules[0].feeds([]uint16{tt.queue}); got != tt.feeds {
				t.Errorf("got %+v, want that it feeds queue %d: %v", rules, tt.queue, tt.feeds)
			}
			if tt.feeds && rules[0].Count > 0 && rules[0].feeds([]uint16{tt.never}) {
				t.Errorf("got %+v, want that it does not feed queue %d", rules, tt.never)
			}
			for n := range message {
				appendRule(nil, message[:n])
			}
		})
	}
}

// TestReadLegacyCut reads entries whose offsets lead astray.
func TestReadLegacyCut(t *testing.T) {
	entry := make([]byte, 160)
	offsets := func(target, next uint16) []byte {
		binary.NativeEndian.PutUint16(entry[88:], target)
		binary.NativeEndian.PutUint16(entry[90:], next)
		copy(entry[112+2:], "NFQUEUE")
		entry[112+targetHeader] = 3
		return entry
	}
	if got := ipv4.read("filter", offsets(112, 160)); len(got) != 1 || !got[0].feeds([]uint16{3}) {
		t.Errorf("got %+v, want a rule for queue 3", got)
	}
	for _, o := range [][2]uint16{{112, 161}, {150, 160}, {0, 0}, {65535, 65535}, {160, 112}} {
		if got := ipv4.read("filter", offsets(o[0], o[1])); len(got) != 0 {
			t.Errorf("offsets %v: got %+v, want nothing", o, got)
		}
	}
}
