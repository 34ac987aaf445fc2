package engine

// OwnersKept returns how many owners the worker's flows refer to.
func (w *Worker) OwnersKept() int { return len(w.owners.byID) }
