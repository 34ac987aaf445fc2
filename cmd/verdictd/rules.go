package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

func newRulesCommand(e env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "Check, explain and translate plain rules",
		Long: `rules is about policy for people who do not write Rego: a YAML file with an
ordered list of rules, of which the first that matches decides. Such a file is
a policy wherever one is asked for (run, replay, check); in a directory it is
rules.yaml, and the Rego beside it decides what the rules delegate.

rules.yaml.example is one to begin with.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newRulesCheckCommand(e), newRulesExplainCommand(e), newRulesRegoCommand(e), newRulesSchemaCommand(e))
	return cmd
}

func newRulesCheckCommand(e env) *cobra.Command {
	var strict, quiet bool
	cmd := &cobra.Command{
		Use:   "check FILE...",
		Short: "Report errors, rules that can never match, and rules whose order matters",
		Long: `check reads rules files, or the rules.yaml of directories, and prints as
FILE:LINE:COLUMN what is wrong (on standard error) and what is noteworthy:

  warning   a rule can never match, by itself or because of those before it;
            a set is asked for by no rule
  info      two rules with different verdicts match the same packets, so that
            their order decides

Tests, and the Rego that rules delegate to, are checked by verdictd check.

Exit codes: 0 the rules can be used; 2 they cannot, or with --strict there are
warnings.`,
		Args: someArgs("no rules to check: name a rules file or a directory that holds rules.yaml"),
		RunE: func(_ *cobra.Command, args []string) error {
			var problems []error
			for _, path := range args {
				problems = append(problems, checkRules(e, path, strict, quiet))
			}
			return badInput(errors.Join(problems...))
		},
	}
	cmd.Flags().BoolVar(&strict, "strict", false, "fail if there are warnings")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print no info")
	return cmd
}

func checkRules(e env, path string, strict, quiet bool) error {
	set, err := policy.ReadPlain(path)
	if err != nil {
		return err
	}
	warnings := 0
	for _, f := range set.Findings() {
		if f.Level == rules.Warning {
			warnings++
		}
		if f.Level == rules.Warning || !quiet {
			fmt.Fprintf(e.stdout, "%s: %s: %s\n", f.Place, f.Level, f.Msg)
		}
	}
	if _, err := fmt.Fprintf(e.stdout, "%s: %s in %s, %s, otherwise %s\n",
		path, count(len(set.Rules), "rule"), count(len(set.Files), "file"), count(warnings, "warning"), set.Default.Verdict()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if strict && warnings > 0 {
		return fmt.Errorf("%s: %s (see standard output)", path, count(warnings, "warning"))
	}
	return nil
}

// count returns "1 rule", "2 rules".
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// oneRulesFile wants one argument.
func oneRulesFile(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError(cmd, fmt.Errorf("%d rules files given, want one: a file, or a directory that holds rules.yaml", len(args)))
	}
	return nil
}

func newRulesExplainCommand(e env) *cobra.Command {
	var packets []string
	cmd := &cobra.Command{
		Use:   "explain FILE",
		Short: "Say in words what each rule does, and what happens to a packet",
		Long: `explain says in words what each rule of a file, or of the rules.yaml of a
directory, does. With --packet it says which rule a packet meets, and why those
before it do not match. A packet is described as in verdictd why:

` + packetWords() + `
What every packet has and is not said is as in an ordinary one: the hook output,
TTL 64, 60 bytes, no mark, no TCP flags, 1970. Of the rest nothing is known.`,
		Example: `  verdictd rules explain rules.yaml
  verdictd rules explain rules.yaml --packet 'tcp 10.0.0.1:4000 -> 1.2.3.4:443 output eth0'
  verdictd rules explain rules.yaml --packet 'icmp 10.0.0.1 -> 1.2.3.4 forward in=eth0 out=eth1 type=echo-request'`,
		Args: oneRulesFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := policy.ReadPlain(args[0])
			if err != nil {
				return badInput(err)
			}
			if len(packets) == 0 {
				return set.Explain(e.stdout)
			}
			// The answer is that of the policy as it would run; Match says why.
			running, err := policy.NewExplainer(cmd.Context(), policy.Source{Path: args[0]})
			if err != nil {
				return badInput(err)
			}
			for _, text := range packets {
				if err := explainPacket(e, set, running, text); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&packets, "packet", nil, "a `PACKET` in words; may be repeated")
	return cmd
}

func explainPacket(e env, set *rules.Ruleset, running *policy.Explainer, text string) error {
	in, err := rules.ParsePacket(text)
	if err != nil {
		return badInput(err)
	}
	d, _ := running.Decide(in)
	if d.Error != "" {
		return fmt.Errorf("judge packet %q: %s", text, d.Error)
	}
	if _, err := fmt.Fprintf(e.stdout, "%s\n", text); err != nil {
		return fmt.Errorf("write explanation: %w", err)
	}
	if err := set.ExplainPacket(e.stdout, in); err != nil {
		return fmt.Errorf("write explanation: %w", err)
	}
	answer := strings.TrimSuffix(fmt.Sprintf("%s by rule %s: %s", d.Verdict, d.Rule, d.Reason), ": ")
	_, err = fmt.Fprintf(e.stdout, "%s\n", answer)
	return err
}

// packetWords says how a packet is described in words; what is not said is the
// command's.
func packetWords() string {
	text := `  PROTOCOL SOURCE[:PORT] -> DESTINATION[:PORT] [HOOK] [INTERFACE] [KEY=VALUE]...

KEY VALUE is the same as KEY=VALUE. The keys are any field of verdictd schema and,
in short,
`
	line := " "
	for _, key := range append(slices.Sorted(maps.Keys(rules.FlowKeys())), "flags (of TCP: syn,ack)", "time (2026-03-01T08:30:00Z)") {
		if len(line)+len(key) > 80 {
			text += line + "\n"
			line = " "
		}
		line += " " + key
	}
	return text + line + "\n"
}

func newRulesRegoCommand(e env) *cobra.Command {
	return &cobra.Command{
		Use:   "to-rego FILE",
		Short: "Print the Rego that rules become",
		Long: `to-rego prints rules as the Rego policy that they are run as: package verdictd,
in the layout of opa fmt, comments kept. Use it to see what a rule means
exactly, or to go on in Rego.`,
		Args: oneRulesFile,
		RunE: func(_ *cobra.Command, args []string) error {
			set, err := policy.ReadPlain(args[0])
			if err != nil {
				return badInput(err)
			}
			_, err = e.stdout.Write(set.Rego().Text)
			return err
		},
	}
}

func newRulesSchemaCommand(e env) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of rules files, for editors",
		Long: `schema prints the JSON Schema of rules files. Editors with a YAML language server
complete and check by it a file that begins with

  # yaml-language-server: $schema=verdictd-rules.schema.json`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := e.stdout.Write(rules.PlainSchema())
			return err
		},
	}
}
