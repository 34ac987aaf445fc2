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
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/verdictd/verdictd/internal/terminal"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // the operation failed: kernel, rights, input or output
	exitInput = 2 // what was given is at fault: flag, configuration, policy, capture
	exitWait  = 3 // status: a daemon runs, and its rules are not in (yet, or any more)

	exitUnconfirmed = 4 // run --confirm: nobody confirmed, everything is as before
)

func main() { os.Exit(run(osEnv(), os.Args[1:])) }

// env is what a command may touch of the world.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	progress       io.Writer // standard error, for a line that is written again and again; used if it is a terminal
	stdoutTerminal bool
	stderrTerminal bool
	noColour       bool
}

// osEnv returns the world. Whatever is printed on a terminal or as an error passes
// terminal.Writer; what goes into files and pipes by standard output, such as a
// translated policy, is left to the byte.
func osEnv() env {
	e := env{
		stdin: os.Stdin, stdout: os.Stdout, stderr: terminal.NewWriter(os.Stderr), progress: os.Stderr,
		stdoutTerminal: term.IsTerminal(int(os.Stdout.Fd())),
		stderrTerminal: term.IsTerminal(int(os.Stderr.Fd())),
		noColour:       os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb",
	}
	if e.stdoutTerminal {
		e.stdout = terminal.NewWriter(os.Stdout)
	}
	return e
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
	err := refuseUnknown(root, args)
	if err == nil {
		err = root.Execute()
	}
	if err == nil {
		return exitOK
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(e.stderr, "verdictd: %s\n", strings.ReplaceAll(text, "\n", "\nverdictd: "))
	}
	if errors.Is(err, errUnconfirmed) {
		return exitUnconfirmed
	}
	if _, input := errors.AsType[inputError](err); input {
		return exitInput
	}
	if _, wait := errors.AsType[notReadyError](err); wait {
		return exitWait
	}
	return exitError
}

func newRoot(e env) *cobra.Command {
	root := &cobra.Command{
		Use:   "verdictd",
		Short: "Judge packets from the kernel's queue by a Rego policy",
		Long: `verdictd judges packets that the kernel hands to userspace (-j NFQUEUE, -j QUEUE)
by a policy written in Rego or as plain rules, answers ACCEPT or DROP, and
writes an audit log of every decision. The same policy can be checked, tested
and replayed on packet captures without root.

  verdictd demo                                 see it work in two throw-away namespaces
  verdictd check policy.rego                    is the policy right?
  verdictd rules explain rules.yaml             what do these plain rules do?
  verdictd replay traffic.pcap --policy policy.rego
  sudo verdictd run --hook output               record what this host sends, block nothing
  sudo verdictd run --hook output,input --policy policy.rego
  sudo verdictd status                          where did every packet go?
  sudo verdictd sockets                         whose are they, and what does the policy say?

Exit codes: 0 success; 1 the operation failed (kernel, rights, disk);
2 what was given is at fault (flag, configuration, policy, capture); 3 verdictd
status: the daemon is starting or stopping, and its rules are not in; 4 the start
was not confirmed in time (run --confirm).`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(cmd, flagError(err)) })
	root.SetHelpCommand(newHelpCommand())
	root.AddCommand(
		newRunCommand(e), newConfigCommand(e), newUpgradeCommand(e), newStatusCommand(e), newSocketsCommand(e), newReloadCommand(e), newConfirmCommand(e), newReplayCommand(e), newCheckCommand(e),
		newSchemaCommand(e), newRulesCommand(e), newEvalCommand(e), newWhyCommand(e),
		newHookCommand(e), newDoctorCommand(e), newDemoCommand(e), newManCommand(e),
	)
	strictCompletion(root)
	return root
}

// strictCompletion adds cobra's completion command and makes it refuse what it
// does not know.
func strictCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	completion, _, err := root.Find([]string{"completion"})
	if err != nil {
		return // cobra has none
	}
	completion.Args = noArgs
	completion.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	for _, shell := range completion.Commands() {
		shell.Args = noArgs
	}
}

// newHelpCommand is cobra's help command, but for unknown topics.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]...",
		Short: "Print the help of a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			topic, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usageError(cmd.Root(), fmt.Errorf("no help on %q: there is no such command", strings.Join(args, " ")))
			}
			topic.InitDefaultHelpFlag()
			return topic.Help()
		},
	}
}

// usageError marks an error in a command line as bad input and says where to
// read on.
func usageError(cmd *cobra.Command, err error) error {
	return badInput(fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath()))
}

// refuseUnknown refuses a command that does not exist where its help is asked for:
// cobra prints that of the command above, as if nothing were wrong.
func refuseUnknown(root *cobra.Command, args []string) error {
	if !slices.Contains(args, "--help") && !slices.Contains(args, "-h") {
		return nil
	}
	cmd, rest, err := root.Find(args)
	if err != nil || !cmd.HasSubCommands() || len(rest) == 0 || strings.HasPrefix(rest[0], "-") ||
		rest[0] == "help" || strings.HasPrefix(rest[0], "__") { // cobra's own
		return nil
	}
	return noArgs(cmd, rest[:1])
}

// noArgs refuses arguments. Those of a command that has subcommands are taken
// for misspelt ones.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasSubCommands() {
		return usageError(cmd, fmt.Errorf("%s takes no arguments, got %q", cmd.Name(), args[0]))
	}
	hint := ""
	cmd.SuggestionsMinimumDistance = 2 // letters that may be wrong
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = ", did you mean " + strings.Join(near, " or ") + "?"
	}
	return usageError(cmd, fmt.Errorf("unknown command %q%s", args[0], hint))
}

// someArgs refuses an empty list of arguments, with the remedy.
func someArgs(remedy string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError(cmd, errors.New(remedy))
		}
		return nil
	}
}

// flagError words an error of pflag as ours are.
func flagError(err error) error {
	invalid, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return err // unknown flag, or its argument is missing
	}
	name, cause := invalid.GetFlag().Name, invalid.Unwrap()
	if number, ok := errors.AsType[*strconv.NumError](cause); ok {
		want := "a whole number"
		if number.Func == "ParseBool" {
			want = "true or false"
		}
		return settingErrorf(name, "want %s, got %q", want, invalid.GetValue())
	}
	return settingErrorf(name, "%w", cause)
}

// settingError says what is wrong with a setting. Settings have one name as
// flags and in the configuration file.
type settingError struct {
	name string
	err  error
}

func settingErrorf(name, format string, args ...any) error {
	return &settingError{name, fmt.Errorf(format, args...)}
}

func (e *settingError) Error() string { return "--" + e.name + ": " + e.err.Error() }
func (e *settingError) Unwrap() error { return e.err }

// policyFlag is the path of a policy, given once: of two, one would be ignored
// without a word, and an empty one would accept everything.
type policyFlag struct {
	path  *string
	given bool
}

func (f *policyFlag) Set(path string) error {
	switch {
	case path == "":
		return errors.New("the path is empty (leave the flag out to accept everything)")
	case f.given:
		return errors.New("given twice (put the files of a policy into one directory and give that)")
	}
	*f.path, f.given = path, true
	return nil
}

func (f *policyFlag) Type() string { return "string" }

func (f *policyFlag) String() string {
	if f.path == nil {
		return ""
	}
	return *f.path
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
