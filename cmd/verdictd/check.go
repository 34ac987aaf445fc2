package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/verdictd/verdictd/config"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

func newCheckCommand(e env) *cobra.Command {
	var asJSON bool
	var bundle config.Bundle
	cmd := &cobra.Command{
		Use:   "check POLICY...",
		Short: "Parse a policy, check its types and run its tests",
		Long: `check reads a policy (a Rego file, a rules file (see verdictd rules), a directory
of Rego, data and a rules.yaml, an OPA bundle, or the URL of one), checks it
against the schema of the input document (see verdictd schema) and runs its test_
rules. Errors are printed as FILE:LINE:COLUMN: message. A policy that does not
pass is never loaded by verdictd run.

Exit codes: 0 the policy is right; 1 its server cannot be asked; 2 it is not
right, or a test fails.`,
		Args: someArgs("no policy to check: name a .rego file or a directory that holds one"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var problems []error
			for _, path := range args {
				problem, err := checkOne(cmd, e, path, &bundle, asJSON)
				if err != nil {
					return fmt.Errorf("write report: %w", err)
				}
				problems = append(problems, problem)
			}
			return policyError(errors.Join(problems...))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	bindBundleFlags(cmd.Flags(), &bundle)
	return cmd
}

// checkOne checks one policy and prints the report. A problem is the policy's,
// an error the report's.
func checkOne(cmd *cobra.Command, e env, path string, c *config.Bundle, asJSON bool) (problem, err error) {
	if path == "" {
		return errors.New("the path of the policy is empty (name a .rego file or a directory that holds one)"), nil
	}
	bundle, problem := newBundle(c, path)
	if problem != nil {
		return problem, nil
	}
	report, problem := policy.Check(cmd.Context(), policy.Source{Path: path, Bundle: bundle})
	if problem != nil {
		return problem, nil
	}
	if asJSON {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(report)
	} else {
		err = report.WriteText(e.stdout)
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
