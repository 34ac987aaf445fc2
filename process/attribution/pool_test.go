package attribution

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestPatientJobs: one worker is woken for all patient jobs of a user, when the first
// has waited long enough or somebody hurries; those of another user do not wait until
// it has run them.
func TestPatientJobs(t *testing.T) {
	const jobs = 8
	for _, tt := range []struct {
		name   string
		groups uint32
		hurry  bool
		wait   time.Duration
	}{
		{name: "alone", groups: 1, wait: gatherTime},
		{name: "hurried", groups: 1, hurry: true},
		{name: "two users", groups: 2, wait: gatherTime},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(poolConfig{workers: 8, share: 2, hung: 8, limit: time.Minute})
				defer p.close()
				synctest.Wait() // all workers are idle
				var running, most, done atomic.Int32
				var first [2]atomic.Int64 // of each user, 1 ns more
				begun := time.Now()
				for n := range uint32(jobs) {
					p.add(job{group: 1 + n%tt.groups, patient: true, run: func(*job) bool {
						first[n%tt.groups].CompareAndSwap(0, int64(time.Since(begun))+1)
						most.Store(max(most.Load(), running.Add(1)))
						time.Sleep(time.Millisecond)
						running.Add(-1)
						done.Add(1)
						return false
					}})
				}
				if tt.hurry {
					p.hurry()
				}
				time.Sleep(time.Second)
				for user := range tt.groups {
					if got := time.Duration(first[user].Load() - 1); got != tt.wait {
						t.Errorf("user %d: the first ran after %s, want %s", user, got, tt.wait)
					}
				}
				if done.Load() != jobs || tt.groups == 1 && most.Load() != 1 {
					t.Errorf("%d of %d ran, %d at once", done.Load(), jobs, most.Load())
				}
			})
		})
	}
}
