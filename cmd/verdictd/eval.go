package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/verdictd/verdictd/config"
	"github.com/verdictd/verdictd/internal/terminal"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

// maxInput bounds what eval and why read: an input document has some
// kilobytes.
const maxInput = 64 << 20

func newEvalCommand(e env) *cobra.Command {
	var from policyFlags
	var input string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "eval",
		Short: "Print what a policy decides about an input document",
		Long: `eval asks a policy about one packet whose facts are a JSON document, as the
policy would see it below input. Fields are checked against the schema (see
verdictd schema): unknown ones, wrong types and values out of range are errors.
Fields that are left out are absent. The policy's tests are not run.

  {"ip": {"src": "10.0.0.1", "dst": "192.0.2.7", "protocol": "tcp"},
   "tcp": {"dst_port": 443}, "hook": "output", "uid": 1000}

Exit codes: 0 the policy decided, whatever it said; 1 the policy makes no
decision about this input, as where rules conflict; 2 the policy or the input
is at fault.`,
		Example: "  verdictd eval --policy policy.rego --input facts.json\n" +
			`  echo '{"tcp": {"dst_port": 22}}' | verdictd eval --policy policy.rego --input - --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if input == "" {
				return usageError(cmd, errors.New("no input document: name one with --input, - for standard input"))
			}
			x, err := from.explainer(cmd)
			if err != nil {
				return err
			}
			name, text, err := readInput(e, input)
			if err != nil {
				return badInput(err)
			}
			in, err := rules.ParseInput(name, text)
			if err != nil {
				return badInput(err)
			}
			d, _ := x.Decide(in)
			if err := printOutcome(e, &d, asJSON); err != nil {
				return fmt.Errorf("write decision: %w", err)
			}
			if d.Error != "" {
				return fmt.Errorf("the policy makes no decision: %s", d.Error)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	from.bind(cmd)
	flags.StringVar(&input, "input", "", "`FILE` with the input document, - for standard input")
	flags.BoolVar(&asJSON, "json", false, "print the decision as JSON")
	return cmd
}

// policyFlags are the flags of a command that cannot do without a policy.
type policyFlags struct {
	path   string
	bundle config.Bundle
}

func (f *policyFlags) bind(cmd *cobra.Command) {
	cmd.Flags().Var(&policyFlag{path: &f.path}, "policy", "Rego or rules `FILE`, directory, OPA bundle (.tar.gz) or its URL")
	bindBundleFlags(cmd.Flags(), &f.bundle)
}

// explainer loads the policy.
func (f *policyFlags) explainer(cmd *cobra.Command) (*policy.Explainer, error) {
	if f.path == "" {
		return nil, usageError(cmd, errors.New("no policy: name it with --policy"))
	}
	bundle, err := newBundle(&f.bundle, f.path)
	if err != nil {
		return nil, badInput(err)
	}
	x, err := policy.NewExplainer(cmd.Context(), policy.Source{Path: f.path, Bundle: bundle})
	return x, policyError(err)
}

func printOutcome(e env, d *policy.Outcomes, asJSON bool) error {
	if asJSON {
		return printJSON(e.stdout, d)
	}
	return d.WriteText(e.stdout)
}

func printJSON(w io.Writer, v any) error {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(terminal.JSON(text.Bytes()))
	return err
}

// readInput returns a file's content, or for - that of standard input, and the
// name by which messages call it.
func readInput(e env, path string) (name string, text []byte, err error) {
	from := e.stdin
	name = "standard input"
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", nil, err
		}
		defer f.Close() // opened for reading: nothing to lose
		from, name = f, path
	}
	text, err = io.ReadAll(io.LimitReader(from, maxInput+1))
	if err != nil {
		return "", nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > maxInput {
		return "", nil, fmt.Errorf("%s is larger than %d MiB", name, maxInput>>20)
	}
	return name, text, nil
}
