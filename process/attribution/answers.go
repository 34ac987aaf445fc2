package attribution

import (
	"sync"
	"sync/atomic"
)

// maxAnswers bounds the answers of one kind that are kept.
const maxAnswers = 1 << 14

// answers are what was looked up, for all Attributors to read. A full one begins
// anew.
type answers[K comparable, V any] struct {
	places sync.Map // of K to *place[V]
	kept   atomic.Int64
}

// place is where the answer to a question appears.
type place[V any] struct {
	answer atomic.Pointer[V] // nil: not known yet
	asked  atomic.Bool       // somebody is looking it up

	refused atomic.Bool // who wants the answer could not have it looked up; of hashes
}

// at returns the place of a question.
func (a *answers[K, V]) at(k K) *place[V] {
	if p, ok := a.places.Load(k); ok {
		return p.(*place[V])
	}
	if a.kept.Add(1) > maxAnswers {
		a.places.Clear()
		a.kept.Store(1)
	}
	p, _ := a.places.LoadOrStore(k, &place[V]{})
	return p.(*place[V])
}

// find returns the place of a question that was asked before, nil if it was not.
func (a *answers[K, V]) find(k K) *place[V] {
	if p, ok := a.places.Load(k); ok {
		return p.(*place[V])
	}
	return nil
}

// peek returns the answer to a question, nil if nobody knows it.
func (a *answers[K, V]) peek(k K) *V {
	if p := a.find(k); p != nil {
		return p.answer.Load()
	}
	return nil
}

// ask lets ask look the question up, if nobody does so already, and returns whether
// an answer will come. ask returns false if it will not.
func (p *place[V]) ask(ask func() bool) bool {
	if !p.asked.CompareAndSwap(false, true) {
		return true
	}
	if ask() {
		return true
	}
	p.asked.Store(false)
	return false
}

// set gives the answer.
func (p *place[V]) set(v *V) {
	p.answer.Store(v)
	p.asked.Store(false)
}
