// Package blackbox keeps what a process knows where its death does not reach: in
// memory with a descriptor, which a supervisor holds and gives to the next process.
//
// It owns the layout of that memory: counters that are written by storing a word,
// and one note, a JSON document that is replaced as a whole. It must not know what
// the note says, nor who holds the descriptor.
package blackbox
