package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/verdictd/verdictd/config"
	"github.com/verdictd/verdictd/policy"
)

// defaultLastGood is where the last good bundle of a server is kept.
const defaultLastGood = "/var/lib/verdictd/bundle.tar.gz"

// bindBundleFlags defines the flags by which a bundle is verified and fetched
// once.
func bindBundleFlags(flags *pflag.FlagSet, c *config.Bundle) {
	flags.StringVar(&c.Key, "bundle-key", c.Key, "public key that verifies the bundle: `FILE`, or the PEM text itself; then unsigned policies are refused")
	flags.StringVar(&c.KeyID, "bundle-key-id", c.KeyID, "key `ID` that the bundle's signature must name (default: any)")
	flags.StringVar(&c.Alg, "bundle-alg", c.Alg, "algorithm of the signature: RS256, ES256, HS256 (key is a file with the secret), ... (default: RS256)")
	flags.StringVar(&c.Scope, "bundle-scope", c.Scope, "scope that the signature must name (default: none)")
	flags.StringVar(&c.CA, "bundle-ca", c.CA, "certificates, in PEM, that alone the bundle's server is verified by: `FILE` (default: those of the system)")
	flags.StringVar(&c.Cert, "bundle-cert", c.Cert, "client certificate, in PEM, to show to the bundle's server: `FILE`")
	flags.StringVar(&c.CertKey, "bundle-cert-key", c.CertKey, "private key of --bundle-cert, in PEM: `FILE`")
	flags.StringVar(&c.TokenFile, "bundle-token-file", c.TokenFile, "bearer token to send to the bundle's server: `FILE`")
	flags.StringVar(&c.Timeout, "bundle-timeout", c.Timeout, "`TIME` that the bundle's server may take for an answer (default 1m)")
}

// bindPollFlags defines the flags by which a bundle is fetched again and again.
func bindPollFlags(flags *pflag.FlagSet, c *config.Bundle) {
	flags.StringVar(&c.MinInterval, "bundle-min-interval", c.MinInterval, "shortest `TIME` until the bundle's server is asked again (default 1m)")
	flags.StringVar(&c.MaxInterval, "bundle-max-interval", c.MaxInterval, "longest `TIME` until the bundle's server is asked again (default 2m)")
	flags.StringVar(&c.LastGood, "bundle-last-good", c.LastGood, "keep the last good bundle of the server in this `FILE`, for a start without the server; none keeps nothing (default "+defaultLastGood+")")
}

// newBundle returns the settings of bundles for the policy at path. It keeps
// no bundle: that is for run.
func newBundle(c *config.Bundle, path string) (policy.Bundle, error) {
	b := policy.Bundle{
		Key:    policy.BundleKey{Key: c.Key, ID: c.KeyID, Algorithm: c.Alg, Scope: c.Scope},
		Server: policy.BundleServer{CAFile: c.CA, CertFile: c.Cert, KeyFile: c.CertKey, TokenFile: c.TokenFile},
	}
	for _, s := range []struct{ name, value string }{
		{"bundle-ca", c.CA}, {"bundle-cert", c.Cert}, {"bundle-cert-key", c.CertKey}, {"bundle-token-file", c.TokenFile},
	} {
		if s.value != "" && !onServer(path) {
			return b, settingErrorf(s.name, "goes with a policy on a server only (--policy https://...)")
		}
	}
	for _, d := range []struct {
		name, text string
		to         *time.Duration
	}{
		{"bundle-timeout", c.Timeout, &b.Server.Timeout},
		{"bundle-min-interval", c.MinInterval, &b.Server.MinInterval},
		{"bundle-max-interval", c.MaxInterval, &b.Server.MaxInterval},
	} {
		if d.text == "" {
			continue
		}
		var err error
		if *d.to, err = time.ParseDuration(d.text); err != nil || *d.to < time.Second {
			return b, settingErrorf(d.name, "want a time of 1s or more, such as 30s, got %q", d.text)
		}
	}
	low, high := cmp.Or(b.Server.MinInterval, policy.DefaultMinInterval), b.Server.MaxInterval
	if high != 0 && high < low {
		return b, settingErrorf("bundle-max-interval", "%v is less than bundle-min-interval, %v", high, low)
	}
	return b, nil
}

// onServer returns whether the policy is one on a server.
func onServer(path string) bool {
	return strings.HasPrefix(path, "https://") || strings.HasPrefix(path, "http://")
}

// policyError marks what a policy could not be loaded for as the fault of what
// was given, unless its server is at fault.
func policyError(err error) error {
	if _, server := errors.AsType[*policy.ServerError](err); server {
		return err
	}
	return badInput(err)
}

// describe returns what the audit log says of a policy besides its source.
func describe(p *policy.Policy) string {
	text := "sha256 " + p.Hash()
	if r := p.Origin().Revision; r != "" {
		text += fmt.Sprintf(", revision %q", r)
	}
	return text
}

// tellOrigin says what is out of the ordinary about where the policy is from.
func (d *daemon) tellOrigin(p *policy.Policy) {
	o := p.Origin()
	switch {
	case o.Kept:
		d.log.Warn("policy of the server not loaded, the last good bundle is in use", "reason", o.Problem, "file", d.bundle.Keep, "revision", o.Revision)
		d.audit.Admin("policy_last_good", fmt.Sprintf("%s from %s: %v", describe(p), d.bundle.Keep, o.Problem))
	case o.Problem != nil:
		d.log.Warn("a start without the server would not have this policy", "reason", o.Problem)
		d.audit.Admin("bundle_not_kept", o.Problem.Error())
	}
}

// bundleServer says that the server of the policy cannot be asked, or can again.
func (d *daemon) bundleServer(err error) {
	if err == nil {
		d.log.Info("bundle server answers again")
		d.audit.Admin("bundle_server", "answers again")
		return
	}
	d.log.Warn("bundle server does not answer, the policy stays", "error", err)
	d.audit.Admin("bundle_server", err.Error())
}
