package main

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/verdictd/verdictd/policy"
)

func newConfigCommand(e env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check a configuration file",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "check FILE",
		Short: "Say whether verdictd run could start with this configuration file",
		Long: `check reads a configuration file as verdictd run --config does: keys, values and
what goes together. It also loads the policy that the file names and runs its
tests, unless that is on a server. Nothing is opened, installed or changed, and no
rights are needed but to read the files.

Exit codes: 0 verdictd run would take it; 2 it would not.`,
		Example: "  verdictd config check /etc/verdictd/verdictd.yaml && sudo systemctl restart verdictd",
		Args:    oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := readSettings(args[0], cmd.Flags())
			if err != nil {
				return badInput(err)
			}
			source := (&daemon{settings: s}).source()
			told := "policy not asked for: it is on a server"
			if !onServer(s.Policy) {
				p, err := policy.Load(cmd.Context(), source)
				if err != nil {
					return policyError(err)
				}
				told = fmt.Sprintf("policy %s, sha256 %.12s", source, p.Hash())
			}
			_, err = fmt.Fprintf(e.stdout, "%s: ok, mode %s, fail %s, %s\n", args[0], s.mode, failText(s.failOpen), told)
			return err
		},
	})
	return cmd
}

// readSettings reads the configuration file, if there is one, and checks it
// together with the flags that were given.
func readSettings(file string, given *pflag.FlagSet) (settings, error) {
	c, err := mergeConfig(file, given)
	if err != nil {
		return settings{}, err
	}
	s, err := newSettings(c)
	return s, inFile(err, file, given)
}

// configResult says what a reload found in the configuration.
type configResult struct {
	File    string   `json:"file,omitempty"`    // empty: there is none
	Error   string   `json:"error,omitempty"`   // why it was refused: then nothing was loaded
	Applied []string `json:"applied,omitempty"` // settings that are in effect now, by name
	Changed []string `json:"changed,omitempty"` // settings that another process would have, by name
}

// effects has for each setting that a reload brings into effect what makes the
// settings in use those of s. All others, which have nil, hold as long as the process
// does: they size tables, name sockets and rules, or say what flows remember.
func effects() map[string]func(use, s *settings) {
	all := map[string]func(use, s *settings){
		"strict":         func(use, s *settings) { use.Strict = s.Strict },
		"stats-interval": func(use, s *settings) { use.StatsInterval, use.statsInterval = s.StatsInterval, s.statsInterval },
		"confirm-policy": func(use, s *settings) { use.ConfirmPolicy, use.confirmPolicy = s.ConfirmPolicy, s.confirmPolicy },
		"log.max-size":   func(use, s *settings) { use.Log.MaxSize = s.Log.MaxSize },
		"log.keep":       func(use, s *settings) { use.Log.Keep = s.Log.Keep },
	}
	for _, key := range []string{
		"queue", "policy", "mode", "fail", "malformed", "hook", "on-stop", "require-rules", "loopback",
		"strict-neighbour", "offload", "offload-mask", "reset-denied", "confirm", "nflog-group", "flows",
		"queue-length", "copy-range", "attribution", "record-pin", "spin", "engine", "policy-budget",
		"control", "metrics", "watchdog", "hold-facts", "hold-hash", "accept-unhashed", "hash-size", "hash-time",
		"bundle.key", "bundle.key-id", "bundle.alg", "bundle.scope",
		"bundle.ca", "bundle.cert", "bundle.cert-key", "bundle.token-file", "bundle.min-interval",
		"bundle.max-interval", "bundle.timeout", "bundle.last-good", "log.file", "log.pretty",
	} {
		all[key] = nil
	}
	return all
}

// atReload lists the settings that a reload brings into effect.
func atReload() string {
	var keys []string
	for key, apply := range effects() {
		if apply != nil {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return strings.Join(keys, ", ")
}

// reread reads the configuration again, compares it with what is in use, and brings
// into effect what can be.
func (d *daemon) reread() configResult {
	if d.configured == nil {
		return configResult{}
	}
	file, s, err := d.configured()
	r := configResult{File: file}
	if err != nil {
		r.Error = err.Error()
		d.log.Error("configuration refused, nothing is loaded", "error", err)
		d.audit.Admin("config_refused", r.Error)
		return r
	}
	d.rereading.Lock()
	defer d.rereading.Unlock()
	use, apply := *d.live.Load(), effects()
	for _, key := range differences(reflect.ValueOf(use.Config), reflect.ValueOf(s.Config), "") {
		if apply[key] == nil {
			r.Changed = append(r.Changed, key)
			continue
		}
		apply[key](&use, &s)
		r.Applied = append(r.Applied, key)
	}
	if text := strings.Join(r.Applied, ", "); text != "" {
		d.live.Store(&use)
		d.audit.Resize(int64(use.Log.MaxSize), use.Log.Keep)
		d.log.Info("settings have changed", "settings", text)
		d.audit.Admin("config_changed", "in effect now: "+text)
	}
	if text := strings.Join(r.Changed, ", "); text != "" {
		d.log.Warn("settings have changed that take effect in the next process only", "settings", text, "remedy", "verdictd upgrade")
		d.audit.Admin("config_changed", "in effect after verdictd upgrade: "+text)
	}
	return r
}

// differences returns the keys of settings in which a and b differ.
func differences(a, b reflect.Value, prefix string) (keys []string) {
	for i := range a.NumField() {
		key := prefix + a.Type().Field(i).Tag.Get("yaml")
		switch {
		case a.Field(i).Kind() == reflect.Struct:
			keys = append(keys, differences(a.Field(i), b.Field(i), key+".")...)
		case !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()):
			keys = append(keys, key)
		}
	}
	return keys
}

// text says it to who asked for the reload; empty: there is nothing to say.
func (r *configResult) text() string {
	if r.File == "" {
		return ""
	}
	var parts []string
	if len(r.Applied) > 0 {
		parts = append(parts, "changed, and in effect now: "+strings.Join(r.Applied, ", "))
	}
	if len(r.Changed) > 0 {
		parts = append(parts, "changed, and in effect after verdictd upgrade: "+strings.Join(r.Changed, ", "))
	}
	if len(parts) == 0 {
		parts = []string{"nothing has changed"}
	}
	return fmt.Sprintf("configuration %s: %s\n", r.File, strings.Join(parts, "; "))
}

// oneFile refuses anything but one argument.
func oneFile(cmd *cobra.Command, args []string) error {
	if len(args) == 1 {
		return nil
	}
	return usageError(cmd, fmt.Errorf("want one configuration file, got %d", len(args)))
}
