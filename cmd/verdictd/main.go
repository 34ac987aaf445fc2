// Verdictd is a userspace packet-verdict firewall for Linux. See README.md.
//
// This package is wiring: subcommands, flags, exit codes, and the order in
// which the daemon's parts start and stop. What the parts do is in their
// packages.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // the operation failed: kernel, rights, input or output
	exitInput = 2 // what was given is at fault: flag, configuration, policy, capture
)

func main() { os.Exit(run(osEnv(), os.Args[1:])) }

// env is what a command may touch of the world.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	stdoutTerminal bool
	stderrTerminal bool
	noColour       bool
}

func osEnv() env {
	return env{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		stdoutTerminal: term.IsTerminal(int(os.Stdout.Fd())),
		stderrTerminal: term.IsTerminal(int(os.Stderr.Fd())),
		noColour:       os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb",
	}
}

// colour returns whether standard output may be coloured.
func (e env) colour() bool { return e.stdoutTerminal && !e.noColour }

// inputError marks errors that are the fault of what was given.
type inputError struct{ error }

func (e inputError) Unwrap() error { return e.error }

// badInput marks err as the fault of what was given; nil stays nil.
func badInput(err error) error {
	if err == nil {
		return nil
	}
	return inputError{err}
}

// run executes one command line and returns the exit code.
func run(e env, args []string) int {
	root := newRoot(e)
	root.SetArgs(args)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	err := root.Execute()
	if err == nil {
		return exitOK
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(e.stderr, "verdictd: %s\n", strings.ReplaceAll(text, "\n", "\nverdictd: "))
	}
	if _, input := errors.AsType[inputError](err); input {
		return exitInput
	}
	return exitError
}

func newRoot(e env) *cobra.Command {
	root := &cobra.Command{
		Use:   "verdictd",
		Short: "Judge packets from the kernel's queue by a Rego policy",
		Long: `verdictd judges packets that the kernel hands to userspace (-j NFQUEUE, -j QUEUE)
by a policy written in Rego, answers ACCEPT or DROP, and writes an audit log of
every decision. The same policy can be checked, tested and replayed on packet
captures without root.

  verdictd demo                                 see it work in two throw-away namespaces
  verdictd check policy.rego                    is the policy right?
  verdictd replay traffic.pcap --policy policy.rego
  sudo verdictd run --hook output               record what this host sends, block nothing
  sudo verdictd run --hook output,input --policy policy.rego

Exit codes: 0 success; 1 the operation failed (kernel, rights, disk);
2 what was given is at fault (flag, configuration, policy, capture).`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return badInput(fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath()))
	})
	root.AddCommand(
		newRunCommand(e), newUpgradeCommand(e), newReplayCommand(e), newCheckCommand(e), newSchemaCommand(e),
		newHookCommand(e), newDemoCommand(e), newManCommand(e),
	)
	markUsageErrors(root)
	return root
}

// markUsageErrors makes wrong arguments count as bad input.
func markUsageErrors(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return badInput(fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath()))
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		markUsageErrors(sub)
	}
}

// version returns the module's version and commit as the build recorded them.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 && !strings.Contains(v, s.Value[:12]) {
			v += " (" + s.Value[:12] + ")"
		}
	}
	return v
}
