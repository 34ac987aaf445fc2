package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

func newCheckCommand(e env) *cobra.Command {
	var asJSON, verbose bool
	var cfg policy.CheckConfig
	cmd := &cobra.Command{
		Use:   "check POLICY...",
		Short: "Parse a policy, check its types and run its tests",
		Long: `check reads a policy (a Rego file, or a directory of Rego and data files), checks
it against the schema of the input document (see verdictd schema) and runs its
test_ rules. Errors are printed as FILE:LINE:COLUMN: message. A policy that does
not pass is never loaded by verdictd run.

It warns of what is allowed but hardly meant: conditions that contradict each
other, rules that an else leaves nothing for, rules that conflict, loops over
large data, and protocols that get through though no rule names them. With
--verbose it also tells where the order of rules decides.

Exit codes: 0 the policy is right; 2 it is not, or a test fails.`,
		Args: someArgs("no policy to check: name a .rego file or a directory that holds one"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var problems []error
			for _, path := range args {
				problem, err := checkOne(cmd, e, cfg, path, asJSON, verbose)
				if err != nil {
					return fmt.Errorf("write report: %w", err)
				}
				problems = append(problems, problem)
			}
			return badInput(errors.Join(problems...))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "also tell where the order of rules decides")
	cmd.Flags().IntVar(&cfg.MaxScan, "max-scan", policy.DefaultMaxScan, "warn of rules that go through more than `N` elements for a packet")
	return cmd
}

// checkOne checks one policy and prints the report. A problem is the policy's,
// an error the report's.
func checkOne(cmd *cobra.Command, e env, cfg policy.CheckConfig, path string, asJSON, verbose bool) (problem, err error) {
	if path == "" {
		return errors.New("the path of the policy is empty (name a .rego file or a directory that holds one)"), nil
	}
	report, problem := cfg.Check(cmd.Context(), policy.Source{Path: path})
	if problem != nil {
		return problem, nil
	}
	if asJSON {
		err = printJSON(e.stdout, report)
	} else {
		err = report.WriteText(e.stdout)
	}
	if verbose && !asJSON && err == nil {
		err = report.WriteNotes(e.stdout)
	}
	if n := report.Failed(); n > 0 {
		problem = fmt.Errorf("%s: %d of its tests failed", path, n)
	}
	return problem, err
}

func newSchemaCommand(e env) *cobra.Command {
	var decision bool
	cmd := &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of what a policy can ask about a packet",
		Long: `schema prints the JSON Schema of the input document, input.*, that policies are
checked against; with --decision that of the decision a policy makes.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			text := rules.Schema()
			if decision {
				text = rules.DecisionSchema()
			}
			_, err := fmt.Fprintln(e.stdout, strings.TrimSpace(string(text)))
			return err
		},
	}
	cmd.Flags().BoolVar(&decision, "decision", false, "print the schema of the decision instead")
	return cmd
}
