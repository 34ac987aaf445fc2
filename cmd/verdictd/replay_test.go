package main

import (
	"strings"
	"testing"
	"time"

	"github.com/verdictd/verdictd/replay"
)

// TestProgress lets a replay take long, before a terminal and before a file.
func TestProgress(t *testing.T) {
	tests := []struct {
		terminal bool
		calls    int // a tenth of a second apart
		want     string
	}{
		{false, 9, ""},
		{false, 10, "verdictd: a.pcap: 10 packets, 2 MB so far\n"},
		{false, 60, "verdictd: a.pcap: 10 packets, 2 MB so far\nverdictd: a.pcap: 60 packets, 2 MB so far\n"},
		{true, 9, ""},
		{true, 13, "\r\x1b[Ka.pcap: 10 packets, 2 MB\r\x1b[Ka.pcap: 13 packets, 2 MB"},
	}
	for _, tt := range tests {
		var out strings.Builder
		now := time.Unix(0, 0)
		tell := progress(env{stderr: &out, progress: &out, stderrTerminal: tt.terminal}, func() time.Time { return now })
		for i := range tt.calls {
			now = now.Add(time.Second/10 + time.Nanosecond)
			tell(replay.Progress{Capture: "a.pcap", Packets: uint64(i + 1), Offset: 2 << 20})
		}
		if out.String() != tt.want {
			t.Errorf("terminal %v, %d calls: got %q, want %q", tt.terminal, tt.calls, out.String(), tt.want)
		}
	}
}
