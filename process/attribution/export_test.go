package attribution

// ForgetProcesses makes every process one that was not seen before. What is known
// of others, such as their parents, stays.
func (a *Attributor) ForgetProcesses() {
	clear(a.procs)
	clear(a.owners)
}
