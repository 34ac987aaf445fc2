package measure

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Flags begins the flags of a benchmark, with --json and --quick. quick says whether
// args have the latter: then the defaults of all other flags are others.
func Flags(name string, args []string, stderr io.Writer, asJSON *bool) (fs *flag.FlagSet, quick bool) {
	fs = flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Bool("quick", false, "measure little: a test of the benchmark, not of the peers")
	fs.BoolVar(asJSON, "json", false, "print every single figure as JSON")
	return fs, slices.Contains(args, "--quick") || slices.Contains(args, "-quick")
}

// List defines a flag that takes some of the names that *to holds.
func List(fs *flag.FlagSet, to *[]string, name, what string) {
	known := slices.Clone(*to)
	fs.Func(name, what+", separated by commas: "+strings.Join(known, ","), func(text string) error {
		*to = strings.Split(text, ",")
		for _, s := range *to {
			if !slices.Contains(known, s) {
				return fmt.Errorf("%q is none of %s", s, strings.Join(known, ", "))
			}
		}
		return nil
	})
}

// Parse parses args, which must be flags only.
func Parse(fs *flag.FlagSet, args []string) error {
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return nil
}

// Within returns an error if a flag's value is out of its range.
func Within(name string, value, low, high int) error {
	if value < low || value > high {
		return fmt.Errorf("--%s %d: want %d to %d", name, value, low, high)
	}
	return nil
}
