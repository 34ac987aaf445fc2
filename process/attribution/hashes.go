package attribution

import (
	"errors"
	"sync/atomic"

	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/procfs"
)

// hashes are the hashes of programs that somebody asked for.
type hashes struct {
	hasher *procfs.Hasher
	wanted atomic.Bool // somebody asked
	answers[fileKey, hashed]
}

// fileKey is a content that a process runs: it can run another one later.
type fileKey struct {
	process       processKey
	inode, device uint64
	changed       int64
}

// hashed is what came of hashing a program.
type hashed struct {
	sum string
	why string // there is none
}

func fileOf(p *process.Process, start uint64) fileKey {
	return fileKey{processKey{p.PID, start}, p.Exe.Inode, p.Exe.Device, p.Exe.Changed}
}

// askHash has a program hashed. If that is refused, as too many wait, it is asked for
// again once more is known.
func (r *Resolver) askHash(at *place[hashed], p *process.Process, start uint64, group uint32) bool {
	taken := at.ask(func() bool {
		q := procfs.Request{PID: p.PID, StartBoot: start, Path: p.Exe.Path, Exe: p.Exe}
		h := &hashing{r: r, at: at, request: q}
		return r.hashers.add(job{group: group, run: h.step, lost: func() { h.tell("", procfs.ErrTooSlow) }, drop: h.close})
	})
	at.refused.Store(!taken)
	return taken
}

// hashing is the job of hashing a program.
type hashing struct {
	r       *Resolver
	at      *place[hashed]
	request procfs.Request
	reading *procfs.Reading
}

// step reads a piece of the file.
func (h *hashing) step(j *job) (more bool) {
	var sum string
	var err error
	if h.reading == nil {
		h.reading, sum, err = h.r.hashes.hasher.Open(h.request)
	} else {
		buf := make([]byte, 256<<10)
		sum, err = h.reading.Read(buf)
	}
	if err == nil && sum == "" {
		j.size = h.reading.Left()
		return true
	}
	h.close()
	h.tell(sum, err)
	return false
}

func (h *hashing) close() {
	if h.reading != nil {
		h.reading.Close()
	}
}

// tell gives the answer.
func (h *hashing) tell(sum string, err error) {
	why := ""
	switch {
	case errors.Is(err, procfs.ErrTooLarge):
		h.r.counts.tooLarge.Add(1)
		why = process.NoHashTooLarge
	case errors.Is(err, procfs.ErrTooSlow):
		h.r.counts.tooSlow.Add(1)
		why = process.NoHashTooSlow
	case errors.Is(err, procfs.ErrWriting), errors.Is(err, procfs.ErrChanged):
		why = process.NoHashChanged
	case err != nil:
		why = process.NoHashUnreadable
	}
	if err != nil {
		h.r.counts.unhashed.Add(1)
	}
	h.at.set(&hashed{sum: sum, why: why})
	h.r.learned()
}
