package logsink

import (
	"sync/atomic"
	"unsafe"
)

// JournalSize is how many bytes of memory a Journal takes.
const JournalSize = 64 << 10

// Words of a Journal. Each has a cache line of its own: rings of different
// producers count beside each other.
const (
	wordTaken  = iota // events taken out of the rings and from Put
	wordPut           // events that Put took
	wordCut           // events that Put had no room for
	wordTold          // events that rings and Put had no room for, of which a record tells
	wordOutput        // of the first output; wordsPerOutput for each

	wordSeq        = 0 // of an output: seq of the last record that it was given
	wordWritten    = 1 // seq of the last one that it wrote
	wordMissed     = 2 // records that it had no room for, of which no record tells
	wordsPerOutput = 3
	journalOutputs = 4

	wordRing     = wordOutput + journalOutputs*wordsPerOutput
	wordHead     = 0 // of a ring: events committed
	wordLost     = 1 // events that did not fit
	wordsPerRing = 2

	cacheLine = 64 / 8 // words
)

// Journal is memory in which a Log and its rings count. Memory that outlives the
// process tells the next one how many records went with it (Past). A nil Journal
// counts in memory of the process.
type Journal struct{ words []atomic.Uint64 }

// NewJournal returns the Journal in mem, which is JournalSize bytes, aligned to 8
// and all zero for a new Log. It must stay mapped as long as the Log or one of its
// rings is used.
func NewJournal(mem []byte) *Journal {
	return &Journal{unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&mem[0])), len(mem)/8)}
}

// word returns the i-th word. Where the journal ends, it is one of the process's.
func (j *Journal) word(i int) *atomic.Uint64 {
	if j == nil || i*cacheLine >= len(j.words) {
		return new(atomic.Uint64)
	}
	return &j.words[i*cacheLine]
}

func (j *Journal) output(i, word int) *atomic.Uint64 {
	if i >= journalOutputs {
		return new(atomic.Uint64)
	}
	return j.word(wordOutput + i*wordsPerOutput + word)
}

func (j *Journal) ring(i, word int) *atomic.Uint64 {
	return j.word(wordRing + i*wordsPerRing + word)
}

// Past returns what the journal says of a process that died. What it was counting
// at that moment, one event for each producer and the log, may be counted twice.
func (j *Journal) Past() Past {
	p := Past{Died: true}
	made, lost := j.word(wordPut).Load(), j.word(wordCut).Load()
	for i := 0; (wordRing+i*wordsPerRing+wordLost)*cacheLine < len(j.words); i++ {
		made += j.ring(i, wordHead).Load()
		lost += j.ring(i, wordLost).Load()
	}
	p.Unread = since(made, j.word(wordTaken).Load()) + since(lost, j.word(wordTold).Load())
	for i := range journalOutputs {
		p.Outputs = append(p.Outputs, OutputPast{
			Seq: j.output(i, wordSeq).Load(), Written: j.output(i, wordWritten).Load(), Missed: j.output(i, wordMissed).Load(),
		})
	}
	return p
}

// since returns a - b, or 0 where b was counted before a.
func since(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}

// Past is what the log of one process leaves to that of the next one, so that
// both are one: a run, whose records have one id and are numbered through.
type Past struct {
	Run     string       `json:"run"`   // id
	Stats   LogStats     `json:"stats"` // of all processes of the run
	Outputs []OutputPast `json:"outputs"`

	// Of a process that died: its records that no output was given, and are
	// lost. Its id, for the record that tells.
	Died   bool   `json:"died,omitempty"`
	Unread uint64 `json:"unread,omitempty"`
	PID    int    `json:"pid,omitempty"`
}

// OutputPast is what is left of an output.
type OutputPast struct {
	Seq     uint64 `json:"seq"`     // of the last record that it was given
	Written uint64 `json:"written"` // of the last one that it wrote
	Pending []byte `json:"pending"` // those between, which it could not write
	MidLine bool   `json:"mid_line"`
	Missed  uint64 `json:"missed"` // records that came after, of which no record tells
}

// output returns what is left of the i-th output.
func (p *Past) output(i int) OutputPast {
	if i < len(p.Outputs) {
		return p.Outputs[i]
	}
	return OutputPast{}
}
