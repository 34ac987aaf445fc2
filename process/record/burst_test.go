package record_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/process/record"
)

// TestLabBurst: many programs at once, each of one of four files, each sending
// one packet and ending. Every flow has the right process and file.
func TestLabBurst(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	var files []string
	for i := range 4 {
		files = append(files, copyOf(t, filepath.Join(dir, fmt.Sprintf("program%d", i))))
	}
	const atOnce, base = 8, 20000
	programs := 240
	if labtest.UnderRace() { // which each of them has, and takes ten times as long with
		programs /= 4
	}
	pids := make([]uint32, programs)
	var wait sync.WaitGroup
	for worker := range atOnce {
		wait.Go(func() {
			for i := worker; i < programs; i += atOnce {
				how := []string{"udp", "udp-connected", "tcp"}[i%3]
				c := command{path: files[i%4], ns: b.net.Client, words: []string{how, server4, fmt.Sprint(base + i)}}
				var err error
				if pids[i], err = c.try(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	for i, pid := range pids {
		k := key(17, fmt.Sprintf("10.99.0.1:%d", base+i), server4)
		if i%3 == 2 {
			k.Protocol = 6
		}
		var f record.Flow
		var p record.Process
		if !b.rec.Flow(k, 0, ownUser(), &f) || !f.HasOwner || f.Owner.PID != pid ||
			!b.rec.Process(pid, f.Owner.ExecID, &p) || p.Start != f.Owner.Start || p.Path != files[i%4] {
			t.Errorf("program %d: got %+v, %+v, want pid %d", i, f, p, pid)
		}
	}
	if s := b.rec.Stats(); s.OwnersFailed+s.FlowsFailed+s.ProcessesFailed+s.Busy > 0 {
		t.Errorf("got %+v", s)
	}
}
