package attribution

import (
	"sync"
	"sync/atomic"

	"github.com/verdictd/verdictd/process"
	"github.com/verdictd/verdictd/process/procfs"
)

// maxAnswers bounds the answers that are kept by process.
const maxAnswers = 4096

// hashes are the hashes of programs that somebody asked for.
type hashes struct {
	hasher *procfs.Hasher
	wanted atomic.Bool // somebody asked

	// What was asked for, by fileKey: the hash, or "" if there is none (yet). It
	// serves programs whose file has no path any more.
	answers sync.Map
	kept    atomic.Int64
}

// fileKey is a file that a process runs: it can run another one later.
type fileKey struct {
	process       processKey
	inode, device uint64
}

// want asks for the hash of a program, once for each process.
func (h *hashes) want(p processKey, e *process.Exe) {
	k := fileKey{p, e.Inode, e.Device}
	if _, asked := h.answers.LoadOrStore(k, ""); asked {
		return
	}
	if h.kept.Add(1) > maxAnswers {
		h.answers.Clear()
		h.kept.Store(0)
	}
	h.wanted.Store(true)
	if !h.hasher.Request(procfs.Request{PID: p.pid, StartBoot: p.start, Path: e.Path, Exe: *e}) {
		h.answers.Delete(k) // too many wait: it is asked for again
	}
}

// of returns the hash of what a process runs, if it is known.
func (h *hashes) of(p processKey, e *process.Exe) (sum string, ok bool) {
	if !h.wanted.Load() || e.Inode == 0 {
		return "", false
	}
	if sum, ok := h.answers.Load(fileKey{p, e.Inode, e.Device}); ok && sum != "" {
		return sum.(string), true
	}
	if e.Path == "" || e.Deleted {
		return "", false
	}
	file, ok := h.hasher.KeyAt(e.Path)
	if !ok || file.Inode != e.Inode || file.Device != e.Device {
		return "", false
	}
	return h.hasher.Lookup(file)
}

// hashed takes an answer.
func (r *Resolver) hashed(result procfs.Result) {
	if result.Err != nil {
		r.counts.unhashed.Add(1)
		return
	}
	k := fileKey{processKey{result.PID, result.StartBoot}, result.Exe.Inode, result.Exe.Device}
	r.hashes.answers.Store(k, result.SHA256)
	r.revision.Add(1)
}

// bootTime returns a time of procfs.FS.UnixOf as nanoseconds of CLOCK_BOOTTIME.
func (r *Resolver) bootTime(unix int64) uint64 { return uint64(unix - r.fs.UnixOf(0)) }
