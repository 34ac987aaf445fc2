package queue

import (
	"time"

	"github.com/verdictd/verdictd/packet"
)

// Few packets have headers beyond Config.CopyRange, and who sends them chooses
// that: judged by what was copied they would be malformed. So when one comes, the
// kernel is told to copy longer for a while, and to send that packet through its
// hook again.

// longFor is how long longer copies are made after a packet that needed one.
const longFor = 10 * time.Second

// longCopy is how many bytes are copied then: enough for all headers.
func (cfg *Config) longCopy() uint32 { return max(cfg.CopyRange, packet.MaxHeaders) }

// again sends the current packet through its hook once more, to come back with
// longer a copy. The rules of the hook see it twice.
func (q *Queue) again(now int64) {
	if q.long == 0 {
		q.copy(q.cfg.longCopy())
	}
	q.long = now + int64(longFor)
	appendVerdict(&q.out, q.cfg.Num, &q.meta, packet.Verdict{Repeat: true})
	q.asked++
}

// shorten ends the longer copies.
func (q *Queue) shorten() {
	q.copy(q.cfg.CopyRange)
	q.long = 0
}

// copy tells the kernel how many bytes to copy of packets that come from now on.
// If that fails, which takes a lack of kernel memory, the next packet that is cut
// asks anew.
func (q *Queue) copy(size uint32) {
	cfg := q.cfg
	cfg.CopyRange = size
	q.config.Reset()
	appendConfig(&q.config, &cfg, false)
	if q.conn.Send(q.config.Bytes()) != nil {
		q.count.unsent.Add(1)
	}
}
