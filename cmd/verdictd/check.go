package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/verdictd/verdictd/config"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

func newCheckCommand(e env) *cobra.Command {
	var asJSON, verbose, strict bool
	var cfg policy.CheckConfig
	var bundle config.Bundle
	cmd := &cobra.Command{
		Use:   "check POLICY...",
		Short: "Parse a policy, check its types and run its tests",
		Long: `check reads a policy (a Rego file, a rules file (see verdictd rules), a directory
of Rego, data and a rules.yaml, an OPA bundle, or the URL of one), checks it
against the schema of the input document (see verdictd schema) and runs its test_
rules. Errors are printed as FILE:LINE:COLUMN: message. A policy that does not
pass is never loaded by verdictd run.

A policy is refused too, by check and by run, if it gives what can never match:
text that is no network in net.cidr_contains, in the policy or its data
(network); a value that a field never has (value), such as a protocol that does
not exist (protocol); data.NAME that nobody defines (data-undefined); decision
and verdict both (two-decisions); rules in a file that is not the rules file
(not-rules). And if a rule accepts by not input.X == V what has no input.X at all
(absent): write input.X != V; where packets without input.X are meant, accept them
in a rule of their own, by not input.X, or name their protocols in the rule.

It warns of what is allowed but hardly meant: an address compared with a network
(network-compared) or in its place (swapped), not HELPER that holds because a field
is absent (absent-helper), helpers that nothing asks (unused), rules that trust
exe, unit or a hash and do not ask for process.source (untrusted-owner), rules that
deny by a hash, which a new program lacks at first (hash-pending), conditions that
contradict each other, rules that an else leaves nothing for, rules that conflict,
loops over large data, and protocols that get through though no rule names them.
With --strict, or strict: true for verdictd run, warnings are errors. With
--verbose it also tells where the order of rules decides.

Exit codes: 0 the policy is right; 1 its server cannot be asked; 2 it is not
right, or a test fails.`,
		Args: someArgs("no policy to check: name a .rego file or a directory that holds one"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var problems []error
			for _, path := range args {
				problem, err := checkOne(cmd, e, checkFlags{cfg, &bundle, asJSON, verbose, strict}, path)
				if err != nil {
					return fmt.Errorf("write report: %w", err)
				}
				problems = append(problems, problem)
			}
			return policyError(errors.Join(problems...))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "also tell where the order of rules decides")
	cmd.Flags().BoolVar(&strict, "strict", false, "warnings are errors")
	cmd.Flags().IntVar(&cfg.MaxScan, "max-scan", policy.DefaultMaxScan, "warn of rules that go through more than `N` elements for a packet")
	bindBundleFlags(cmd.Flags(), &bundle)
	return cmd
}

// checkFlags are the flags of check.
type checkFlags struct {
	cfg             policy.CheckConfig
	bundle          *config.Bundle
	asJSON, verbose bool
	strict          bool
}

// checkOne checks one policy and prints the report. A problem is the policy's,
// an error the report's.
func checkOne(cmd *cobra.Command, e env, f checkFlags, path string) (problem, err error) {
	if path == "" {
		return errors.New("the path of the policy is empty (name a .rego file or a directory that holds one)"), nil
	}
	bundle, problem := newBundle(f.bundle, path)
	if problem != nil {
		return problem, nil
	}
	report, problem := f.cfg.Check(cmd.Context(), policy.Source{Path: path, Bundle: bundle})
	if problem != nil {
		if refused, ok := errors.AsType[policy.Errors](problem); ok && f.asJSON {
			err = printJSON(e.stdout, policy.Refused{Policy: path, Errors: refused})
		}
		return problem, err
	}
	if f.asJSON {
		err = printJSON(e.stdout, report)
	} else {
		err = report.WriteText(e.stdout)
	}
	if f.verbose && !f.asJSON && err == nil {
		err = report.WriteNotes(e.stdout)
	}
	if n := report.Failed(); n > 0 {
		problem = fmt.Errorf("%s: %d of its tests failed", path, n)
	} else if n := len(report.Findings); n > 0 && f.strict {
		problem = fmt.Errorf("%s: %s, and --strict makes them errors", path, count(n, "warning"))
	}
	return problem, err
}

func newSchemaCommand(e env) *cobra.Command {
	var decision, library bool
	cmd := &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of what a policy can ask about a packet",
		Long: `schema prints the JSON Schema of the input document, input.*, that policies are
checked against; with --decision that of the decision a policy makes. With
--library it prints the Rego that every policy can ask without having it:
data.std.essential, what a host needs to stay on its network.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text := string(rules.Schema())
			switch {
			case decision && library:
				return usageError(cmd, errors.New("--decision and --library are two texts: give one of them"))
			case decision:
				text = string(rules.DecisionSchema())
			case library:
				text = policy.Library()
			}
			_, err := fmt.Fprintln(e.stdout, strings.TrimSpace(text))
			return err
		},
	}
	cmd.Flags().BoolVar(&decision, "decision", false, "print the schema of the decision instead")
	cmd.Flags().BoolVar(&library, "library", false, "print the Rego library instead")
	return cmd
}
