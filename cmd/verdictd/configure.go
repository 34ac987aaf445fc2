package main

import (
	"fmt"
	"reflect"
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
	Changed []string `json:"changed,omitempty"` // settings that another process would have, by name
}

// reread reads the configuration again and compares it with what is in use.
// Settings hold as long as the process does: a successor takes new ones.
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
	if r.Changed = differences(reflect.ValueOf(d.Config), reflect.ValueOf(s.Config), ""); len(r.Changed) > 0 {
		text := strings.Join(r.Changed, ", ")
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
	switch {
	case r.File == "":
		return ""
	case len(r.Changed) == 0:
		return "configuration " + r.File + ": nothing has changed\n"
	}
	return fmt.Sprintf("configuration %s: changed, and in effect after verdictd upgrade: %s\n", r.File, strings.Join(r.Changed, ", "))
}

// oneFile refuses anything but one argument.
func oneFile(cmd *cobra.Command, args []string) error {
	if len(args) == 1 {
		return nil
	}
	return usageError(cmd, fmt.Errorf("want one configuration file, got %d", len(args)))
}
