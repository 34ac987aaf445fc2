package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/config"
	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/handover"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/process/attribution"
	"github.com/verdictd/verdictd/queue"
)

const runText = `run binds one or more netfilter queues and judges every packet that the kernel
puts into them. Which packets that are, you say with --hook: verdictd then
installs its own nf_tables table and removes it at the end. Or keep your own
rules, with -j NFQUEUE --queue-num/--queue-balance or -j QUEUE (queue 0);
verdictd run --hook print-iptables shows some to start from.

Without --policy everything is accepted and recorded. With a policy, packets it
does not accept are dropped; --mode monitor accepts them and records what would
have been dropped.

SIGHUP, or verdictd reload, loads the policy again and reopens the log file; a
changed policy file is loaded at once. The configuration file is read again too:
if it is broken, nothing is loaded; settings that have changed are named: some
take effect at once (verdictd reload --help lists them), the rest with verdictd
upgrade. A policy with an error, or whose own
tests fail, is refused and the old one stays. The same holds for a bundle on a
server, which is asked for again and again; the last good one is kept in a file,
and used if the server cannot be reached when verdictd starts. SIGINT and SIGTERM
stop verdictd: nothing more is queued, it judges what is, and exits. What becomes
of packets then --on-stop says: with closed, the default where --fail is closed,
the rules stay and drop what they would have queued, until verdictd runs again (the
next one takes them over without a gap) or verdictd hook remove takes them out; so
neither a restart nor a start that fails lets anything pass. With open they are
taken out, and everything passes.
SIGUSR2 starts the program anew, which takes over without losing a packet (see
verdictd upgrade).

With --keeper, a worker that dies is started anew at once; the packets it had
read and not answered are judged by the next one. The keeper passes SIGHUP,
SIGUSR2, SIGINT and SIGTERM on. It gives up when nine workers have died in a
row, none of which judged for 10 s: then --fail decides. Under systemd the
descriptor store does the same without a keeper.

A worker that does not come back from its work within a second (--watchdog) is
told of, counted, and replaced in the same way by the keeper or systemd; nothing
passes meanwhile. The keeper leaves one alone that is being traced. Told to stop,
verdictd ends, whatever hangs: the keeper ends a worker that does not answer, and
leaves what --on-stop says.

An idle queue costs nothing, and waking up for the next packet takes time. With
--spin 50us verdictd goes on looking for that long after each packet before it
sleeps: what follows at once, such as the next step of a conversation, is
answered about twice as fast. It costs CPU time, up to the time given for each
packet: a whole CPU per queue at 20,000 packets/s. An idle queue still costs
nothing. Use it where latency counts and CPUs are to spare.

Packets that cannot be judged because the policy fails are dropped with --fail
closed and pass with --fail open; the same holds, with --hook, for packets while no
verdictd runs. Packets that cannot be decoded are dropped, unless --malformed says
accept: it is their sender who chooses that. So are those whose source route or
routing header has addresses left: where they end is not what is judged.

Needs CAP_NET_ADMIN.`

func newRunCommand(e env) *cobra.Command {
	var file string
	var given config.Config
	var keep bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Judge live packets until told to stop",
		Long:  runText,
		Example: "  sudo verdictd run --hook output\n" +
			"  sudo verdictd run --hook output,input --policy policy.rego --log /var/log/verdictd/eve.json\n" +
			"  sudo verdictd run --queue 0-3 --policy policy/ --nflog-group 5\n" +
			"  sudo verdictd run --hook input --policy https://policies.example.net/edge.tar.gz --bundle-key edge.pem --bundle-alg ES256",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := mergeConfig(file, cmd.Flags())
			if err != nil {
				return badInput(err)
			}
			printOnly := c.Hook == "print-iptables"
			if printOnly {
				c.Hook = "output,input,forward"
				if c.Fail == "" { // as hook print-iptables: open only if asked for
					c.Fail = "closed"
				}
			}
			s, err := newSettings(c)
			if err != nil {
				return badInput(inFile(err, file, cmd.Flags()))
			}
			if printOnly {
				if c.Offload != "on" { // then a run with these rules does without marks
					s.ruleset.Mask, s.ruleset.Offload = 0, false
				}
				return hook.PrintIptables(*s.ruleset, e.stdout)
			}
			if keep && !handover.Kept() {
				return runKeeper(e)
			}
			// A log that nobody reads any more is counted as lost. To die of it
			// would leave the rules in, and packets without an answer.
			signal.Ignore(unix.SIGPIPE)
			defer signal.Reset(unix.SIGPIPE)
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			d := newDaemon(e, s)
			d.configured = func() (string, settings, error) {
				s, err := readSettings(file, cmd.Flags())
				return file, s, err
			}
			if d.line, err = newSuccession(); err != nil {
				return err
			}
			if d.line.sweeps {
				return d.sweep()
			}
			return d.run(ctx)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "YAML `FILE` with the settings below; flags override it")
	cmd.Flags().BoolVar(&keep, "keeper", false, "run under a small second process that holds the queues and starts verdictd anew if it dies")
	bindFlags(cmd.Flags(), &given)
	return cmd
}

// bindFlags defines a flag for each setting; its default is what c holds.
func bindFlags(flags *pflag.FlagSet, c *config.Config) {
	flags.Var(&c.Queues, "queue", "queues to bind: 0, 0-3 or 0-3,8 (default 0)")
	flags.Var(&policyFlag{path: &c.Policy}, "policy", "Rego or rules `FILE`, directory, OPA bundle (.tar.gz) or its URL (default: accept and record everything)")
	flags.BoolVar(&c.Strict, "strict", c.Strict, "refuse a policy that verdictd check warns of")
	flags.StringVar(&c.Mode, "mode", c.Mode, "enforce or monitor (default: enforce if there is a policy)")
	flags.StringVar(&c.Fail, "fail", c.Fail, "open or closed (default: closed in enforce mode, open in monitor mode)")
	flags.StringVar(&c.Malformed, "malformed", c.Malformed, "drop or accept: packets that cannot be decoded, which whoever sends them chooses (default drop)")
	flags.StringVar(&c.Hook, "hook", c.Hook, "install rules at these `HOOKS`: output,input,forward; or print-iptables")
	flags.StringVar(&c.OnStop, "on-stop", c.OnStop, "with --hook, what a stop leaves behind: closed (the rules stay and drop what they queued) or open (they are taken out) (default: as --fail)")
	flags.BoolVar(&c.RequireRules, "require-rules", c.RequireRules, "refuse to start if no rule sends packets to the queues, or if there is no policy to enforce")
	flags.BoolVar(&c.Loopback, "loopback", c.Loopback, "with --hook: judge packets over the loopback interface too")
	flags.BoolVar(&c.StrictND, "strict-neighbour", c.StrictND, "with --hook: judge IPv6 neighbour discovery too")
	flags.StringVar(&c.Offload, "offload", c.Offload, "on or off: let flows that are decided for good pass by the queue (default: on with --hook)")
	flags.StringVar(&c.OffloadMask, "offload-mask", c.OffloadMask, fmt.Sprintf("`BITS` of packet and connection marks that are verdictd's, 0 for none (default %#x, or others if those are in use)", uint32(hook.DefaultMask)))
	flags.BoolVar(&c.ResetDenied, "reset-denied", c.ResetDenied, "end TCP connections that a new policy denies by resets instead of dropping their packets")
	flags.StringVar(&c.Confirm, "confirm", c.Confirm, "with --hook: end after this `TIME`, such as 60s, and take the rules out, unless verdictd confirm comes before (default: no confirmation)")
	flags.StringVar(&c.ConfirmPolicy, "confirm-policy", c.ConfirmPolicy, "go back after this `TIME` from each policy that was loaded in the place of another, unless verdictd confirm comes before (default: no confirmation)")
	flags.Var(&c.NFLogGroups, "nflog-group", "NFLOG groups to read into the audit log: 5 or 1-3,5")
	flags.IntVar(&c.Flows, "flows", c.Flows, fmt.Sprintf("flows to remember per queue, %d bytes each (default 65536)", engine.BytesPerFlow))
	flags.IntVar(&c.QueueLength, "queue-length", c.QueueLength, "packets that the kernel queues at most (default 8192)")
	flags.IntVar(&c.CopyRange, "copy-range", c.CopyRange, "bytes of each packet that the kernel copies (default 256)")
	flags.StringVar(&c.Attribution, "attribution", c.Attribution, "auto, proc or off: how the process that owns a socket is found (default auto: recorded in the kernel by BPF where it can be; proc asks /proc afterwards)")
	flags.StringVar(&c.HoldFacts, "hold-facts", c.HoldFacts, "`TIME` to hold a packet for facts of its process that the policy reads and that are being looked up, 0 for not at all (default 250ms)")
	flags.StringVar(&c.HoldHash, "hold-hash", c.HoldHash, "`TIME` to hold a packet for the hash of its program, 0 for not at all (default 2s)")
	flags.BoolVar(&c.AcceptUnhashed, "accept-unhashed", c.AcceptUnhashed, "let the policy accept without a hash that it reads and that is not known yet, instead of dropping (rule unhashed)")
	flags.StringVar(&c.HashSize, "hash-size", c.HashSize, "`SIZE` of the largest program that is hashed (default 256MiB)")
	flags.StringVar(&c.HashTime, "hash-time", c.HashTime, "`TIME` that reading a program to hash it may take (default 30s)")
	flags.StringVar(&c.RecordPin, "record-pin", c.RecordPin, "`PATH` in a BPF file system where rules of your own find the program that records who sends (see hook print-iptables --record-pin)")
	flags.StringVar(&c.Spin, "spin", c.Spin, "`TIME` to look for more packets before sleeping, such as 50us: answers sooner, takes CPU time (default 0: sleep at once)")
	flags.StringVar(&c.Engine, "engine", c.Engine, "compiled or topdown: what evaluates the policy (default compiled; topdown is OPA's own)")
	flags.StringVar(&c.PolicyBudget, "policy-budget", c.PolicyBudget, "`TIME` that one decision may take (default 50ms)")
	bindBundleFlags(flags, &c.Bundle)
	bindPollFlags(flags, &c.Bundle)
	flags.StringVar(&c.Control, "control", c.Control, "`SOCKET` for verdictd status and reload, or none (default /run/verdictd/verdictd.sock)")
	flags.StringVar(&c.Metrics, "metrics", c.Metrics, "serve metrics for Prometheus at this `ADDRESS`, such as 127.0.0.1:9477 (default: nowhere)")
	flags.StringVar(&c.Watchdog, "watchdog", c.Watchdog, "`TIME` in which verdictd has to come back from its work; else that is told, and a supervisor replaces it; 0 for never (default 1s, or twice --policy-budget)")
	flags.StringVar(&c.StatsInterval, "stats-interval", c.StatsInterval, "`TIME` between two stats records in the audit log, 0 for none (default 60s)")
	flags.StringVar(&c.Log.File, "log", c.Log.File, "audit log `FILE`, - for standard output (default -)")
	flags.BoolVar(&c.Log.Pretty, "pretty", c.Log.Pretty, "print lines for people on standard output; a log file stays JSON")
	flags.Var(&c.Log.MaxSize, "log-max-size", "rotate the log file at this size, such as 100MiB (default never)")
	flags.IntVar(&c.Log.Keep, "log-keep", c.Log.Keep, "rotated log files to keep (default 5)")
}

// mergeConfig reads the configuration file, if there is one, and puts the
// flags that were given over it.
func mergeConfig(file string, given *pflag.FlagSet) (config.Config, error) {
	var c config.Config
	if file != "" {
		var err error
		if c, err = config.Load(file); err != nil {
			return c, err
		}
	}
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	bindFlags(flags, &c)
	var err error
	given.Visit(func(f *pflag.Flag) {
		switch {
		case flags.Lookup(f.Name) == nil || err != nil:
		case f.Value.Type() == "int" && f.Value.String() == "0":
			err = settingErrorf(f.Name, "0 is no value (leave it out for the default)")
		default:
			err = flags.Set(f.Name, f.Value.String())
		}
	})
	return c, err
}

// inFile gives the errors of settings that came from the configuration file
// its name and the key they have there.
func inFile(err error, file string, given *pflag.FlagSet) error {
	e, ok := errors.AsType[*settingError](err)
	if !ok || file == "" || given.Changed(e.name) {
		return err
	}
	return fmt.Errorf("%s: %s: %w", file, strings.NewReplacer("log-", "log.", "bundle-", "bundle.").Replace(e.name), e.err)
}

// settings are a checked configuration.
type settings struct {
	config.Config
	mode     engine.Mode
	failOpen bool

	passMalformed bool
	budget        time.Duration

	spin      time.Duration // of queue.Config
	evaluator policy.Engine
	bundle    policy.Bundle
	ruleset   *hook.Config // nil: the user keeps the rules
	mask      uint32       // the bits of marks that are verdictd's; 0: none, no rule knows them
	offloads  bool

	stopClosed bool // a stop leaves the rules behind, to drop what they queued

	attribution attribution.Mode
	hashSize    int64         // of attribution.Config
	hashTime    time.Duration // the same
	holdFacts   time.Duration // of engine.Config: negative for not at all
	holdHash    time.Duration

	netns int  // file descriptor of the network namespace, 0: our own
	quiet bool // the daemon's own messages go nowhere

	watchLimit time.Duration // 0: nobody looks whether queues are answered

	statsInterval time.Duration // 0: no stats records but the last

	confirm       time.Duration // 0: the start need not be confirmed
	confirmPolicy time.Duration // 0: policies need not be confirmed
}

func newSettings(c config.Config) (settings, error) {
	s := settings{Config: c}
	if len(s.Queues) == 0 {
		s.Queues = config.Queues{0}
	}
	if s.Mode == "" {
		s.Mode = engine.Monitor.String()
		if s.Policy != "" {
			s.Mode = engine.Enforce.String()
		}
	}
	var err error
	if s.mode, err = parseMode(s.Mode); err != nil {
		return s, err
	}
	if s.failOpen, err = parseFail(s.Fail, s.mode); err != nil {
		return s, err
	}
	if err := s.checkOnStop(); err != nil {
		return s, err
	}
	if s.passMalformed, err = parseMalformed(s.Malformed); err != nil {
		return s, err
	}
	if s.Engine != "" {
		if s.evaluator, err = policy.ParseEngine(s.Engine); err != nil {
			return s, settingErrorf("engine", "want compiled or topdown, got %q", s.Engine)
		}
	}
	if s.attribution, err = attribution.ParseMode(s.Attribution); err != nil {
		return s, settingErrorf("attribution", "%w", err)
	}
	if s.PolicyBudget != "" {
		if s.budget, err = time.ParseDuration(s.PolicyBudget); err != nil || s.budget <= 0 {
			return s, settingErrorf("policy-budget", "want a time such as 10ms, got %q", s.PolicyBudget)
		}
	}
	if s.bundle, err = newBundle(&s.Bundle, s.Policy); err != nil {
		return s, err
	}
	if onServer(s.Policy) && s.Bundle.LastGood != "none" {
		s.bundle.Keep = cmp.Or(s.Bundle.LastGood, defaultLastGood)
	}
	for _, check := range []func() error{s.checkObserver, s.checkWatchdog, s.checkHold, s.checkSpin, s.checkRanges, s.checkConfirm} {
		if err := check(); err != nil {
			return s, err
		}
	}
	if s.Hook == "" {
		const needsHook = "goes with --hook only (it changes the rules that --hook installs)"
		if s.Loopback {
			return s, settingErrorf("loopback", needsHook)
		}
		if s.StrictND {
			return s, settingErrorf("strict-neighbour", needsHook)
		}
		return s, s.checkOffload()
	}
	r, err := s.rules()
	if err != nil {
		return s, err
	}
	s.ruleset = &r
	return s, s.checkOffload()
}

// rules describes the ruleset of --hook.
func (s *settings) rules() (hook.Config, error) {
	r, err := rulesetOf(s.Hook, s.Queues)
	r.Bypass, r.Loopback, r.StrictNeighbour = s.failOpen, s.Loopback, s.StrictND
	return r, err
}

// checkObserver checks what says how the daemon tells about itself.
func (s *settings) checkObserver() (err error) {
	s.statsInterval = time.Minute
	if s.StatsInterval != "" {
		if s.statsInterval, err = time.ParseDuration(s.StatsInterval); err != nil || s.statsInterval < 0 {
			return settingErrorf("stats-interval", "want a time such as 60s, or 0 for none, got %q", s.StatsInterval)
		}
	}
	if s.Metrics != "" {
		if _, _, err := net.SplitHostPort(s.Metrics); err != nil {
			return settingErrorf("metrics", "want an address and port such as 127.0.0.1:9477, got %q", s.Metrics)
		}
	}
	return nil
}

// checkSpin reads how long queues are looked at before their goroutines sleep.
func (s *settings) checkSpin() (err error) {
	if s.Spin == "" {
		return nil
	}
	if s.spin, err = time.ParseDuration(s.Spin); err != nil || s.spin < 0 || s.spin > queue.MaxSpin {
		return settingErrorf("spin", "want a time up to %v such as 50us, or 0 for none, got %q", queue.MaxSpin, s.Spin)
	}
	return nil
}

func (s *settings) checkRanges() error {
	c := &s.Config
	if c.Log.File == "" {
		c.Log.File = "-"
	}
	if c.Log.Keep == 0 {
		c.Log.Keep = 5
	}
	if c.Flows == 0 {
		c.Flows = 1 << 16
	}
	if c.Log.MaxSize != 0 && c.Log.MaxSize < minLogSize {
		return settingErrorf("log-max-size", "want 64KiB or more, or 0 for never, got %s bytes", c.Log.MaxSize.String())
	}
	for _, n := range []struct {
		name            string
		value, min, max int
	}{
		{"flows", c.Flows, minFlows, maxFlows},
		{"queue-length", c.QueueLength, 1, 65536},
		{"copy-range", c.CopyRange, 128, 65531},
		{"log-keep", c.Log.Keep, 1, 1000},
	} {
		if err := checkRange(n.name, n.value, n.min, n.max); err != nil {
			return err
		}
	}
	return nil
}

// minLogSize is the smallest size of a log file, so that one holds many records.
const minLogSize = 64 << 10

// Bounds of --flows.
const (
	minFlows = 64
	maxFlows = 1 << 26
)

// checkRange checks a number; 0 stands for the default.
func checkRange(name string, value, low, high int) error {
	if value != 0 && (value < low || value > high) {
		return settingErrorf(name, "want %d to %d, got %d", low, high, value)
	}
	return nil
}

// newDaemon returns a daemon that is ready to run.
func newDaemon(e env, s settings) *daemon {
	handler := slog.Handler(slog.NewTextHandler(e.stderr, nil))
	if s.quiet {
		handler = slog.DiscardHandler
	}
	d := &daemon{settings: s, env: e, log: slog.New(handler), shadow: policy.NewShadow(0), line: &succession{}}
	d.live.Store(&s)
	return d
}
