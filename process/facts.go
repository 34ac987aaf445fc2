package process

// Facts is a set of facts about an owner, by what has to be looked up to know
// them.
type Facts uint8

// The facts.
const (
	// FactOwner: which process holds the socket, and so all facts but the user.
	FactOwner Facts = 1 << iota
	// FactPath: Exe.Path and Exe.Inside.
	FactPath
	// FactFile: which file that is (Inode, Device), and whether it is still there.
	FactFile
	// FactArgs: Cmdline.
	FactArgs
	// FactParents: Parents.
	FactParents
	// FactCgroup: Owner.Cgroup but its ID.
	FactCgroup
	// FactHash: Exe.SHA256.
	FactHash
	// FactRefused: some fact will not become known, as too much is being looked up
	// already. It is no fact to wait for, but one to ask for again.
	FactRefused
)

// FactsOfProcess are all that is looked up of a process.
const FactsOfProcess = FactPath | FactFile | FactArgs | FactParents | FactHash
