package rules

// ConditionFields returns the paths of the fields that the conditions of rules
// files ask for, in the order of the conditions. A path can be there twice.
func ConditionFields() []string {
	var paths []string
	for _, c := range conditions() {
		paths = append(paths, c.paths...)
	}
	return paths
}
