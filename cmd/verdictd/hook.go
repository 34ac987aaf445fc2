package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/verdictd/verdictd/config"
	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/queue"
)

// hookFlags are the flags that describe a ruleset.
type hookFlags struct {
	hooks    string
	queues   config.Queues
	fail     string
	loopback bool
	strictND bool
	offload  bool
	mask     string
	pin      string
}

func newHookCommand(e env) *cobra.Command {
	f := hookFlags{queues: config.Queues{0}}
	cmd := &cobra.Command{
		Use:   "hook",
		Short: "Show, install or remove the kernel rules that send packets to the queue",
		Long: `hook manages the table "verdictd" in nf_tables: the rules that hand packets to
the queue. verdictd run --hook installs it at the start and removes it at the
end; these commands do the same by hand, for example to clean up after a crash.
No other table is touched.`,
		Example: "  verdictd hook show --hook output,input\n" +
			"  sudo verdictd hook remove\n" +
			"  verdictd hook print-iptables --hook input --queue 0-3 > rules.sh",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.hooks, "hook", "output", "`HOOKS` to take packets from: output,input,forward")
	flags.Var(&f.queues, "queue", "queues to spread the packets over: 0 or 0-3 (default 0)")
	flags.StringVar(&f.fail, "fail", "closed", "open or closed: what happens to packets while no verdictd runs")
	flags.BoolVar(&f.loopback, "loopback", false, "send packets over the loopback interface to the queue too")
	flags.BoolVar(&f.strictND, "strict-neighbour", false, "send IPv6 neighbour discovery to the queue too")
	flags.BoolVar(&f.offload, "offload", false, "add the rules that carry out rejects and let decided flows pass by the queue, for: verdictd run --offload on")
	flags.StringVar(&f.mask, "offload-mask", "", fmt.Sprintf("`BITS` of packet and connection marks that are verdictd's (default %#x)", uint32(hook.DefaultMask)))
	flags.StringVar(&f.pin, "record-pin", "", "with print-iptables: add a rule that runs the program pinned at this `PATH`, for: verdictd run --record-pin PATH")
	cmd.AddCommand(
		&cobra.Command{
			Use: "show", Args: noArgs,
			Short: "Print the installed rules, or those that would be installed",
			RunE:  func(*cobra.Command, []string) error { return f.show(e) },
		},
		&cobra.Command{
			Use: "install", Args: noArgs,
			Short: "Install the rules; packets wait for a verdictd run that binds the queue",
			RunE: func(*cobra.Command, []string) error {
				c, err := f.config()
				if err != nil {
					return badInput(err)
				}
				if err := tableFree(c, nil); err != nil {
					return err
				}
				_, err = hook.Install(c)
				return err
			},
		},
		&cobra.Command{
			Use: "remove", Args: noArgs,
			Short: "Remove the rules",
			RunE: func(*cobra.Command, []string) error {
				c, err := f.config()
				if err != nil {
					return badInput(err)
				}
				if err := tableFree(c, nil); err != nil {
					return err
				}
				return hook.Remove(c)
			},
		},
		&cobra.Command{
			Use: "print-iptables", Args: noArgs,
			Short: "Print the same rules as iptables commands, for people who keep their own",
			RunE: func(*cobra.Command, []string) error {
				c, err := f.config()
				if err != nil {
					return badInput(err)
				}
				return hook.PrintIptables(c, e.stdout)
			},
		},
	)
	return cmd
}

// tableFree returns an error if another process answers what the installed rules
// send to queues; those in own are ours.
func tableFree(c hook.Config, own []uint16) error {
	s, err := hook.Inspect(c)
	if err != nil || !s.Queues {
		return err
	}
	for num := int(s.QueueFirst); num <= int(s.QueueLast); num++ {
		if slices.Contains(own, uint16(num)) {
			continue
		}
		who, err := queue.Owner(c.NetNS, uint16(num))
		if err != nil {
			return err
		}
		if who != "" {
			return fmt.Errorf("the rules of verdictd in the kernel are in use: %s answers their queue %d: stop that one first, or replace it by verdictd upgrade", who, num)
		}
	}
	return nil
}

func (f *hookFlags) show(e env) error {
	c, err := f.config()
	if err != nil {
		return badInput(err)
	}
	text, err := hook.Show(c)
	switch {
	case errors.Is(err, hook.ErrNotInstalled):
		if text, err = hook.Plan(c); err != nil {
			return badInput(err)
		}
		text = "# not installed; verdictd hook install would install:\n" + text
	case err != nil:
		return err
	}
	_, err = fmt.Fprintln(e.stdout, strings.TrimRight(text, "\n"))
	return err
}

// config turns the flags into a ruleset's description.
func (f *hookFlags) config() (hook.Config, error) {
	bypass := f.fail == "open"
	if !bypass && f.fail != "closed" {
		return hook.Config{}, settingErrorf("fail", "want open or closed, got %q", f.fail)
	}
	c, err := rulesetOf(f.hooks, f.queues)
	if err != nil {
		return c, err
	}
	c.Bypass, c.Loopback, c.StrictNeighbour, c.RecordPin = bypass, f.loopback, f.strictND, f.pin
	mask, err := parseMask(f.mask)
	if err != nil {
		return c, settingErrorf("offload-mask", "%w", err)
	}
	if !f.offload {
		return c, nil
	}
	c.Mask, c.Offload = mask, true
	if err := c.CanOffload(); err != nil {
		return c, settingErrorf("offload", "%w", err)
	}
	return c, nil
}

// rulesetOf describes a ruleset that spreads the packets of hooks over queues.
func rulesetOf(hooks string, queues config.Queues) (hook.Config, error) {
	list, err := hook.ParseHooks(strings.ReplaceAll(hooks, " ", ""))
	if err != nil {
		return hook.Config{}, settingErrorf("hook", "%w", err)
	}
	for i := 1; i < len(queues); i++ {
		if queues[i] != queues[i-1]+1 {
			return hook.Config{}, settingErrorf("queue", "one rule can spread packets over neighbouring queues only, such as 0-3, got %s", queues.String())
		}
	}
	if len(queues) == 0 {
		queues = config.Queues{0}
	}
	return hook.Config{Hooks: list, QueueFirst: queues[0], QueueLast: queues[len(queues)-1]}, nil
}
